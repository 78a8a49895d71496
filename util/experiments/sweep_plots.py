"""The pictures of a sweep: parallel coordinates, and what the metric depends on."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .plots import new_figure, save_figure
from .sweep_file import Sweep
from .sweep_parameters import Parameter

if TYPE_CHECKING:
    from .sweep_report import Row

FEW = 12  # choices that all get a label


def plot_parallel(path: Path, sweep: Sweep, rows: Sequence["Row"]) -> None:
    """A line for each trial through its values, coloured by the metric; those pruned are dashed."""
    parameters = sweep.varied
    figure = new_figure(max(5.0, 1.8 * (len(parameters) + 1)), 4.2)
    axes = figure.subplots()
    rows = [row for row in rows if math.isfinite(row.value) and row.values]
    axes.set_title(f"{sweep.name}: {sweep.metric} of {len(rows)} trials")
    axes.set_yticks([])
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)
    names = [*(parameter.name for parameter in parameters), sweep.metric]
    axes.set_xticks(range(len(names)), names)
    if not rows:
        axes.text(0.5, 0.5, "no trial has a figure yet", transform=axes.transAxes, ha="center")
        return save_figure(figure, path)
    figures = np.array([row.value for row in rows])
    low, high = figures.min(), figures.max()
    span = high - low or 1.0
    for place, parameter in enumerate(parameters):
        draw_axis(axes, place, axis_labels(parameter))
    draw_axis(axes, len(parameters), [(f"{low:.4g}", 0.0), (f"{high:.4g}", 1.0)])
    from matplotlib import colormaps

    colors = colormaps["viridis_r" if not sweep.maximize else "viridis"]
    for row in reversed(rows):  # the best on top
        heights = [height_of(p, row.values[p.name]) for p in parameters]
        level = (row.value - low) / span
        style = "-" if row.state == "done" else "--"
        axes.plot([*heights, level], style, color=colors(level), linewidth=1.5, alpha=0.85)
    return save_figure(figure, path)


def draw_axis(axes: Any, place: int, labels: Sequence[tuple[str, float]]) -> None:
    axes.axvline(place, color="0.7", linewidth=1, zorder=0)
    for text, height in labels:
        axes.text(place + 0.02, height, text, fontsize=8, va="center")


def height_of(parameter: Parameter, value: Any) -> float:
    """Where a value stands on its axis, from 0 to 1."""
    if not parameter.is_range:
        place = [repr(known) for known in parameter.values].index(repr(value))
        return place / max(len(parameter.values) - 1, 1)
    low, high = parameter.low, parameter.high
    if parameter.kind.log:
        low, high, value = math.log(low), math.log(high), math.log(value)
    return (value - low) / (high - low)


def axis_labels(parameter: Parameter) -> list[tuple[str, float]]:
    """(text, height) along an axis."""
    values = parameter.candidates()
    if len(values) > FEW:
        values = values[:: math.ceil(len(values) / FEW)]
    texts = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in values]
    return [(text, height_of(parameter, v)) for text, v in zip(texts, values, strict=True)]


def plot_importances(path: Path, sweep: Sweep, shares: Mapping[str, float]) -> None:
    """A bar for each parameter."""
    figure = new_figure(6.0, 1.2 + 0.4 * max(len(shares), 2))
    axes = figure.subplots()
    axes.set_title(f"{sweep.name}: what {sweep.metric} depends on")
    if not shares:
        axes.axis("off")
        text = "needs two finished trials with different figures"
        axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center")
        return save_figure(figure, path)
    bars = axes.barh(list(shares), list(shares.values()))
    axes.bar_label(bars, fmt="%.2f", padding=2)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.1)
    axes.set_xlabel("share (PED-ANOVA)")
    return save_figure(figure, path)
