"""The comparison of tests as text and as a page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..config.errors import DataError
from ..dataset.lists import is_below
from ..dataset.results import prediction_names
from ..util.images import as_rgb, overlay, read_image, read_label, shrunk
from .compare import Comparison, Difference, shown_p
from .html import jpeg, page, palette_png, sortable, table, text
from .page import VIEWER, change_cell, ratio_of
from .pictures import FULL, THUMBNAIL
from .records import TestRecords

MOST_CHANGED = 8  # images in each direction


@dataclass(frozen=True)
class Method:
    """One side of a comparison.

    Args:
        name: for people.
        folders: of its tests, one per seed.
        runs: what those folders hold.
    """

    name: str
    folders: Sequence[Path]
    runs: Sequence[TestRecords]


def figures_text(values: Sequence[float]) -> str:
    """The mean IoU of a method: with several seeds mean and deviation."""
    if len(values) == 1:
        return f"{values[0]:.4f}"
    return f"{np.mean(values):.4f} +- {np.std(values, ddof=1):.4f} ({len(values)} seeds)"


def comparison_text(first: Method, second: Method, result: Comparison) -> str:
    """What the terminal shows: the verdict, the figures, the classes that changed."""
    names = first.runs[0].names
    lines = [
        f"{first.name}: mIoU {figures_text(result.a)}",
        f"{second.name}: mIoU {figures_text(result.b)}",
        result.sentence(first.name, second.name),
        *(f"note: {note}" for note in result.notes),
    ]
    width = max(map(len, names))
    known = [(name, d) for name, d in zip(names, result.classes, strict=True) if d is not None]
    for name, entry in sorted(known, key=lambda pair: -abs(pair[1].interval.value)):
        lines.append(f"  {name:<{width}} {difference_text(entry)}")
    return "\n".join(lines)


def difference_text(entry: Difference) -> str:
    interval = entry.interval
    if not interval.known:
        return f"{100 * interval.value:+7.2f} points (one unit alone)"
    return (
        f"{100 * interval.value:+7.2f} points ({100 * interval.low:+.2f} to "
        f"{100 * interval.high:+.2f}, p {shown_p(entry.p)}){' *' * entry.clear}"
    )


def comparison_page(first: Method, others: Sequence[tuple[Method, Comparison]]) -> str:
    """The page: a section for each comparison, the images of the last one."""
    parts = [f"<header><h1>Comparison with {text(first.name)}</h1>"]
    for method, result in others:
        parts.append(f"<p class=verdict>{text(result.headline(first.name, method.name))}</p>")
        parts.append(f"<p class=facts>{text(result.facts())}</p>")
        parts += [
            f"<p class=faint>{text(note[0].upper() + note[1:])}.</p>" for note in result.notes
        ]
    parts.append("</header>")
    for method, result in others:
        parts.append(f"<section><h2>{text(method.name)} against {text(first.name)}</h2>")
        parts.append(figures_table(first, method, result) + class_table(first, result))
        parts.append("</section>")
    method, result = others[-1]
    images, gallery = changed_pictures(first, method, result)
    parts.append(
        "<section><h2>Images that changed most</h2><p>By the mean IoU of the classes in each "
        f"image. Open one to see {text(first.name)} and {text(method.name)} behind a slider.</p>"
        f"<div id=gallery></div></section>{VIEWER}"
    )
    layers = ["image", first.name, method.name]
    facts = first.runs[0].facts
    data = {
        "classes": first.runs[0].names,
        "colors": facts.get("colors"),
        "layers": layers,
        "start": [1, 2],
        "gallery": gallery,
        "cells": {},
        **images,
    }
    return page(f"comparison with {first.name}", "\n".join(parts), data)


def figures_table(first: Method, second: Method, result: Comparison) -> str:
    told = text(difference_text(result.mean))
    rows = [
        [text(first.name), figures_text(result.a), ""],
        [text(second.name), figures_text(result.b), f"<span class=wrap>{told}</span>"],
    ]
    return table(["", "mIoU", "difference"], rows, numbers=2)


def class_table(first: Method, result: Comparison) -> str:
    """Every class; headings sort."""
    rows = [
        [
            (name, text(name)),
            change_cell(entry),
            (entry.p, text(shown_p(entry.p).removeprefix("= "))),
        ]
        for name, entry in zip(first.runs[0].names, result.classes, strict=True)
        if entry is not None
    ]
    note = (
        "<p class=faint>In colour: more than chance, with the number of classes taken into account "
        "(Benjamini and Hochberg 1995, at 5 %).</p>"
    )
    return sortable(["class", "change of IoU in points (95 % interval)", "p"], rows) + note


def changed_pictures(first: Method, second: Method, result: Comparison) -> tuple[dict, list]:
    """({images, thumbs, full}, [title, indices]) of the images that lost and gained most."""
    lost = [entry for entry in result.changed[:MOST_CHANGED] if entry[1] < 0]
    gained = [entry for entry in result.changed[::-1][:MOST_CHANGED] if entry[1] > 0]
    chosen = [*lost, *gained]
    files = prediction_names([image.name for image in first.runs[0].images])
    own = [{image.name: image for image in method.runs[0].images} for method in (first, second)]
    images, thumbs, full = [], [], []
    for name, change in chosen:
        shown = read_both(first, second, name, files[name])
        entry = {
            "name": name.rpartition("/")[2],
            "fact": f"{100 * change:+.1f}",
            "facts": f"mIoU of its classes {100 * change:+.1f} points",
            "per": both_iou(*(images[name].iou() for images in own)),
            "ratio": ratio_of(own[0][name].size),
            "thumb": -1,
            "full": -1,
        }
        if shown is not None:
            entry["thumb"], entry["full"] = len(thumbs), len(full)
            thumbs.append(shown[0])
            full.append(shown[1])
        images.append(entry)
    half = len(lost)
    gallery = [["Lost most", [*range(half)]], ["Gained most", [*range(half, len(chosen))]]]
    return {"images": images, "thumbs": thumbs, "full": full}, gallery


def both_iou(first: Mapping[int, float], second: Mapping[int, float]) -> dict[int, str]:
    """{class: "0.500 to 0.600"} of an image's classes; a dash where one method has none of it."""

    def shown(iou: float | None) -> str:
        return "-" if iou is None else f"{iou:.3f}"

    either = sorted(first.keys() | second.keys())
    return {index: f"{shown(first.get(index))} to {shown(second.get(index))}" for index in either}


def read_both(first: Method, second: Method, name: str, file: str) -> tuple[str, list[str]] | None:
    """(thumbnail, layers) of an image with both predictions; None where a file is gone."""
    facts = first.runs[0].facts
    saved = all(method.runs[0].facts.get("predictions", True) for method in (first, second))
    root = Path(str(facts.get("data_root", "")))
    if not saved or "colors" not in facts or not is_below(root / name, root):
        return None
    colors = np.asarray(facts["colors"], np.uint8)
    try:
        image = as_rgb(read_image(root / name, 3))
        both = [read_label(method.folders[0] / "gray" / file) for method in (first, second)]
    except DataError:
        return None
    if any(part.shape != image.shape[:2] or part.max() >= len(colors) for part in both):
        return None
    image, *both = shrunk(image, FULL), *(shrunk(part, FULL, exact=True) for part in both)
    small = shrunk(image, THUMBNAIL), shrunk(both[1], THUMBNAIL, exact=True)
    thumbnail = jpeg(overlay(*small, colors), quality=60)
    return thumbnail, [jpeg(image), *(palette_png(part, colors) for part in both)]
