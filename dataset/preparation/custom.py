"""A user's folders of images and labels become a dataset: classes, lists, statistics, a YAML."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from ...config.errors import DataError
from ...util.files import link_or_copy, write_lines, write_text
from ...util.images import open_picture, write_png
from ..description import default_colors
from ..labels import IGNORE_LABEL
from .match import Inspection, read_any_label

ORIENTATION = 0x0112  # of EXIF
QUARTER_TURNS = {
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class ClassNumbering:
    """Stored label values -> class ids: `ids[i]` for `stored[i]`.

    `coloured` values are 0xRRGGBB; `plain` files hold ids already and need no rewriting.
    """

    stored: np.ndarray
    ids: np.ndarray
    names: list[str]
    colors: list[Colour]
    coloured: bool = False
    plain: bool = False

    def translate(self, label: np.ndarray) -> np.ndarray:
        return self.ids[np.searchsorted(self.stored, label)].astype(np.uint8)

    def pixels(self, found: Sequence[Inspection]) -> np.ndarray:
        """(K,) pixels of each class."""
        total = np.zeros(256, np.int64)
        for item in found:
            np.add.at(total, self.translate(item.values), item.counts)
        return total[: len(self.names)]


def number_classes(
    found: Sequence[Inspection], table: Sequence[tuple[Colour, str]] | None = None
) -> ClassNumbering:
    """What the values of all labels mean.

    Indices stay as they are, 255 is ignored; sparse ones are numbered in their order; a mask of 0
    and 255 has two classes. Colours are looked up in `table`, or numbered in their order.

    Raises:
        DataError: labels of different kinds, more than 255 classes, or a colour not in the table.
    """
    kinds = {item.kind for item in found}
    if {"index", "colour"} <= kinds:
        examples = {item.kind: item.label for item in found}
        raise DataError(
            f"{examples['colour']} is a colour picture and {examples['index']} holds indices; "
            "labels must all be of one kind"
        )
    if "colour" in kinds or table is not None:
        return number_colours(found, table)
    stored = np.unique(np.concatenate([item.values for item in found]))
    classes = stored[stored != IGNORE_LABEL]
    if set(stored.tolist()) == {0, IGNORE_LABEL}:  # a mask
        return ClassNumbering(stored, np.array([0, 1]), class_names(2), default_colors(2))
    if len(classes) == 0:
        raise DataError("every label is entirely ignored (255)")
    if classes.min() >= 0 and classes.max() < min(IGNORE_LABEL, 8 * len(classes)):
        count = int(classes.max()) + 1
        plain = kinds == {"index"}
        return ClassNumbering(
            stored, stored, class_names(count), default_colors(count), plain=plain
        )
    too_many(found, classes)
    ids = np.where(stored == IGNORE_LABEL, IGNORE_LABEL, np.searchsorted(classes, stored))
    names = [f"value {value}" for value in classes]
    return ClassNumbering(stored, ids, names, default_colors(len(names)))


def number_colours(
    found: Sequence[Inspection], table: Sequence[tuple[Colour, str]] | None
) -> ClassNumbering:
    for item in found:
        item.values = as_colours(item.values, item.kind)
        item.kind = "colour"
    stored = np.unique(np.concatenate([item.values for item in found]))
    too_many(found, stored)
    if table is None:
        colors = [unpacked(value) for value in stored]
        names = [f"colour {r} {g} {b}" for r, g, b in colors]
        return ClassNumbering(stored, np.arange(len(stored)), names, colors, coloured=True)
    known = {r << 16 | g << 8 | b: index for index, ((r, g, b), _) in enumerate(table)}
    strange = [unpacked(value) for value in stored if int(value) not in known]
    if strange:
        raise DataError(
            f"the labels have colours that the table does not list: {strange[:5]}; add them, or "
            "leave the table out to see all colours"
        )
    ids = np.array([known[int(value)] for value in stored])
    names, colors = [name for _, name in table], [color for color, _ in table]
    return ClassNumbering(stored, ids, names, colors, coloured=True)


def as_colours(values: np.ndarray, kind: str) -> np.ndarray:
    """Values as 0xRRGGBB; grey ones have three equal channels."""
    return values if kind == "colour" else values.astype(np.int64) * 0x10101


def unpacked(value: int) -> Colour:
    return int(value) >> 16, int(value) >> 8 & 255, int(value) & 255


def too_many(found: Sequence[Inspection], classes: np.ndarray) -> None:
    if len(classes) > 255:
        worst = max(found, key=lambda item: len(item.values))
        raise DataError(
            f"the labels have {len(classes)} different values ({worst.label} has "
            f"{len(worst.values)}), at most 255 classes are possible; were they saved as JPEG, "
            "or are they instance ids?"
        )


def class_names(count: int) -> list[str]:
    return [f"class {index}" for index in range(count)]


def read_table(path: Path) -> list[tuple[Colour, str]]:
    """A colour table: `R G B name` or `name,R,G,B` a line, in class order; a heading is skipped.

    Raises:
        DataError: a line is neither, or a colour stands twice.
    """
    table: list[tuple[Colour, str]] = []
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: the table cannot be read as text in UTF-8 ({error})") from error
    for number, line in enumerate(lines, 1):
        words = line.replace(",", " ").replace("\t", " ").split()
        values = [word for word in words if re.fullmatch("[0-9]{1,9}", word)]
        if not words or (number == 1 and not values):
            continue
        if len(values) != 3 or max(map(int, values)) > 255:
            raise DataError(f"{path}, line {number}: expected 'R G B name', got {line.strip()!r}")
        name = " ".join(word for word in words if word not in values) or f"class {len(table)}"
        red, green, blue = map(int, values)
        if any(color == (red, green, blue) for color, _ in table):
            raise DataError(f"{path}, line {number}: the colour {red} {green} {blue} stands twice")
        table.append(((red, green, blue), name))
    return table


def is_validation(name: str, share: float, seed: int) -> bool:
    """A split that depends on the image's name alone: new images move no old one."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def split(
    found: Sequence[Inspection], share: float, seed: int
) -> tuple[list[Inspection], list[Inspection]]:
    """(training, validation), both with at least one pair where there are two."""
    validation = [item for item in found if is_validation(item.name, share, seed)]
    if not validation:
        validation = [found[-1]]
    if len(validation) == len(found) > 1:
        validation = validation[1:]
    chosen = {item.name for item in validation}
    training = [item for item in found if item.name not in chosen]
    return training or list(found), validation


