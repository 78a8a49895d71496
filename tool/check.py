"""Check a dataset: `stripseg check DATASET EXPERIMENT [--html FILE] [--fix FOLDER] [KEY VALUE]`.

Reads everything that a training run of this config will read. Exits with 1 if it found an error.

    stripseg check camvid spnet18 --html camvid.html     findings and statistics as one page
    stripseg check mine run --fix clean                  lists and labels without what is certainly
                                                         wrong
"""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from stripseg import command_line
from stripseg.command_line import Result
from stripseg.config.schema import Config
from stripseg.config.validate import check_files
from stripseg.dataset.build import (
    Classes,
    build_classes,
    build_pairs,
    label_encoding,
    official_splits,
)
from stripseg.dataset.labels import LabelEncoding
from stripseg.dataset.preparation import check as doctor
from stripseg.dataset.preparation.corrected import corrected_labels
from stripseg.dataset.preparation.custom import relative
from stripseg.report.dataset_page import dataset_page
from stripseg.util.files import write_lines, write_text
from stripseg.util.logger import progress
from stripseg.util.training.losses import balanced_class_weights

FOUND_ERRORS = 1
FILES_SHOWN = 4


def main(argv: Sequence[str]) -> Result:
    """Examine, diagnose, report."""
    parser = command_line.config_parser("stripseg check", __doc__)
    parser.add_argument("--html", type=Path, help="write findings and statistics as one page")
    parser.add_argument(
        "--fix",
        type=Path,
        metavar="FOLDER",
        help="write lists there without pairs that cannot be used, are ignored entirely, stand "
        "twice, or are in training and tested, and corrected copies of labels whose values or turn "
        "are certain; your own files are not changed",
    )
    parser.add_argument("--workers", type=int, default=min(16, os.cpu_count() or 1))
    argv, json_file = without_json_file(argv)
    options, config = command_line.parse_config(parser, argv)
    check_files(config, "train", official_splits=official_splits(config))
    classes = build_classes(config)
    names = classes.names
    found, encodings = examine_all(config, options.workers)
    crop = (config.TRAIN.train_h, config.TRAIN.train_w)
    findings = doctor.diagnose(found, names, crop=crop)
    print(class_shares(found, names))
    print(size_line(found, crop))
    for finding in findings:
        lines = [f"{finding.severity}: {finding.message}"]
        if finding.kind != "unusable":
            lines += [f"    {file}" for file in finding.files[:FILES_SHOWN]]
        # what was asked for, so on stdout; --quiet leaves warnings and errors
        print("\n".join(lines), file=sys.stderr if options.quiet else sys.stdout)
    errors = sum(finding.severity == "error" for finding in findings)
    print(f"{len(found)} pairs: {errors} error(s), {len(findings) - errors} warning(s)")
    if options.html:
        title = f"{config.DATA.dataset} {config.experiment}"
        write_text(options.html, dataset_page(title, found, findings, names, classes.colors))
        print(f"page: {options.html}")
    if options.fix:
        copies = {}
        if errors:
            named = classes if config.TEST.colors_path is not None else None
            copies = correct(options.fix, found, encodings, named, options.workers)
        write_fixed(options.fix, found, Path(config.DATA.data_root), copies)
    figures = figures_of(found, findings, names)
    if json_file:
        write_text(json_file, command_line.as_json(figures) + "\n")
    return Result(figures, FOUND_ERRORS if errors else 0)


def without_json_file(argv: Sequence[str]) -> tuple[list[str], Path | None]:
    """Take the file out of `--json FILE.json`, which earlier versions wrote the figures to."""
    words = list(argv)
    for place, word in enumerate(words[1:], start=1):
        if words[place - 1] == "--json" and word.endswith(".json"):
            return words[:place] + words[place + 1 :], Path(word)
    return words, None


def examine_all(
    config: Config, workers: int
) -> tuple[list[doctor.Examination], list[LabelEncoding]]:
    """The pairs of the training and the validation list, and how the labels of each are read."""
    found, encodings = [], []
    lists = {"train": config.DATA.train_list}
    if config.TRAIN.evaluate:
        lists["val"] = config.DATA.val_list
    for split, path in lists.items():
        pairs = build_pairs(config, path, split=split, check_files=False)
        there = [pair for pair in pairs if pair.image.is_file() and is_there(pair.label)]
        if not there:
            build_pairs(config, path, split=split)  # which says why, such as a wrong root
        encodings.append(label_encoding(config, there))
        channels = config.DATA.in_channels
        items = doctor.examine(split, pairs, encodings[-1], channels=channels, workers=workers)
        found += progress(items, total=len(pairs), unit="pair", what=f"reading {split}")
    return found, encodings


