"""What a value may be: every kind turns what YAML hands over into a plain value, or says in words
what it expects. The words serve the error messages and the tables of docs/config.md alike.

Pydantic's own types are not used for this: they take `true` for the number 1, and report
one error per member for a wrong value of a union.
"""

import difflib
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from .limits import GRID, LARGEST_WHOLE


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The name that a misspelt one most likely means, whatever its case, or None."""
    by_lower = {known.lower(): known for known in names}
    match = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[match[0]] if match else None


def shown(value: Any) -> str:
    """A value for an error message: on one line, and short."""
    if value is None:
        return "empty"
    try:
        text = repr(value)
    except ValueError:  # Python refuses to print integers of thousands of digits
        return "a number of thousands of digits"
    return text if len(text) <= 60 else text[:57] + "..."


class Kind:
    """One kind of value; used in `Annotated` where no standard annotation fits."""

    phrase: str  # completes the sentence "the value must be ..."

    def parse(self, value: Any) -> Any:
        """The plain value; ValueError, TypeError or OverflowError when it is not of this kind."""
        raise NotImplementedError

    def hint(self, value: Any) -> str:
        """What to add to the complaint about a value."""
        return ""

    def message(self, value: Any) -> str:
        return f"must be {self.phrase}, not {shown(value)}{self.hint(value)}"

    def validate(self, value: Any) -> Any:
        try:
            return self.parse(value)
        except (ValueError, TypeError, OverflowError):
            raise ValueError(self.message(value)) from None


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("not a number")
    number = float(value)  # also the text "1e-4", which YAML 1.1 does not know for a number
    if not math.isfinite(number):
        raise ValueError("not finite")
    return number


class Whole(Kind):
    """A whole number; 16.0 and "16" are taken for 16, True and 16.5 are not."""

    def __init__(self, least: int | None = None, most: int | None = None) -> None:
        self.least = -LARGEST_WHOLE if least is None else least
        self.most = LARGEST_WHOLE if most is None else most
        self.phrase = "a whole number"
        if most is not None:
            self.phrase += f" from {least} to {most}"
        elif least is not None:
            self.phrase += f", {least} or more"

    def parse(self, value: Any) -> int:
        number = _number(value)
        if not number.is_integer() or not self.least <= number <= self.most:
            raise ValueError("out of range")
        return int(number)


class Real(Kind):
    """A finite number: `least` and `most` belong to its range, `above` does not."""

    def __init__(
        self, least: float = -math.inf, most: float = math.inf, *, above: float = -math.inf
    ) -> None:
        self.least, self.most, self.above = least, most, above
        self.phrase = "a number"
        if above > -math.inf:
            self.phrase += f" above {above:g}" + (f", up to {most:g}" if most < math.inf else "")
        elif most < math.inf:
            self.phrase += f" from {least:g} to {most:g}"
        elif least > -math.inf:
            self.phrase += f", {least:g} or more"

    def parse(self, value: Any) -> float:
        number = _number(value)
        if not self.least <= number <= self.most or number <= self.above:
            raise ValueError("out of range")
        return number


class Flag(Kind):
    """True or False; semseg's YAMLs also write 1 and 0."""

    phrase = "True or False"

    def parse(self, value: Any) -> bool:
        if isinstance(value, bool) or (isinstance(value, int) and value in (0, 1)):
            return bool(value)
        raise ValueError("not a flag")


class Text(Kind):
    phrase = "text"

    def parse(self, value: Any) -> str:
        if not isinstance(value, str) or not value.strip() or not value.isprintable():
            raise ValueError("not text")
        return value.strip()


class PathText(Text):
    """A path as text; `~` is expanded here, so that no reader of the option has to."""

    phrase = "a path"

    def parse(self, value: Any) -> str:
        return os.path.expanduser(super().parse(value))


class Name(Kind):
    """A name that is safe as a part of a path."""

    phrase = "a name made of letters, digits, '_', '-' and '.'"

    def parse(self, value: Any) -> str:
        text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
        if not re.fullmatch(r"\w[\w.-]*", text):
            raise ValueError("not a name")
        return str(text)


class LowerName(Name):
    """A name in lower case; `also` adds other spellings of some."""

    def __init__(self, *, also: dict[str, str] | None = None) -> None:
        self.also = also or {}

    def parse(self, value: Any) -> str:
        name = super().parse(value).lower()
        return self.also.get(name, name)


class Choice(Kind):
    """One of a few words or numbers; case does not matter."""

    def __init__(self, *options: str | int) -> None:
        self.options = options
        self.phrase = ("one of " if len(options) > 1 else "") + ", ".join(map(str, options))

    def parse(self, value: Any) -> str | int:
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise ValueError("not a word or number")
        word = str(value).strip().lower()
        for option in self.options:
            if str(option).lower() == word:
                return option
        raise ValueError("not among the choices")

    def hint(self, value: Any) -> str:
        likely = nearest(value, map(str, self.options)) if isinstance(value, str) else None
        return f"; did you mean {likely}?" if likely else ""


