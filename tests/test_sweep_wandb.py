"""`--backend wandb` against a stand-in for the library."""

import sys
from threading import Thread
from types import ModuleType

import pytest

from stripseg.config.errors import StripsegError
from stripseg.tool import sweep as tool_sweep
from stripseg.util.experiments.sweep_file import read_sweep
from stripseg.util.experiments.sweep_wandb import run_on_wandb
from stripseg.util.signals import Stopped

PLACE = {"project": "scenes", "entity": None}


class StandIn(ModuleType):
    """W&B with so many `jobs`: what it was `seen` doing, what was `logged`, which jobs failed."""

    def __init__(self, jobs: int) -> None:
        super().__init__("wandb")
        self.jobs = iter(range(jobs))
        self.seen, self.logged, self.failures = [], [], []

    def sweep(self, content: dict, **place) -> str:
        self.seen.append((sorted(content), place))
        return "number"

    def agent(self, number: str, function, count: int, **place) -> None:
        """As W&B's: jobs run in threads, whose exceptions it keeps to itself."""
        self.seen.append((number, count, place))
        for _ in zip(range(count), self.jobs, strict=False):
            thread = Thread(target=self.swallowing, args=(function,))
            thread.start()
            thread.join()

    def swallowing(self, function) -> None:
        try:
            function()
        except Exception as error:
            self.failures.append(str(error))

    def init(self) -> "StandIn.Run":
        return StandIn.Run(self.logged.append)

    class Run:
        id = "abc"

        def __init__(self, log) -> None:
            self.log = log
            self.config = {"TRAIN": {"momentum": 0.8}, "lr": 0.002, "extra": 1}

        def __enter__(self) -> "StandIn.Run":
            return self

        def __exit__(self, *_) -> None:
            pass


@pytest.fixture
def wandb(monkeypatch) -> StandIn:
    stand_in = StandIn(jobs=3)
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    return stand_in


@pytest.fixture
def path(sweep_file):
    """A sweep of two runs, one parameter nested as W&B has it, one under its short name."""
    parameters = {
        "TRAIN": {"parameters": {"momentum": {"values": [0.8, 0.9]}}},
        "lr": {"min": 0.001, "max": 0.01},
    }
    place = {"project": "scenes", "seed": 3}
    return sweep_file(method="random", run_cap=2, parameters=parameters, **place)


def test_wandb_is_handed_the_file_and_chooses_the_values(path, wandb: StandIn) -> None:
    runs = []

    def run(name, values, log):
        runs.append((name, values))
        log({"mIoU": 0.5})
        return ""

    run_on_wandb(read_sweep(path), run)
    agents = [("number", 1, PLACE)] * 2
    assert wandb.seen == [(["method", "metric", "parameters", "run_cap"], PLACE), *agents]
    assert runs == [("abc", {"TRAIN.momentum": 0.8, "lr": 0.002})] * 2
    assert wandb.logged == [{"mIoU": 0.5}] * 2
    run_on_wandb(read_sweep(path), lambda *_: "diverged")  # one job is left
    assert wandb.failures == ["diverged"]


def test_a_run_that_is_stopped_is_the_last(path, wandb: StandIn) -> None:
    stops = []

    def stopped(*_) -> str:
        stops.append(1)
        raise Stopped("stopped by SIGTERM")

    with pytest.raises(Stopped, match="SIGTERM"):
        run_on_wandb(read_sweep(path), stopped)
    assert stops == [1]


def test_without_wandb_the_message_says_how_to_get_it(path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(StripsegError, match="pip install wandb"):
        tool_sweep.main([str(path), "--backend", "wandb"])
