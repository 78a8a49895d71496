"""TRAIN.compile is used where it works; where it does not, the log says so and the run goes on."""

import logging
from copy import deepcopy
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import run_processes
from torch import Tensor, nn

from stripseg.config.errors import OutOfMemoryError
from stripseg.config.load import find_config, load_config
from stripseg.model.build import build_network
from stripseg.training_run import build_trainer
from stripseg.util.distributed import process_group
from stripseg.util.training.parallelize import compile_or_eager, one_of_several, place_network

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


def compiled_as_one_of_two() -> tuple[int, int, Tensor, Tensor]:
    """Graphs after the trial and after a step; the gradient of the step, and what it should be."""
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]):
        graphs.append(graph)
        return graph.forward

    torch.compile = partial(torch.compile, backend=backend)
    torch.manual_seed(0)
    # the first gradients that are exchanged are the 3 MB of the two last layers
    network = nn.Sequential(nn.Conv2d(3, 300, 3), nn.Conv2d(300, 300, 3), nn.Conv2d(300, 4, 1))
    plain = deepcopy(network)
    placed = compile_or_eager(
        network,
        (2, 3, 8, 8),
        dtype=torch.float32,
        channels_last=False,
        distribute=partial(one_of_several, device=CPU, synchronized=False),
    )
    at_first = len(graphs)
    images = torch.randn(2, 2, 3, 8, 8)
    placed(images[process_group.rank()]).square().sum().backward()
    for share in images:
        plain(share).square().sum().div(len(images)).backward()
    return at_first, len(graphs), network[0].weight.grad, plain[0].weight.grad


def test_processes_exchange_the_first_gradients_of_a_compiled_network_early() -> None:
    """The compiled graph ends where a bucket of gradients does."""
    for at_first, after_a_step, gradient, expected in run_processes(2, compiled_as_one_of_two):
        assert at_first == after_a_step == 2
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-4)


def where_rank_1_breaks_later() -> tuple[bool, Tensor, Tensor]:
    """One process cannot compile once both are distributed: is the network compiled in any?"""

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]):
        if process_group.rank() == 1:
            raise RuntimeError("no compiler here")
        return graph.forward

    torch.compile = partial(torch.compile, backend=backend)
    torch.manual_seed(process_group.rank())
    network = nn.Conv2d(3, 4, 3)
    distribute = partial(one_of_several, device=CPU, synchronized=False)
    placed = compile_or_eager(
        network, (2, 3, 8, 8), dtype=torch.float32, channels_last=False, distribute=distribute
    )
    assert network.weight.grad is None
    image = torch.full((1, 3, 8, 8), 1.0 + process_group.rank())
    placed(image).sum().backward()
    return placed.module is network, network.weight, network.weight.grad


def test_processes_go_on_together_where_one_cannot_compile() -> None:
    results = run_processes(2, where_rank_1_breaks_later)
    for eager, weight, gradient in results:
        assert eager
        assert (weight == results[0][1]).all()
        np.testing.assert_allclose(gradient, np.full((4, 3, 3, 3), 1.5 * 36))


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
