"""No input whatsoever brings anything but a config or a ConfigError.

The examples are the same ones each time; `STRIPSEG_FUZZ=7` tries seven times as many new ones.
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from yamls import PYCONV, SPNET, Write

from stripseg.config.errors import ConfigError
from stripseg.config.load import load_config, stored_config
from stripseg.config.schema import SECTIONS, Config
from stripseg.util.training.run_log import save_effective

TIMES = int(os.environ.get("STRIPSEG_FUZZ", 1))
FUZZ = settings(
    max_examples=200 * TIMES,
    derandomize=TIMES == 1,  # what fails in CI fails at home
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates()
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=2)
    ),
    max_leaves=6,
)
KEYS = st.sampled_from(
    [(name, key) for name, section in SECTIONS.items() for key in section.model_fields]
    + [("TRAIN", "backbone_net"), ("TRAIN", "dataset"), ("TRAIN", "nonsense"), ("BAD", "key")]
)
TAGGED = st.builds(  # YAML's own types, with what they cannot hold
    "!!{} {}".format,
    st.sampled_from(["int", "float", "bool", "null", "binary", "timestamp", "set", "omap", "map"]),
    st.sampled_from(['""', "-", "x", "1", "[1]", "{a: 1}", '"\\UFFFFFFFF"']) | st.text(max_size=4),
)


def loads_or_complains(path: Path, overrides: list[Any]) -> None:
    try:
        config = load_config(path, overrides)
    except ConfigError:
        return
    save_effective(config, "effective.yaml")
    assert load_config("effective.yaml") == config


@FUZZ
@given(text=st.text(max_size=200) | st.builds("{0[0]}: {{{0[1]}: {1}}}".format, KEYS, TAGGED))
@example(text="<<: {DATA: 3}")
@example(text="=: 3")
@example(text="DATA: {? {a: b} : c}")
@example(text="TRAIN: {<<: [1]}")
def test_any_text_as_a_file(write: Write, text: str) -> None:
    path = write()
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    loads_or_complains(path, [])


@FUZZ
@given(start=st.integers(0, len(SPNET)), length=st.integers(0, 40), text=st.text(max_size=20))
def test_any_damage_to_a_good_file(write: Write, start: int, length: int, text: str) -> None:
    path = write()
    path.write_bytes((SPNET[:start] + text + SPNET[start + length :]).encode("utf-8", "replace"))
    loads_or_complains(path, [])


@FUZZ
@given(changes=st.lists(st.tuples(KEYS, VALUES), max_size=4))
def test_any_values_in_a_good_file(write: Write, changes: list[tuple[Any, Any]]) -> None:
    tree = yaml.safe_load(PYCONV)
    for (section, key), value in changes:
        tree.setdefault(section, {})[key] = value
    loads_or_complains(write(yaml.safe_dump(tree)), [])


@FUZZ
@given(overrides=st.lists(st.text(max_size=12) | KEYS.map(".".join) | VALUES | TAGGED, max_size=4))
def test_any_overrides(write: Write, overrides: list[Any]) -> None:
    loads_or_complains(write(), overrides)


@FUZZ
@given(changes=st.lists(st.tuples(KEYS, VALUES), max_size=4), whole=st.none() | VALUES)
@example(changes=[], whole=3)
def test_any_config_in_a_checkpoint(
    write: Write, changes: list[tuple[Any, Any]], whole: Any
) -> None:
    tree = load_config(write(PYCONV)).model_dump(mode="json")
    for (section, key), value in changes:
        tree.setdefault(section, {})[key] = value
    if whole is not None:
        tree["TRAIN"] = whole
    with suppress(ConfigError):
        assert isinstance(stored_config(tree, "network.pth"), Config)
