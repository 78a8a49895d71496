"""The parameters of a sweep: what each may be, under the names of Weights & Biases, and the short
names that stand for options."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...config.types import nearest, shown

MOST_CHOICES = 10_000  # of one parameter on a grid


@dataclass(frozen=True)
class Alias:
    """A short name: the option it means, and the words that mean values of the option."""

    option: str
    values: Mapping[str, Any] = field(default_factory=dict)


ATTENTION = {
    "Vanilla": "none",
    "Triplet": "triplet",
    "Strip Pool": "strip_pool",
    "ECA": "eca",
    "GCT": "gct",
}
# the keys of the strip pooling study's sweep; a file's own `aliases:` come on top
ALIASES = {
    "att": Alias("TRAIN.attention", ATTENTION),
    "optimizer": Alias("TRAIN.optimizer"),
    "batch_size": Alias("TRAIN.batch_size"),
    "learning_rate": Alias("TRAIN.base_lr"),
    "lr": Alias("TRAIN.base_lr"),
    "epochs": Alias("TRAIN.epochs"),
}


@dataclass(frozen=True)
class Kind:
    """A distribution: numbers from `min` to `max`, even in their logarithm or not."""

    whole: bool = False
    log: bool = False
    exponent: bool = False  # min and max are exponents of e
    step: bool = False  # multiples of q


RANGES = {
    "uniform": Kind(),
    "int_uniform": Kind(whole=True),
    "q_uniform": Kind(step=True),
    "log_uniform": Kind(log=True, exponent=True),
    "log_uniform_values": Kind(log=True),
    "q_log_uniform": Kind(log=True, exponent=True, step=True),
    "q_log_uniform_values": Kind(log=True, step=True),
}
DISTRIBUTIONS = ("constant", "categorical", *RANGES)
KEYS = ("values", "value", "min", "max", "q", "distribution")


@dataclass(frozen=True)
class Parameter:
    """One parameter: `values` to choose from (one of them: a constant), or a range."""

    name: str  # as the file has it
    option: str  # SECTION.key
    values: tuple[Any, ...] = ()
    words: Mapping[str, Any] = field(default_factory=dict)  # what a value of the file stands for
    low: float = 0.0
    high: float = 0.0
    kind: Kind = field(default_factory=Kind)
    q: float = 1.0

    @property
    def is_range(self) -> bool:
        return not self.values

    def meaning(self, value: Any) -> Any:
        """The option's value that a value of the file stands for."""
        return self.words.get(value, value) if isinstance(value, str) else value

    def candidates(self) -> tuple[Any, ...]:
        """The values that show whether the option takes all of them: each one, or the ends and
        one between them."""
        between = self.low + 0.37 * (self.high - self.low)
        return self.values or tuple(map(self.rounded, (self.low, between, self.high)))

    def rounded(self, number: float) -> float | int:
        """A drawn number as it is used: a multiple of q, a whole number where one is asked for."""
        if self.kind.whole:
            return round(number)
        if self.kind.step:
            first, last = math.ceil(self.low / self.q - 1e-9), math.floor(self.high / self.q + 1e-9)
            return self._of_step(min(max(round(number / self.q), first), last) * self.q)
        return float(number)

    def _of_step(self, number: float) -> float | int:
        whole = float(self.q).is_integer() and float(number).is_integer()
        return round(number) if whole else round(number, 12)

    def grid(self) -> tuple[Any, ...]:
        """Every value, for method grid.

        Raises:
            ValueError: the range has no end of values.
        """
        if not self.is_range:
            return self.values
        step = self.q if self.kind.step else 1.0
        if self.kind.log or not (self.kind.whole or self.kind.step):
            raise ValueError("has a continuous range, and method grid needs values or steps (q)")
        count = math.floor((self.high - self.low) / step + 1e-9) + 1
        if count > MOST_CHOICES:
            raise ValueError(f"has {count} values, and method grid takes {MOST_CHOICES} at most")
        if self.kind.whole:
            return tuple(round(self.low) + index for index in range(count))
        return tuple(self._of_step(self.low + index * step) for index in range(count))


