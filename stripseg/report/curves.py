"""Learning curves of several runs: read what they recorded, draw it, write it as a table.

A run records `epochs.jsonl` (figures of every epoch, and what it cost), TensorBoard's event files
(figures of the steps) and the log (the same, also of runs from before these costs were recorded).
"""

import json
import math
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..config.errors import ConfigError, DataError
from ..util.experiments.report import as_csv, new_figure, save_figure
from ..util.files import write_text
from ..util.logger import visible
from ..util.training.epoch_log import NAME, RUN, read_records

EVENTS, LOGS = "events.out.tfevents.*", "train-*.log"
LARGEST_EVENT = 2**16  # bytes; larger ones are pictures
STEP_LINE = re.compile(
    r"epoch (?P<epoch>\d+)/\d+ step (?P<position>\d+)/(?P<length>\d+) loss (?P<loss>\S+) .*?"
    r"lr (?P<lr>\S+) (?P<seconds_per_step>\S+) s/step"
)
WIDTH = 40  # characters of a chart in the terminal
BARS, PLAIN_BARS = "▁▂▃▄▅▆▇█", "_.-=+*%#"
COLUMNS = ["run", "name", "epoch", "step", "value"]
SUFFIXES = (".png", ".svg")


@dataclass(frozen=True)
class Point:
    """A value at the end of a step, or of an epoch; `epoch` is a fraction within one.

    Either is None where the records do not tell.
    """

    epoch: float | None
    step: int | None
    value: float


@dataclass
class Run:
    """What a run recorded: {"val/mIoU": [Point, ...]}, in the order of training."""

    name: str
    curves: dict[str, list[Point]] = field(default_factory=dict)


@dataclass(frozen=True)
class Panel:
    """One chart: the first of `names` that a run has, and `beside` it another curve, dashed.

    `best`, min or max, chooses the best value, where one is better than another.
    """

    title: str
    names: tuple[str, ...]
    beside: str | None = None
    best: Callable[..., Point] | None = None


PANELS = (
    Panel("loss", ("train/loss", "train_step/loss"), best=min),
    Panel("learning rate", ("train_step/lr", "run/lr")),
    *(Panel(n, (f"val/{n}",), f"train/{n}", max) for n in ("mIoU", "mAcc", "allAcc")),
    *(Panel(n, (f"val/{n}",), f"train/{n}", max) for n in ("top1", "top5")),
    Panel("s/step", ("run/seconds_per_step", "train_step/seconds_per_step"), best=min),
    Panel("images/s", ("run/images_per_second", "train_step/images_per_second"), best=max),
    Panel("memory, GiB", ("run/peak_memory_gib", "train_step/peak_memory_gib"), best=min),
    Panel("GPU memory, GiB", ("run/peak_cuda_gib", "train_step/peak_cuda_gib"), best=min),
    Panel("gradient norm", ("train_step/gradient_norm",)),
)


def read_runs(places: Sequence[str | Path]) -> list[Run]:
    """The runs of folders or files, in this order, each under a name of its own.

    Raises:
        DataError: a place holds no record of a run.
    """
    paths = [Path(place).expanduser() for place in places]
    names = [run_name(path) for path in paths]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    return [read_run(path, name) for path, name in zip(paths, names, strict=True)]


def run_name(path: Path) -> str:
    """`camvid/spnet18` for exp/camvid/spnet18, its model folder, or a file in one of them."""
    parts = list((path.parent if path.is_file() else path).parts)
    if len(parts) > 1 and parts[-1] == "model":
        parts.pop()
    return visible("/".join(parts[-2:]).replace("//", "/")) or "."


def read_run(path: Path, name: str) -> Run:
    """Everything that a run recorded.

    Args:
        path: the run's folder, its model folder, or a file: of records, else any in that folder.
    Raises:
        DataError: there is no record of a run.
    """
    epochs, events, logs = record_files(path)
    run = Run(name)
    length = None
    for epoch, record in (read_records(epochs) if epochs else {}).items():
        step = record.get(RUN, {}).get("step")
        length = step / epoch if isinstance(step, int) and epoch > 0 else length
        for split, figures in record.items():
            for key, value in figures.items():
                if is_figure(value) and (split, key) not in ((RUN, "version"), (RUN, "step")):
                    run.curves.setdefault(f"{split}/{key}", []).append(Point(epoch, step, value))
    by_log, length_in_log = logged_steps(logs)
    length = length or length_in_log
    # the log repeats what the event files have, with fewer digits
    for curves in (drawn_steps(events), by_log):
        for key, values in curves.items():
            points = [Point(s / length if length else None, s, v) for s, v in values.items()]
            run.curves.setdefault(key, sorted(points, key=lambda point: point.step))
    if not run.curves:
        raise DataError(
            f"{path}: no record of a training run there ({NAME}, {EVENTS} or {LOGS}); name a run's "
            "folder, such as exp/camvid/spnet18"
        )
    return run


