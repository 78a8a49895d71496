"""A sweep file: the format of Weights & Biases, with `config:` naming what to train.

    sweep = read_sweep("config/sweeps/shapes_rate.yaml")

docs/sweep.md describes the format.
"""

import json
import math
import os
from collections.abc import Mapping
from functools import cached_property
from itertools import islice, product
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from ...config.errors import ConfigError, StripsegError
from ...config.limits import COMBINATIONS, LARGEST_WHOLE, SEED, SWEEP_VALUES
from ...config.load import find_config, option_meant
from ...config.types import Real
from .run_file import RUN_OPTIONS, Strict, read_model

try:
    from optuna import distributions
except ImportError:
    distributions = None

# the strip pooling study's names of options and of attentions
SHORT_NAMES = {"att": "TRAIN.attention", "lr": "TRAIN.base_lr", "learning_rate": "TRAIN.base_lr"}
ATTENTION = {"Vanilla": "none", "Triplet": "triplet", "Strip Pool": "strip_pool"}
ATTENTION |= {"ECA": "eca", "GCT": "gct"}
Distribution = Literal["constant", "categorical", "uniform", "int_uniform", "log_uniform_values"]


def number(value: Any) -> int | float:
    """A number, also the text 1e-4, which YAML 1.1 does not take for one."""
    real = Real(-LARGEST_WHOLE, LARGEST_WHOLE).validate(value)
    return value if isinstance(value, int) else real


class Parameter(Strict):
    """One parameter: a constant `value`, `values` to choose from, or a range `min` to `max`."""

    value: Any = None
    values: list[Any] | None = Field(None, min_length=1, max_length=SWEEP_VALUES)
    min: Annotated[int | float | None, BeforeValidator(number)] = None
    max: Annotated[int | float | None, BeforeValidator(number)] = None
    distribution: Distribution | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> "Parameter":
        given = self.model_fields_set - {"distribution"}
        if given not in ({"value"}, {"values"}, {"min", "max"}):
            raise ValueError("needs exactly one of value, values, or min and max")
        needs = {"constant": ["value"], "categorical": ["values"]}.get(self.kind, ["min", "max"])
        if given != set(needs):
            raise ValueError(f"distribution {self.kind} needs {' and '.join(needs)}")
        if self.min is None and any(self.choices.count(value) > 1 for value in self.choices):
            raise ValueError("values has a value twice")
        if self.min is not None and self.min >= self.max:
            raise ValueError("min must be below max")
        if self.kind == "log_uniform_values" and self.min <= 0:
            raise ValueError("min must be above 0 for log_uniform_values")
        if self.kind == "int_uniform" and (self.min % 1 or self.max % 1):
            raise ValueError("min and max must be whole numbers for int_uniform")
        return self

    @property
    def kind(self) -> str:
        """The distribution: the named one, or the one that W&B takes where none is named."""
        if self.distribution or self.min is None:
            return self.distribution or ("constant" if self.values is None else "categorical")
        return (
            "int_uniform" if isinstance(self.min, int) and isinstance(self.max, int) else "uniform"
        )

    @property
    def choices(self) -> list[Any]:
        """The values, where there is no range."""
        return self.values or [self.value]

    @cached_property
    def space(self) -> Any:
        """What it may be, as an optuna distribution."""
        if self.min is None:
            return distributions.CategoricalDistribution([stored(value) for value in self.choices])
        if self.kind == "int_uniform":
            return distributions.IntDistribution(int(self.min), int(self.max))
        log = self.kind == "log_uniform_values"
        return distributions.FloatDistribution(self.min, self.max, log=log)

    def candidates(self) -> list[Any]:
        """The values that show whether the option takes all: each, or both ends and one between."""
        if self.min is None:
            return list(self.space.choices)
        between = self.min + 0.37 * (self.max - self.min)
        return [self.min, int(between) if self.kind == "int_uniform" else between, self.max]


def stored(value: Any) -> Any:
    """A value as Optuna stores it: as it is, or lists and mappings as text."""
    plain = value is None or isinstance(value, bool | int | float | str)
    return value if plain else json.dumps(value, default=str)


class Metric(Strict):
    name: Literal["loss", "mIoU", "mAcc", "allAcc", "top1", "top5"]
    goal: Literal["minimize", "maximize"]


