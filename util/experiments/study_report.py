"""Table and pictures of a study: means and deviations over seeds."""

import csv
import io
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import write_text
from .plots import new_figure, save_figure

MAIN = ("top1", "mIoU")  # the figure that runs are compared by, whichever their task has
OTHERS = ("top5", "mAcc", "allAcc", "loss")


@dataclass(frozen=True)
class Result:
    """A row: a config with its options, what its network costs, the figures of its seeds."""

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
        """Of the sample; 0 for a single seed, where nothing is known of it."""
        numbers = self.numbers(name)
        return statistics.stdev(numbers) if len(numbers) > 1 else 0.0

    def cell(self, name: str, *, plus_minus: str = " ± ") -> str:
        """Mean and deviation: shares in per cent, losses as they are."""
        if not self.numbers(name):
            return ""
        mean, deviation = self.mean(name), self.deviation(name)
        if name == "loss":
            return f"{mean:.4f}{plus_minus}{deviation:.4f}"
        return f"{100 * mean:.2f}{plus_minus}{100 * deviation:.2f}"


def write_report(results: Sequence[Result], folder: Path) -> str:
    """Write table and pictures; the table as text."""
    names = [n for n in (*MAIN, *OTHERS) if any(result.numbers(n) for result in results)]
    table = markdown(results, names)
    write_text(folder / "table.md", table + "\n")
    write_text(folder / "table.tex", latex(results, names))
    write_text(folder / "results.csv", as_csv(results, names))
    for name in [n for n in names if n in (*MAIN, "loss")]:
        done = [result for result in results if result.numbers(name)]
        plot_bars(done, name, folder / f"{name}.png")
        if name in MAIN:
            plot_cost(done, name, folder / f"cost_{name}.png")
    missing = sum(not result.figures for result in results)
    rest = f"\n{missing} rows have no run yet" if missing else ""
    return f"{table}\n{folder / 'table.md'}, table.tex, results.csv and pictures{rest}"


def heads(results: Sequence[Result], names: Sequence[str]) -> list[str]:
    options = [key.rpartition(".")[2] for key in results[0].values]
    return ["config", *options, "seeds", *names, "parameters", "multiply-adds"]


def row(result: Result, names: Sequence[str], **style: str) -> list[str]:
    return [
        result.config,
        *map(str, result.values.values()),
        str(len(result.figures)),
        *[result.cell(name, **style) for name in names],
        f"{result.parameters:,}",
        f"{result.multiply_adds / 1e6:.1f} M",
    ]


def markdown(results: Sequence[Result], names: Sequence[str]) -> str:
    rows = [heads(results, names), ["---"] * len(heads(results, names))]
    rows += [row(result, names) for result in results]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def latex(results: Sequence[Result], names: Sequence[str]) -> str:
    """A tabular for the booktabs package."""
    columns = heads(results, names)
    texts = len(columns) - len(names) - 3  # the config and its options stand left
    lines = [rf"\begin{{tabular}}{{{'l' * texts}{'r' * (len(columns) - texts)}}}", r"\toprule"]
    body = [columns, *[row(r, names, plus_minus=r" $\pm$ ") for r in results]]
    lines += [" & ".join(escaped(cell) for cell in cells) + r" \\" for cells in body]
    lines.insert(3, r"\midrule")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def escaped(text: str) -> str:
    for sign in "&%#_":
        text = text.replace(sign, "\\" + sign)
    return text


def as_csv(results: Sequence[Result], names: Sequence[str]) -> str:
    """A line for each run: raw figures."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    options = list(results[0].values)
    writer.writerow(["config", *options, "seed", *names, "parameters", "multiply_adds"])
    for result in results:
        for seed, figures in result.figures.items():
            cells = [figures.get(name, "") for name in names]
            cost = [result.parameters, result.multiply_adds]
            writer.writerow([result.config, *result.values.values(), seed, *cells, *cost])
    return out.getvalue()


def plot_bars(results: Sequence[Result], name: str, path: Path) -> None:
    """Means with their deviations; the axis begins where differences can be seen."""
    figure = new_figure(max(5.0, 0.7 * len(results) + 2), 4.0)
    axes = figure.add_subplot()
    means = [result.mean(name) for result in results]
    deviations = [result.deviation(name) for result in results]
    axes.errorbar(range(len(results)), means, yerr=deviations, fmt="o", capsize=4)
    axes.set_xticks(range(len(results)), [r.label for r in results], rotation=40, ha="right")
    axes.set_ylabel(name)
    axes.grid(axis="y", alpha=0.4)
    save_figure(figure, path)


def plot_cost(results: Sequence[Result], name: str, path: Path) -> None:
    """The figure against parameters and against multiply-adds."""
    figure = new_figure(10.0, 4.0)
    for place, (what, unit) in enumerate([("parameters", 1e6), ("multiply_adds", 1e6)], 1):
        axes = figure.add_subplot(1, 2, place)
        for result in results:
            cost = getattr(result, what) / unit
            axes.errorbar(cost, result.mean(name), yerr=result.deviation(name), fmt="o", capsize=3)
            axes.annotate(
                " ".join(map(str, result.values.values())) or result.config,
                (cost, result.mean(name)),
                textcoords="offset points",
                xytext=(5, 4),
                fontsize=8,
            )
        axes.set_xlabel(f"{what.replace('_', '-')} (millions)")
        axes.set_ylabel(name)
        axes.grid(alpha=0.4)
    save_figure(figure, path)
