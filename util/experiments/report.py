"""Tables and plots of many runs: a sweep's trials, a study's rows."""

import csv
import html
import io
import math
import re
import statistics
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...config.errors import StripsegError
from ...config.schema import Config
from ..files import atomic_write, write_text
from .sweep import SweepStudy, write_yaml

DOTS_PER_INCH = 120
STATES = {"COMPLETE": "done", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running"}
ERROR_SHOWN = 60  # characters in a table; results.csv has all of them
MAIN_FIGURES = ("top1", "mIoU")  # what runs are compared by, whichever their task has
OTHER_FIGURES = ("top5", "mAcc", "allAcc", "loss")


def new_figure(width: float, height: float) -> Any:
    """Return an empty matplotlib figure of a size in inches, without a window.

    Raises:
        StripsegError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise StripsegError(
            "plots need matplotlib, which is not installed: pip install matplotlib"
        ) from None
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure as the suffix says (.png, .svg), whole or not at all."""
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix[1:].lower(), dpi=DOTS_PER_INCH, bbox_inches="tight")
    with atomic_write(path) as file:
        file.write(content.getvalue())


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    escaped_lines = [list(map(markdown_cell, cells)) for cells in lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in escaped_lines)


def markdown_cell(text: str) -> str:
    """Text that stays text: on one line, no column, no HTML, no image, no link."""
    text = html.escape(visible(text), quote=False)
    return re.sub(r"([\\|`\[\]])", r"\\\1", text)


def visible(text: str) -> str:
    """Text without line breaks and without the control characters that command a terminal."""
    return "".join(sign if sign.isprintable() else " " for sign in text)


