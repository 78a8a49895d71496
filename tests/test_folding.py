"""Batch norm folded into convolutions: the same output, fewer layers."""

from pathlib import Path

import pytest
import reference
import torch
from torch import Tensor, nn

from stripseg.config.load import load_config
from stripseg.engine import load_network
from stripseg.model.backbone.pyconv import PyConvResNet
from stripseg.model.backbone.resnet import ResNet
from stripseg.model.build import build_network
from stripseg.model.folding import fold_batch_norm
from stripseg.model.pspnet import PSPNetHead
from stripseg.model.segmenter import Segmenter


def count(network: nn.Module, kind: type) -> int:
    return sum(isinstance(module, kind) for module in network.modules())


def pspnet(backbone: ResNet) -> Segmenter:
    return Segmenter(backbone, PSPNetHead(backbone.channels, 5))


NETWORKS = {
    "spnet": lambda: reference.spnet(50, auxiliary=False),
    "fcn": reference.fcn,
    "psp": lambda: pspnet(ResNet(18, width=0.125)),
    "pyconv": lambda: pspnet(PyConvResNet(50, width=0.125)),
    "classifier": lambda: ResNet(34, stem="classic", width=0.125),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_output_stays_and_the_norms_go(name: str) -> None:
    network = NETWORKS[name]().eval()
    reference.fill_at_random(network)
    image = torch.randn(2, 3, 65, 65)
    folded = fold_batch_norm(network, image[:1])
    with torch.no_grad():
        before, after = network(image)[0], folded(image)[0]
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-4 * before.abs().max().item())
    if name != "pyconv":  # there norms follow concatenations
        unused = count(network.auxiliary_head, nn.BatchNorm2d) if name == "fcn" else 0
        assert count(folded, nn.BatchNorm2d) == unused
    assert count(folded, nn.BatchNorm2d) < count(network, nn.BatchNorm2d)
    assert count(network, nn.Identity) < count(folded, nn.Identity)


class PreActivation(nn.Module):
    """The convolution's output is normalised and also kept as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        out = self.convolution(x)
        return out + self.norm(out)


def test_an_output_that_is_used_twice_is_not_folded() -> None:
    network = PreActivation().eval()
    reference.fill_at_random(network)
    image = torch.randn(1, 3, 9, 9)
    folded = fold_batch_norm(network, image)
    assert count(folded, nn.BatchNorm2d) == 1
    assert torch.equal(folded(image), network(image))


def test_a_convolution_that_runs_twice_is_left_alone() -> None:
    convolution = nn.Conv2d(3, 3, 1)
    network = nn.Sequential(convolution, nn.BatchNorm2d(3), convolution, nn.BatchNorm2d(3)).eval()
    reference.fill_at_random(network)
    image = torch.randn(1, 3, 9, 9)
    assert count(fold_batch_norm(network, image), nn.BatchNorm2d) == 2


def test_testing_does_not_fold(small_config: Path, tmp_path: Path) -> None:
    """The network that is tested gives validation's logits to the bit."""
    config = load_config(small_config, ["TEST.model_path", str(tmp_path / "last.pth")])
    network = build_network(config)
    reference.fill_at_random(network)
    torch.save({"state_dict": network.state_dict()}, config.TEST.model_path)
    loaded, image = load_network(config, torch.device("cpu")), torch.randn(1, 3, 65, 65)
    layout = torch.channels_last if config.TEST.channels_last else torch.contiguous_format
    network.eval().to(memory_format=layout)
    with torch.no_grad():
        assert torch.equal(loaded(image).logits, network(image).logits)
