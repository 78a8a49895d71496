"""torch.compile is used where it works; where it does not, the log says so and the run goes on."""

import logging
from copy import deepcopy
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from processes import run_processes
from torch import Tensor, nn

from stripseg.config.errors import OutOfMemoryError
from stripseg.config.load import find_config, load_config
from stripseg.config.schema import Config
from stripseg.engine import compile_engine
from stripseg.model.build import build_network
from stripseg.training_run import build_trainer
from stripseg.util.distributed import process_group
from stripseg.util.inference.score_map import fusible_window_scores, window_scores
from stripseg.util.inference.sliding_window import InferenceSettings, SlidingWindow
from stripseg.util.training import parallelize
from stripseg.util.training.parallelize import (
    compile_or_eager,
    is_worth_compiling,
    one_of_several,
    place_network,
)

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
    ("device", "steps", "words", "compiles"),
    [
        ("cuda", 5000, [], True),
        ("cuda", 4999, [], False),
        ("cpu", 5000, [], False),
        ("cuda", 5000, ["TRAIN.activation_checkpointing", "True"], False),
        ("cuda", 5000, ["TRAIN.deterministic", "True"], False),
    ],
)
def test_long_runs_on_gpus_are_worth_compiling(
    small_config: Path, device: str, steps: int, words: list[str], compiles: bool
) -> None:
    config = load_config(small_config, words)
    assert config.TRAIN.compile == "auto"
    assert is_worth_compiling(config, torch.device(device), steps) is compiles


def test_auto_tells_the_steps_of_the_run(small_config: Path, tmp_path: Path, monkeypatch) -> None:
    asked = []

    def worth(config: Config, device: torch.device, steps: int) -> bool:
        asked.append(steps)
        return True

    monkeypatch.setattr(parallelize, "is_worth_compiling", worth)
    monkeypatch.setattr(torch, "compile", nn.Sequential)
    config = load_config(small_config, ["TRAIN.save_path", str(tmp_path), *WORDS[2:]])
    trainer = build_trainer(config, CPU)
    assert trainer.network is not trainer.segmenter
    assert asked == [trainer.total_steps]


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


# ---- testing


def engine_of(*, align_corners: bool = True, **options) -> SlidingWindow:
    torch.manual_seed(0)
    network = nn.Conv2d(3, 5, 3, stride=8, padding=1)
    network.align_corners = align_corners
    return SlidingWindow(network.eval(), InferenceSettings(5, window=(33, 41), **options))


def photo(*size: int) -> np.ndarray:
    return np.random.default_rng(size).integers(0, 256, (*size, 3), np.uint8)


@pytest.mark.parametrize("network", [False, True])
@pytest.mark.parametrize("flip", [False, True])
def test_a_compiled_engine_scores_as_before(monkeypatch, network: bool, flip: bool) -> None:
    """Images of new sizes ask for no other kernel of the scores."""
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    # without flips logits lie between pixels
    plain, compiled = (engine_of(flip=flip, align_corners=flip) for _ in range(2))
    compiled.compile(network=network)
    for size in ((40, 90), (70, 50)):
        expected = plain.probabilities(photo(*size))
        found = compiled.probabilities(photo(*size))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    softmaxes = [str(graph.code).count("softmax") for graph in graphs]
    assert [count for count in softmaxes if count] == [1 + flip]
    assert (len(graphs) > 1) == network


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RuntimeError("no Triton\nand more"), "TEST.compile: not possible (no Triton)"),
        (torch.OutOfMemoryError("CUDA out of memory"), "1 windows in a forward pass"),
    ],
)
def test_an_engine_that_cannot_compile_says_so_once(monkeypatch, error, told: str) -> None:
    """And what it allocates in vain means smaller portions, as everywhere."""
    failures = [error]

    def compiler(work):
        def compiled(*given, **options):
            if failures:
                raise failures.pop()
            return work(*given, **options)

        return compiled

    said: list[str] = []
    monkeypatch.setattr(torch, "compile", compiler)
    engine = engine_of(batch_size=4)
    engine.warn = said.append
    engine.compile()
    scores = [engine.probabilities(photo(40, 90)) for _ in range(2)]
    assert torch.allclose(scores[0], engine_of().probabilities(photo(40, 90)), atol=1e-6)
    (message,) = said
    assert told in message


def test_an_engine_goes_on_where_there_is_no_compiler_at_all(monkeypatch) -> None:
    def compiler(work):
        raise RuntimeError("torch.compile is not supported on Python 3.99")

    said: list[str] = []
    monkeypatch.setattr(torch, "compile", compiler)
    engine = engine_of()
    engine.warn = said.append
    engine.compile(network=True)
    for _ in range(2):
        assert torch.equal(engine.predict(photo(40, 90)), engine_of().predict(photo(40, 90)))
    assert len(said) == 2
    assert all("not supported on Python 3.99" in line for line in said)


@pytest.mark.parametrize(
    ("device", "images", "words", "expected"),
    [
        ("cuda", 500, [], [{"network": False}]),
        ("cuda", 499, [], []),
        ("cpu", 500, [], []),
        ("cuda", 500, ["TRAIN.deterministic", "True"], []),
        ("cuda", 500, ["TEST.compile", "False"], []),
        ("cpu", 1, ["TEST.compile", "True"], [{"network": True}]),
    ],
)
def test_which_tests_compile(
    small_config: Path, device: str, images: int, words: list[str], expected: list[dict]
) -> None:
    asked = []
    engine = SimpleNamespace(
        device=torch.device(device), compile=lambda **options: asked.append(options)
    )
    compile_engine(load_config(small_config, words), engine, images)
    assert asked == expected


@pytest.mark.long
def test_the_kernel_of_the_scores_gives_what_the_operations_give() -> None:
    """By the real compiler."""
    logits = torch.randn(2, 19, 9, 9).contiguous(memory_format=torch.channels_last)
    found = torch.compile(fusible_window_scores)(logits, (65, 65))
    torch.testing.assert_close(found, window_scores(logits, (65, 65)), rtol=0, atol=1e-6)