def parameter_of(name: str, alias: Alias, content: Any) -> Parameter:
    """A parameter from what the file says of it.

    Raises:
        ValueError: that cannot be; the message completes "parameters.NAME ...".
    """
    if not isinstance(content, Mapping):
        raise ValueError(f"must be a mapping such as {{values: [1, 2]}}, not {shown(content)}")
    for key in content:
        if key not in KEYS:
            likely = nearest(str(key), KEYS)
            raise ValueError(
                f"has an unknown key {shown(key)}; "
                + (f"did you mean {likely}?" if likely else f"there are {', '.join(KEYS)}")
            )
    given = [key for key in ("values", "value") if key in content]
    given += ["min and max"] if "min" in content or "max" in content else []
    if len(given) != 1:
        raise ValueError(
            "needs one of values, value, or min and max"
            + (f", not {' together with '.join(given)}" if given else "")
        )
    distribution = content.get("distribution", _usual(content))
    _check_distribution(distribution, given[0])
    if distribution in RANGES:
        return _range(name, alias, content, RANGES[distribution])
    values = content["values"] if given[0] == "values" else [content["value"]]
    if not isinstance(values, list) or not values:
        raise ValueError(f"values must be a list with one value or more, not {shown(values)}")
    if len({repr(value) for value in values}) < len(values):
        raise ValueError(f"has a value twice in {shown(values)}")
    if "q" in content:
        raise ValueError("has q, which belongs to a range with min and max")
    return Parameter(name, alias.option, tuple(values), alias.values)


def _usual(content: Mapping[str, Any]) -> str:
    """The distribution that W&B takes where none is named."""
    if "values" in content or "value" in content:
        return "categorical" if "values" in content else "constant"
    whole = all(isinstance(content.get(key), int) for key in ("min", "max"))
    return "q_uniform" if "q" in content else "int_uniform" if whole else "uniform"


def _check_distribution(distribution: Any, given: str) -> None:
    if distribution not in DISTRIBUTIONS:
        likely = nearest(str(distribution), DISTRIBUTIONS)
        raise ValueError(
            f"has the distribution {shown(distribution)}, which is not known here; "
            + (f"did you mean {likely}? " if likely else "")
            + f"there are {', '.join(DISTRIBUTIONS)}"
        )
    needs = {"constant": "value", "categorical": "values"}.get(distribution, "min and max")
    if needs != given:
        raise ValueError(f"has the distribution {distribution}, which needs {needs}, not {given}")


def _range(name: str, alias: Alias, content: Mapping[str, Any], kind: Kind) -> Parameter:
    numbers = {"q": 1.0}
    for key in ("min", "max", "q"):
        if key not in content and key != "q":
            raise ValueError(f"has no {key}")
        if key in content:
            numbers[key] = _number(key, content[key])
    low, high, q = numbers["min"], numbers["max"], numbers["q"]
    if "q" in content and not kind.step:
        raise ValueError("has q, which belongs to q_uniform and the other distributions with q_")
    if q <= 0:
        raise ValueError(f"q must be above 0, not {q:g}")
    if low >= high:
        raise ValueError(f"min {low:g} must be below max {high:g}")
    if kind.exponent:
        if max(abs(low), abs(high)) > 300:
            raise ValueError("has exponents of e as min and max; log_uniform_values takes values")
        low, high = math.exp(low), math.exp(high)
    if kind.log and low <= 0:
        raise ValueError(f"min must be above 0 for a logarithmic distribution, not {low:g}")
    if kind.step and math.ceil(low / q - 1e-9) > math.floor(high / q + 1e-9):
        raise ValueError(f"has no multiple of q {q:g} from {low:g} to {high:g}")
    if kind.whole and not (low.is_integer() and high.is_integer()):
        raise ValueError("min and max must be whole numbers for int_uniform")
    return Parameter(name, alias.option, low=low, high=high, kind=kind, q=q)


def _number(key: str, value: Any) -> float:
    """A finite number, also the text 1e-4, which YAML 1.1 does not know for one."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{key} must be a number, not {shown(value)}")
    return number
