"""The report of a test: `report.html`, one file that opens anywhere and asks no network."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from ..config.errors import DataError
from ..config.schema import SECTIONS, Config
from ..dataset.results import PredictionFiles
from ..dataset.segmentation import EvaluationSet
from ..util.files import write_text
from ..util.logger import counted
from ..util.memory import peak_memory
from ..util.training.epoch_log import read_epochs
from .breakdowns import breakdown_section, calibration_section
from .charts import line_chart
from .compare import Comparison, Difference, compare
from .html import (
    Cell,
    bar,
    figure_cell,
    matrix,
    page,
    percent,
    shade,
    sortable,
    swatch,
    table,
    text,
)
from .intervals import FEW_HOLDING, FEWEST_UNITS, Bootstrap, Interval, tallies
from .pictures import LAYERS, TestPictures, unique
from .records import BOUNDARY_SHARE, ImageRecord, TestRecords, sum_of

NAME = "report.html"
WORST, MIDDLE, BEST = 12, 4, 4
MOST_CLASSES = 30  # in the confusion matrix
MOST_FULL, MOST_THUMBNAILS = 60, 400  # pictures
MOST_BYTES = 5_000_000  # of whole images, in base64
PER_CELL, CONFUSIONS = 6, 10
NO_GPU = ("TRAIN.train_gpu", "[]")  # which every command but training adds to what a user gives


@dataclass(frozen=True)
class Test:
    """Everything a report is made of.

    Args:
        config: as the test ran.
        records: of every image, in the order of `dataset`.
        speed: (images predicted in this run, seconds).
        earlier: another test of the same images to compare with.
        groups: which images intervals draw together.
    """

    __test__ = False  # pytest would take the name for a test

    config: Config
    records: TestRecords
    speed: tuple[int, float]
    earlier: TestRecords | None
    groups: str

    @property
    def names(self) -> list[str]:
        return self.records.names

    @property
    def images(self) -> Sequence[ImageRecord]:
        return self.records.images

    @cached_property
    def counts(self) -> np.ndarray:
        """(K, K): a row for each label."""
        return sum_of(self.images, len(self.names))

    @cached_property
    def bootstrap(self) -> Bootstrap:
        return Bootstrap(tallies(self.images, len(self.names), self.groups))

    @cached_property
    def comparison(self) -> Comparison | str | None:
        """With the earlier test; a sentence where they cannot be compared."""
        if self.earlier is None:
            return None
        try:
            return compare([self.earlier], [self.records], groups=self.groups)
        except DataError as error:
            return str(error)

    @cached_property
    def order(self) -> list[int]:
        """Indices of the images that have labelled pixels, the worst first."""
        known = [index for index, image in enumerate(self.images) if image.counts]
        return sorted(known, key=lambda index: self.images[index].mean_iou)

    @cached_property
    def per_image_iou(self) -> list[dict[int, float]]:
        return [image.iou() for image in self.images]


def write_report(
    config: Config,
    records: TestRecords,
    dataset: EvaluationSet,
    files: PredictionFiles,
    *,
    speed: tuple[int, float] = (0, 0.0),
    earlier: TestRecords | None = None,
    groups: str = "auto",
) -> Path:
    """Write `report.html` beside the figures of a test; return its path.

    Args:
        dataset: the images that were tested, which the pictures are made of.
        files: their saved predictions; without them the report has no pictures.
        speed, earlier, groups: as in `Test`.
    """
    test = Test(config, records, speed, earlier, groups)
    colors = np.asarray(records.facts["colors"], np.uint8)
    pictures = TestPictures(records, dataset, files, colors, config.TRAIN.ignore_label)
    cells = cell_images(test)
    gallery, images = gallery_data(test, pictures, cells)
    body = "\n".join(
        [
            verdict(test),
            classes_section(test, colors),
            confusion_section(test),
            gallery_section(test, has_pictures=bool(images["thumbs"])),
            breakdown_section(records),
            calibration_section(records, pictures),
            run_section(test),
            VIEWER,
        ]
    )
    data = {
        "classes": test.names,
        "colors": colors.tolist(),
        "cells": cells,
        "layers": LAYERS,
        "start": [0, 2],
        **gallery,
        **images,
    }
    title = f"{config.DATA.dataset} {config.experiment}: test report"
    path = Path(config.TEST.save_folder) / NAME
    write_text(path, page(title, body, data))
    return path


def verdict(test: Test) -> str:
    """The figure with its interval, how it was measured, and the command to repeat it."""
    config, protocol = test.config, test.records.facts
    interval = test.bootstrap.mean_interval()
    units = len(test.bootstrap.tallies.units)
    scales = ", ".join(f"{scale:g}" for scale in protocol["scales"])
    height, width = protocol["crop"]
    accuracy = np.trace(test.counts) / max(1, test.counts.sum())
    facts = [
        f"{counted(len(test.images), 'image')} of the {config.TEST.split} split",
        f"pixel accuracy {percent(float(accuracy))}",
        f"scale{'s' if len(protocol['scales']) > 1 else ''} {scales}",
        "averaged with mirrored images" if protocol["flip"] else "no mirroring",
        f"windows of {height} x {width}",
        f"long side {protocol['base_size']}" if protocol["base_size"] else "images at their size",
        *filter(None, [protocol.get("precision")]),
        f"checkpoint {protocol['checkpoint'][:12]}"
        if protocol["checkpoint"]
        else "saved predictions",
    ]
    told = (
        f"95 % interval {interval.low:.4f} to {interval.high:.4f}"
        if interval.known
        else "no interval from a single unit"
    )
    drawn = "images" if units == len(test.images) else f"{units} groups of images"
    parts = [
        f"<header><h1>{text(config.DATA.dataset)} {text(config.experiment)}</h1>",
        f"<p class=verdict id=verdict>mIoU {interval.value:.4f} "
        f"<small>{told}, resampling {drawn}</small>"
        "</p>",
        f"<p class=facts>{text('; '.join(facts))}</p>",
    ]
    if units == len(test.images):
        parts.append(
            "<p class=faint>Each image counts as independent. Frames of one video are not, and the "
            "interval is then too narrow: name what belongs together with --groups.</p>"
        )
    if units < FEWEST_UNITS:
        parts.append(
            f"<p class=warning>The interval is unreliable: it rests on {units} independent units, "
            f"and fewer than {FEWEST_UNITS} say little about other images.</p>"
        )
    if isinstance(test.comparison, str):
        parts.append(f"<p class=warning>No comparison: {text(test.comparison)}</p>")
    elif test.comparison is not None:
        sentence = test.comparison.sentence(earlier_name(test), "this test")
        notes = "; ".join(note for note in test.comparison.notes if "differ in" in note)
        parts.append(f"<p><b>{text(sentence[0].upper() + sentence[1:])}.</b> {text(notes)}</p>")
    links = [("classes", "Classes"), ("confusion", "Confusions"), ("images", "Images")]
    links += [("where", "Where errors lie"), ("calibration", "Confidence"), ("run", "The run")]
    anchors = "".join(f'<a href="#{anchor}">{word}</a>' for anchor, word in links)
    return "".join(
        [
            *parts,
            f"<pre>{text(command_of(config, test.groups))}</pre>",
            f"<nav>{anchors}</nav></header>",
        ]
    )


def earlier_name(test: Test) -> str:
    """What to call the test of `--against`."""
    facts = test.earlier.facts
    known = [str(facts[key]) for key in ("dataset", "experiment") if facts.get(key)]
    return " ".join(["the earlier test", *(["of", *known] if known else [])])


def command_of(config: Config, groups: str) -> str:
    """The command that repeats the test."""
    more = ["--groups", groups] if groups != "auto" else []
    is_network = not config.source.endswith((".yaml", ".yml"))
    named = [config.source] if is_network else ["--config", config.source]
    pairs = zip(config.overrides[::2], config.overrides[1::2], strict=True)
    given = [word for pair in pairs if pair != NO_GPU for word in pair]
    return shlex.join(["stripseg", "test", *named, *more, *given])


def classes_section(test: Test, colors: np.ndarray) -> str:
    """Every class with its figures; headings sort."""
    counts = test.counts
    hits, labelled = np.diag(counts), counts.sum(1)
    holding = np.zeros(len(test.names), np.int64)
    boundary = np.zeros((len(test.names), 2), np.int64)
    for image in test.images:
        holding[sorted({row[0] for row in image.counts})] += 1
        for index, intersection, union in image.boundary:
            boundary[index] += intersection, union
    compared = isinstance(test.comparison, Comparison)
    head = ["class", "IoU", "", "95 % interval", "accuracy", "boundary IoU", "pixels", "images"]
    head += ["change"] if compared else []
    units = test.bootstrap.tallies.holding
    total = max(1, int(labelled.sum()))
    rows = []
    for index, interval in enumerate(test.bootstrap.class_intervals()):
        near, union = boundary[index]
        cells = [
            (test.names[index], swatch(colors[index]) + text(test.names[index])),
            figure_cell(value := iou_of_counts(counts, index)),
            (value, "" if value is None else bar(value)),
            interval_cell(interval, int(units[index])),
            figure_cell(hits[index] / labelled[index] if labelled[index] else None),
            figure_cell(near / union if union else None),
            (labelled[index] / total, percent(labelled[index] / total)),
            (holding[index], str(holding[index])),
        ]
        if compared:
            change = test.comparison.classes[index]
            cells.append(change_cell(change) if change else (None, ""))
        rows.append(cells)
    absent = int((labelled == 0).sum())
    notes = (
        f"Boundary IoU counts pixels within {percent(BOUNDARY_SHARE)} of the image's diagonal of a "
        "boundary. The heading of the intervals sorts by their width."
    )
    if absent:
        notes += f" {absent} classes are in no label and count 0 in the mIoU, as in semseg."
    if (units[labelled > 0] < FEW_HOLDING).any():
        notes += (
            f" A star marks intervals of classes in fewer than {FEW_HOLDING} images or groups: "
            "they are too narrow to be relied on."
        )
    return (
        f"<section id=classes><h2>Classes</h2>{sortable(head, rows)}<p class=faint>{notes}</p>"
        "</section>"
    )


def iou_of_counts(counts: np.ndarray, index: int) -> float | None:
    """The IoU of a class; None where it occurs neither in labels nor in predictions."""
    union = counts[index].sum() + counts[:, index].sum() - counts[index, index]
    return float(counts[index, index] / union) if union else None


def interval_cell(interval: Interval | None, units: int) -> Cell:
    """Sorted by its width: what is known least; a star where few images hold the class."""
    if interval is None or not interval.known:
        return (None, "one image" if interval else "")
    star = "*" if units < FEW_HOLDING else ""
    return (interval.high - interval.low, f"{interval.low:.3f} to {interval.high:.3f}{star}")


def change_cell(change: Difference) -> Cell:
    """In points of IoU; in colour where it is more than chance among that many classes."""
    interval = change.interval
    sign = ("up" if interval.value > 0 else "down") if change.clear else "faint"
    if not interval.known:
        return (interval.value, f"<span class=faint>{100 * interval.value:+.2f}</span>")
    shown = f"{100 * interval.value:+.2f} ({100 * interval.low:+.2f} to {100 * interval.high:+.2f})"
    return (interval.value, f"<span class={sign}>{shown}</span>")


def matrix_classes(test: Test) -> list[int]:
    """The classes of the confusion matrix: all, or those with the most errors."""
    counts = test.counts
    errors = counts.sum(1) + counts.sum(0) - 2 * np.diag(counts)
    occurring = [
        index for index in range(len(counts)) if counts[index].any() or counts[:, index].any()
    ]
    chosen = sorted(occurring, key=lambda index: -errors[index])[:MOST_CLASSES]
    return sorted(chosen)


def cell_images(test: Test) -> dict[str, list[list[int]]]:
    """{"label,prediction": [[image, pixels], ...]} of the images that contribute most."""
    shown = set(matrix_classes(test))
    cells: dict[str, list[list[int]]] = {}
    for index, image in enumerate(test.images):
        for label, prediction, pixels in image.counts:
            if label in shown and prediction in shown:
                cells.setdefault(f"{label},{prediction}", []).append([index, pixels])
    for key, entries in cells.items():
        cells[key] = sorted(entries, key=lambda entry: -entry[1])[:PER_CELL]
    return cells


def confusion_section(test: Test) -> str:
    """The matrix, each row in shares of its label, and the greatest confusions in words."""
    chosen, names = matrix_classes(test), test.names
    rows = test.counts.sum(1)
    lines = [
        "".join(
            matrix_cell(label, prediction, test.counts[label, prediction], rows[label], names)
            for prediction in chosen
        )
        for label in chosen
    ]
    more = len(names) - len(chosen)
    note = f" {more} classes that are confused less are left out." if more else ""
    return (
        "<section id=confusion><h2>Confusions</h2><p>Of the pixels of each class (row), what they "
        f"were predicted as, in percent. A cell opens the images that contribute most.{note}</p>"
        f"{matrix([names[index] for index in chosen], lines)}<div id=opened aria-live=polite></div>"
        f"<h3>In words</h3><ul>{''.join(confusions_in_words(test))}</ul></section>"
    )


def matrix_cell(label: int, prediction: int, pixels: int, total: int, names: Sequence[str]) -> str:
    share = pixels / total if total else 0.0
    color = "0,114,178" if label == prediction else "213,94,0"
    shown = f"{100 * share:.0f}" if share >= 0.005 else ""
    told = f"{text(names[label])} predicted as {text(names[prediction])}: {percent(share)}"
    return (
        f'<td style="{shade(color, share, round(min(1, share**0.6), 3))}"><button type=button '
        f'class=cell data-cell="{label},{prediction}" data-share="{percent(share)}" title="{told}" '
        f'aria-label="{told}">{shown}</button></td>'
    )


def confusions_in_words(test: Test) -> list[str]:
    """What most of a class is taken for, as list items: each class counts alike in the mIoU."""
    counts = test.counts * (1 - np.eye(len(test.names), dtype=np.int64))
    errors = max(1, int(counts.sum()))
    shares = counts / np.maximum(test.counts.sum(1, keepdims=True), 1)
    order = np.argsort(-shares, axis=None, kind="stable")[:CONFUSIONS]
    items = []
    for label, prediction in zip(*np.unravel_index(order, counts.shape), strict=True):
        pixels, share = int(counts[label, prediction]), float(shares[label, prediction])
        if pixels:
            items.append(
                f"<li>{percent(share)} of <b>{text(test.names[label])}</b> is predicted as "
                f"<b>{text(test.names[prediction])}</b>: {percent(pixels / errors)} of all errors"
                "</li>"
            )
    return items


def gallery_data(
    test: Test, pictures: TestPictures, cells: dict[str, list[list[int]]]
) -> tuple[dict, dict]:
    """({gallery: [title, indices]}, {images, thumbs, full}) for the page's script."""
    order = test.order
    best = order[max(WORST, len(order) - BEST) :][::-1]
    rest = order[WORST : len(order) - len(best)]
    middle = rest[max(0, (len(rest) - MIDDLE) // 2) :][:MIDDLE]
    worst = order[:WORST]
    by_class = [worst_of_class(test, index) for index in range(len(test.names))]
    seconds = (index for two in (1, 2) for found in by_class for index in found[two - 1 : two])
    full = unique([*worst, *middle, *best, *seconds])[:MOST_FULL]
    greatest = sorted((e for es in cells.values() for e in es), key=lambda entry: -entry[1])
    listed = unique([*full, *(i for found in by_class for i in found), *(i for i, _ in greatest)])
    thumbs: dict[int, str] = {}
    layers: dict[int, list[str]] = {}
    size = 0
    for index in listed[:MOST_THUMBNAILS]:
        shown = pictures.read(index)
        if shown is None:
            continue
        thumbs[index] = pictures.thumbnail(shown)
        if index in full and size < MOST_BYTES:
            layers[index] = pictures.layers(shown)
            size += sum(map(len, layers[index]))
    folder = common_folder([image.name for image in test.images])
    places = [{key: i for i, key in enumerate(part)} for part in (thumbs, layers)]
    images = [
        {
            "name": image.name.removeprefix(folder),
            "fact": f"{image.mean_iou:.3f}",
            "per": {index: round(iou, 4) for index, iou in own.items()},
            "facts": f"mIoU of its classes {image.mean_iou:.3f}, pixel accuracy "
            f"{percent(image.pixel_accuracy)}, {image.size[1]} x {image.size[0]} pixels",
            "ratio": ratio_of(image.size),
            "thumb": places[0].get(index, -1),
            "full": places[1].get(index, -1),
        }
        for index, (image, own) in enumerate(zip(test.images, test.per_image_iou, strict=True))
    ]
    chosen = {"gallery": [["Worst", worst], ["Median", middle], ["Best", best]]}
    return chosen, {"images": images, "thumbs": [*thumbs.values()], "full": [*layers.values()]}


def ratio_of(size: tuple[int, int]) -> float:
    """Width by height of a picture of (height, width)."""
    return round(size[1] / size[0], 3)


def common_folder(names: Sequence[str]) -> str:
    """The folder, with its slash, that all names begin with; empty where there is none."""
    first, last = min(names), max(names)  # what these share, all share
    shared = next((i for i, (a, b) in enumerate(zip(first, last)) if a != b), len(first))  # noqa: B905
    return first[: first.rfind("/", 0, shared) + 1]


def worst_of_class(test: Test, index: int) -> list[int]:
    """The images where a class is found worst."""
    holding = [i for i, own in enumerate(test.per_image_iou) if index in own]
    return sorted(holding, key=lambda i: test.per_image_iou[i][index])[:WORST]


def gallery_section(test: Test, *, has_pictures: bool) -> str:
    options = "".join(
        f'<option value="{index}">{text(name)}</option>' for index, name in enumerate(test.names)
    )
    note = (
        ""
        if has_pictures
        else (
            "<p class=warning>The predictions were not saved (TEST.save_predictions), so there are "
            "no pictures.</p>"
        )
    )
    return (
        "<section id=images><h2>Images</h2><p>By the mean IoU of the classes in each image. Open "
        "one to see its label, its prediction and the errors behind a slider.</p>"
        f"{note}<div class=controls><label>where a class is found worst: <select id=filter>"
        f'<option value="">all classes</option>{options}</select></label></div>'
        "<div id=gallery></div></section>"
    )


VIEWER = """<dialog id=viewer aria-labelledby=viewer-name><div>
<div class=controls><b id=viewer-name></b><span id=viewer-facts class=faint></span>
<button type=button class=plain id=close>close</button></div>
<div class=stage id=stage><img id=under alt="left layer"><img id=over alt="right layer"></div>
<p id=viewer-note class=faint></p>
<div class=controls id=viewer-controls>
<label>left <select id=left></select></label>
<input type=range id=split min=0 max=100 value=50 aria-label="how far the left layer reaches">
<label>right <select id=right></select></label>
<span class=faint id=legend>errors: orange wrong, blue right, grey unlabelled</span></div>
<ul id=viewer-classes aria-label="classes in this image and their IoU"></ul>
</div></dialog>"""


def run_section(test: Test) -> str:
    """Curves of the training run, time, and the options that differ from the defaults."""
    config = test.config
    epochs = read_epochs(Path(config.TRAIN.save_path))
    charts = ""
    if epochs:
        curves = {
            "loss": {
                "train": points(epochs, "train", "loss"),
                "val": points(epochs, "val", "loss"),
            },
            "mIoU": {
                "train": points(epochs, "train", "mIoU"),
                "val": points(epochs, "val", "mIoU"),
            },
        }
        charts = "".join(
            line_chart(f"{what} by epoch", {name: line for name, line in lines.items() if line})
            for what, lines in curves.items()
        )
        charts = f"<div class=columns>{charts}</div>"
    else:
        charts = "<p class=faint>There is no record of the epochs in TRAIN.save_path.</p>"
    changed = [
        [
            f"<code>{section}.{key}</code>",
            text(str(value)),
            text("" if usual is None else str(usual)),
        ]
        for section, key, value, usual in changed_options(config)
    ]
    images, seconds = test.speed
    took = (
        f"{counted(images, 'image')} predicted in {seconds:.0f} s, "
        f"{images / max(seconds, 1e-9):.2f} a second"
        if images
        else "No image was predicted in this run"
    )
    on_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()
    peaks = peak_memory(torch.device("cuda" if on_gpu else "cpu"))
    memory = ", ".join(f"{value:.1f} GiB" for value in peaks.values()) or "memory unknown"
    return (
        f"<section id=run><h2>The run</h2>{charts}<p>{took}; memory of the main process at most "
        f"{memory}{' on the GPU' * on_gpu}.</p>"
        f"<details><summary>{len(changed)} options differ from the defaults</summary>"
        f"{table(['option', 'value', 'default'], changed)}</details>"
        f"<details><summary>all options</summary><pre>{text(all_options(config))}</pre></details>"
        "</section>"
    )


def points(epochs: dict, split: str, figure: str) -> list[tuple[float, float]]:
    """(epoch, value) where the value was recorded and is a number."""
    found = ((epoch, record.get(split, {}).get(figure)) for epoch, record in epochs.items())
    return [
        (float(epoch), float(value))
        for epoch, value in found
        if isinstance(value, int | float) and np.isfinite(value)
    ]


def changed_options(config: Config) -> list[tuple[str, str, object, object]]:
    """(section, key, value, default) of the options that are not as they come."""
    found = []
    for name, section in SECTIONS.items():
        values = getattr(config, name)
        for key, field in section.model_fields.items():
            usual = None if field.is_required() else field.default
            value = getattr(values, key)
            if value != usual:
                found.append((name, key, value, usual))
    return found


def all_options(config: Config) -> str:
    return "\n".join(
        f"{name}.{key}: {value}"
        for name in SECTIONS
        for key, value in getattr(config, name).model_dump().items()
    )
