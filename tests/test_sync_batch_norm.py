"""Synchronized batch norm on CPU processes is plain batch norm on the whole batch."""

import warnings

import pytest
import torch
from processes import run_processes
from torch import Tensor, nn

from stripseg.util.distributed import process_group, sync_batch_norm
from stripseg.util.distributed.sync_batch_norm import SyncBatchNorm

CPU = torch.device("cpu")
SHARES = {2: (3, 1), 3: (1, 4, 2)}  # images of each process: uneven on purpose


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


def one_process(shares: tuple[int, ...], momentum: float | None) -> dict[str, Tensor]:
    rank, total = process_group.rank(), sum(shares)
    start = sum(shares[:rank])
    part = slice(start, start + shares[rank])
    module = fill(SyncBatchNorm(5, momentum=momentum))
    return outcome(module, images(total)[part], cotangent(total)[part])


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_equal_plain_batch_norm(processes: int, momentum: float | None):
    shares = SHARES[processes]
    total = sum(shares)
    results = run_processes(processes, one_process, shares, momentum)
    plain = fill(nn.BatchNorm2d(5, momentum=momentum))
    whole = outcome(plain, images(total), cotangent(total))
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
            rtol=1e-10,
            atol=1e-10,
            msg=lambda text, key=key: f"{key}: {text}",
        )


def collectives() -> list[int]:
    """How many each pass takes, over two layers."""
    calls: list[int] = []
    reduce = torch.distributed.all_reduce

    def counted(tensor: Tensor, *rest: object, **options: object) -> object:
        calls.append(tensor.numel())
        return reduce(tensor, *rest, **options)

    torch.distributed.all_reduce = counted
    network = torch.nn.Sequential(SyncBatchNorm(5).double(), SyncBatchNorm(5).double())
    out = network(images(2).requires_grad_())
    forward = len(calls)
    out.square().mean().backward()
    return [forward, len(calls) - forward]


@pytest.mark.slow
def test_a_layer_takes_one_collective_forward_and_one_backward() -> None:
    assert run_processes(2, collectives) == [[2, 2], [2, 2]]


def test_one_process_is_plain_batch_norm():
    ours, plain = fill(SyncBatchNorm(5)), fill(nn.BatchNorm2d(5))
    for key, expected in outcome(plain, images(4), cotangent(4)).items():
        actual = outcome(fill(SyncBatchNorm(5)), images(4), cotangent(4))[key]
        assert torch.equal(actual, expected), key
    assert torch.equal(ours.eval()(images(2)), fill(nn.BatchNorm2d(5)).eval()(images(2)))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm2d(4)))


def test_conversion_keeps_weights_keys_and_mode():
    plain = network().eval()
    before = {key: value.clone() for key, value in plain.state_dict().items()}
    converted = sync_batch_norm.convert(plain, device=CPU)
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
