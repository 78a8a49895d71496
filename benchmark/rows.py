"""One line of the table, how its times are taken, and how it is shown."""

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Row:
    """A job done by us and by the baseline.

    Args:
        ours, baseline: amount a second, or of memory, in `unit`.
        ratio: how many times better ours is.
        wanted: the ratio to reach, or None.
        agreement: in what the results of the two were compared, and how far they are apart.
    """

    job: str
    ours: float
    baseline: float
    unit: str
    ratio: float
    wanted: float | None
    agreement: str

    @property
    def reached(self) -> bool:
        return self.wanted is None or self.ratio >= self.wanted


def rate_row(
    job: str, seconds: Sequence[float], *, unit: str, wanted: float | None, agreement: str
) -> Row:
    """The row of a job that takes (ours, baseline) `seconds`."""
    ours, baseline = seconds
    return Row(job, 1 / ours, 1 / baseline, unit, baseline / ours, wanted, agreement)


def seconds_of(
    *functions: Callable[[], object], rounds: int = 3, warm_up: int = 1, device: str = "cpu"
) -> list[float]:
    """Median time of each function; they take turns, so that a busy moment hits all of them."""
    for function in functions:
        for _ in range(warm_up):
            function()
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(rounds):
        for function, taken in zip(functions, times, strict=True):
            wait(device)
            start = time.perf_counter()
            function()
            wait(device)
            taken.append(time.perf_counter() - start)
    return [statistics.median(taken) for taken in times]


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


HEADER = """\
| job | ours | baseline | ratio | wanted | results |
| --- | --- | --- | --- | --- | --- |"""


def line(row: Row) -> str:
    """A line of the Markdown table, as in docs/performance.md."""
    wanted = "" if row.wanted is None else f"{row.wanted:g}"
    short = "" if row.reached else " (short)"
    return (
        f"| {row.job} | {row.ours:.3g} {row.unit} | {row.baseline:.3g} | "
        f"{row.ratio:.2f}{short} | {wanted} | {row.agreement} |"
    )


def write_json(path: Path, rows: Sequence[Row], machine: dict) -> None:
    content = {"machine": machine, "rows": [asdict(row) for row in rows]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
