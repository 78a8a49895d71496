"""List files: one image, or one image and its label, per line."""

import json
import os
import posixpath
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..config.errors import DataError
from ..config.limits import LONGEST_LINE, PATH_PARTS


@dataclass(frozen=True)
class Pair:
    """An image and its label file; `name` is the image's path as the list gives it, normalised."""

    name: str
    image: Path
    label: Path | None


def read_list(
    path: Path, root: Path, *, split: str, check_files: bool = True, outside: bool = False
) -> list[Pair]:
    """The pairs of a list, paths relative to `root`.

    Fields are separated by tabs or blanks; CRLF, a byte order mark, trailing blanks and a missing
    last newline are fine, and so are blanks inside paths where the files tell the fields apart.
    `split` "test" needs no labels and passes over those there are. Files outside of `root` are
    refused unless `outside` allows them: an untrusted list should not choose which files are read.

    Raises:
        DataError: the list is missing or empty, or a line is malformed or names a missing file.
    """
    try:
        content = path.read_bytes()
        utf16 = content.startswith((b"\xff\xfe", b"\xfe\xff"))
        text = content.decode("utf-16" if utf16 else "utf-8-sig")
        lines = (text if "\n" in text else text.replace("\r", "\n")).split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: the list cannot be read ({error}); save it as text in UTF-8"
        ) from error
    if "\0" in text:
        raise DataError(f"{path}: has zero bytes, as UTF-16 without a mark; save it in UTF-8")
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise DataError(f"{path}: the list is empty; expected one 'image label' pair per line")
    for number, line in enumerate(lines, 1):
        if len(line) > LONGEST_LINE:
            raise DataError(
                f"{path}, line {number}: has {len(line)} characters, and an image and its label "
                f"take at most {LONGEST_LINE}; is this a list?"
            )
    parse = parse_json if path.suffix == ".odgt" else parse_line
    pairs = [
        parse(line, root, split=split, where=f"{path}, line {number}")
        for number, line in enumerate(lines, 1)
    ]
    if not outside:
        for number, pair in enumerate(pairs, 1):
            for file in (pair.image, pair.label):
                if file is not None and not is_below(file, root):
                    raise DataError(
                        f"{path}, line {number}: {file} lies outside of DATA.data_root ({root}); "
                        "set DATA.outside_root True if the list may name it"
                    )
    if check_files:
        for number, pair in enumerate(pairs, 1):
            for file in (pair.image, pair.label):
                if file is not None and not os.path.isfile(file):
                    raise DataError(
                        f"{path}, line {number}: {file} does not exist; "
                        f"{why_missing(lines[number - 1], number, root)}"
                    )
    return pairs


def why_missing(line: str, number: int, root: Path) -> str:
    """The likeliest reason why a line names no file, and the cure."""
    text = line.strip()
    hidden = next((sign for sign in text if not sign.isprintable() and sign != "\t"), None)
    if hidden is not None:
        return f"the line has the invisible character U+{ord(hidden):04X}: remove it"
    if "\\" in text:
        return "paths have / and not \\, also on Windows: replace them in the list"
    if text.startswith("#"):
        return "a list has no comments: remove the line"
    if number == 1 and not any(Path(word).suffix for word in text.split()):
        return "is the first line a heading? A list has none: remove it"
    return f"check DATA.data_root ({root}) and the list"


def parse_line(line: str, root: Path, *, split: str, where: str) -> Pair:
    """One line of a list as a `Pair`."""
    separator = next((mark for mark in ("\t", ",", ";") if mark in line.strip()), None)
    fields = line.split()
    beside = separator and any(separator in (field[0], field[-1]) for field in fields)
    once = separator and line.count(separator) == 1 and (len(fields) != 2 or beside)
    if separator == "\t" or once:
        fields = [f.strip().strip('"') for f in line.split(separator)]
    elif re.fullmatch(r'\s*"[^"]+"\s+"[^"]+"\s*', line):
        fields = re.findall('"([^"]+)"', line)
    fields = [field for field in fields if field]
    if not fields:
        raise DataError(f"{where}: the line is empty; remove it or name an image and its label")
    image_alone = split == "test" and not Path(fields[0]).suffix  # "my photo.jpg"
    if len(fields) > 2 or image_alone:
        fields = join_blanks(fields, root)
    if split == "test":
        if len(fields) > 2:
            raise DataError(f"{where}: {line.strip()!r} names more than an image and its label")
        return pair_of(root, fields[0], None)
    if len(fields) != 2:
        raise DataError(
            f"{where}: expected 'image label' with paths relative to DATA.data_root, got "
            f"{line.strip()!r}; a split without labels is tested with TEST.split test"
        )
    if fields[1] in ("1", "0", "-1"):
        raise DataError(
            f"{where}: {line.strip()!r} is of a list for classification (PASCAL VOC's "
            "ImageSets/Main); those for segmentation are in ImageSets/Segmentation"
        )
    return pair_of(root, *fields)


def parse_json(line: str, root: Path, *, split: str, where: str) -> Pair:
    """One line of an .odgt list (mit_semseg): a JSON object with `fpath_img` and `fpath_segm`."""
    try:
        record = json.loads(line)
        image, label = str(record["fpath_img"]), record.get("fpath_segm")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{where}: expected a JSON object with fpath_img and fpath_segm, got {line.strip()!r}"
        ) from error
    if label is None and split != "test":
        raise DataError(f"{where}: has no fpath_segm; such a split is tested with TEST.split test")
    return pair_of(root, image, None if split == "test" else str(label))


def pair_of(root: Path, image: str, label: str | None) -> Pair:
    """The pair that a list names; `a/../b.png` is `b.png`, whatever links there are."""
    name = posixpath.normpath(image)
    return Pair(name, locate(root, name), label and locate(root, posixpath.normpath(label)))


def is_below(path: Path, root: Path) -> bool:
    """Return whether the path, as written, stays below `root`; links are not followed."""
    whole, folder = os.path.abspath(path), os.path.abspath(root)
    return os.path.commonpath([whole, folder]) == folder


def locate(root: Path, text: str) -> Path:
    """A path of a list below `root`.

    An absolute one of another machine, such as the SegNet tutorial's `/SegNet/CamVid/train/x.png`,
    means the longest end of it that is a file below `root`, of at most `PATH_PARTS` names.
    """
    path = root / text
    if not PurePosixPath(text).is_absolute() or os.path.isfile(path):
        return path
    parts = PurePosixPath(text).parts
    ends = (
        root.joinpath(*parts[start:])
        for start in range(max(1, len(parts) - PATH_PARTS), len(parts))
    )
    return next((end for end in ends if os.path.isfile(end)), path)


def join_blanks(fields: list[str], root: Path) -> list[str]:
    """Fields of a line whose paths hold blanks: the cut at which both files exist, if any."""
    for cut in range(1, len(fields)):
        image, label = " ".join(fields[:cut]), " ".join(fields[cut:])
        if os.path.isfile(root / image) and os.path.isfile(root / label):
            return [image, label]
    whole = " ".join(fields)
    return [whole] if os.path.isfile(root / whole) else fields
