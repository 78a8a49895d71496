"""A sweep file: the format of Weights & Biases, with `config:` naming what to train.

    sweep = read_sweep("config/sweeps/shapes_rate.yaml")
    check_candidates(sweep, check)  # loads the config with every candidate value

docs/sweep.md describes the format.
"""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ...config.errors import ConfigError
from ...config.limits import (
    CHECKED_COMBINATIONS,
    COMBINATIONS,
    SEED,
    STEPS_OF_Q,
    SWEEP_VALUES,
)
from ...config.load import find_config, load_config, option_meant
from ...config.schema import COMMAND_LINE, SECTIONS, Config
from ...config.types import nearest, shown
from ...config.yaml_file import read_yaml

SEGMENTATION_METRICS = ("loss", "mIoU", "mAcc", "allAcc")
CLASSIFICATION_METRICS = ("loss", "top1", "top5")
# options that belong to each run, so that no file may set them for all
RUN_OPTIONS = (
    "experiment",
    "TRAIN.save_path",
    "TRAIN.resume",
    "TEST.save_folder",
    "TEST.model_path",
)
ATTENTION = {
    "Vanilla": "none",
    "Triplet": "triplet",
    "Strip Pool": "strip_pool",
    "ECA": "eca",
    "GCT": "gct",
}
Distribution = Literal[
    "constant",
    "categorical",
    "uniform",
    "int_uniform",
    "q_uniform",
    "log_uniform",
    "log_uniform_values",
    "q_log_uniform",
    "q_log_uniform_values",
]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Alias(Strict):
    """A short name: the option it means, and the words that mean values of the option."""

    option: str
    values: dict[str, Any] = {}


# the keys of the strip pooling study's sweep; a file's own `aliases:` are added
ALIASES = {
    "att": Alias(option="TRAIN.attention", values=ATTENTION),
    "optimizer": Alias(option="TRAIN.optimizer"),
    "batch_size": Alias(option="TRAIN.batch_size"),
    "learning_rate": Alias(option="TRAIN.base_lr"),
    "lr": Alias(option="TRAIN.base_lr"),
    "epochs": Alias(option="TRAIN.epochs"),
}