def write_label(item: Inspection, numbering: ClassNumbering, folder: Path) -> Path:
    """The label as an 8-bit PNG of class ids, turned like its image; an existing one is kept."""
    path = (folder / item.name).with_suffix(".png")
    if path.is_file() and path.stat().st_mtime >= item.label.stat().st_mtime:
        return path
    label, kind = read_any_label(item.label)
    ids = numbering.translate(as_colours(label, kind) if numbering.coloured else label)
    if item.turned:
        with open_picture(item.image) as photo:
            turn = QUARTER_TURNS[photo.getexif()[ORIENTATION]]
        ids = np.array(Image.fromarray(ids).transpose(turn))
    write_png(path, ids, numbering.colors)
    return path


def write_lists(
    folder: Path,
    parts: dict[str, Sequence[Inspection]],
    numbering: ClassNumbering,
    *,
    root: Path,
) -> None:
    """`train.txt`, `val.txt`, `names.txt`, `colors.txt`, and labels that had to be rewritten."""
    for name, items in parts.items():
        lines = []
        for item in items:
            label = item.label
            if not numbering.plain or item.turned:
                label = write_label(item, numbering, folder / "labels")
            lines.append(f"{relative(item.image, root)}\t{relative(label, root)}")
        write_lines(folder / f"{name}.txt", lines)
    write_lines(folder / "names.txt", numbering.names)
    write_lines(folder / "colors.txt", [" ".join(map(str, color)) for color in numbering.colors])


def relative(path: Path, root: Path) -> str:
    path, root = path.resolve(), root.resolve()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def settings(
    name: str, folder: Path, root: Path, training: Sequence[Inspection], numbering: ClassNumbering
) -> dict:
    """A config for the data: crop, scales, batch size and length of training from their sizes."""
    heights, widths = np.array([item.size for item in training]).T
    # crop: the median image, in steps of the output stride 8, within what a GPU or CPU trains well
    sides = [max(64, min(384, int(np.median(side)) // 8 * 8)) for side in (heights, widths)]
    # batch norm needs two images; small crops leave memory for twice as many
    batch = max(2, min(16 if sides[0] * sides[1] <= 256 * 256 else 8, len(training)))
    # images much larger than the crop are scaled as in the literature, small ones less
    large = np.median(np.minimum(heights, widths)) > 1.5 * max(sides)
    pixels = numbering.pixels(training)
    present = pixels[pixels > 0]
    # files of up to four channels (grey, RGB, RGBA) are read as RGB, others as their bands
    channels = training[0].channels if training[0].channels > 4 else 3
    data = {
        "dataset": name,
        "data_root": str(root),
        "train_list": str(folder / "train.txt"),
        "val_list": str(folder / "val.txt"),
        "classes": len(numbering.names),
        "labels": "train_id",
    }
    if not numbering.plain or any(item.turned for item in training):
        data["outside_root"] = True  # rewritten labels lie beside the lists
    if channels != 3:
        mean, square = np.mean([item.sums for item in training], axis=0)
        data |= {"in_channels": channels, "mean": [round(v, 3) for v in mean.tolist()]}
        std = np.sqrt(np.maximum(square - mean**2, 1))
        data["std"] = [round(v, 3) for v in std.tolist()]
    train = {
        "arch": "spnet",
        "layers": 18,
        "train_h": sides[0],
        "train_w": sides[1],
        "scale_min": 0.5 if large else 0.75,
        "scale_max": 2.0 if large else 1.5,
        # a class with 50 times fewer pixels than another is hardly learned unweighted
        "class_weights": "auto" if present.max() > 50 * present.min() else "none",
        # AdamW with one rate for backbone and head: sound on small data, from scratch as well
        "optimizer": "adamw",
        "base_lr": 0.001,
        "head_lr_factor": 1,
        "weight_decay": 0.01,
        "batch_size": batch,
        # about 4000 steps, but each image at least 20 and at most 400 times
        "epochs": int(np.clip(4000 * batch // len(training), 20, 400)),
        "evaluate_freq": 10,
        "precision": "auto",
        "pretrained": "pretrained/resnet18.pth",
        "pretrained_optional": True,
    }
    names = {"names_path": str(folder / "names.txt"), "colors_path": str(folder / "colors.txt")}
    test = {"test_list": str(folder / "val.txt"), "base_size": 0, **names}
    return {"DATA": data, "TRAIN": train, "TEST": test}


def write_config(path: Path, content: dict) -> None:
    """The YAML; one that a user may have edited is kept beside it as `.bak`."""
    text = "# Made by tool/prepare.py custom; every option: docs/config.md\n"
    text += yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    if path.is_file() and path.read_text(encoding="utf-8") != text:
        link_or_copy(path, path.with_name(path.name + ".bak"))
    write_text(path, text)
