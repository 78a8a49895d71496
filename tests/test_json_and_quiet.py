"""What commands print for programs (`--json`) and when nobody reads along (`--quiet`)."""

import importlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from stripseg import command_line
from stripseg.command_line import Result
from stripseg.config.errors import ConfigError
from stripseg.tool.main import MODULES
from stripseg.util import logger
from stripseg.util.logger import run_logger

WITHOUT_FIGURES = {"demo", "serve"}


def run(main: command_line.Main, monkeypatch, *words: str) -> int:
    """The exit code of a command with these words."""
    monkeypatch.setenv(logger.QUIET, "0")  # set back after the test
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    monkeypatch.setattr("sys.argv", ["stripseg some", *words])
    with pytest.raises(SystemExit) as ended:
        command_line.run_command(main)
    return ended.value.code


def some(argv: Sequence[str]) -> Result:
    """A command that says something and has found something."""
    print("for people")
    log = run_logger()
    log.info("how it goes")
    log.warning("careful")
    figures = {
        "file": Path("out/a.png"),
        "mean": np.float32(0.5),
        "counts": np.arange(3),
        "unknown": float("nan"),
        "result": Result((1, None)),
    }
    return Result(figures, exit_code=1)


FIGURES = {
    "file": "out/a.png",
    "mean": 0.5,
    "counts": [0, 1, 2],
    "unknown": None,
    "result": {"figures": [1, None], "exit_code": 0},
}


def test_json_is_the_only_thing_on_stdout(monkeypatch, capsys) -> None:
    assert run(some, monkeypatch, "--json") == 1
    shown = capsys.readouterr()
    assert json.loads(shown.out) == FIGURES
    assert "for people" in shown.err
    assert "how it goes" in shown.err


def test_without_it_people_are_told(monkeypatch, capsys) -> None:
    assert run(some, monkeypatch) == 1
    shown = capsys.readouterr()
    assert "for people" in shown.out
    assert "unknown" not in shown.out


@pytest.mark.parametrize("words", [("--quiet",), ("--quiet", "--json")])
def test_quiet_leaves_warnings_and_what_was_asked_for(monkeypatch, capsys, words) -> None:
    assert run(some, monkeypatch, *words) == 1
    shown = capsys.readouterr()
    assert (json.loads(shown.out) == FIGURES) if "--json" in words else shown.out == ""
    assert "for people" not in shown.err
    assert "how it goes" not in shown.err
    assert "careful" in shown.err


def test_a_mistake_leaves_stdout_empty(monkeypatch, capsys) -> None:
    def fails(argv: Sequence[str]) -> Result:
        raise ConfigError("TRAIN.epochs: expected 1 or more")

    assert run(fails, monkeypatch, "--json", "--quiet") == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == "error: TRAIN.epochs: expected 1 or more\n"


@pytest.mark.parametrize("name", [*MODULES, "prepare shapes", "prepare custom", "prepare pack"])
def test_every_command_has_them(name: str, capsys) -> None:
    command, *words = name.split()
    if name == "prepare":
        words = ["ade20k"]  # the options stand after its own command
    module = importlib.import_module(f"stripseg.tool.{MODULES[command]}")
    with pytest.raises(SystemExit):
        module.main([*words, "--help"])
    told = capsys.readouterr().out
    assert "--quiet" in told
    assert ("--json" in told) == (command not in WITHOUT_FIGURES)


def test_a_command_of_the_package(small_config: Path, monkeypatch, capsys) -> None:
    from stripseg.tool import summary

    assert run(summary.main, monkeypatch, "--config", str(small_config), "--json", "--quiet") == 0
    (network,) = json.loads(capsys.readouterr().out)
    assert [part["name"] for part in network["parts"]][-1] == "auxiliary head"
    assert all(part["parameters"] > 0 for part in network["parts"])
