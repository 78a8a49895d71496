"""A sweep file: the format of Weights & Biases, and `config:`, whose options the parameters are.

sweep = read_sweep("config/sweeps/shapes_rate.yaml")
check_candidates(sweep, check)  # loads the config with every candidate value
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...config.complaints import COMMAND_LINE, option_meant
from ...config.errors import ConfigError
from ...config.load import find_config, load_config
from ...config.schema import SECTIONS, Config
from ...config.types import Choice, Kind, Name, Text, Whole, nearest, shown
from ...config.yaml_file import read_yaml
from .many_runs import EACH_RUNS_OWN, as_words
from .sweep_parameters import ALIASES, Alias, Parameter, parameter_of

OF_SEGMENTERS = ("loss", "mIoU", "mAcc", "allAcc")
OF_CLASSIFIERS = ("loss", "top1", "top5")
METRICS = (*OF_SEGMENTERS, *OF_CLASSIFIERS[1:])
OWN = ("config", "aliases", "seed", "count")  # what W&B does not know
OF_WANDB = ("program", "command", "description", "project", "entity")  # only `--backend wandb`
KEYS = ("name", "method", "metric", "parameters", "early_terminate", "run_cap", *OWN, *OF_WANDB)
MOST_COMBINATIONS = 10_000
MOST_CHECKED = 500  # combinations of a grid that are all loaded; beyond, each value alone


@dataclass(frozen=True)
class Stopping:
    """When trials without hope end: `hyperband` keeps the best 1 / `eta` at every rung, which lie
    at epochs `min_iter`, `min_iter` * eta, ...; `median` those better than the median after it."""

    type: str
    min_iter: int
    eta: int = 3


@dataclass(frozen=True)
class Sweep:
    """A checked sweep file."""

    path: Path
    name: str
    config: Path
    method: str
    metric: str
    maximize: bool
    parameters: tuple[Parameter, ...]
    stopping: Stopping | None = None
    run_cap: int | None = None
    seed: int = 0
    content: Mapping[str, Any] = field(default_factory=dict)  # the file as it was read

    @property
    def varied(self) -> list[Parameter]:
        """The parameters that have more than one value."""
        return [p for p in self.parameters if len(p.values) != 1]

    @property
    def trials(self) -> int:
        """How many trials the sweep has."""
        if self.method != "grid":
            return self.run_cap or 0
        count = math.prod(len(p.grid()) for p in self.varied)
        return count if self.run_cap is None else min(count, self.run_cap)

    def combination(self, number: int) -> dict[str, Any]:
        """{parameter: value} of trial `number` of a grid; the last parameter changes fastest."""
        chosen = {}
        for parameter in reversed(self.varied):
            values = parameter.grid()
            number, index = divmod(number, len(values))
            chosen[parameter.name] = values[index]
        return {parameter.name: chosen[parameter.name] for parameter in self.varied}

    def options(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """{option: value} for a trial's {parameter: value}, the constants among them."""
        fixed = {p.name: p.values[0] for p in self.parameters if len(p.values) == 1}
        given = {**fixed, **values}
        return {p.option: p.meaning(given[p.name]) for p in self.parameters if p.name in given}

    def identity(self) -> dict[str, Any]:
        """What may not change while a study goes on; the number of trials may."""
        return {
            "config": self._fingerprint(),
            "method": self.method,
            "metric": self.metric,
            "maximize": self.maximize,
            "seed": self.seed,
            "parameters": [repr(parameter) for parameter in self.parameters],
        }

    def _fingerprint(self) -> str:
        """Of what the config says, wherever it lies."""
        content = load_config(self.config).model_dump(mode="json")
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_sweep(path: str | Path) -> Sweep:
    """Read and check a sweep file; of the config only whether it is there.

    Raises:
        ConfigError: something in it is wrong.
    """
    path = Path(path)
    content = read_yaml(path)
    for key in content:
        if key not in KEYS:
            likely = nearest(str(key), KEYS)
            more = f"; did you mean {likely}?" if likely else f"; there are {', '.join(KEYS)}"
            raise ConfigError(f"{path}: {key} is not a key of a sweep file{more}")
    method = _value(path, content, "method", Choice("bayes", "grid", "random"))
    metric, maximize = _metric(path, content)
    sweep = Sweep(
        path=path,
        name=_value(path, {"name": path.stem, **content}, "name", Name()),
        config=_config(path, content),
        method=method,
        metric=metric,
        maximize=maximize,
        parameters=tuple(_parameters(path, content)),
        stopping=_stopping(path, content.get("early_terminate")),
        run_cap=_run_cap(path, content),
        seed=_value(path, content, "seed", Whole(0), default=0),
        content=content,
    )
    if method == "grid":
        _check_grid(sweep)
    elif sweep.run_cap is None:
        raise ConfigError(f"{path}: run_cap is missing: how many trials method {method} makes")
    return sweep


