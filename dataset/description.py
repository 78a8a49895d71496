"""The datasets described in catalog/*.yaml, and the plain text files of names and colours.

>>> describe("camvid").names[0]
'Sky'
>>> raw_to_train_table(describe("ade20k"))[[0, 1, 150, 151]].tolist()
[255, 0, 149, -1]
"""

import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..config.errors import ConfigError, DataError

CATALOG = Path(__file__).resolve().parent / "catalog"
FORBIDDEN = -1  # in a lookup table: a raw value that must not occur

Byte = Annotated[int, Field(ge=0, le=255)]
Colour = tuple[Byte, Byte, Byte]


class _Described(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ShiftedLabels(_Described):
    """Raw value v is train id v + offset; values that fall before class 0 are unlabelled."""

    kind: Literal["shift"]
    offset: int = Field(lt=0)


class TabulatedLabels(_Described):
    """Raw ids are the closed range `known`, and the `unlabelled` ones; those outside the map
    become `others`."""

    kind: Literal["table"]
    known: tuple[int, int]
    unlabelled: tuple[int, ...] = ()
    others: Byte = 255
    map: dict[int, Byte]

    @model_validator(mode="after")
    def _map_is_known(self) -> "TabulatedLabels":
        unknown = [raw for raw in self.map if not self.known[0] <= raw <= self.known[1]]
        if unknown:
            raise ValueError(f"raw_labels.map names ids {unknown} outside `known` {self.known}")
        return self


class Evidence(_Described):
    """How to recognise raw labels from converted ones: file names first, then values seen."""

    raw_suffixes: tuple[str, ...] = ()
    train_suffixes: tuple[str, ...] = ()
    raw_values: tuple[Byte, ...] = ()
    train_values: tuple[Byte, ...] = ()
    otherwise: Literal["raw", "train"]


class Split(_Described):
    """Where a split's files lie: patterns that layout.py explains. The test split has no labels."""

    images: str
    labels: str | None = None
    ids: str | None = None


class Submission(_Described):
    """What a benchmark's server accepts: see results.py."""

    values: Literal["train", "raw"]
    file: str
    archive: Literal["zip", "tgz"] = "zip"
    palette: bool = False
    size: tuple[int, int] | None = None


class DatasetDescription(_Described):
    """Everything the tools know about a dataset: one file of catalog/."""

    name: str
    homepage: str
    licence: str
    classes: int = Field(ge=1, le=255)
    names: tuple[str, ...]
    colors: tuple[Colour, ...]
    ignore: Byte = 255
    splits: dict[str, int]
    folder: str | None = None
    layout: dict[str, Split] = {}
    submission: Submission | None = None
    raw_labels: Annotated[ShiftedLabels | TabulatedLabels, Field(discriminator="kind")] | None = (
        None
    )
    evidence: Evidence | None = None

    @model_validator(mode="after")
    def _parts_agree(self) -> "DatasetDescription":
        for key, entries in (("names", self.names), ("colors", self.colors)):
            if len(entries) != self.classes:
                raise ValueError(f"{len(entries)} {key} for {self.classes} classes")
        if self.ignore < self.classes:
            raise ValueError(f"ignore: {self.ignore} is one of the {self.classes} classes")
        if (self.raw_labels is None) != (self.evidence is None):
            raise ValueError("raw_labels and evidence belong together: give both or neither")
        if isinstance(self.raw_labels, TabulatedLabels):
            reached = {*self.raw_labels.map.values(), self.raw_labels.others}
            wrong = reached - set(range(self.classes)) - {self.ignore}
            if wrong:
                raise ValueError(f"raw_labels.map leads to {sorted(wrong)}, which are not classes")
        return self


def available() -> list[str]:
    """Names that `describe` knows."""
    return sorted(path.stem for path in CATALOG.glob("*.yaml"))


def describe(name: str) -> DatasetDescription:
    """The description of a dataset by its name; ConfigError with the nearest names otherwise."""
    known = available()
    if name not in known:
        near = get_close_matches(name.lower(), known) or known
        raise ConfigError(f"unknown dataset {name!r}: did you mean {' or '.join(near)}?")
    return _read_description(CATALOG / f"{name}.yaml")


@cache  # a tenth of a second for each file, and commands ask for all of them
def _read_description(path: Path) -> DatasetDescription:
    """The description in a file of the catalog; ConfigError where it is wrong."""
    try:
        description = DatasetDescription(**yaml.safe_load(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{path}: {where + ': ' if where else ''}{first['msg']}") from error
    except (yaml.YAMLError, TypeError) as error:
        raise ConfigError(f"{path}: not a YAML mapping: {error}") from error
    if description.name != path.stem:
        raise ConfigError(f"{path}: name is {description.name!r}, but the file says {path.stem!r}")
    return description


def raw_to_train_table(description: DatasetDescription) -> np.ndarray:
    """Lookup (256 or more,) int16 from the official value to train id, ignore, or FORBIDDEN."""
    raw = description.raw_labels
    largest = max(raw.known[1], *raw.unlabelled, 0) if isinstance(raw, TabulatedLabels) else 0
    table = np.full(max(256, largest + 1), FORBIDDEN, np.int16)
    if raw is None:  # official files hold train ids already
        table[: description.classes] = np.arange(description.classes)
        table[description.ignore] = description.ignore
    elif raw.kind == "shift":
        table[: -raw.offset] = description.ignore
        last = min(description.classes - raw.offset, 256)
        table[-raw.offset : last] = np.arange(last + raw.offset)
    else:
        table[max(raw.known[0], 0) : raw.known[1] + 1] = raw.others
        table[list(raw.unlabelled)] = description.ignore
        for value, train_id in raw.map.items():
            if value >= 0:  # Cityscapes' -1 does not occur in an 8-bit file
                table[value] = train_id
    return table


def read_names(path: Path) -> list[str]:
    """Class names, one per line in index order; see `listed_names`."""
    names = listed_names([line for _, line in _filled_lines(Path(path))], path)
    if not names:
        raise DataError(f"{path}: no class names; expected one per line")
    for name in names:  # they reach terminals, where an escape sequence is a command
        if not name.isprintable():
            raise DataError(
                f"{path}: {name!r} is not a name: it has characters that cannot be shown"
            )
    return names


def listed_names(lines: Sequence[str], origin: Path) -> list[str]:
    """The names of stripped lines, without blank lines, comments (`# ...`) and numbers (`0: road`).

    Raises:
        DataError: every line has a number, and these are not 0, 1, 2, ...
    """
    names = [line for line in lines if line and not re.match(r"#(\s|$)", line)]
    numbered = [re.fullmatch(r"(\d{1,9})(\s*[:=,;]\s*|\s+)(\S.*)", name) for name in names]
    found = [match for match in numbered if match is not None]
    if not names or len(found) < len(names):
        return names
    numbers = [int(match[1]) for match in found]
    if numbers != list(range(len(names))):
        if any(not match[2].strip() for match in found):
            return names  # such as "1 euro", "2 euro"
        raise DataError(
            f"{origin}: its names have the numbers {', '.join(map(str, numbers[:8]))}; expected 0, "
            "1, 2, ... in this order, since a name belongs to the class of its line"
        )
    return [match[3] for match in found]


def read_colors(path: Path) -> list[Colour]:
    """Class colours, one "R G B" per line in index order. Blank lines and CRLF are tolerated."""
    colors = [
        _parse_colour(line, f"{path}, line {number}") for number, line in _filled_lines(Path(path))
    ]
    if not colors:
        raise DataError(f'{path}: no colours; expected one "R G B" per line')
    return colors


def _parse_colour(line: str, where: str) -> Colour:
    parts = line.split()
    if len(parts) != 3 or not all(
        part.isascii() and part.isdigit() and len(part) <= 3 for part in parts
    ):
        raise DataError(f'{where}: {line!r} is not a colour; expected "R G B", as in "128 64 0"')
    red, green, blue = (int(part) for part in parts)
    if max(red, green, blue) > 255:
        raise DataError(f"{where}: {line!r} holds a value above 255")
    return red, green, blue


def _filled_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers (from 1) and stripped texts of the lines that are not blank."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a UTF-8 text file") from error
    return ((number, line.strip()) for number, line in enumerate(lines, 1) if line.strip())


def default_colors(count: int) -> list[Colour]:
    """`count` distinct colours for datasets that bring none: PASCAL VOC's palette from entry 1,
    which spreads the bits of the index over the high bits of red, green and blue."""
    if not 0 <= count <= 255:
        raise DataError(f"{count} colours asked for; an 8-bit label has at most 255 classes")
    return [
        (_spread(index), _spread(index >> 1), _spread(index >> 2)) for index in range(1, count + 1)
    ]


def colors_of(names: Sequence[str]) -> list[Colour]:
    """The same for classes of these names; a first one that is called background is black."""
    if names and names[0].strip("_ ").casefold() == "background":
        return [(0, 0, 0), *default_colors(len(names) - 1)]
    return default_colors(len(names))


def _spread(bits: int) -> int:
    """Bits 0, 3 and 6 become 128, 64 and 32."""
    return sum((bits >> 3 * place & 1) << 7 - place for place in range(3))
