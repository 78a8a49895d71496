"""Convolutions with what follows them in one pass: the same output, the same network otherwise."""

import io
from copy import deepcopy

import pytest
import reference
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stripseg.model.backbone.pyconv import PyConvResNet
from stripseg.model.backbone.resnet import ResNet
from stripseg.model.folding import fold_batch_norm
from stripseg.model.onednn import OneDNNConvolution, is_available, use_onednn
from stripseg.model.psanet import PSANetHead
from stripseg.model.pspnet import PSPNetHead
from stripseg.model.segmenter import Segmenter

pytestmark = pytest.mark.skipif(not is_available(), reason="this PyTorch has no oneDNN")


def networks() -> dict[str, nn.Module]:
    small, large = (64, 128, 256, 512), (256, 512, 1024, 2048)
    return {
        "spnet": reference.spnet(50, auxiliary=False),
        "fcn": reference.fcn(),
        "psp": Segmenter(ResNet(18), PSPNetHead(small, 5)),
        "psa": Segmenter(ResNet(18), PSANetHead(small, 5, mask_size=(17, 17))),
        "pyconv": Segmenter(PyConvResNet(50), PSPNetHead(large, 5)),
        "attention": Segmenter(ResNet(18, attention="triplet"), PSPNetHead(small, 5)),
        "classifier": ResNet(34, stem="classic"),
    }


def convolutions(network: nn.Module) -> list[OneDNNConvolution]:
    return [module for module in network.modules() if isinstance(module, OneDNNConvolution)]


def close(ours: Tensor, expected: Tensor, share: float = 1e-4) -> None:
    torch.testing.assert_close(
        ours.float(), expected, rtol=1e-3, atol=share * expected.abs().max().item()
    )


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format], ids=str)
@pytest.mark.parametrize("name", networks())
def test_the_output_stays(name: str, memory_format: torch.memory_format) -> None:
    network = networks()[name].eval()
    reference.fill_at_random(network)
    sample = torch.randn(1, 3, 65, 65)
    network = fold_batch_norm(network, sample).to(memory_format=memory_format)
    fused = use_onednn(network, sample)
    assert len(convolutions(fused)) > 15
    assert not convolutions(network)
    for shape in ((2, 3, 65, 65), (1, 3, 97, 129), (3, 3, 65, 65)):
        image = torch.randn(shape).contiguous(memory_format=memory_format)
        with torch.inference_mode():
            expected, ours = network(image)[0], fused(image)[0]
            with torch.autocast("cpu", torch.bfloat16):
                coarse, ours_coarse = network(image)[0], fused(image)[0]
        close(ours, expected)
        slack = 1.2 * (coarse - expected).abs().max().item() + 0.01 * expected.abs().max().item()
        assert (ours_coarse - expected).abs().max().item() <= slack


def test_what_follows_a_convolution_is_done_with_it() -> None:
    network = Segmenter(ResNet(50), PSPNetHead((256, 512, 1024, 2048), 5)).eval()
    sample = torch.rand(1, 3, 65, 65)
    fused = use_onednn(fold_batch_norm(network, sample), sample)
    steps = [node for node in fused.backbone.graph.nodes if node.op.startswith("call")]
    called = [fused.backbone.get_submodule(n.target) for n in steps if n.op == "call_module"]
    assert len(called) == len(steps)  # no addition is left
    assert [type(module) for module in called if type(module) is not OneDNNConvolution] == [
        nn.MaxPool2d
    ]
    assert sum(module.overwrites for module in convolutions(fused.backbone)) == 16


