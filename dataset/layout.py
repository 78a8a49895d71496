"""Official folder layouts, so that an unzipped download can be used where it lies.

A layout is data (catalog/*.yaml): patterns of image and label paths in which `{name}` stands for a
part of the path that image and label share, as in

    images: leftImg8bit/train/{city}/{id}_leftImg8bit.png
    labels: gtFine/train/{city}/{id}_gtFine_labelIds.png

and optionally `ids`, a text file that lists the `{id}`s of the split, one per line.
"""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..config.errors import DataError
from .description import DatasetDescription, Split
from .lists import Pair

Parts = dict[str, str]
PLACE = re.compile(r"\{(\w+)\}")


def official_root(description: DatasetDescription, root: Path) -> Path:
    """`root`, or the folder below it that the download unpacks to and that holds the data."""
    inner = root / description.folder if description.folder else root
    return inner if inner.is_dir() else root


def official_pairs(
    description: DatasetDescription,
    root: Path,
    split: str,
    *,
    ids: Sequence[str] | None = None,
    with_labels: bool = True,
) -> list[Pair]:
    """The pairs of an official split, in the order of its list of ids or of the file names.

    Args:
        root: the official folder, or the one that the download was unpacked in.
        ids: take these instead of all that the split has.
    Raises:
        DataError: the split is unknown or empty, or an image or label of it is missing.
    """
    if split not in description.layout:
        known = ", ".join(description.layout) or "none"
        raise DataError(f"{description.name} has no split {split!r}; its layout knows {known}")
    layout, base = description.layout[split], official_root(description, root)
    if ids is None and layout.ids is not None:
        ids = read_ids(base / layout.ids)
    found = images_by_pattern(layout, base) if ids is None else images_by_id(layout, base, ids)
    pairs = []
    for image, parts in found:
        label = None
        if with_labels and layout.labels is not None:
            label = base / fill(layout.labels, parts)
            if not os.path.isfile(label):
                raise DataError(
                    f"{label}: the label of {base / image} does not exist; is the download whole?"
                )
        pairs.append(Pair(image, base / image, label))
    if not pairs:
        raise DataError(
            f"{base}: no image of {description.name}'s split {split} there (looked for "
            f"{layout.images}); set DATA.data_root to the unzipped folder"
        )
    if with_labels and layout.labels is None:
        raise DataError(f"{description.name}'s split {split} has no labels; set TEST.split test")
    return pairs


def images_by_pattern(layout: Split, base: Path) -> Iterator[tuple[str, Parts]]:
    """(path, what its places stand for) of every image of a split that is there."""
    pattern = expression(layout.images)
    for path in sorted(base.glob(PLACE.sub("*", layout.images))):
        relative = path.relative_to(base).as_posix()
        found = pattern.fullmatch(relative)
        if found:
            yield relative, found.groupdict()


def images_by_id(layout: Split, base: Path, ids: Sequence[str]) -> Iterator[tuple[str, Parts]]:
    """The same for the images that a list of ids names."""
    if set(PLACE.findall(layout.images)) != {"id"}:
        raise DataError(
            f"a list of bare ids cannot say which files are meant ({layout.images}); list images "
            "and labels, or leave the list out to take the whole split"
        )
    for name in ids:
        relative = fill(layout.images, {"id": name})
        if not os.path.isfile(base / relative):
            raise DataError(f"{name}: its image {base / relative} does not exist")
        yield relative, {"id": name}


def read_ids(path: Path, root: Path | None = None) -> list[str] | None:
    """The ids of a list, one per line; Windows folders before and a suffix behind are taken off.

    With `root`, None if a line is not a bare id but the path of a file below it, or of two files.

    Raises:
        DataError: the list cannot be read, or a line is a path where only ids can be.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: the split's list cannot be read ({error})") from error
    lines = [line.strip() for line in lines if line.strip()]
    if root is not None and any(re.search(r"[\s/]", x) or os.path.exists(root / x) for x in lines):
        return None
    ids = [re.sub(r"\.(jpg|png|mat)$", "", line.rpartition("\\")[2]) for line in lines]
    for name in ids:
        if "/" in name or name in ("", ".", "..") or not name.isprintable():
            raise DataError(
                f"{path}: {name!r} is not an id; expected one such as 2007_000032 a line"
            )
    return ids


def expression(pattern: str) -> re.Pattern[str]:
    """A pattern as a regular expression whose groups are its places."""
    parts = PLACE.split(pattern)
    seen: set[str] = set()
    text = ""
    for index, part in enumerate(parts):
        if index % 2 == 0:
            text += re.escape(part)
        elif part in seen:
            text += f"(?P={part})"
        else:
            seen.add(part)
            text += f"(?P<{part}>[^/]+?)"
    return re.compile(text)


def fill(pattern: str, parts: Parts) -> str:
    return PLACE.sub(lambda place: parts[place[1]], pattern)
