"""Prepare data.

prepare.py shapes ROOT      writes the built-in dataset below ROOT
prepare.py shapes10 ROOT    writes the built-in set for classification below ROOT
prepare.py digits ROOT      writes scikit-learn's handwritten digits below ROOT
prepare.py cifar10 ROOT     looks through CIFAR's archives in ROOT; --download fetches them
prepare.py DATASET ROOT     lists of an official download in ROOT, its counts checked
prepare.py custom --images DIR --labels DIR --name NAME
                            lists, classes and a config for data of your own
prepare.py pack DATASET EXPERIMENT --out DIR
                            a packed copy of a config's lists, for faster training
"""

import argparse
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stripseg import command_line
from stripseg.config.errors import DataError
from stripseg.dataset.description import DatasetDescription, available, describe
from stripseg.dataset.generated.shapes import write_shapes
from stripseg.dataset.labels import choose_encoding
from stripseg.dataset.layout import official_pairs, official_root
from stripseg.dataset.lists import Pair
from stripseg.dataset.preparation import custom
from stripseg.dataset.preparation import match as inspection
from stripseg.dataset.preparation.convert import convert
from stripseg.dataset.preparation.sbd import train_aug_ids, write_train_aug
from stripseg.tool import archives, pack
from stripseg.util.files import write_lines
from stripseg.util.logger import progress

INCOMPLETE = 1


def main(argv: Sequence[str]) -> int | None:
    """Write a dataset, or what a training run needs to know of one."""
    if argv and argv[0] == "pack":
        return pack.main(argv[1:])
    if argv and argv[0] in archives.NAMES:
        return archives.main(argv)
    parser = argparse.ArgumentParser(
        prog="prepare.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    official = [name for name in available() if describe(name).layout]
    parser.add_argument("dataset", choices=["custom", "shapes", *archives.NAMES, *official])
    parser.add_argument("root", nargs="?", type=Path, help="folder of the data")
    parser.add_argument("--lists", type=Path, help="folder for an official download's lists")
    parser.add_argument("--convert", type=Path, help="also write a plain copy below this folder")
    parser.add_argument("--sbd", type=Path, help="voc2012: SBD's benchmark_RELEASE/dataset")
    parser.add_argument("--images", type=Path, help="custom: folder of images")
    parser.add_argument("--labels", type=Path, help="custom: folder of labels")
    parser.add_argument("--name", help="custom: what to call the dataset")
    parser.add_argument("--colors", type=Path, help="custom: table of `R G B name` lines")
    parser.add_argument("--validation", type=float, default=0.15, help="custom: share")
    parser.add_argument("--seed", type=int, default=0, help="custom: of the split")
    parser.add_argument(
        "--leave-out-broken", action="store_true", help="custom: go on without broken pairs"
    )
    workers = min(8, os.cpu_count() or 1)
    parser.add_argument("--workers", type=int, default=workers, help="processes")
    options = parser.parse_args(argv)
    if options.dataset == "custom":
        if not (options.images and options.labels and options.name):
            parser.error("custom needs --images, --labels and --name")
        if not re.fullmatch(r"[a-z0-9_][a-z0-9_.-]*", options.name) or options.name in available():
            parser.error(
                f"--name {options.name}: a name of small letters, digits, '_', '-' and '.', and of "
                "none of the datasets that are known"
            )
        if not 0 <= options.validation < 1:
            parser.error(f"--validation {options.validation}: a share from 0 to below 1")
        return prepare_custom(options)
    if options.root is None:
        parser.error(f"name the folder of {options.dataset}")
    if options.dataset == "shapes":
        write_shapes(options.root)
        print(f"{options.root}: images/, labels/, train.txt, val.txt, names.txt, colors.txt")
        return None
    if options.sbd:
        if options.dataset != "voc2012":
            parser.error("--sbd goes with voc2012")
        voc = official_root(describe("voc2012"), options.root)
        count = len(train_aug_ids(voc, options.sbd))
        for _ in progress(
            write_train_aug(voc, options.sbd), total=count, unit="label", what="train_aug"
        ):
            pass
    return prepare_official(options)


def prepare_official(options: argparse.Namespace) -> int | None:
    """A list of pairs for every split that is there, and a plain copy; 1 if one is not whole."""
    name, root = options.dataset, options.root
    description = describe(name)
    base = official_root(description, root)
    folder = options.lists or Path("dataset") / name / "list"
    incomplete, written = False, 0
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
        write_lines(folder / f"{split}.txt", lines)
        written += 1
        expected = description.splits.get(split, len(pairs))
        whole = len(pairs) == expected
        incomplete |= not whole
        verdict = "as published" if whole else f"NOT WHOLE, published are {expected}"
        print(f"{split}: {len(pairs)} images ({verdict}) -> {folder / f'{split}.txt'}")
        if options.convert and layout.labels is not None:
            write_copy(split, pairs, description, base, options)
    if not written:
        raise DataError(f"{root}: holds no split of {name}; name the folder of the download")
    print(f"DATA.data_root for these lists: {base}")
    return INCOMPLETE if incomplete else None


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


def prepare_custom(options: argparse.Namespace) -> None:
    """Match, inspect, report, write."""
    pairs, alone, unused = inspection.match(options.images, options.labels)
    if not pairs:
        raise DataError(
            f"no image of {options.images} has a label in {options.labels}: file names differ, "
            f"such as {alone[0].name} and {unused[0].name}"
        )
    looked = inspection.inspect_pairs(pairs, options.images, workers=options.workers)
    items = list(progress(looked, total=len(pairs), unit="pair", what="reading"))
    channels = np.bincount([item.channels for item in items if not item.problem] or [3]).argmax()
    for item in items:
        if not item.problem and max(channels, item.channels) > 4 and item.channels != channels:
            item.problem = f"{item.image}: has {item.channels} channels, most have {channels}"
    found = [item for item in items if item.problem is None]
    report_broken([item.problem for item in items if item.problem], alone, unused, options)
    table = custom.read_table(options.colors) if options.colors else None
    numbering = custom.number_classes(found, table)
    training, validation = custom.split(found, options.validation, options.seed)
    folder = Path("dataset") / options.name
    root = Path(os.path.commonpath([options.images.resolve(), options.labels.resolve()]))
    parts = {"train": training, "val": validation}
    custom.write_lists(folder, parts, numbering, root=root)
    config = Path("config") / options.name / f"{options.name}_spnet18.yaml"
    content = custom.settings(options.name, folder, root, training, numbering)
    custom.write_config(config, content)
    print(class_summary(found, numbering))
    print(f"{len(training)} pairs to train on, {len(validation)} to validate: {folder}/")
    print(f"config: {config}\nnow: sh tool/train.sh {options.name} spnet18")


def report_broken(
    problems: Sequence[str | None],
    alone: Sequence[Path],
    unused: Sequence[Path],
    options: argparse.Namespace,
) -> None:
    """Say what cannot be used; stop there unless the user has allowed to leave it out.

    Raises:
        DataError: something cannot be used.
    """
    lines = [*map(str, problems), *(f"{path}: has no label" for path in alone)]
    lines += [f"{path}: belongs to no image" for path in unused]
    for line in lines:
        print(f"broken: {line}")
    if lines and not options.leave_out_broken:
        raise DataError(
            f"{len(lines)} broken pair(s), listed above; mend them, or leave them out with "
            "--leave-out-broken"
        )


def class_summary(found: Sequence[inspection.Inspection], numbering: custom.ClassNumbering) -> str:
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


if __name__ == "__main__":
    command_line.run_command(main)