class ListOf(Kind):
    """A list; `one_alone` takes a single value for a list of one."""

    def __init__(
        self,
        item: Kind,
        *,
        length: int | None = None,
        filled: bool = False,
        one_alone: bool = False,
    ) -> None:
        self.item, self.length, self.filled, self.one_alone = item, length, filled, one_alone
        size = "a list" if length is None else f"a list of {length}"
        self.phrase = f"{size}, each {item.phrase}"
        if one_alone:
            self.phrase = f"{item.phrase}, or {self.phrase}"

    def parse(self, value: Any) -> list[Any]:
        if self.one_alone and not isinstance(value, list | tuple):
            value = [value]
        if not isinstance(value, list | tuple) or (self.filled and not value):
            raise ValueError("not a list")
        if self.length is not None and len(value) != self.length:
            raise ValueError("wrong length")
        return [self.item.parse(entry) for entry in value]


class Either(Kind):
    """The first kind that accepts the value wins."""

    def __init__(self, *kinds: Kind) -> None:
        self.kinds = kinds
        self.phrase = ", or ".join(kind.phrase for kind in kinds)

    def parse(self, value: Any) -> Any:
        for kind in self.kinds:
            try:
                return kind.parse(value)
            except (ValueError, TypeError, OverflowError):
                continue
        raise ValueError("none of the kinds")


class Maybe(Kind):
    """The kind, or nothing: an empty value in YAML (`weight:`), which may stand for something."""

    def __init__(self, kind: Kind, empty: Any = None) -> None:
        self.kind, self.empty = kind, empty
        self.phrase = f"{kind.phrase}, or empty"

    def parse(self, value: Any) -> Any:
        return self.empty if value is None else self.kind.parse(value)

    def hint(self, value: Any) -> str:
        return self.kind.hint(value)


class WordOrWeights(Kind):
    """One of a few words, or a mapping of some of them to their weights."""

    def __init__(self, *words: str) -> None:
        self.word, self.weight = Choice(*words), Real(above=0)
        self.phrase = (
            f"{self.word.phrase}, or a mapping of some of these to weights above 0 such as "
            f"{{{words[0]}: 1, {words[1]}: 0.5}}"
        )

    def parse(self, value: Any) -> str | dict[str, float]:
        if not isinstance(value, Mapping):
            return str(self.word.parse(value))
        weights = {str(self.word.parse(key)): self.weight.parse(v) for key, v in value.items()}
        if not weights or len(weights) < len(value):
            raise ValueError("no words, or one in two spellings")
        return weights

    def hint(self, value: Any) -> str:
        words = value if isinstance(value, Mapping) else [value]
        return next(filter(None, map(self.word.hint, words)), "")


class Checked(Kind):
    """A kind with one more condition, which `phrase` puts in words."""

    def __init__(self, kind: Kind, phrase: str, holds: Callable[[Any], bool]) -> None:
        self.kind, self.phrase, self.holds = kind, phrase, holds

    def parse(self, value: Any) -> Any:
        parsed = self.kind.parse(value)
        if not self.holds(parsed):
            raise ValueError("condition not met")
        return parsed


DEPTHS = (18, 34, 50, 101, 152)

Precision = Literal["auto", "fp32", "bf16", "fp16"]
FilePath = Annotated[str, PathText()]
GPUList = Annotated[
    list[int] | None,
    Checked(
        Maybe(ListOf(Whole(0), one_alone=True)),
        "a list of different GPU numbers such as [0, 1], or empty",
        lambda gpus: gpus is None or len(set(gpus)) == len(gpus),
    ),
]
PoolSizes = Annotated[
    list[int],
    Checked(
        ListOf(Whole(1, GRID), length=2),
        f"two whole numbers up to {GRID}, the larger one first, such as [20, 12]",
        lambda sizes: sizes[0] > sizes[1],
    ),
]
URL = Annotated[
    str,
    Checked(Text(), "a URL such as tcp://127.0.0.1:6789 or env://", lambda url: "://" in url),
]


def kind_of(field: FieldInfo) -> Kind:
    """Return what a field's annotation and properties (schema.option) allow."""
    properties = field.json_schema_extra or {}
    explicit = next((part for part in field.metadata if isinstance(part, Kind)), None)
    kind = explicit or _kind(field.annotation, properties)
    if properties.get("derived"):
        return Maybe(kind)
    return Maybe(kind, empty=properties["empty"]) if "empty" in properties else kind


def _kind(annotation: Any, properties: Mapping[str, Any]) -> Kind:
    origin, members = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return next(part for part in annotation.__metadata__ if isinstance(part, Kind))
    if origin is Literal:
        return Choice(*members)
    if origin is list:
        sizes = {"length": properties.get("length"), "filled": properties.get("min_length", 0) > 0}
        numbers = {name: value for name, value in properties.items() if name in ("ge", "gt", "le")}
        single = properties.get("single_allowed", False)
        return ListOf(_kind(members[0], numbers), **sizes, one_alone=single)
    if members:  # a union
        kinds = [_kind(member, properties) for member in members if member is not type(None)]
        kind = kinds[0] if len(kinds) == 1 else Either(*kinds)
        return Maybe(kind) if type(None) in members else kind
    least, above, most = (properties.get(name) for name in ("ge", "gt", "le"))
    if annotation is int:
        return Whole(least, most)
    if annotation is float:
        bounds = {"least": least, "above": above, "most": most}
        return Real(**{name: bound for name, bound in bounds.items() if bound is not None})
    return {bool: Flag, str: Text}[annotation]()
