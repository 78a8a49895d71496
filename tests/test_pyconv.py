"""Pyramidal convolution and its networks: sizes, strides, dilation; published parameter counts."""

import pytest
import torch

from stripseg.model.backbone.pyconv import PyConvResNet, PyramidalConvolution
from stripseg.model.classifier import ImageClassifier
from stripseg.model.pyconvsegnet import PyConvSegNetHead


def test_levels_are_concatenated_in_order():
    module = PyramidalConvolution(16, 64, (1, 4, 8, 16))
    x = torch.randn(2, 16, 9, 11)
    assert [level.kernel_size[0] for level in module.levels] == [3, 5, 7, 9]
    assert [level.groups for level in module.levels] == [1, 4, 8, 16]
    assert torch.equal(module(x)[:, 32:48], module.levels[2](x))


def test_groups_divide_the_channels():
    module = PyramidalConvolution(20, 80, (1, 4, 8, 16))
    assert [level.groups for level in module.levels] == [1, 4, 4, 4]


@pytest.mark.parametrize(("levels", "widths"), [(4, [8] * 4), (3, [8, 8, 16]), (2, [16, 16])])
def test_levels_share_the_channels(levels: int, widths: list[int]):
    module = PyramidalConvolution(8, 32, (1, 2, 4, 8)[:levels])
    assert [level.out_channels for level in module.levels] == widths


@pytest.mark.parametrize(
    ("depth", "high_groups", "millions"),  # the paper's Table 3; 18 as the authors' code has it
    [
        (50, False, 24.85),
        (101, False, 42.31),
        (152, False, 56.64),
        (18, False, 5.91),
        (50, True, 25.23),
    ],
)
def test_parameters_are_the_papers(depth: int, high_groups: bool, millions: float):
    with torch.device("meta"):
        backbone = PyConvResNet(depth, high_groups=high_groups, output_stride=32)
        network = ImageClassifier(backbone, 1000)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.006)


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_output_stride_decides_the_sizes(depth: int, output_stride: int):
    backbone = PyConvResNet(depth, output_stride=output_stride).eval()
    with torch.inference_mode():
        sizes = [feature.shape[-1] for feature in backbone(torch.randn(1, 3, 65, 65))]
    last = {8: [9, 9], 16: [5, 5], 32: [5, 3]}[output_stride]
    assert sizes == [17, 9, *last]


def test_dilation_widens_every_level():
    backbone = PyConvResNet(50, output_stride=8)
    levels = backbone.layer3[0].conv2.levels
    assert [(level.dilation[0], level.padding[0]) for level in levels] == [(2, 2), (2, 4)]
    assert backbone.layer4[0].conv2.dilation == (4, 4)


def test_high_groups_need_a_bottleneck():
    with pytest.raises(ValueError, match="50, 101 and 152, not 18"):
        PyConvResNet(18, high_groups=True)


@pytest.mark.parametrize(("height", "width"), [(11, 14), (4, 5)])
def test_the_head_keeps_the_size(height: int, width: int):
    channels = (16, 32, 64, 128)
    head = PyConvSegNetHead(channels, 7)
    features = [torch.randn(2, c, height, width) for c in channels]
    assert head(features).shape == (2, 7, height, width)
