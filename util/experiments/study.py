"""A study: every config with every combination of options and every seed, and a table of means."""

import hashlib
import json
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from math import prod
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from ...config.errors import ConfigError
from ...config.limits import COMBINATIONS
from ...config.load import find_config, load_config, option_meant
from ...config.schema import Config
from ..logger import counted
from .report import new_figure, save_figure, write_tables
from .run_file import RUN_OPTIONS, Strict, as_arguments, read_model

FIGURES = ("top1", "mIoU", "top5", "mAcc", "allAcc", "loss")
PLOTTED = ("top1", "mIoU", "loss")


class StudyFile(Strict):
    """As written in the YAML; see docs/classification.md."""

    name: str = Field(pattern=r"^\w[\w.-]*$")
    configs: list[str] = Field(min_length=1)
    vary: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(default_factory=dict)
    seeds: list[Annotated[int, Field(ge=0)]] = Field([0], min_length=1)
    options: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One row of the table: a config and a value for every option that varies."""

    config: str  # DATASET EXPERIMENT
    values: Mapping[str, Any]
    common: Mapping[str, Any]  # options of all rows
    cost: Mapping[str, int] = field(default_factory=dict)  # of parameters and multiply-adds
    figures: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)  # {seed: metrics.json}

    def words(self, **own: Any) -> list[str]:
        """What follows `train` and `test`: the config, its options and those of one run."""
        return [*self.config.split(), *as_arguments({**self.common, **self.values, **own})]

    def load(self, **own: Any) -> Config:
        """The effective config, whichever file and option say what."""
        dataset, experiment, *options = self.words(**own)
        return load_config(find_config(dataset, experiment), options)

    def folder(self, seed: int) -> str:
        """The name of a run's folder: readable, and another one for another config."""
        content = self.load(**{"TRAIN.manual_seed": seed}).model_dump(mode="json")
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        name = re.sub(r"[^\w,-]+", "_", self.label)
        return f"{name[:80]}_seed{seed}_{digest[:8]}"

    @property
    def label(self) -> str:
        return " ".join([self.config, *map(str, self.values.values())])

    def statistics(self, name: str) -> tuple[float, float] | None:
        """Return mean and sample deviation over the seeds; the deviation is 0 for a single seed."""
        numbers = [figures[name] for figures in self.figures.values() if name in figures]
        deviation = statistics.stdev(numbers) if len(numbers) > 1 else 0.0
        return (statistics.fmean(numbers), deviation) if numbers else None

    def cell(self, name: str) -> str:
        """Return mean and deviation: shares in per cent, losses as they are."""
        factor, digits = (1, 4) if name == "loss" else (100, 2)
        numbers = self.statistics(name) or ()
        return " ± ".join(f"{factor * number:.{digits}f}" for number in numbers)


def read_study(
    path: Path,
    *,
    configs: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
) -> tuple[StudyFile, list[Row]]:
    """Read a study's file and load the config of every row.

    Args:
        configs: in place of the file's.
        options: of all runs, over those of the file.
    Raises:
        ConfigError: the file is not a study, or one of its runs is not possible.
    """
    file = read_model(StudyFile, path)
    given = options or {}
    meant = {option_meant(key) for key in given}
    own = {key: value for key, value in file.options.items() if option_meant(key) not in meant}
    changes = {"configs": list(configs) or file.configs, "options": {**own, **given}}
    file = file.model_copy(update=changes)
    for problem in problems(file):
        raise ConfigError(f"{path}: {problem}")
    rows = [
        Row(config, dict(zip(file.vary, values, strict=True)), file.options)
        for config in file.configs
        for values in product(*file.vary.values())
    ]
    for row in rows:
        try:
            row.load()
        except ConfigError as error:
            raise ConfigError(f"{path}: {row.config} with {dict(row.values)}: {error}") from error
    return file, rows


def problems(file: StudyFile) -> Iterator[str]:
    """Mistakes beside those that the configs show."""
    for config in file.configs:
        if not re.fullmatch(r"\w[\w.-]* +\w[\w.-]*", config):
            yield f"configs: {config!r} is not 'DATASET EXPERIMENT', such as 'cifar10 resnet18'"
    given: dict[str, str] = {}
    for where, keys in (("vary", file.vary), ("options", file.options)):
        for key in keys:
            option = option_meant(key)
            if option in (*RUN_OPTIONS, "TRAIN.manual_seed"):
                yield f"{where}.{key}: {option} is each run's own; list seeds under seeds:"
            if option in given:
                yield f"{where}.{key}: {option} is already given in {given[option]}"
            given[option] = f"{where}.{key}"
    runs = prod(map(len, [file.configs, file.seeds, *file.vary.values()]))
    if runs > COMBINATIONS:
        yield f"configs, vary and seeds make {runs} runs; at most {COMBINATIONS} are possible"
    for where, values in {"seeds": file.seeds, **file.vary}.items():
        if len({repr(value) for value in values}) < len(values):
            yield f"{where}: has a value twice: {values}"


def write_study_report(rows: Sequence[Row], folder: Path) -> str:
    """Write the tables and plots of a study; return the text for the terminal."""
    names = [name for name in FIGURES if any(row.statistics(name) for row in rows)]
    shown, records = [], []
    for row in rows:
        short = {key.rpartition(".")[2]: value for key, value in row.values.items()}
        means = {name: row.cell(name) for name in names}
        cost = {name: f"{count:,}" for name, count in row.cost.items()}
        shown.append({"config": row.config, **short, "seeds": len(row.figures), **means, **cost})
        for seed, figures in row.figures.items():
            exact = {name: figures.get(name) for name in names}
            records.append({"config": row.config, **row.values, "seed": seed, **exact, **row.cost})
    plots = [name for name in names if name in PLOTTED]
    for name in plots:
        plot_means([row for row in rows if row.statistics(name)], name, folder)
    table = write_tables(folder, f"# Study {folder.name}", shown, records, plots)
    missing = sum(not row.figures for row in rows)
    rest = f"\n{counted(missing, 'row')} without a run" if missing else ""
    return f"{table}\n{folder / 'results.md'}, .tex, .csv, .json and plots{rest}"


def plot_means(rows: Sequence[Row], name: str, folder: Path) -> None:
    """Plot means with their deviations: of each row, and against what the networks cost."""
    costs = list(rows[0].cost)
    figure = new_figure(15, 5)
    panels = figure.subplots(1, 1 + len(costs))
    for axes, cost in zip(panels, [None, *costs], strict=True):
        for row in rows:
            mean, deviation = row.statistics(name)
            x = row.label if cost is None else row.cost[cost] / 1e6
            axes.errorbar(x, mean, yerr=deviation, fmt="o", capsize=4)
        axes.set(xlabel=cost and f"{cost} (millions)", ylabel=name)
        axes.grid(alpha=0.4)
    panels[0].tick_params("x", rotation=90)
    save_figure(figure, folder / f"{name}.png")