class Residual(nn.Module):
    """A convolution whose output is added to something that others want as well."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.first, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1)
        self.groups = nn.Conv2d(3, 3, 1, groups=3)
        self.relu, self.dropout = nn.ReLU(inplace=True), nn.Dropout()

    def scaled(self, x: Tensor, by: float | None = None) -> Tensor:
        return x if by is None else x * by

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.first(x)
        match self.way:
            case "returned":
                return F.relu(self.second(y) + y), y
            case "used later":
                z = self.second(y) + y
                return (z * y,)
            case "read by another":
                pooled = y.mean()
                return (self.second(y) + y) * pooled, y.flatten()
            case "a view of it is kept":
                view = y[:, :1]
                return self.second(y) + y, view
            case "input":
                return self.relu(self.second(x) + x), x
            case "broadcast":
                return (self.second(x) + self.first(x.mean((2, 3), keepdim=True)),)
            case "broadcast, other way":
                return (self.second(x.mean((2, 3), keepdim=True)) + y,)
            case "shared":
                return (self.relu(self.second(y)) + self.second(x),)
            case "both before and after ReLU":
                z = self.second(y)
                return F.relu(z) - z, y
            case "twice":
                return (y + y,)
            case "scaled":
                return (torch.add(self.second(y), y, alpha=2),)
            case "changed in place":
                z = self.second(y) + y
                return self.relu(z), z
            case "changed in place between":
                z = self.second(x)
                F.relu_(y)
                return F.relu(y + z), y
            case "a view changes between":
                view = y.view_as(y)
                z = self.second(x)
                y.clamp_(max=0.1)
                return F.relu(view + z), y
            case "groups":
                return F.relu(self.groups(x) + y), F.relu(self.groups(y) + x)
            case "its own precision":
                with torch.autocast("cpu", enabled=False):
                    return F.relu(self.second(x.float())), y
            case "keywords":
                return self.relu(input=self.second(y)), self.dropout(input=y)
            case "a default":
                return self.scaled(self.second(y)), y
            case "no image":
                return y, F.relu(self.second(y[:0]) + y[:0])
            case "sizes":
                return (self.second(y) if x.shape[2] > 20 else y,)
            case _:
                raise ValueError(self.way)


WAYS = [
    "returned",
    "used later",
    "read by another",
    "a view of it is kept",
    "input",
    "broadcast",
    "broadcast, other way",
    "shared",
    "both before and after ReLU",
    "twice",
    "scaled",
    "changed in place",
    "changed in place between",
    "a view changes between",
    "groups",
    "its own precision",
    "keywords",
    "a default",
    "no image",
    "sizes",
]


class Whole(nn.Module):
    """The part of a network that is traced, and what makes it a network."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.part(x)


@pytest.mark.parametrize("way", WAYS)
def test_maps_that_others_want_are_left_alone(way: str) -> None:
    network = Whole(Residual(way)).eval()
    image = torch.randn(2, 3, 24, 20).contiguous(memory_format=torch.channels_last)
    kept = image.clone()
    fused = use_onednn(network, torch.randn(1, 3, 16, 16))
    assert convolutions(fused)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.05)):
        low = dtype == torch.bfloat16
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=low):
            for ours, expected in zip(fused(image), network(image), strict=True):
                torch.testing.assert_close(ours, expected, rtol=tolerance, atol=tolerance)
    assert torch.equal(image, kept)


class LooksAtTypes(nn.Module):
    """Does something else while it is traced."""

    def __init__(self, otherwise: str) -> None:
        super().__init__()
        self.convolution, self.otherwise = nn.Conv2d(3, 3, 1), otherwise

    def forward(self, x: Tensor) -> Tensor:
        out = self.convolution(x)
        if isinstance(x, Tensor):
            return out
        match self.otherwise:
            case "value":
                return out + 1
            case "shape":
                return out[:, :2]
            case "type":
                return out.double()
            case "error":
                return out[7]
            case _:
                raise ValueError(self.otherwise)


@pytest.mark.parametrize("otherwise", ["value", "shape", "type", "error"])
def test_a_network_that_the_trace_gets_wrong_stays_as_it_is(otherwise: str) -> None:
    network = Whole(LooksAtTypes(otherwise)).eval()
    assert use_onednn(network, torch.randn(2, 3, 8, 8)) is network


def test_convolutions_that_hooks_change_are_left_alone() -> None:
    network = nn.Sequential(nn.utils.spectral_norm(nn.Conv2d(3, 3, 3)), nn.Conv2d(3, 3, 1)).eval()
    fused = use_onednn(network, torch.randn(1, 3, 8, 8))
    assert len(convolutions(fused)) == 1


def test_a_fused_network_can_be_copied_and_saved() -> None:
    network = Whole(Residual("returned")).eval()
    image = torch.randn(1, 3, 16, 16)
    fused = use_onednn(network, image)
    with torch.inference_mode():
        expected = fused(image)[0]
        torch.testing.assert_close(deepcopy(fused)(image)[0], expected)
    torch.save(fused, io.BytesIO())
    assert fused.state_dict().keys() <= network.state_dict().keys()


def test_functions_that_are_gone_leave_the_network_as_it_is(monkeypatch) -> None:
    def gone(*_: object) -> None:
        raise RuntimeError("expected 11 arguments")

    monkeypatch.setattr(torch._C._nn, "mkldnn_reorder_conv2d_weight", gone)
    network = Whole(Residual("returned")).eval()
    assert use_onednn(network, torch.randn(1, 3, 8, 8)) is network


def test_gradients_and_changed_weights_are_seen() -> None:
    network = Whole(Residual("returned")).eval()
    image = torch.randn(1, 3, 16, 16)
    fused = use_onednn(network, image)
    with torch.inference_mode():
        fused(image)
    fused(image)[0].sum().backward()
    assert all(convolution.weight.grad is not None for convolution in convolutions(fused))
    with torch.no_grad():
        for name, parameter in fused.named_parameters():
            parameter.copy_(network.get_parameter(name).mul_(2))
        torch.testing.assert_close(fused(image)[0], network(image)[0], rtol=1e-4, atol=1e-5)
