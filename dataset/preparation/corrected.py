"""Corrected copies of labels, where what is wrong with them is certain."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ...config.errors import DataError
from ..labels import LabelEncoding
from ..lists import Pair
from .class_numbering import Choices, ClassNumbering, Colour
from .custom import write_labels
from .label_values import number_classes
from .match import Inspection, inspect_pairs


def corrected_labels(
    pairs: Sequence[Pair],
    encoding: LabelEncoding,
    folder: Path,
    *,
    table: Sequence[tuple[Colour, str]] | None,
    workers: int,
) -> tuple[dict[Path, Path], str]:
    """({label: its corrected copy below `folder`}, what was decided), by `prepare custom`'s rules.

    Values become class ids where their meaning gives as many classes as the config has; labels of
    the size of a photo as it is stored are turned with it. No copy is made where nothing is wrong.

    Args:
        table: colours and names of the classes, where a file lists them.
    """
    jobs = {pair.image: pair.label for pair in reversed(pairs) if pair.label is not None}
    if encoding.kind != "train_id" or not jobs:
        return {}, ""
    root = Path(os.path.commonpath([image.parent for image in jobs]))
    looked = inspect_pairs(sorted(jobs.items()), root, workers=workers)
    found = [item for item in looked if item.problem is None and item.lossy is None]
    if not found:
        return {}, ""
    given = encoding.ignore_label != Choices().ignore
    try:
        numbering = meaning(found, table, Choices(ignore=encoding.ignore_label, ignore_given=given))
    except DataError as error:
        return {}, f"no label is corrected: {error}"
    if len(numbering.names) != encoding.classes:
        numbering = replace(numbering, plain=True)
    wrong = [item for item in found if item.turned or not numbering.plain]
    if numbering.plain and any(item.kind != "index" for item in wrong):
        return {}, ""
    written = write_labels(folder, wrong, numbering)
    names = {item.name: item.label for item in wrong}
    told = "; ".join((*numbering.notes, *numbering.warnings)) if not numbering.plain else ""
    return {names[name]: copy for name, copy in written.items()}, told


def meaning(
    found: Sequence[Inspection], table: Sequence[tuple[Colour, str]] | None, choices: Choices
) -> ClassNumbering:
    """What the values mean; colours only by a table, since nothing else tells their order."""
    if any(item.kind == "colour" for item in found) and table is None:
        raise DataError(
            "the labels are colours; name the classes with TEST.colors_path, or use "
            "`stripseg prepare custom ... --colors TABLE`"
        )
    numbering = number_classes(found, table, choices)
    if numbering.coloured and table is None:  # of palettes that differ
        raise DataError(
            "the palettes differ; `stripseg prepare custom ... --colors TABLE` goes by colour"
        )
    return numbering