def check_candidates(sweep: Sweep, check: Callable[[Config], None]) -> None:
    """Load the config with every candidate value, and `check` it, before the first trial.

    Raises:
        ConfigError: one line for each parameter and value that the config does not take.
    """
    check(load_config(sweep.config))
    complaints: dict[str, None] = {}
    for values in _candidates(sweep):
        try:
            check(load_config(sweep.config, as_words(sweep.options(values))))
        except ConfigError as error:
            which = ", ".join(f"{name} {shown(value)}" for name, value in values.items())
            where = f"{sweep.path}: parameters" + (f" with {which}" if which else "")
            for line in str(error).splitlines():
                complaints[f"{where}: {line.removeprefix(f'{COMMAND_LINE}: ')}"] = None
    if complaints:
        raise ConfigError("\n".join(complaints))


def _candidates(sweep: Sweep) -> Iterator[dict[str, Any]]:
    """Every combination of a small grid; else the constants, then each value alone."""
    if sweep.method == "grid" and sweep.trials <= MOST_CHECKED:
        yield from (sweep.combination(number) for number in range(sweep.trials))
        return
    yield {}
    for parameter in sweep.varied:
        yield from ({parameter.name: value} for value in parameter.candidates())


def _value(
    path: Path, content: Mapping[str, Any], key: str, kind: Kind, *, default: Any = None
) -> Any:
    """content[key] as `kind` has it; `a.b` names the key b of what stands under a."""
    name = key.rpartition(".")[2]
    if name not in content:
        if default is None:
            raise ConfigError(f"{path}: {key} is missing; it must be {kind.phrase}")
        return default
    try:
        return kind.validate(content[name])
    except ValueError as error:
        raise ConfigError(f"{path}: {key} {error}") from None


def _mapping(path: Path, key: str, content: Any, known: tuple[str, ...]) -> Mapping[str, Any]:
    if not isinstance(content, Mapping):
        raise ConfigError(f"{path}: {key} must be a mapping of {', '.join(known)}")
    for name in content:
        if name not in known:
            raise ConfigError(
                f"{path}: {key}.{name} is not known here; there are {', '.join(known)}"
            )
    return content


def _metric(path: Path, content: Mapping[str, Any]) -> tuple[str, bool]:
    metric = _mapping(path, "metric", content.get("metric"), ("name", "goal"))
    name = _value(path, metric, "metric.name", Choice(*METRICS))
    goal = _value(path, metric, "metric.goal", Choice("minimize", "maximize"), default="minimize")
    if "goal" not in metric and name != "loss":
        raise ConfigError(f"{path}: metric.goal is missing: minimize or maximize {name}?")
    return name, goal == "maximize"


def _run_cap(path: Path, content: Mapping[str, Any]) -> int | None:
    if "run_cap" in content and "count" in content:
        raise ConfigError(f"{path}: run_cap and count mean the same; give one of them")
    key = "count" if "count" in content else "run_cap"
    return _value(path, content, key, Whole(1)) if key in content else None


def _config(path: Path, content: Mapping[str, Any]) -> Path:
    """The YAML named by `config: DATASET EXPERIMENT`, or by its path, from here or the file."""
    text = _value(path, content, "config", Text())
    words = text.split()
    if not text.endswith((".yaml", ".yml")) and len(words) == 2:
        return find_config(*words)
    for candidate in (os.path.expanduser(text), path.parent / text):
        if os.path.isfile(candidate):  # False for what can be no path
            return Path(candidate)
    raise ConfigError(
        f"{path}: config {text} does not exist; give DATASET EXPERIMENT or the path of a YAML"
    )