def is_there(label: Path | None) -> bool:
    return label is None or label.is_file()


def correct(
    folder: Path,
    found: Sequence[doctor.Examination],
    encodings: Sequence[LabelEncoding],
    named: Classes | None,
    workers: int,
) -> dict[Path, Path]:
    """{label: its corrected copy}, and say what was decided; empty where nothing is certain.

    Args:
        encodings: of the lists; labels in a dataset's official encoding are not corrected.
        named: the classes, where a file lists their colours.
    """
    pairs = [item.pair for item in found if item.pair is not None]
    official = [encoding for encoding in encodings if encoding.kind != "train_id"]
    table = None
    if named is not None:
        colors = [(int(r), int(g), int(b)) for r, g, b in named.colors]
        table = list(zip(colors, named.names, strict=True))
    copies, told = corrected_labels(
        pairs, (official or encodings)[0], folder / "labels", table=table, workers=workers
    )
    if told:
        print(f"labels: {told}")
    return copies


def write_fixed(
    folder: Path,
    found: Sequence[doctor.Examination],
    root: Path,
    copies: Mapping[Path, Path],
) -> None:
    """Write the lists without what is certainly wrong, and say how to use them."""
    kept, reasons = doctor.kept_pairs(found, copies)
    for split, pairs in kept.items():
        labels = [copies.get(p.label, p.label) for p in pairs]
        lines = [
            f"{relative(p.image, root)}\t{relative(label, root)}"
            for p, label in zip(pairs, labels, strict=True)
        ]
        write_lines(folder / f"{split}.txt", lines)
    if copies:
        print(f"{len(copies)} label(s) are corrected: copies in {folder / 'labels'}")
    told = ", ".join(f"{count} {reason}" for reason, count in reasons.items()) or "nothing"
    print(f"lists in {folder} without: {told}")
    outside = any(not copy.resolve().is_relative_to(root.resolve()) for copy in copies.values())
    words = [f"DATA.{split}_list {folder / split}.txt" for split in kept]
    print("to use them: " + " ".join(words + ["DATA.outside_root True"] * outside))


def class_shares(found: Sequence[doctor.Examination], names: Sequence[str]) -> str:
    """Shares and files of every class in every split, and the weights that would balance them."""
    splits = list(dict.fromkeys(item.split for item in found))
    pixels = {split: doctor.split_pixels(found, split) for split in splits}
    weights = balanced_class_weights(torch.from_numpy(pixels["train"][: len(names)]))
    head = f"{'class':24}" + "".join(f"{split:>10}{'files':>7}" for split in splits)
    lines = [head + f"{'weight':>9}"]
    for index, name in enumerate([*names, "(ignored)"]):
        train_id = index if index < len(names) else 255
        line = f"{name[:23]:24}"
        for split in splits:
            files = sum(bool(i.pixels[train_id]) for i in found if i.split == split)
            share = pixels[split][train_id] / max(pixels[split].sum(), 1)
            line += f"{share:10.2%}{files:7}"
        lines.append(line + (f"{weights[index]:9.3f}" if index < len(names) else ""))
    return "\n".join(lines)


def size_line(found: Sequence[doctor.Examination], crop: tuple[int, int]) -> str:
    sizes = np.array([item.size for item in found if not item.error]).reshape(-1, 2)
    if not len(sizes):
        return "no image could be read"
    least, middle, most = np.percentile(sizes, [0, 50, 100], axis=0).astype(int)
    return (
        f"image sizes (height x width): {least[0]}x{least[1]} to {most[0]}x{most[1]}, the middle "
        f"{middle[0]}x{middle[1]}; training crop {crop[0]}x{crop[1]}"
    )


def figures_of(
    found: Sequence[doctor.Examination],
    findings: Sequence[doctor.Finding],
    names: Sequence[str],
) -> dict:
    """What `--json` prints."""
    splits = list(dict.fromkeys(item.split for item in found))
    pixels = {split: doctor.split_pixels(found, split) for split in splits}
    weights = balanced_class_weights(torch.from_numpy(pixels["train"][: len(names)]))
    return {
        "findings": findings,
        "pairs": {split: sum(item.split == split for item in found) for split in splits},
        "pixels": {split: pixels[split][: len(names)].tolist() for split in splits},
        "ignored": {split: int(pixels[split][255]) for split in splits},
        "names": list(names),
        "class_weights": weights.tolist(),
    }


if __name__ == "__main__":
    command_line.run_command(main)