class EarlyTermination(Strict):
    """The best 1 / `eta` of the trials continue after the epochs `min_iter`, `min_iter` * eta..."""

    type: Literal["hyperband"]
    min_iter: int = Field(ge=1)
    eta: int = Field(3, ge=2)


class Sweep(Strict):
    """A sweep file; all keys except `config` and `seed` are W&B's."""

    name: str = Field(pattern=r"^\w[\w.-]*$")
    config: Path
    method: Literal["bayes", "grid", "random"]
    metric: Metric
    parameters: dict[str, Parameter] = Field(min_length=1)
    early_terminate: EarlyTermination | None = None
    run_cap: int | None = Field(None, ge=1)
    seed: int = Field(0, ge=0, le=SEED)
    program: Any = None  # these five are for W&B alone
    command: Any = None
    description: Any = None
    project: Any = None
    entity: Any = None

    @field_validator("config", mode="before")
    @classmethod
    def _exists(cls, config: Any, info: ValidationInfo) -> Path:
        """The YAML that DATASET EXPERIMENT or a path names, from here or from the file."""
        words = str(config).split()
        if len(words) == 2 and not words[1].endswith((".yaml", ".yml")):
            try:
                return find_config(*words)
            except ConfigError as error:
                raise ValueError(str(error)) from None
        for path in (os.path.expanduser(str(config)), info.context["path"].parent / str(config)):
            if os.path.isfile(path):  # False for what cannot be a path
                return Path(path)
        raise ValueError("does not exist; give DATASET EXPERIMENT or the path of a YAML")

    @model_validator(mode="after")
    def _fits_together(self) -> "Sweep":
        given: dict[str, str] = {}
        for name, parameter in self.parameters.items():
            option = option_of(name)
            if option in RUN_OPTIONS:
                raise ValueError(f"parameters.{name}: {option} is each trial's own")
            if option in given:
                raise ValueError(f"parameters.{name}: {option} is already given in {given[option]}")
            if parameter.min is not None and self.method == "grid":
                raise ValueError(f"parameters.{name}: method grid needs value or values")
            given[option] = f"parameters.{name}"
        if self.method != "grid" and not self.run_cap:
            raise ValueError(f"run_cap is missing: how many trials method {self.method} makes")
        if self.trials > COMBINATIONS:
            raise ValueError(f"makes {self.trials} trials; at most {COMBINATIONS} are possible")
        return self

    @property
    def varied(self) -> dict[str, Parameter]:
        """The parameters that have more than one value."""
        return {name: p for name, p in self.parameters.items() if not p.space.single()}

    @property
    def trials(self) -> int:
        """How many trials the sweep has."""
        if self.method != "grid":
            return self.run_cap or 0
        combinations = math.prod(len(parameter.choices) for parameter in self.parameters.values())
        return min(combinations, self.run_cap or combinations)

    def combination(self, index: int) -> dict[str, Any]:
        """One trial of a grid, {parameter: value}; the last parameter changes fastest."""
        every = product(*(parameter.space.choices for parameter in self.varied.values()))
        return dict(zip(self.varied, next(islice(every, index, None)), strict=True))

    def options(self, chosen: Mapping[str, Any]) -> dict[str, Any]:
        """{option: value} of the constants and of what Optuna has chosen, {parameter: value}."""
        options = {}
        for name, parameter in self.parameters.items():
            if name not in self.varied or name in chosen:
                value = chosen.get(name, parameter.candidates()[0])
                value = next((v for v in parameter.choices if stored(v) == value), value)
                if option_of(name) == "TRAIN.attention" and isinstance(value, str):
                    value = ATTENTION.get(value, value)
                options[option_of(name)] = value
        return options


def option_of(name: str) -> str:
    """`TRAIN.base_lr` for the parameters `lr`, `base_lr` and `TRAIN.base_lr`."""
    return option_meant(SHORT_NAMES.get(name, name))


def read_sweep(path: str | Path) -> Sweep:
    """Read and check a sweep file; of its config only whether it exists.

    Raises:
        StripsegError: Optuna is not installed.
        ConfigError: one line per mistake.
    """
    if distributions is None:
        raise StripsegError(
            "a sweep needs Optuna, which is not installed: pip install optuna matplotlib"
        )
    path = Path(path)
    return read_model(Sweep, path, name=path.stem)