class Parameter(Strict):
    """One parameter: a constant `value`, `values` to choose from, or a range `min` to `max`."""

    value: Any = None
    values: list[Any] | None = Field(None, min_length=1, max_length=SWEEP_VALUES)
    min: int | float | None = None
    max: int | float | None = None
    q: int | float | None = Field(None, gt=0)
    distribution: Distribution | None = None

    @field_validator("min", "max", "q", mode="before")
    @classmethod
    def _number(cls, value: Any) -> int | float:
        """A number, also the text 1e-4, which YAML 1.1 does not take for one."""
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError("must be a number")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise ValueError("must be finite")
        return value if isinstance(value, int) else number

    @model_validator(mode="after")
    def _fits_together(self) -> "Parameter":
        given = self.model_fields_set
        kinds = [
            name
            for name, keys in {
                "value": {"value"},
                "values": {"values"},
                "min and max": {"min", "max"},
            }.items()
            if keys & given
        ]
        if len(kinds) != 1:
            raise ValueError("needs exactly one of value, values, or min and max")
        needs = {"constant": "value", "categorical": "values"}.get(self.kind, "min and max")
        if needs != kinds[0]:
            raise ValueError(f"distribution {self.kind} needs {needs}")
        if self.values is not None and len({repr(value) for value in self.values}) < len(
            self.values
        ):
            raise ValueError("values has a value twice")
        if self.is_range:
            if not {"min", "max"} <= given or self.min >= self.max:
                raise ValueError("min must be given and below max")
            if self.kind == "int_uniform" and not (
                float(self.min).is_integer() and float(self.max).is_integer()
            ):
                raise ValueError("min and max must be whole numbers for int_uniform")
            if (
                self.kind in ("log_uniform", "q_log_uniform")
                and max(abs(self.min), abs(self.max)) > 300
            ):
                raise ValueError("min and max are exponents of e; log_uniform_values takes values")
            if self.is_log and self.low <= 0:
                raise ValueError("min must be above 0 for a logarithmic distribution")
            if (
                self.high - self.low
            ) / self.step > STEPS_OF_Q or self.high / self.step > STEPS_OF_Q:
                raise ValueError("the range from min to max is too wide for q, or for numbers")
            if self.kind.startswith("q_") and self._multiples[0] > self._multiples[1]:
                raise ValueError(f"there is no multiple of q {self.step:g} from min to max")
        if self.q is not None and not self.kind.startswith("q_"):
            raise ValueError("q belongs to q_uniform and the other distributions with q_")
        return self

    @property
    def kind(self) -> str:
        """The distribution: the named one, or the one that W&B takes where none is named."""
        if self.distribution is not None:
            return self.distribution
        if {"value", "values"} & self.model_fields_set:
            return "categorical" if "values" in self.model_fields_set else "constant"
        whole = isinstance(self.min, int) and isinstance(self.max, int)
        return "q_uniform" if self.q is not None else "int_uniform" if whole else "uniform"

    @property
    def is_range(self) -> bool:
        return self.kind not in ("constant", "categorical")

    @property
    def is_log(self) -> bool:
        return "log" in self.kind

    @property
    def low(self) -> float:
        return math.exp(self.min) if self.kind in ("log_uniform", "q_log_uniform") else self.min

    @property
    def high(self) -> float:
        return math.exp(self.max) if self.kind in ("log_uniform", "q_log_uniform") else self.max

    @property
    def step(self) -> float:
        return 1 if self.q is None else self.q

    @property
    def _multiples(self) -> tuple[int, int]:
        """The first and the last multiple of q inside the range, in units of q."""
        return math.ceil(self.low / self.step - 1e-9), math.floor(self.high / self.step + 1e-9)

    @property
    def choices(self) -> list[Any]:
        """The values of a parameter without a range."""
        return [self.value] if self.kind == "constant" else list(self.values)

    def rounded(self, number: float) -> float | int:
        """Return a drawn number as it is used: whole, or a multiple of q, where asked for."""
        if self.kind == "int_uniform":
            return round(number)
        if self.kind.startswith("q_"):
            first, last = self._multiples
            return self._plain(min(max(round(number / self.step), first), last) * self.step)
        return float(number)

    def _plain(self, number: float) -> float | int:
        whole = float(self.step).is_integer() and float(number).is_integer()
        return round(number) if whole else round(number, 12)

    def candidates(self) -> list[Any]:
        """The values that show whether the option takes all: each, or both ends and one between."""
        if not self.is_range:
            return self.choices
        between = self.low + 0.37 * (self.high - self.low)
        return [self.rounded(number) for number in (self.low, between, self.high)]

    def grid(self) -> list[Any]:
        """Return every value, for method grid; of a range with steps from `min` on.

        Raises:
            ValueError: the range is continuous or has too many values.
        """
        if not self.is_range:
            return self.choices
        if self.is_log or self.kind == "uniform":
            raise ValueError("has a continuous range, and method grid needs values or steps (q)")
        count = math.floor((self.high - self.low) / self.step + 1e-9) + 1
        if count > COMBINATIONS:
            raise ValueError(f"has {count} values; method grid takes at most {COMBINATIONS}")
        return [self._plain(self.low + index * self.step) for index in range(count)]


class Metric(Strict):
    name: Literal["loss", "mIoU", "mAcc", "allAcc", "top1", "top5"]
    goal: Literal["minimize", "maximize"] = "minimize"

    @model_validator(mode="after")
    def _says_the_goal(self) -> "Metric":
        if self.name != "loss" and "goal" not in self.model_fields_set:
            raise ValueError(f"goal is missing: minimize or maximize {self.name}")
        return self


class EarlyTermination(Strict):
    """When to end trials: `hyperband` keeps the best 1 / `eta` at each of the epochs `min_iter`,
    `min_iter` * eta, ...; `median` those better than the median after `min_iter` epochs."""

    type: Literal["hyperband", "median"]
    min_iter: int | None = Field(None, ge=1)
    max_iter: int | None = Field(None, ge=1)
    s: int = Field(1, ge=1)
    eta: int = Field(3, ge=2)
    strict: bool = False  # W&B's; successive halving is strict

    @property
    def first_epoch(self) -> int:
        first = self.max_iter or 1
        for _ in range(self.s):
            first //= self.eta
            if not first:
                break
        return self.min_iter or max(1, first)

    @model_validator(mode="after")
    def _has_a_start(self) -> "EarlyTermination":
        if self.min_iter is None and self.max_iter is None:
            raise ValueError("needs min_iter, or max_iter and s, in epochs")
        return self