def is_figure(value: Any) -> bool:
    """Return whether a value of a record is a number, and one that a chart can take."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isinstance(value, float) or abs(value) < 2**63


def record_files(path: Path) -> tuple[Path | None, list[Path], list[Path]]:
    """(epochs.jsonl, event files, logs) that a path means; files are in the order of time."""
    if path.suffix == ".jsonl" and path.is_file():
        return path, [], []
    if path.match(EVENTS) and path.is_file():
        return None, [path], []
    if path.suffix == ".log" and path.is_file():
        return None, [], [path]
    folder = path.parent if path.is_file() else path
    if (folder / "model").is_dir():
        folder = folder / "model"
    epochs = folder / NAME
    events, logs = (sorted(folder.glob(pattern)) for pattern in (EVENTS, LOGS))
    return epochs if epochs.is_file() else None, events, logs


def drawn_steps(files: Sequence[Path]) -> dict[str, dict[int, float]]:
    """{name: {step: value}} of event files; a later file replaces what it repeats."""
    curves: dict[str, dict[int, float]] = {}
    for file in files:
        begun: dict[str, int] = {}
        for name, step, value in scalars_of(file):
            add_step(curves.setdefault(name, {}), step, value, first=begun.setdefault(name, step))
    return curves


def add_step(curve: dict[int, float], step: int, value: float, *, first: int) -> None:
    """Add a value; at the `first` step of a file, drop those that an earlier attempt has left."""
    if step == first:
        for later in [known for known in curve if known >= step]:
            del curve[later]
    curve[step] = value


def scalars_of(file: Path) -> Iterator[tuple[str, int, float]]:
    """(name, step, value) of an event file, up to where it is damaged."""
    from google.protobuf.message import DecodeError
    from tensorboardX.proto.event_pb2 import Event

    for content in events_of(file):
        try:
            event = Event.FromString(content)
        except DecodeError:
            return
        for value in event.summary.value:
            if value.HasField("simple_value"):
                yield visible(value.tag), event.step, value.simple_value


def events_of(file: Path) -> Iterator[bytes]:
    """The records of an event file: length, checksum, content, checksum; pictures are left out."""
    size = file.stat().st_size
    with open(file, "rb") as stream:
        while len(head := stream.read(12)) == 12:
            length = struct.unpack("<Q", head[:8])[0]
            if length > size - stream.tell():
                return
            if length <= LARGEST_EVENT:
                yield stream.read(length)
            else:
                stream.seek(length, 1)
            stream.seek(4, 1)


def logged_steps(files: Sequence[Path]) -> tuple[dict[str, dict[int, float]], int | None]:
    """({name: {step: value}}, steps per epoch) of the lines of logs."""
    curves: dict[str, dict[int, float]] = {}
    length = None
    for file in files:
        first = None
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            if (found := STEP_LINE.search(line)) is None:
                continue
            length = int(found["length"])
            step = (int(found["epoch"]) - 1) * length + int(found["position"])
            first = step if first is None else first
            for name in ("loss", "lr", "seconds_per_step"):
                try:
                    value = float(found[name])
                except ValueError:
                    continue
                add_step(curves.setdefault(f"train_step/{name}", {}), step, value, first=first)
    return curves, length


def panels_of(runs: Sequence[Run]) -> list[Panel]:
    """The charts that at least one run has something for."""
    return [panel for panel in PANELS if any(curves_of(run, panel) for run in runs)]


def curves_of(run: Run, panel: Panel) -> list[tuple[list[Point], str]]:
    """(points, line style) of a chart's curve, and of the one beside it, where the run has them."""
    curves = [(run.curves[name], "-") for name in panel.names if name in run.curves][:1]
    return curves + [(run.curves[name], "--") for name in (panel.beside,) if name in run.curves]