def as_csv(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(
        [csv_cell(cell) for cell in cells] for cells in (header, *rows)
    )
    return out.getvalue()


def csv_cell(value: Any) -> Any:
    """A value that no spreadsheet takes for a formula; numbers stay as they are."""
    return (
        f"'{value}"
        if isinstance(value, str)
        and value[:1] in ("=", "+", "-", "@", "\t", "\r")
        and not is_number(value)
        else value
    )


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table for a terminal: columns of one width."""
    header, *rows = [list(map(visible, cells)) for cells in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in (header, *rows)
    )


def write_sweep_report(study: SweepStudy, base: Config) -> str:
    """Write results.csv, results.md, the plots and best.yaml; return the text for the terminal.

    Raises:
        StripsegError: matplotlib is not installed.
    """
    sweep, folder = study.sweep, study.folder
    sign = -1 if sweep.metric.goal == "maximize" else 1
    finished = sorted(study.trials("COMPLETE"), key=lambda t: (sign * t.value, t.number))
    trials = [*finished, *study.trials("PRUNED", "FAIL", "RUNNING")]
    header = ["trial", "state", sweep.metric.name, "epochs", "minutes", *sweep.varied, "error"]
    rows, raw = [], []
    for trial in trials:
        last = trial.intermediate_values.get(trial.last_step)
        value = last if trial.value is None else trial.value
        minutes = trial.duration.total_seconds() / 60 if trial.duration else math.nan
        chosen = [trial.user_attrs.get("values", {}).get(name, "") for name in sweep.varied]
        start = [str(trial.number), STATES[trial.state.name]]
        error = trial.user_attrs.get("error", "")
        figures = ["" if value is None else f"{value:.4f}", str(trial.last_step or 0)]
        shown = ["" if math.isnan(minutes) else f"{minutes:.1f}", *map(plain, chosen)]
        rows.append([*start, *figures, *shown, error[:ERROR_SHOWN]])
        exact = ["" if value is None else repr(value), trial.last_step or 0]
        raw.append([*start, *exact, shown[0], *chosen, error])
    write_text(folder / "results.csv", as_csv(header, raw))
    plots = write_sweep_plots(study)
    summary = "no trial is finished yet"
    if finished:
        best = finished[0]
        options = sweep.options(best.user_attrs["values"])
        comment = f"trial {best.number} of the sweep {sweep.name}: {sweep.metric.name} {best.value}"
        write_yaml(
            folder / "best.yaml",
            base,
            options,
            experiment=f"{sweep.name}_best",
            comment=f"# {comment}\n",
        )
        chosen = ", ".join(f"{option} {plain(value)}" for option, value in options.items())
        summary = f"best: trial {best.number}, {sweep.metric.name} {best.value:.4f}: {chosen}"
    text = [
        f"# Sweep {sweep.name}",
        f"Method {sweep.method}, {sweep.metric.goal} {sweep.metric.name}. {summary}.",
        markdown(header, rows),
        *(f"![{name}]({name}.png)" for name in plots),
    ]
    write_text(folder / "results.md", "\n\n".join(text) + "\n")
    where = f"; {folder / 'best.yaml'}" if finished else ""
    return f"{aligned(header, rows)}\n{summary}{where}"


def write_sweep_plots(study: SweepStudy) -> list[str]:
    """Write Optuna's plots that the trials allow so far; return their names."""
    new_figure(1, 1)  # is matplotlib there?
    import matplotlib
    import optuna

    matplotlib.use("Agg")
    plots = optuna.visualization.matplotlib
    importance = optuna.importance.PedAnovaImportanceEvaluator
    finished = study.trials("COMPLETE")
    wanted: dict[str, Callable[[], Any]] = {}
    if finished:
        wanted["history"] = lambda: plots.plot_optimization_history(study.study)
        wanted["parallel"] = lambda: plots.plot_parallel_coordinate(study.study)
    if len({trial.value for trial in finished}) > 1 and study.sweep.varied:
        wanted["importance"] = lambda: plots.plot_param_importances(
            study.study, evaluator=importance()
        )
    written = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        warnings.filterwarnings("ignore", module="optuna.*|matplotlib.*")
        for name, plot in wanted.items():
            try:
                axes = plot()
            except (ValueError, RuntimeError):  # too few different values for its statistics
                continue
            save_figure(axes.figure, study.folder / f"{name}.png")
            matplotlib.pyplot.close(axes.figure)
            written.append(name)
    return written


def plain(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class StudyRow:
    """A row of a study: a config with its options, what its network costs, its seeds' figures."""

    config: str
    values: dict[str, Any]
    figures: dict[int, dict[str, Any]]  # {seed: metrics.json}
    parameters: int
    multiply_adds: int

    @property
    def label(self) -> str:
        return " ".join([self.config, *map(str, self.values.values())])

    def numbers(self, name: str) -> list[float]:
        return [figures[name] for figures in self.figures.values() if name in figures]

    def mean(self, name: str) -> float:
        return statistics.fmean(self.numbers(name))

    def deviation(self, name: str) -> float:
        """Return the sample's standard deviation; 0 for a single seed, which tells nothing."""
        numbers = self.numbers(name)
        return statistics.stdev(numbers) if len(numbers) > 1 else 0.0

    def cell(self, name: str, *, plus_minus: str = " ± ") -> str:
        """Return mean and deviation: shares in per cent, losses as they are."""
        if not self.numbers(name):
            return ""
        mean, deviation = self.mean(name), self.deviation(name)
        if name == "loss":
            return f"{mean:.4f}{plus_minus}{deviation:.4f}"
        return f"{100 * mean:.2f}{plus_minus}{100 * deviation:.2f}"

    def cells(self, names: Sequence[str], **style: str) -> list[str]:
        return [
            self.config,
            *map(str, self.values.values()),
            str(len(self.figures)),
            *[self.cell(name, **style) for name in names],
            f"{self.parameters:,}",
            f"{self.multiply_adds / 1e6:.1f} M",
        ]


def write_study_report(rows: Sequence[StudyRow], folder: Path) -> str:
    """Write table.md, table.tex, results.csv and the plots; return the text for the terminal."""
    names = [n for n in (*MAIN_FIGURES, *OTHER_FIGURES) if any(row.numbers(n) for row in rows)]
    options = [key.rpartition(".")[2] for key in rows[0].values]
    header = ["config", *options, "seeds", *names, "parameters", "multiply-adds"]
    table = markdown(header, [row.cells(names) for row in rows])
    write_text(folder / "table.md", table + "\n")
    write_text(folder / "table.tex", latex(header, rows, names))
    runs = [
        [row.config, *row.values.values(), seed]
        + [figures.get(name, "") for name in names]
        + [row.parameters, row.multiply_adds]
        for row in rows
        for seed, figures in row.figures.items()
    ]
    columns = ["config", *rows[0].values, "seed", *names, "parameters", "multiply_adds"]
    write_text(folder / "results.csv", as_csv(columns, runs))
    for name in [n for n in names if n in (*MAIN_FIGURES, "loss")]:
        plot_means([row for row in rows if row.numbers(name)], name, folder)
    missing = sum(not row.figures for row in rows)
    rest = f"\n{missing} rows have no run yet" if missing else ""
    return f"{table}\n{folder / 'table.md'}, table.tex, results.csv and plots{rest}"


def latex(header: Sequence[str], rows: Sequence[StudyRow], names: Sequence[str]) -> str:
    """Return a tabular for the booktabs package."""
    left = len(header) - len(names) - 3  # the config and its options
    body = [header, *[row.cells(names) for row in rows]]
    lines = [" & ".join(map(escaped, cells)) + r" \\" for cells in body]
    columns = "l" * left + "r" * (len(header) - left)
    begin = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", lines[0], r"\midrule"]
    return "\n".join([*begin, *lines[1:], r"\bottomrule", r"\end{tabular}", ""])


LATEX = {
    **{sign: f"\\{sign}" for sign in "&%#_{}$"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
}


def escaped(text: str) -> str:
    """Text in which LaTeX finds no command."""
    return "".join(LATEX.get(sign, sign) for sign in visible(text))


def plot_means(rows: Sequence[StudyRow], name: str, folder: Path) -> None:
    """Plot means with their deviations: each row, and against what the networks cost."""
    figure = new_figure(max(5.0, 0.7 * len(rows) + 2), 4.0)
    axes = figure.add_subplot()
    means, deviations = ([getattr(row, of)(name) for row in rows] for of in ("mean", "deviation"))
    axes.errorbar(range(len(rows)), means, yerr=deviations, fmt="o", capsize=4)
    axes.set_xticks(range(len(rows)), [row.label for row in rows], rotation=40, ha="right")
    axes.set_ylabel(name)
    axes.grid(axis="y", alpha=0.4)
    save_figure(figure, folder / f"{name}.png")
    if name not in MAIN_FIGURES:
        return
    figure = new_figure(10.0, 4.0)
    for index, what in enumerate(("parameters", "multiply_adds"), start=1):
        axes = figure.add_subplot(1, 2, index)
        for row, mean, deviation in zip(rows, means, deviations, strict=True):
            point = (getattr(row, what) / 1e6, mean)
            axes.errorbar(*point, yerr=deviation, fmt="o", capsize=3)
            label = " ".join(map(str, row.values.values())) or row.config
            offset = {"xytext": (5, 4), "textcoords": "offset points", "fontsize": 8}
            axes.annotate(label, point, **offset)
        axes.set_xlabel(f"{what.replace('_', '-')} (millions)")
        axes.set_ylabel(name)
        axes.grid(alpha=0.4)
    save_figure(figure, folder / f"cost_{name}.png")
