"""`epochs.jsonl` in a run's folder: the figures of every epoch, one JSON object per line.

    {"epoch": 1, "train": {"loss": 2.1, "mIoU": 0.02, ...}, "val": {"mIoU": 0.03, ...}}

An epoch without validation has no "val". An epoch that a resumed run repeats stands there once.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..files import atomic_write

NAME = "epochs.jsonl"
Figures = dict[str, dict[str, float]]  # {"train": {"loss": 2.1}, "val": {"mIoU": 0.03}}


def read_epochs(folder: Path) -> dict[int, Figures]:
    """Return {epoch: figures} in ascending order; other lines are skipped."""
    try:
        lines = (folder / NAME).read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return {}
    return {record.pop("epoch"): record for record in map(record_of, lines) if record}


def record_of(line: str) -> dict[str, Any] | None:
    """Return the object of a line, or None where it is damaged."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    whole = isinstance(record, dict) and type(record.get("epoch")) is int
    splits = [value for key, value in record.items() if key != "epoch"] if whole else []
    return record if whole and all(isinstance(split, dict) for split in splits) else None


def write_epoch(folder: Path, epoch: int, figures: Figures, *, warn: Callable[[str], None]) -> None:
    """Add an epoch; entries of it and of later epochs from an earlier attempt are dropped.

    A file that cannot be written is reported to `warn`, and the run continues.
    """
    path = folder / NAME
    try:
        known = {index: old for index, old in read_epochs(folder).items() if index < epoch}
        with atomic_write(path, durable=True) as file:
            for index, entry in {**known, epoch: figures}.items():
                file.write(json.dumps({"epoch": index, **entry}).encode() + b"\n")
    except OSError as error:
        warn(f"{path}: the figures of epoch {epoch} could not be written ({error})")