def text_charts(runs: Sequence[Run], *, plain: bool = False) -> str:
    """For a terminal: a line of bars for every chart and run, with the last and the best value.

    Args:
        plain: ASCII alone.
    """
    width = max(len(run.name) for run in runs)
    lines = []
    for panel in panels_of(runs):
        lines.append(panel.title)
        for run in runs:
            if found := curves_of(run, panel):
                points, _ = found[0]
                chart = bars([point.value for point in points], plain=plain)
                lines.append(f"  {run.name:{width}}  {chart}  {last_and_best(points, panel)}")
    return "\n".join(lines)


def last_and_best(points: Sequence[Point], panel: Panel) -> str:
    text = f"last {points[-1].value:.4g}"
    finite = [point for point in points if math.isfinite(point.value)]
    if panel.best is None or not finite:
        return text
    best = panel.best(finite, key=lambda point: point.value)
    where = "" if best.epoch is None else f" (epoch {best.epoch:.4g})"
    return f"{text}, best {best.value:.4g}{where}"


def bars(values: Sequence[float], *, plain: bool = False) -> str:
    """At most `WIDTH` characters from low to high, each the mean of its share of the values.

    What is not finite is a question mark.
    """
    signs = PLAIN_BARS if plain else BARS
    count = min(WIDTH, len(values))
    edges = [len(values) * index // count for index in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    finite = list(filter(math.isfinite, means)) or [0.0]
    low, span = min(finite), max(finite) - min(finite)

    def sign(mean: float) -> str:
        if not math.isfinite(mean):
            return "?"
        return signs[min(len(signs) - 1, int((mean - low) / (span or 1.0) * len(signs)))]

    return "".join(map(sign, means)).ljust(WIDTH)


def check_output(path: Path) -> None:
    """Raises ConfigError for a suffix other than those of pictures of curves."""
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"--output {path}: curves are a {' or '.join(SUFFIXES)} file")


def draw(runs: Sequence[Run], path: Path) -> None:
    """Write all charts in one picture, a colour for each run.

    Raises:
        ConfigError: the suffix is neither .png nor .svg.
        StripsegError: matplotlib is not installed.
    """
    check_output(path)
    panels = panels_of(runs)
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = new_figure(4.6 * columns, 2.9 * rows + 0.3 * len(runs))
    for index, panel in enumerate(panels):
        draw_panel(figure.add_subplot(rows, columns, index + 1), runs, panel)
    handles = [figure.axes[0].plot([], [], color=f"C{i % 10}")[0] for i in range(len(runs))]
    # a label that begins with an underscore would be left out, and $ begins a formula
    labels = [" " + run.name.replace("$", r"\$") for run in runs]
    figure.legend(handles, labels, loc="outside lower left", frameon=False)
    save_figure(figure, path)


def draw_panel(axes: Any, runs: Sequence[Run], panel: Panel) -> None:
    every = [point for run in runs for points, _ in curves_of(run, panel) for point in points]
    by_epoch = all(point.epoch is not None for point in every)
    for index, run in enumerate(runs):
        for points, style in curves_of(run, panel):
            x = [point.epoch if by_epoch else point.step for point in points]
            y = [point.value for point in points]
            marker = "." if len(points) < 12 else None
            axes.plot(x, y, style, color=f"C{index % 10}", marker=marker, linewidth=1.2)
    dashed = panel.beside and any(panel.beside in run.curves for run in runs)
    axes.set_title(f"{panel.title} (validation, dashed: training)" if dashed else panel.title)
    axes.title.set_fontsize(10)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("epoch" if by_epoch else "step", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
    axes.margins(x=0.02)


def table(runs: Sequence[Run]) -> list[list[Any]]:
    """Every value of every run, in the order of `COLUMNS`; what is not known is None."""
    return [
        [run.name, name, point.epoch, point.step, point.value]
        for run in runs
        for name, points in run.curves.items()
        for point in points
    ]


def write_csv(runs: Sequence[Run], path: Path) -> None:
    """Write `table` as CSV; what is not known is an empty cell."""
    rows = [["" if cell is None else cell for cell in row] for row in table(runs)]
    write_text(path, as_csv([COLUMNS, *rows]))


def write_jsonl(runs: Sequence[Run], path: Path) -> None:
    """Write `table`, one JSON object per line; a value that is not finite is null."""
    lines = []
    for row in table(runs):
        record = dict(zip(COLUMNS, row, strict=True))
        if not math.isfinite(record["value"]):
            record["value"] = None
        lines.append(json.dumps(record, allow_nan=False) + "\n")
    write_text(path, "".join(lines))
