"""What a sweep found: a table (results.csv, results.md), two pictures and best.yaml."""

import csv
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ...config.schema import Config
from ..files import write_text
from .sweep_file import Sweep
from .sweep_study import SweepStudy

STATES = {"COMPLETE": "done", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running"}
ERROR_SHOWN = 60  # characters in a table; results.csv has all of them


@dataclass(frozen=True)
class Row:
    """A trial. `value` is the metric after its last epoch, `minutes` from its start to its end."""

    number: int
    state: str
    value: float | None
    epochs: int
    minutes: float | None
    values: Mapping[str, Any]
    error: str


def rows_of(study: SweepStudy) -> list[Row]:
    """All trials: the finished ones from the best on, then the rest by number."""
    rows = []
    for trial in study.trials(*STATES):
        seconds = trial.duration.total_seconds() if trial.duration else None
        last = trial.intermediate_values.get(trial.last_step) if trial.last_step else None
        rows.append(
            Row(
                trial.number,
                STATES[trial.state.name],
                last if trial.value is None else trial.value,
                trial.last_step or 0,
                None if seconds is None else seconds / 60,
                trial.user_attrs.get("values", {}),
                trial.user_attrs.get("error", ""),
            )
        )
    sign = -1 if study.sweep.maximize else 1

    def order(row: Row) -> tuple[bool, float, int]:
        done = row.state == "done"
        return (not done, sign * row.value if done else 0.0, row.number)

    return sorted(rows, key=order)


def best_of(rows: Sequence[Row]) -> Row | None:
    """The finished trial with the best value, the earliest of equals."""
    return rows[0] if rows and rows[0].state == "done" else None


def importances(study: SweepStudy) -> dict[str, float]:
    """{parameter: its share in what the metric depends on}, by PED-ANOVA; the shares sum to 1.

    Empty where fewer than two trials, or trials of one value only, are finished.
    """
    import optuna

    finished = study.trials("COMPLETE")
    if len({trial.value for trial in finished}) < 2 or not study.sweep.varied:
        return {}
    try:
        found = optuna.importance.get_param_importances(
            study.study, evaluator=optuna.importance.PedAnovaImportanceEvaluator()
        )
    except (ValueError, RuntimeError):  # too few different values for its statistics
        return {}
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def cells(sweep: Sweep, row: Row) -> list[str]:
    """One line of the table, under `header`."""
    return [
        str(row.number),
        row.state,
        "" if row.value is None else f"{row.value:.4f}",
        str(row.epochs),
        "" if row.minutes is None else f"{row.minutes:.1f}",
        *(_shown(row.values.get(p.name, "")) for p in sweep.varied),
    ]


def header(sweep: Sweep) -> list[str]:
    names = [parameter.name for parameter in sweep.varied]
    return ["trial", "state", sweep.metric, "epochs", "minutes", *names, "error"]


def _shown(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def table(sweep: Sweep, rows: Sequence[Row]) -> str:
    """For a terminal: columns of one width."""
    lines = [header(sweep), *([*cells(sweep, r), r.error[:ERROR_SHOWN]] for r in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def write_report(study: SweepStudy, base: Config) -> str:
    """Write every file into the sweep's folder; the text for the terminal.

    Raises:
        StripsegError: matplotlib is not installed.
    """
    from .sweep_plots import plot_importances, plot_parallel

    sweep, folder, rows = study.sweep, study.folder, rows_of(study)
    shares = importances(study)
    write_text(folder / "results.csv", _csv(sweep, rows))
    plot_parallel(folder / "parallel.png", sweep, [row for row in rows if row.value is not None])
    plot_importances(folder / "importance.png", sweep, shares)
    lines = [table(sweep, rows)]
    best = best_of(rows)
    if best is None:
        summary = "no trial is finished yet"
    else:
        write_text(folder / "best.yaml", best_yaml(sweep, base, best, folder))
        summary = f"best: trial {best.number}, {sweep.metric} {best.value:.4f}: " + ", ".join(
            f"{option} {_shown(value)}" for option, value in sweep.options(best.values).items()
        )
        lines.append(f"{summary}; {folder / 'best.yaml'}")
    write_text(folder / "results.md", _markdown(sweep, rows, summary, shares))
    if best is None:
        lines.append(summary)
    return "\n".join(lines)


def best_yaml(sweep: Sweep, base: Config, best: Row, folder: Path) -> str:
    """The best trial's options over the config, ready to train with."""
    content: dict[str, Any] = {
        "base": os.path.relpath(Path(base.source).resolve(), folder.resolve()),
        "experiment": f"{sweep.name}_best",
        "DATA": {"dataset": base.dataset},
    }
    for option, value in sweep.options(best.values).items():
        section, _, key = option.partition(".")
        content.setdefault(section, {})[key] = value
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    return f"# trial {best.number} of the sweep {sweep.name}: {sweep.metric} {best.value}\n{text}"


def _csv(sweep: Sweep, rows: Sequence[Row]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header(sweep))
    for row in rows:
        values = [row.values.get(parameter.name, "") for parameter in sweep.varied]
        minutes = "" if row.minutes is None else round(row.minutes, 2)
        value = "" if row.value is None else repr(row.value)
        writer.writerow([row.number, row.state, value, row.epochs, minutes, *values, row.error])
    return text.getvalue()


def _markdown(sweep: Sweep, rows: Sequence[Row], summary: str, shares: Mapping[str, float]) -> str:
    def line(entries: Sequence[str]) -> str:
        return "| " + " | ".join(entry.replace("|", "\\|") for entry in entries) + " |"

    goal = "most" if sweep.maximize else "least"
    text = [
        f"# Sweep {sweep.name}",
        "",
        f"Method {sweep.method}, {goal} {sweep.metric}. {summary[0].upper()}{summary[1:]}.",
        "",
        line(header(sweep)),
        line(["---"] * len(header(sweep))),
        *(line([*cells(sweep, row), row.error[:ERROR_SHOWN]]) for row in rows),
        "",
        "![what each trial chose](parallel.png)",
        "",
        "![what the metric depends on](importance.png)",
        "",
    ]
    if shares:
        figures = ", ".join(f"{name} {share:.2f}" for name, share in shares.items())
        text += [f"Importance (PED-ANOVA): {figures}.", ""]
    return "\n".join(text)
