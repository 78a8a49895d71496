"""TRAIN.compile is used where it works; where it does not, the log says so and the run goes on."""

import logging
from pathlib import Path

import pytest
import torch
from processes import run_processes
from torch import Tensor, nn

from stripseg.config.errors import OutOfMemoryError
from stripseg.config.load import find_config, load_config
from stripseg.model.build import build_network
from stripseg.training_run import build_trainer
from stripseg.util.distributed import process_group
from stripseg.util.training.parallelize import compile_or_eager, place_network

CPU = torch.device("cpu")
WORDS = ["TRAIN.compile", "True", "TRAIN.evaluate", "False"]


def trained(config: Path, folder: Path, *words: str) -> tuple[dict[str, Tensor], nn.Module, str]:
    """Weights after two steps, what was trained, and the log."""
    words = ["TRAIN.evaluate", "False", *words, "TRAIN.save_path", str(folder)]
    trainer = build_trainer(load_config(config, words), CPU)
    trainer.fit(until=2)
    return trainer.segmenter.state_dict(), trainer.network, next(folder.glob("*.log")).read_text()


def assert_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.equal(value, second[key]), key


class Broken(nn.Module):
    """A compiled network whose first use fails, after it has changed the running statistics."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> None:
        self.network(image)
        raise RuntimeError("InductorError: no C++ compiler\nand a long story")


def refuse(network: nn.Module) -> None:
    raise RuntimeError("this Python is not supported")


@pytest.mark.parametrize(
    ("compiler", "reason"),
    [(Broken, "(InductorError: no C++ compiler)"), (refuse, "(this Python is not supported)")],
)
def test_a_failure_is_told_and_changes_nothing(
    small_config: Path, tmp_path: Path, monkeypatch, compiler, reason: str
) -> None:
    plain, _, _ = trained(small_config, tmp_path / "plain")
    monkeypatch.setattr(torch, "compile", compiler)
    weights, _, log = trained(small_config, tmp_path / "compiled", "TRAIN.compile", "True")
    assert_equal(plain, weights)
    assert f"TRAIN.compile: not possible {reason}; continuing without it" in log


def test_what_compiles_is_used_under_the_same_keys(
    small_config: Path, tmp_path: Path, monkeypatch
) -> None:
    plain, _, _ = trained(small_config, tmp_path / "plain")
    compiler, calls = torch.compile, []

    class Counted(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.compiled = compiler(network, backend="eager")

        def forward(self, image: Tensor):
            calls.append(image.shape)
            return self.compiled(image)

    monkeypatch.setattr(torch, "compile", Counted)
    weights, network, log = trained(small_config, tmp_path / "compiled", "TRAIN.compile", "True")
    assert_equal(plain, weights)
    assert isinstance(network, Counted)
    assert calls == [(2, 3, 48, 40)] * 3  # once to try, and two steps
    assert "the network is compiled" in log


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    ],
)
def test_too_little_memory_is_explained(small_config: Path, monkeypatch, error: Exception) -> None:
    """Without compilation a step would need as much."""

    def full(network: nn.Module) -> None:
        raise error

    monkeypatch.setattr(torch, "compile", full)
    with pytest.raises(OutOfMemoryError, match="while building the network .*TRAIN.batch_size"):
        build_trainer(load_config(small_config, WORDS), CPU)


def compiled_where_rank_1_fails(error: str) -> str:
    """What `compile_or_eager` gives this process, if the compiler fails in the other one."""

    def compiler(network: nn.Module) -> nn.Module:
        if process_group.rank() == 1:
            raise {"full": torch.OutOfMemoryError, "broken": RuntimeError}[error]("no luck")
        return nn.Sequential(network)

    torch.compile = compiler  # in a process of its own
    network = nn.Conv2d(3, 4, 3)
    try:
        got = compile_or_eager(network, (2, 3, 8, 8), dtype=torch.float32, channels_last=True)
    except torch.OutOfMemoryError:
        return "out of memory"
    return "as it is" if got is network else "compiled"


@pytest.mark.slow
@pytest.mark.parametrize(("error", "outcome"), [("full", "out of memory"), ("broken", "as it is")])
def test_no_process_waits_for_one_that_cannot_compile(error: str, outcome: str) -> None:
    assert run_processes(2, compiled_where_rank_1_fails, error) == [outcome, outcome]


def placed_network() -> tuple[bool, str]:
    """Whether the network is compiled where processes share batch norm, and what the log says."""
    config = load_config(find_config("shapes", "spnet18"), ["TRAIN.compile", "True"])
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append
    logging.getLogger("stripseg").handlers = [handler]
    network = place_network(config, build_network(config), CPU)
    compiled = any("Optimized" in type(module).__name__ for module in network.modules())
    return compiled, " ".join(record.getMessage() for record in records)


@pytest.mark.slow
def test_shared_batch_norm_is_not_compiled() -> None:
    for compiled, said in run_processes(2, placed_network):
        assert not compiled
        assert "TRAIN.norm group or TRAIN.sync_bn False" in said
