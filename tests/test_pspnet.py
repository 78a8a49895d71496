"""Pyramid pooling: the paper's figure with PyTorch's own pooling, every option, any size."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from stripseg.config.load import load_config
from stripseg.model.build import build_network
from stripseg.model.pspnet import PSPNetHead, PyramidPoolingModule

CHANNELS = (8, 16, 32, 64)


def features(height: int = 9, width: int = 13) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, c, height, width, generator=generator) for c in CHANNELS]


@pytest.mark.parametrize("reduction", [True, False])
@pytest.mark.parametrize("pooling", ["average", "max"])
@pytest.mark.parametrize("bins", [(1, 2, 3, 6), (1,), (2, 5)])
@pytest.mark.parametrize(("height", "width"), [(9, 13), (3, 4)])
def test_pyramid_pooling_is_the_papers(
    bins, pooling: str, reduction: bool, height: int, width: int
):
    module = PyramidPoolingModule(64, bins, pooling=pooling, reduction=reduction).eval()
    x = features(height, width)[-1]
    pool = {"average": F.adaptive_avg_pool2d, "max": F.adaptive_max_pool2d}[pooling]
    expected = [x]
    for size, reduce in zip(bins, module.reduce, strict=True):
        level = reduce(pool(x, size))
        expected.append(F.interpolate(level, (height, width), mode="bilinear", align_corners=True))
    expected = torch.cat(expected, dim=1)
    assert module.out_channels == expected.shape[1]
    torch.testing.assert_close(module(x), expected)


def test_levels_are_narrowed_to_their_share():
    module = PyramidPoolingModule(64, (1, 2, 3, 6))
    assert module.out_channels == 128
    assert all(reduce[0].weight.shape == (16, 64, 1, 1) for reduce in module.reduce)


def test_another_pooling_is_refused():
    with pytest.raises(ValueError, match="'average' or 'max', not 'sum'"):
        PyramidPoolingModule(64, pooling="sum")


def test_without_the_pyramid_the_head_is_fully_convolutional():
    with_pyramid, without = PSPNetHead(CHANNELS, 5), PSPNetHead(CHANNELS, 5, pyramid_pooling=False)
    assert with_pyramid.conv[0].in_channels == 2 * without.conv[0].in_channels
    assert isinstance(without.pyramid, nn.Identity)
    for head in (with_pyramid, without):
        assert head(features()).shape == (2, 5, 9, 13)


def test_the_config_decides_the_pyramid(small_config: Path) -> None:
    words = ["TRAIN.arch", "psp", "TRAIN.ppm_bins", "[2, 5]"]
    with torch.device("meta"):
        narrowed, whole, highest = (
            build_network(load_config(small_config, [*words, *more])).head.pyramid
            for more in ([], ["TRAIN.ppm_reduction", "False"], ["TRAIN.ppm_pooling", "max"])
        )
    assert narrowed.bins == whole.bins == (2, 5)
    assert (narrowed.out_channels, whole.out_channels) == (128, 192)  # of the 64 that come
    assert highest.pool is F.adaptive_max_pool2d is not narrowed.pool