class Sweep(Strict):
    """A sweep file; keys in lower case are W&B's, except config, aliases, seed and count."""

    name: str = Field(pattern=r"^\w[\w.-]*$")
    config: str
    method: Literal["bayes", "grid", "random"]
    metric: Metric
    parameters: dict[str, Parameter] = Field(min_length=1)
    early_terminate: EarlyTermination | None = None
    run_cap: int | None = Field(None, ge=1)
    count: int | None = Field(None, ge=1)  # another name of run_cap
    seed: int = Field(0, ge=0, le=SEED)
    aliases: dict[str, Alias] = {}
    program: Any = None  # these five are for W&B alone
    command: Any = None
    description: Any = None
    project: Any = None
    entity: Any = None
    path: Path = Field(exclude=True)

    @field_validator("parameters", mode="before")
    @classmethod
    def _flat(cls, parameters: Any) -> Any:
        """W&B's nesting, `TRAIN: {parameters: {base_lr: ...}}`, as `TRAIN.base_lr`."""
        if not isinstance(parameters, Mapping):
            return parameters
        flat = {}
        for name, entry in parameters.items():
            inner = entry.get("parameters") if isinstance(entry, Mapping) else None
            nested = name in SECTIONS and isinstance(inner, Mapping)
            flat.update(
                {f"{name}.{key}": value for key, value in inner.items()}
                if nested
                else {str(name): entry}
            )
        return flat

    @field_validator("aliases", mode="before")
    @classmethod
    def _full(cls, aliases: Any) -> Any:
        """`width: TRAIN.train_w` is short for a mapping with `option`."""
        if not isinstance(aliases, Mapping):
            return aliases
        return {str(k): {"option": v} if isinstance(v, str) else v for k, v in aliases.items()}

    @model_validator(mode="after")
    def _fits_together(self) -> "Sweep":
        if self.run_cap and self.count:
            raise ValueError("run_cap and count mean the same; give one of them")
        if self.method != "grid" and not (self.run_cap or self.count):
            raise ValueError(f"run_cap is missing: how many trials method {self.method} makes")
        given: dict[str, str] = {}
        for name in self.parameters:
            option = self.option_of(name)
            section, _, key = option.partition(".")
            if section not in SECTIONS or not key:
                raise ValueError(f"parameters.{name}: {option} is not a SECTION.option")
            if option in RUN_OPTIONS:
                raise ValueError(f"parameters.{name}: {option} is each trial's own")
            if option in given:
                raise ValueError(f"parameters {given[option]} and {name} are both {option}")
            given[option] = name
        if self.method == "grid":
            for name, parameter in self.varied.items():
                try:
                    parameter.grid()
                except ValueError as error:
                    raise ValueError(f"parameters.{name} {error}") from None
            if (combinations := self._combinations()) > COMBINATIONS:
                raise ValueError(
                    f"the grid has {combinations} combinations, and at most {COMBINATIONS} "
                    "are possible; use fewer values, or method random with run_cap"
                )
        return self

    def _combinations(self) -> int:
        return math.prod(len(parameter.grid()) for parameter in self.varied.values())

    def alias(self, name: str) -> Alias:
        return self.aliases.get(name) or ALIASES.get(name) or Alias(option=name)

    def option_of(self, name: str) -> str:
        """`TRAIN.base_lr` for the parameter `lr`."""
        return option_meant(self.alias(name).option)

    @property
    def varied(self) -> dict[str, Parameter]:
        """The parameters that have more than one value."""
        return {
            name: parameter
            for name, parameter in self.parameters.items()
            if parameter.is_range or len(parameter.choices) > 1
        }

    @property
    def trials(self) -> int:
        """How many trials the sweep has."""
        cap = self.run_cap or self.count
        if self.method != "grid":
            return cap
        return min(self._combinations(), cap or COMBINATIONS)

    def combinations(self) -> Iterator[dict[str, Any]]:
        """The trials of a grid, {parameter: value}; the last parameter changes fastest."""
        for values in product(*(parameter.grid() for parameter in self.varied.values())):
            yield dict(zip(self.varied, values, strict=True))

    def options(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """{option: value} for a trial's {parameter: value}, with the constants."""
        constant = {
            name: parameter.choices[0]
            for name, parameter in self.parameters.items()
            if name not in self.varied
        }
        options = {}
        for name in self.parameters:
            if name in constant or name in values:
                value = constant.get(name, values.get(name))
                words = self.alias(name).values
                options[self.option_of(name)] = (
                    words.get(value, value) if isinstance(value, str) else value
                )
        return options

    @property
    def config_path(self) -> Path:
        """The YAML that `config: DATASET EXPERIMENT` or a path names, from here or from the file.

        Raises:
            ConfigError: there is none.
        """
        words = self.config.split()
        if not self.config.endswith((".yaml", ".yml")) and len(words) == 2:
            return find_config(*words)
        for candidate in (os.path.expanduser(self.config), self.path.parent / self.config):
            if os.path.isfile(candidate):  # False for what cannot be a path
                return Path(candidate)
        raise ConfigError(
            f"{self.path}: config {self.config} does not exist; give DATASET EXPERIMENT or the "
            "path of a YAML"
        )


def read_sweep(path: str | Path) -> Sweep:
    """Read and check a sweep file; of its config only whether it exists.

    Raises:
        ConfigError: one line per mistake.
    """
    path = Path(path)
    sweep = read_model(Sweep, path, {"name": path.stem, **read_yaml(path), "path": path})
    _ = sweep.config_path
    return sweep


def read_model(model: type[BaseModel], path: Path, content: Mapping[str, Any]) -> Any:
    """Return `content` as a model; mistakes are told with the file, the key and the value.

    Raises:
        ConfigError: one line per mistake.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        lines = []
        for entry in error.errors(include_url=False):
            key = ".".join(str(part) for part in entry["loc"])
            text = entry["msg"].removeprefix("Value error, ")
            if entry["type"] == "extra_forbidden":
                known = known_keys(model, entry["loc"][:-1])
                likely = nearest(str(entry["loc"][-1]), known)
                text = "is not a key of this file; "
                text += f"did you mean {likely}?" if likely else f"there are {', '.join(known)}"
            elif entry["type"] == "missing":
                text = "is missing"
            elif key and not isinstance(entry["input"], Mapping | BaseModel):
                text = f"{shown(entry['input'])}: {text[0].lower()}{text[1:]}"
            lines.append(f"{path}: {key}: {text}" if key else f"{path}: {text}")
        raise ConfigError("\n".join(lines)) from None


def known_keys(model: type[BaseModel], where: Sequence[Any]) -> list[str]:
    """Return the keys that a file may have at a place, such as ("parameters", "lr")."""
    for part in where:
        field = model.model_fields.get(part)  # None for the name of a parameter
        inner = field.annotation if field else None
        for kind in get_args(inner) or (inner,):
            if get_origin(kind) is None and isinstance(kind, type) and issubclass(kind, BaseModel):
                model = kind
    return [name for name in model.model_fields if name != "path"]


def check_candidates(sweep: Sweep, check: Callable[[Config], None]) -> None:
    """Load the config with every candidate value, and `check` it, before the first trial.

    Raises:
        ConfigError: one line for each parameter and value that the config does not take.
    """
    check(load_config(sweep.config_path))
    problems: dict[str, None] = {}
    for values in _candidates(sweep):
        try:
            check(load_config(sweep.config_path, as_arguments(sweep.options(values))))
        except ConfigError as error:
            which = ", ".join(f"{name} {shown(value)}" for name, value in values.items())
            where = f"{sweep.path}: parameters" + (f" with {which}" if which else "")
            for line in str(error).splitlines():
                problems[f"{where}: {line.removeprefix(f'{COMMAND_LINE}: ')}"] = None
    if problems:
        raise ConfigError("\n".join(problems))


def _candidates(sweep: Sweep) -> Iterator[dict[str, Any]]:
    """Every combination of a small grid; else the constants, then each value alone."""
    if sweep.method == "grid" and sweep.trials <= CHECKED_COMBINATIONS:
        yield from sweep.combinations()
        return
    yield {}
    for name, parameter in sweep.varied.items():
        yield from ({name: value} for value in parameter.candidates())


def as_arguments(options: Mapping[str, Any]) -> list[str]:
    """{option: value} as the arguments of a command; values are JSON, which YAML reads alike."""
    return [
        word
        for option, value in options.items()
        for word in (option, json.dumps(value, ensure_ascii=False, default=str))
    ]
