"""One step: a verdict that all processes share, a fixed loss scale, few operations, no traces."""

from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run_processes
from reference import spnet
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from stripseg.config.load import load_config
from stripseg.training_run import build_trainer
from stripseg.util.checkpoint import read_checkpoint
from stripseg.util.distributed import process_group
from stripseg.util.training.losses import SegmentationLoss
from stripseg.util.training.prefetch import PreparedBatch
from stripseg.util.training.step import RunningStatistics, TrainingStep

CPU = torch.device("cpu")


class Tiny(nn.Module):
    """(N, 3, H, W) -> logits of 4 classes; batch norm with running statistics, or another norm."""

    def __init__(self, norm: nn.Module | None = None) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.layer = nn.Conv2d(3, 4, 1)
        self.norm = norm or nn.BatchNorm2d(4)
        with torch.no_grad():
            self.layer.weight.normal_(generator=generator)
            self.layer.bias.zero_()

    def forward(self, image: Tensor) -> tuple[Tensor, None]:
        return self.norm(self.layer(image)), None


def batch(step: int = 0) -> PreparedBatch:
    generator = torch.Generator().manual_seed(10 * step + process_group.rank())
    image = torch.randn(2, 3, 8, 8, generator=generator)
    label = torch.randint(4, (2, 8, 8), generator=generator)
    return PreparedBatch(step, image, label, None, 1.0, ["a", "b"], [])


def training_step(network: nn.Module, loss, **options) -> TrainingStep:
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, fused=True)
    return TrainingStep(network, optimizer=optimizer, loss=loss, **options)


class SpoiltLoss(SegmentationLoss):
    """Infinite, with finite gradients, in process 1 at the second step."""

    calls = 0

    def __call__(self, *inputs, **context) -> tuple[Tensor, Tensor, Tensor]:
        total, main, second = super().__call__(*inputs, **context)
        self.calls += 1
        if self.calls == 2 and process_group.rank() == 1:
            total = total + float("inf")
        return total, main, second


FP16 = {"dtype": torch.float16, "loss_scale": 128.0}


def three_steps(options: dict[str, Any]) -> list[tuple[float, dict[str, Tensor]]]:
    """(skipped, weights after it) of each step."""
    torch.manual_seed(0)
    network = Tiny()
    step = training_step(DistributedDataParallel(network), SpoiltLoss(), **options)
    results = []
    for index in range(3):
        skipped = step(batch(index)).skipped.item()
        results.append((skipped, {k: v.clone() for k, v in network.state_dict().items()}))
    return results


@pytest.mark.parametrize("options", [{}, FP16, {**FP16, "clip_grad_norm": 1.0}])
def test_one_bad_loss_skips_the_step_of_every_process(options: dict[str, Any]) -> None:
    first, second = run_processes(2, three_steps, options)
    assert [skipped for skipped, _ in first] == [skipped for skipped, _ in second] == [0, 1, 0]
    for (_, one), (_, other) in zip(first, second, strict=True):
        for key in ("layer.weight", "norm.weight", "norm.bias"):
            assert (one[key] == other[key]).all(), key
    for results in (first, second):
        (_, before), (_, skipped), (_, after) = results
        for key in ("layer.weight", "norm.running_mean", "norm.running_var"):
            assert (before[key] == skipped[key]).all(), key
            assert (skipped[key] != after[key]).any(), key


class Overflow(SegmentationLoss):
    """Every gradient is infinite."""

    def __call__(self, *inputs, **context) -> tuple[Tensor, Tensor, Tensor]:
        total, main, second = super().__call__(*inputs, **context)
        total.register_hook(lambda gradient: gradient * float("inf"))
        return total, main, second


@pytest.mark.parametrize(("scale", "expected"), [(1024.0, 1024.0), (None, 2.0**13)])
def test_a_fixed_loss_scale_stays(scale: float | None, expected: float) -> None:
    """Without one the scaler halves its own at each overflow."""
    network = Tiny()
    before = network.layer.weight.detach().clone()
    step = training_step(network, Overflow(), dtype=torch.float16, loss_scale=scale)
    for index in range(3):
        step(batch(index))
    assert step.scaler.get_scale() == expected
    assert torch.equal(network.layer.weight, before)


