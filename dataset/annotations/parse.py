"""Annotation files into plain values: sizes are checked first, one message says what is wrong."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath
from typing import Any
from xml.etree.ElementTree import Element, ParseError

import numpy as np

from ...config.errors import DataError
from ...config.limits import ANNOTATION_BYTES, ANNOTATION_SHAPES, PIXELS
from ...util.logger import visible
from .model import Colour

HOW_TO_GET_XML = "needs defusedxml: pip install defusedxml"


def read_bytes(path: Path) -> bytes:
    """The content of an annotation file.

    Raises:
        DataError: it is missing, unreadable or absurdly large.
    """
    try:
        size = path.stat().st_size
        if size > ANNOTATION_BYTES:
            raise DataError(
                f"{path}: has {size} bytes, more than the {ANNOTATION_BYTES} that an annotation "
                "file may have; split it"
            )
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def start_of(path: Path, count: int = 2**16) -> bytes:
    """The first bytes of a file, without a byte order mark and blanks; DataError as above."""
    try:
        with open(path, "rb") as file:
            return file.read(count).removeprefix(b"\xef\xbb\xbf").lstrip()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def read_text(path: Path) -> str:
    """The same as text; DataError where it is not UTF-8."""
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not text in UTF-8 ({error}); save it as UTF-8") from None


def parse_json(text: str, path: Path) -> Any:
    """What a JSON text holds; `path` is its name in messages."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, line {error.lineno}: is not JSON, or ends early ({error.msg}); export or "
            "copy it again"
        ) from None
    except (RecursionError, ValueError) as error:  # brackets in brackets; numbers without end
        raise DataError(f"{path}: cannot be read as JSON ({error}); export it again") from None


def read_xml(path: Path) -> Element:
    """The root of an XML file; entities and external parts are refused.

    Raises:
        DataError: it is damaged or refused, or defusedxml is not installed.
    """
    try:
        from defusedxml import DefusedXmlException  # the extra `annotations`
        from defusedxml.ElementTree import fromstring
    except ImportError:
        raise DataError(f"{path}: reading XML {HOW_TO_GET_XML}") from None
    try:
        return fromstring(read_bytes(path), forbid_dtd=True)
    except DefusedXmlException as error:
        reason = type(error).__name__
        raise DataError(
            f"{path}: has a document type or entities, which annotations never need ({reason}); "
            "remove them"
        ) from None
    except (ParseError, ValueError, LookupError) as error:  # LookupError: an unknown encoding
        raise DataError(
            f"{path}: is not XML, or ends early ({error}); export or copy it again"
        ) from None


@contextmanager
def reading(path: Path, item: str) -> Iterator[None]:
    """What is wrong with an item of a file, as one DataError that names both."""
    place = f"{path}, {visible(item)}"
    try:
        yield
    except KeyError as error:
        raise DataError(f"{place}: lacks {error}; export it again") from None
    except (TypeError, AttributeError, IndexError) as error:
        raise DataError(
            f"{place}: is not built as this format is ({error}); export it again"
        ) from None
    except (ValueError, OverflowError) as error:
        raise DataError(f"{place}: {visible(str(error))}") from None


def mapping(value: object, what: str) -> Mapping[str, Any]:
    """`value`, which must be a JSON object."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{what} must be an object {{...}}, not {type(value).__name__}")
    return value


def listing(value: object, what: str) -> Sequence[Any]:
    """`value`, which must be a JSON list; None is an empty one."""
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        raise ValueError(f"{what} must be a list [...], not {type(value).__name__}")
    return value


def text(value: object, what: str) -> str:
    """`value`, which must be text that is not empty."""
    if not isinstance(value, str) or not value:
        raise ValueError(f"{what} must be text, not {value!r:.60}")
    return value


def file_name(value: object) -> str:
    """The name of a file, as text that a list and a terminal can show."""
    found = text(value, "the name of the file")
    if visible(found) != found:
        raise ValueError(f"the file's name {found!a:.60} has control characters; rename it")
    return found


def number(value: object, what: str) -> float:
    """A finite number, also where it is written as text.

    Raises:
        ValueError: anything else.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{what} must be a number, not {value!r:.60}")
    found = float(value)
    if not np.isfinite(found):
        raise ValueError(f"{what} must be a finite number, not {value!r:.60}")
    return found


def points(values: object, *, least: int = 3) -> np.ndarray:
    """(N, 2) x, y of pairs, or of a flat list x, y, x, y, ...

    Raises:
        ValueError: other shapes, values that are not finite numbers, fewer points than `least`.
    """
    try:
        found = np.array(values, np.float64)
    except (ValueError, TypeError):
        raise ValueError("its points are not pairs of numbers; export it again") from None
    if found.ndim == 1 and len(found) % 2 == 0:
        found = found.reshape(-1, 2)
    if found.ndim != 2 or found.shape[1] != 2:
        raise ValueError("its points are not pairs of numbers; export it again")
    if not np.isfinite(found).all():
        raise ValueError("one of its points is not finite; draw the shape again")
    if len(found) < least:
        raise ValueError(f"has {len(found)} point(s) and needs {least}; draw or delete it")
    return np.clip(found, -PIXELS, PIXELS)


def size_of(height: object, width: object) -> tuple[int, int]:
    """(height, width) of a picture in pixels.

    Raises:
        ValueError: not two whole numbers, or a picture larger than any may be.
    """
    found = number(height, "the height"), number(width, "the width")
    if found != (int(found[0]), int(found[1])) or min(found) < 1:
        raise ValueError(f"claims {width}x{height} pixels (width x height); correct its size")
    if found[0] * found[1] > PIXELS:
        raise ValueError(
            f"claims {width}x{height} pixels (width x height); a picture has at most {PIXELS}"
        )
    return int(found[0]), int(found[1])


def color(value: object) -> Colour | None:
    """A colour as #rrggbb or three numbers; None for anything else, as colours are only shown."""
    if isinstance(value, str) and re.fullmatch("#[0-9a-fA-F]{6}", value):
        value = list(bytes.fromhex(value[1:]))
    if not isinstance(value, list) or len(value) != 3:
        return None
    if not all(isinstance(v, int) and 0 <= v <= 255 for v in value):
        return None
    return value[0], value[1], value[2]


def check_count(count: int, path: Path) -> None:
    """Raises DataError for more shapes of one picture than anybody draws."""
    if count > ANNOTATION_SHAPES:
        raise DataError(
            f"{path}: has {count} shapes on one picture; at most {ANNOTATION_SHAPES} are drawn"
        )


def plain_name(name: str) -> str:
    """A path as annotations have it, from Windows or not, with / and without .. or a drive."""
    parts = PureWindowsPath(name).parts if "\\" in name else name.split("/")
    return "/".join(
        part
        for part in parts
        if part.strip("\\/") not in ("", ".", "..") and part[-1:] not in (":", "\\")
    )
