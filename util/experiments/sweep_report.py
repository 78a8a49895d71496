"""What a sweep has found: the tables of its trials, Optuna's plots, the best trial's config."""

import warnings
from functools import partial
from typing import Any

from .report import new_figure, plain, save_figure, write_tables
from .sweep import SweepStudy, optuna

# in the order of the table
STATES = {"COMPLETE": "done", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running"}


def write_sweep_report(study: SweepStudy) -> str:
    """Write the tables, the plots and best.yaml; return the text for the terminal."""
    sweep, metric = study.sweep, study.sweep.metric
    trials = [(run, t) for run, t in study.runs().items() if t.state.name in STATES]
    trials.sort(key=lambda entry: entry[1].value or 0.0, reverse=metric.goal == "maximize")
    trials.sort(key=lambda entry: list(STATES).index(entry[1].state.name))
    summary = "no trial is finished yet"
    if not trials:
        return summary
    run, best = trials[0]
    if best.state.name == "COMPLETE":
        options = sweep.options(best.params)
        chosen = ", ".join(f"{option} {plain(value)}" for option, value in options.items())
        summary = f"best: trial {run}, {metric.name} {best.value:.4f}: {chosen}"
        comment = f"# trial {run} of the sweep {sweep.name}: {metric.name} {best.value}\n"
        path, experiment = study.folder / "best.yaml", f"{sweep.name}_best"
        study.write_yaml(path, options, experiment=experiment, comment=comment)
    records = [trial_record(study, run, trial) for run, trial in trials]
    intro = f"# Sweep {sweep.name}\n\n{sweep.method}, {metric.goal} {metric.name}; {summary}"
    table = write_tables(study.folder, intro, records, records, write_sweep_plots(study))
    return f"{table}\n{summary}\n{study.folder / 'results.md'}, .tex, .csv, .json and plots"


def trial_record(study: SweepStudy, run: int, trial: Any) -> dict[str, Any]:
    """A trial as {column: value}; one that is not finished has its last epoch's figure."""
    last = trial.intermediate_values.get(trial.last_step)
    return {
        "trial": run,
        "state": STATES[trial.state.name],
        study.sweep.metric.name: last if trial.value is None else trial.value,
        "epochs": trial.last_step or 0,
        "minutes": round(trial.duration.total_seconds() / 60, 1) if trial.duration else None,
        **{name: trial.params.get(name) for name in study.sweep.varied},
        "error": trial.user_attrs.get("error", ""),
    }


def write_sweep_plots(study: SweepStudy) -> list[str]:
    """Write Optuna's plots that the trials allow so far; return their names."""
    new_figure(1, 1)  # is matplotlib there?
    import matplotlib.pyplot

    matplotlib.use("Agg")
    plots = optuna.visualization.matplotlib
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    wanted = {
        "history": plots.plot_optimization_history,
        "parallel": plots.plot_parallel_coordinate,
        "importance": partial(plots.plot_param_importances, evaluator=evaluator),
    }
    values = {trial.value for trial in study.runs().values() if trial.state.name == "COMPLETE"}
    written = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="optuna.*|matplotlib.*")
        for name in [name for name in wanted if len(values) > (name == "importance")]:
            try:
                axes = wanted[name](study.study)
            except (ValueError, RuntimeError):  # too few different values for its statistics
                continue
            save_figure(axes.figure, study.folder / f"{name}.png")
            matplotlib.pyplot.close(axes.figure)
            written.append(name)
    return written