class Operations(TorchDispatchMode):
    """Counts what is sent to the device."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


def test_watching_for_bad_numbers_takes_a_handful_of_operations() -> None:
    """Of a network with 142 buffers and 200 parameters."""
    network = spnet(50, 5)
    step = training_step(network, SegmentationLoss())
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    loss = torch.tensor(1.0)
    with Operations() as operations:
        step.statistics.remember()
        skipped = step._not_finite(loss, step._gradient_norm())
        step.statistics.restore(skipped)
    assert operations.count <= 20
    assert sum(b.is_floating_point() for b in network.buffers()) > 100


def test_statistics_come_back_whatever_their_shape_and_type() -> None:
    network = nn.Module()
    tensors = {"a": torch.rand(3), "b": torch.rand(2, 4), "c": torch.rand(()).double()}
    for name, tensor in tensors.items():
        network.register_buffer(name, tensor.clone())
    network.register_buffer("count", torch.tensor(0))
    statistics = RunningStatistics(network)
    statistics.remember()
    for skipped in (0.0, 1.0):
        for name in tensors:
            network.get_buffer(name).fill_(float("nan"))
        network.count += 1
        statistics.restore(torch.tensor(skipped))
        for name, tensor in tensors.items():
            now = network.get_buffer(name)
            assert torch.equal(now, tensor) if skipped else now.isnan().all(), name
    assert network.count == 2


def test_the_callers_random_numbers_go_on_as_if_nothing_was_trained(small_config: Path) -> None:
    torch.manual_seed(3)
    torch.rand(1)
    expected = torch.rand(4)
    torch.manual_seed(3)
    torch.rand(1)
    build_trainer(load_config(small_config, ["TRAIN.batch_size", "auto"]), CPU).fit(until=2)
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("largest", [0.05, 1e6])
def test_a_long_gradient_is_shortened(dtype: torch.dtype, largest: float) -> None:
    """The step of plain SGD is the gradient, of the norm before or of the largest allowed."""
    network = Tiny()
    before = [p.detach().clone() for p in network.parameters()]
    step = training_step(network, SegmentationLoss(), dtype=dtype, clip_grad_norm=largest)
    norm = step(batch()).gradient_norm
    moved = [(b - p.detach()) / 0.1 for b, p in zip(before, network.parameters(), strict=True)]
    length = torch.cat([m.flatten() for m in moved]).norm()
    assert 0.05 < norm < 10
    assert length.item() == pytest.approx(min(norm.item(), largest), rel=1e-3)
    plain = Tiny()
    training_step(plain, SegmentationLoss(), dtype=dtype)(batch())
    for m, b, p in zip(moved, before, plain.parameters(), strict=True):
        expected = (b - p.detach()) / 0.1 * (length / norm)
        torch.testing.assert_close(m, expected, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_gradient_that_is_not_finite_is_skipped_not_shortened(dtype: torch.dtype) -> None:
    network = Tiny()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    step = training_step(network, Overflow(), dtype=dtype, clip_grad_norm=1.0)
    figures = step(batch())
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter, before[name]), name
    # fp16's scaler halves its factor, which is no mishap
    assert figures.skipped == (dtype == torch.float32)
    assert step.scaler.is_enabled() == (dtype == torch.float16)


@pytest.mark.parametrize("options", [{}, FP16])
def test_the_gradient_of_all_parts_is_shortened(options: dict[str, Any]) -> None:
    """Group norm sees single images: two parts give what the whole batch gives."""
    weights = []
    for parts in (1, 2):
        network = Tiny(nn.GroupNorm(2, 4))
        step = training_step(
            network, SegmentationLoss(), accumulation_steps=parts, clip_grad_norm=0.05, **options
        )
        norm = step(batch()).gradient_norm
        weights.append((norm, *network.parameters()))
    for whole, divided in zip(*weights, strict=True):
        torch.testing.assert_close(divided, whole, rtol=2e-3, atol=1e-5)
    assert weights[0][0] > 0.06


def clipped_steps() -> dict[str, Tensor]:
    network = Tiny()
    options = {"clip_grad_norm": 0.05}
    step = training_step(DistributedDataParallel(network), SegmentationLoss(), **options)
    for index in range(2):
        step(batch(index))
    return dict(network.named_parameters())


def test_processes_shorten_alike() -> None:
    first, second = run_processes(2, clipped_steps)
    for key in first:
        assert (first[key] == second[key]).all(), key


def test_a_run_of_another_precision_is_resumed_in_fp16(small_config: Path) -> None:
    """It saved no state of a gradient scaler, which begins with its own."""
    config = load_config(small_config, ["TRAIN.precision", "bf16"])
    saved = build_trainer(config, CPU)
    saved.fit(until=1)
    content = read_checkpoint(saved.checkpoints.last)
    assert content["scaler"] == {}
    trainer = build_trainer(config, CPU)
    trainer.train_step = TrainingStep(
        trainer.network, optimizer=trainer.optimizer, loss=SegmentationLoss(), dtype=torch.float16
    )
    trainer.load_state_dict(content, origin="last.pth")
    assert trainer.step == 1
    assert trainer.train_step.scaler.get_scale() == 2.0**16
