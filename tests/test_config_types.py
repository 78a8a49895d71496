"""The kinds of values: what each takes, up to its bounds, and how it says what it expects."""

import math
from typing import Any

import pytest

from stripseg.config.types import (
    Checked,
    Choice,
    Either,
    Flag,
    Kind,
    ListOf,
    LowerName,
    Maybe,
    Name,
    PathText,
    Real,
    Text,
    Whole,
    WordOrWeights,
    nearest,
    shown,
)

WORDS = WordOrWeights("dice", "focal")


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (Whole(), 2**31 - 1, 2**31 - 1),
        (Whole(), -(2**31) + 1, -(2**31) + 1),
        (Whole(2, 5), 2, 2),
        (Whole(2, 5), "5", 5),
        (Whole(2, 5), 3.0, 3),
        (Real(), "1e-4", 1e-4),
        (Real(0, 1), 0, 0.0),
        (Real(0, 1), 1, 1.0),
        (Real(above=0, most=1), 1, 1.0),
        (Real(above=0), 1e-300, 1e-300),
        (Flag(), 1, True),
        (Flag(), 0, False),
        (Flag(), False, False),
        (Text(), " a b ", "a b"),
        (Name(), 7, "7"),
        (Name(), "a.b-c_1", "a.b-c_1"),
        (LowerName(also={"pspnet": "psp"}), "PSPNet", "psp"),
        (LowerName(), "FCN", "fcn"),
        (Choice("auto", 4), "AUTO", "auto"),
        (Choice("auto", 4), "4", 4),
        (ListOf(Whole(0)), [], []),
        (ListOf(Whole(0), length=2), (1, "2"), [1, 2]),
        (ListOf(Whole(0), one_alone=True), 3, [3]),
        (ListOf(Whole(0), one_alone=True), [3, 4], [3, 4]),
        (Either(Whole(0), Choice("all")), "all", "all"),
        (Either(Whole(0), Choice("all")), "3", 3),
        (Maybe(Whole(0)), None, None),
        (Maybe(Whole(0), empty=9), None, 9),
        (Maybe(Whole(0), empty=9), 1, 1),
        (WORDS, "Dice", "dice"),
        (WORDS, {"dice": 1, "focal": "0.5"}, {"dice": 1.0, "focal": 0.5}),
        (Checked(Whole(0), "an even number", lambda n: n % 2 == 0), 4, 4),
    ],
)
def test_what_a_kind_takes(kind: Kind, value: Any, expected: Any) -> None:
    found = kind.validate(value)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        (Whole(), 2**31, "must be a whole number, not 2147483648"),
        (Whole(), True, "must be a whole number, not True"),
        (Whole(), 1.5, "must be a whole number, not 1.5"),
        (Whole(2), 1, "must be a whole number, 2 or more, not 1"),
        (Whole(2, 5), 1, "must be a whole number from 2 to 5, not 1"),
        (Whole(2, 5), 6, "must be a whole number from 2 to 5, not 6"),
        (Whole(2, 5), None, "must be a whole number from 2 to 5, not empty"),
        (Real(), math.inf, "must be a number, not inf"),
        (Real(), "x", "must be a number, not 'x'"),
        (Real(2), 1.9, "must be a number, 2 or more, not 1.9"),
        (Real(0, 1), 1.1, "must be a number from 0 to 1, not 1.1"),
        (Real(0, 1), -0.1, "must be a number from 0 to 1, not -0.1"),
        (Real(above=0), 0, "must be a number above 0, not 0"),
        (Real(above=0, most=2), 2.5, "must be a number above 0, up to 2, not 2.5"),
        (Flag(), 2, "must be True or False, not 2"),
        (Flag(), "True", "must be True or False, not 'True'"),
        (Flag(), 1.0, "must be True or False, not 1.0"),
        (Text(), "  ", "must be text, not '  '"),
        (Text(), "a\x1b", r"must be text, not 'a\\x1b'"),
        (Text(), 3, "must be text, not 3"),
        (PathText(), 3, "must be a path, not 3"),
        (Name(), "a/b", "must be a name made of letters, digits, '_', '-' and '.', not 'a/b'"),
        (Name(), ".a", "must be a name"),
        (Name(), True, "must be a name"),
        (Choice("auto", 4), 5, "must be one of auto, 4, not 5$"),
        (Choice("auto", 4), True, "must be one of auto, 4, not True$"),
        (Choice("auto", 4), "atuo", "must be one of auto, 4, not 'atuo'; did you mean auto[?]"),
        (Choice("auto"), 5, "must be auto, not 5"),
        (Choice("all", "none"), None, "must be one of all, none, not empty"),
        (ListOf(Whole(0)), 3, "must be a list, each a whole number, 0 or more, not 3"),
        (ListOf(Whole(0)), "34", "must be a list"),
        (ListOf(Whole(0), filled=True), [], "must be a list"),
        (ListOf(Whole(0), length=2), [1], "must be a list of 2, each a whole number"),
        (ListOf(Whole(0), one_alone=True), -1, "a whole number, 0 or more, or a list, each a"),
        (Either(Whole(0), Choice("all")), "al", "must be a whole number, 0 or more, or all, not"),
        (Maybe(Choice("all", "none")), "nome", "or empty, not 'nome'; did you mean none[?]"),
        (WORDS, {}, "mapping of some of these to weights above 0 such as {dice: 1, focal: 0.5}"),
        (WORDS, {"dice": 1, "Dice": 2}, "must be one of dice, focal, or a mapping"),
        (WORDS, {"dice": 0}, "must be one of dice, focal, or a mapping"),
        (WORDS, {"dise": 1}, "did you mean dice[?]"),
        (Checked(Whole(0), "an even number", lambda n: n % 2 == 0), 3, "must be an even number"),
    ],
)
def test_what_a_kind_refuses(kind: Kind, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind.validate(value)


def test_values_are_shown_on_one_short_line() -> None:
    assert shown("x" * 58) == repr("x" * 58)  # 60 characters
    assert shown("x" * 59) == "'" + "x" * 56 + "..."
    assert shown(10**5000) == "a number of thousands of digits"
    assert shown(None) == "empty"


def test_the_nearest_name() -> None:
    assert nearest("BASE_LRR", ["momentum", "Base_lr"]) == "Base_lr"
    assert nearest("xyz", ["momentum", "base_lr"]) is None
