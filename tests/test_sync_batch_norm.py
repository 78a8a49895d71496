"""Synchronized batch norm of several processes is plain batch norm on the whole batch."""

import warnings
from pathlib import Path

import batch_norm_kernels  # noqa: F401 (registers them)
import pytest
import torch
from processes import run_processes
from torch import Tensor, nn

from stripseg.config.load import load_config
from stripseg.model.build import build_segmenter
from stripseg.util.distributed import process_group, sync_batch_norm
from stripseg.util.distributed.sync_batch_norm import SyncBatchNorm
from stripseg.util.training.parallelize import place_network

CPU = torch.device("cpu")
SHARES = {2: (3, 1), 3: (1, 4, 2)}  # images of each process: uneven on purpose


class AsOnGPU(SyncBatchNorm):
    """What is done with tensors on a GPU."""

    _by_sums = SyncBatchNorm._by_kernels


KINDS = {"cpu": SyncBatchNorm, "gpu": AsOnGPU}


def images(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.randn(count, 5, 4, 3, generator=generator, dtype=torch.float64) * 3 + 7


def cotangent(count: int) -> Tensor:
    return torch.randn(count, 5, 4, 3, generator=torch.Generator().manual_seed(5)).double()


def fill(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        module.weight.copy_(torch.rand(5, generator=generator) + 0.5)
        module.bias.copy_(torch.randn(5, generator=generator))
    return module.double()


def outcome(module: nn.Module, x: Tensor, gradient: Tensor) -> dict[str, Tensor]:
    x = x.clone().requires_grad_()
    out = module(x)
    out.backward(gradient)
    return {
        "output": out,
        "input gradient": x.grad,
        "weight gradient": module.weight.grad,
        "bias gradient": module.bias.grad,
        "running mean": module.running_mean,
        "running variance": module.running_var,
        "batches": module.num_batches_tracked,
    }


def own_part(shares: tuple[int, ...]) -> slice:
    rank = process_group.rank()
    return slice(sum(shares[:rank]), sum(shares[: rank + 1]))


def one_process(kind: str, shares: tuple[int, ...], momentum: float | None) -> dict[str, Tensor]:
    total, part = sum(shares), own_part(shares)
    module = fill(KINDS[kind](5, momentum=momentum))
    return outcome(module, images(total)[part], cotangent(total)[part])


def assert_is_batch_norm(results: list[dict], whole: dict[str, Tensor], tolerance: float) -> None:
    """The processes' results together are those of the whole batch."""
    joined = {}
    for key in whole:
        parts = [torch.as_tensor(result[key]) for result in results]
        if key in ("output", "input gradient"):
            joined[key] = torch.cat(parts)
        elif key in ("weight gradient", "bias gradient"):
            joined[key] = sum(parts)  # each process has its images' share
        else:
            assert all(torch.equal(part, parts[0]) for part in parts), key
            joined[key] = parts[0]
    for key, expected in whole.items():
        torch.testing.assert_close(
            joined[key],
            expected.detach(),
            rtol=tolerance,
            atol=tolerance,
            msg=lambda text, key=key: f"{key}: {text}",
        )


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_several_processes_equal_plain_batch_norm(kind: str, processes: int, momentum) -> None:
    shares = SHARES[processes]
    total = sum(shares)
    results = run_processes(processes, one_process, kind, shares, momentum)
    plain = fill(nn.BatchNorm2d(5, momentum=momentum))
    assert_is_batch_norm(results, outcome(plain, images(total), cotangent(total)), 1e-10)


def in_half_precision(shares: tuple[int, ...]) -> dict[str, Tensor]:
    """Channels-last maps in bf16, weights in float32, as on a GPU under autocast."""
    total, part = sum(shares), own_part(shares)
    x, gradient = (
        given[part].bfloat16().contiguous(memory_format=torch.channels_last)
        for given in (images(total), cotangent(total))
    )
    # from the layer after it, a gradient may come in another layout
    found = outcome(fill(AsOnGPU(5)).float(), x, gradient.contiguous())
    for key in ("output", "input gradient"):
        assert found[key].dtype == torch.bfloat16
        assert found[key].is_contiguous(memory_format=torch.channels_last)
        found[key] = found[key].float()
    assert found["running mean"].dtype == found["weight gradient"].dtype == torch.float32
    return found


def test_half_precision_keeps_its_type_and_layout_and_has_exact_statistics() -> None:
    """All but the maps themselves is that of float32, given the same inputs."""
    shares = SHARES[2]
    x, gradient = (given(sum(shares)).bfloat16().float() for given in (images, cotangent))
    whole = outcome(fill(nn.BatchNorm2d(5)).float(), x, gradient)
    results = run_processes(2, in_half_precision, shares)
    assert_is_batch_norm(results, whole, 0.02)
    maps = ("output", "input gradient")
    vectors = [{k: v for k, v in found.items() if k not in maps} for found in (*results, whole)]
    assert_is_batch_norm(vectors[:-1], vectors[-1], 2e-5)


def collectives(kind: str) -> list[int]:
    """How many each pass takes, over two layers."""
    calls: list[str] = []

    def counted(name: str):
        real = getattr(torch.distributed, name)

        def call(*given: object, **options: object) -> object:
            calls.append(name)
            return real(*given, **options)

        return call

    for name in ("all_reduce", "all_gather", "all_gather_single", "all_gather_into_tensor"):
        if hasattr(torch.distributed, name):
            setattr(torch.distributed, name, counted(name))
    network = torch.nn.Sequential(KINDS[kind](5).double(), KINDS[kind](5).double())
    out = network(images(2).requires_grad_())
    forward = len(calls)
    out.square().mean().backward()
    return [forward, len(calls) - forward]


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_takes_one_collective_forward_and_one_backward(kind: str) -> None:
    assert run_processes(2, collectives, kind) == [[2, 2], [2, 2]]


def test_one_process_is_plain_batch_norm():
    ours, plain = fill(SyncBatchNorm(5)), fill(nn.BatchNorm2d(5))
    for key, expected in outcome(plain, images(4), cotangent(4)).items():
        actual = outcome(fill(SyncBatchNorm(5)), images(4), cotangent(4))[key]
        assert torch.equal(actual, expected), key
    assert torch.equal(ours.eval()(images(2)), fill(nn.BatchNorm2d(5)).eval()(images(2)))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm2d(4)))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_conversion_keeps_weights_keys_and_mode(device: str) -> None:
    plain = network().eval()
    before = {key: value.clone() for key, value in plain.state_dict().items()}
    converted = sync_batch_norm.convert(plain, device=torch.device(device))
    assert [type(m) for m in converted.modules() if hasattr(m, "running_mean")] == [
        SyncBatchNorm
    ] * 2
    assert not any(module.training for module in converted.modules())
    after = converted.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_apex_that_is_not_there_is_told_once():
    with pytest.warns(UserWarning, match="use_apex: no NVIDIA apex") as caught:
        converted = sync_batch_norm.convert(network(), device=CPU, use_apex=True)
    assert len(caught) == 1
    assert isinstance(converted[1], SyncBatchNorm)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sync_batch_norm.convert(network(), device=CPU, use_apex=False)


def kinds(config: Path) -> list[list[str]]:
    """Of the batch norms with `TRAIN.sync_bn True` and with False."""
    found = []
    for word in ("True", "False"):
        given = load_config(config, ["TRAIN.sync_bn", word])
        placed = place_network(given, build_segmenter(given), CPU)
        kinds = {type(module) for module in placed.modules() if hasattr(module, "running_mean")}
        found.append(sorted(kind.__name__ for kind in kinds))
    return found


def test_the_config_decides_whether_processes_share_it(small_config: Path) -> None:
    assert run_processes(2, kinds, small_config) == [[["SyncBatchNorm"], ["BatchNorm2d"]]] * 2
