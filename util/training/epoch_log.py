"""`epochs.jsonl` in a run's folder: the figures of every epoch, one JSON object per line.

    {"epoch": 1, "train": {"loss": 2.1, "mIoU": 0.02, ...}, "val": {"mIoU": 0.03, ...}}

An epoch without validation has no "val". An epoch that a resumed run repeats is listed once.
"run" (`run_entry`) holds speed and memory; its "version" increases when a key changes its meaning,
and files of earlier versions have none.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..files import atomic_write

NAME = "epochs.jsonl"
RUN = "run"
RUN_VERSION = 1
Figures = dict[str, dict[str, float]]  # {"train": {"loss": 2.1}, "val": {"mIoU": 0.03}}


def run_entry(
    *, step: int, lr: float, seconds_per_step: float, images_per_second: float, **memory: float
) -> Figures:
    """Return the "run" part of an epoch's line.

    Args:
        step: the last one of the epoch, from 1.
        lr: its learning rate, the backbone's.
        seconds_per_step, images_per_second: over the whole epoch, without its validation.
        memory: peaks so far, in GiB.
    """
    figures = {"step": step, "lr": lr, "seconds_per_step": seconds_per_step}
    return {
        RUN: {"version": RUN_VERSION, **figures, "images_per_second": images_per_second, **memory}
    }


def read_epochs(folder: Path) -> dict[int, Figures]:
    """Return {epoch: figures of "train" and "val"}; other lines are skipped."""
    return {
        epoch: {split: figures for split, figures in record.items() if split != RUN}
        for epoch, record in read_records(folder / NAME).items()
    }


def read_records(path: Path) -> dict[int, Figures]:
    """Return {epoch: everything on its line} of a file; other lines are skipped."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return {}
    return {record.pop("epoch"): record for record in map(epoch_record, lines) if record}


def epoch_record(line: str) -> dict[str, Any] | None:
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
        known = {index: old for index, old in read_records(path).items() if index < epoch}
        with atomic_write(path, durable=True) as file:
            for index, entry in {**known, epoch: figures}.items():
                file.write(json.dumps({"epoch": index, **entry}).encode() + b"\n")
    except OSError as error:
        warn(f"{path}: the figures of epoch {epoch} could not be written ({error})")