def _stopping(path: Path, content: Any) -> Stopping | None:
    """`early_terminate`, with W&B's keys; max_iter and s say where the first rung lies."""
    if content is None:
        return None
    known = ("type", "min_iter", "max_iter", "s", "eta", "strict")
    content = _mapping(path, "early_terminate", content, known)

    def whole(key: str, least: int, default: int | None = None) -> int:
        return _value(path, content, f"early_terminate.{key}", Whole(least), default=default)

    type_ = _value(path, content, "early_terminate.type", Choice("hyperband", "median"))
    eta = whole("eta", 2, 3)
    if "min_iter" in content:
        return Stopping(type_, whole("min_iter", 1), eta)
    if "max_iter" not in content:
        raise ConfigError(f"{path}: early_terminate needs min_iter, or max_iter and s, in epochs")
    return Stopping(type_, max(1, whole("max_iter", 1) // eta ** whole("s", 1)), eta)


def _aliases(path: Path, content: Any) -> dict[str, Alias]:
    """The file's own short names, `att: TRAIN.attention` or with `option` and `values`."""
    aliases = dict(ALIASES)
    if not isinstance(content, Mapping):
        raise ConfigError(f"{path}: aliases must be a mapping such as {{lr: TRAIN.base_lr}}")
    for name, entry in content.items():
        entry = {"option": entry} if isinstance(entry, str) else entry
        entry = _mapping(path, f"aliases.{name}", entry, ("option", "values"))
        words = entry.get("values", {})
        if not isinstance(words, Mapping) or not isinstance(entry.get("option"), str):
            raise ConfigError(f"{path}: aliases.{name} needs an option, and values as a mapping")
        aliases[str(name)] = Alias(entry["option"], words)
    return aliases


def _parameters(path: Path, content: Mapping[str, Any]) -> Iterator[Parameter]:
    parameters = content.get("parameters")
    if not isinstance(parameters, Mapping) or not parameters:
        raise ConfigError(f"{path}: parameters must be a mapping with one parameter or more")
    aliases = _aliases(path, content.get("aliases", {}))
    found: dict[str, str] = {}
    for name, entry in _flat(parameters):
        try:
            alias = aliases.get(name, Alias(name))
            alias = Alias(option_meant(alias.option), alias.values)
            parameter = parameter_of(name, alias, entry)
        except ValueError as error:
            raise ConfigError(f"{path}: parameters.{name} {error}") from None
        section, _, key = parameter.option.partition(".")
        if section not in SECTIONS or not key:
            raise ConfigError(f"{path}: parameters.{name}: {parameter.option} is no SECTION.option")
        if parameter.option in EACH_RUNS_OWN:
            raise ConfigError(f"{path}: parameters.{name}: {parameter.option} is each trial's own")
        if parameter.option in found:
            other = found[parameter.option]
            raise ConfigError(f"{path}: parameters {other} and {name} are both {parameter.option}")
        found[parameter.option] = name
        yield parameter


def _flat(parameters: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    """W&B's nesting, `TRAIN: {parameters: {base_lr: ...}}`, as `TRAIN.base_lr`."""
    for name, entry in parameters.items():
        inner = entry.get("parameters") if isinstance(entry, Mapping) else None
        if name in SECTIONS and isinstance(inner, Mapping) and len(entry) == 1:
            yield from ((f"{name}.{key}", value) for key, value in inner.items())
        else:
            yield str(name), entry


def _check_grid(sweep: Sweep) -> None:
    for parameter in sweep.varied:
        try:
            parameter.grid()
        except ValueError as error:
            raise ConfigError(f"{sweep.path}: parameters.{parameter.name} {error}") from None
    if (count := math.prod(len(p.grid()) for p in sweep.varied)) > MOST_COMBINATIONS:
        raise ConfigError(
            f"{sweep.path}: the grid has {count} combinations and {MOST_COMBINATIONS} is the most; "
            "use fewer values, or method random with run_cap"
        )
