"""The backbone: published sizes, strides and dilations as asked, torchvision's numbers."""

import pytest
import torch
import torchvision
from reference import NO_BLOCKS, PAPER_BLOCKS, fcn, fill_at_random, parameter_count, spnet
from torch import Tensor, nn

from stripseg.config.load import find_config, load_config
from stripseg.model.backbone.resnet import (
    DEPTHS,
    BasicBlock,
    BlockChoice,
    Bottleneck,
    ResNet,
    chosen_blocks,
)
from stripseg.model.build import build_network
from stripseg.model.layers import group_norm
from stripseg.model.strip_pooling import StripPoolingModule
from stripseg.model.weights import load_weights

SIZES = [(33, 41), (64, 47), (57, 32)]


def strip_pooling_blocks(network: ResNet) -> list[list[int]]:
    """For each stage the indices of the blocks that carry an SPM."""
    stages = (network.layer1, network.layer2, network.layer3, network.layer4)
    return [
        [i for i, block in enumerate(stage) if isinstance(block.strip_pooling, StripPoolingModule)]
        for stage in stages
    ]


def dilations(stage: nn.Sequential) -> list[int]:
    """Of every block's 3x3 convolution, whose padding must go with it."""
    for block in stage:
        assert block.conv2.dilation == block.conv2.padding
    return [block.conv2.dilation[0] for block in stage]


@pytest.mark.parametrize(
    ("depth", "spm_on", "auxiliary", "millions"),
    [
        (50, False, False, 39.32),
        (50, False, True, 41.72),
        (50, True, False, 45.44),
        (50, True, True, 47.84),
        (101, False, False, 58.31),
        (101, False, True, 60.71),
        (101, True, False, 64.43),
        (101, True, True, 66.83),
    ],
)
def test_spnet_has_the_published_size(depth: int, spm_on: bool, auxiliary: bool, millions: float):
    with torch.device("meta"):
        network = spnet(depth, 150, width=1, spm_on=spm_on, auxiliary=auxiliary)
    assert round(parameter_count(network) / 1e6, 2) == millions


def test_spnet50_has_exactly_the_released_codes_parameters():
    with torch.device("meta"):
        network, without = (spnet(50, 150, width=1, spm_on=on) for on in (True, False))
    assert parameter_count(network) == 47_838_124
    assert parameter_count(network) - parameter_count(without) == 6_117_056  # the six SPMs
    assert sum(isinstance(m, StripPoolingModule) for m in network.modules()) == 6


@pytest.mark.parametrize(("depth", "millions"), [(50, 23.63), (101, 42.62)])
def test_trunk_has_the_published_size(depth: int, millions: float):
    """FACTS counts the trunk of semseg's tables: 128-channel deep stem, no classifier."""
    with torch.device("meta"):
        network = ResNet(depth)
    assert round(parameter_count(network) / 1e6, 2) == millions


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize("stem", ["deep", "classic"])
def test_features_have_the_asked_strides(stem: str, output_stride: int, height: int, width: int):
    with torch.device("meta"):
        network = ResNet(18, stem=stem, output_stride=output_stride)
        features = network(torch.empty(1, 3, height, width))
    assert [f.shape[1] for f in features] == list(network.channels) == [64, 128, 256, 512]
    strides = (4, 8, min(16, output_stride), output_stride)
    for feature, stride in zip(features, strides, strict=True):
        assert feature.shape[-2:] == (-(-height // stride), -(-width // stride))


@pytest.mark.parametrize("depth", DEPTHS)
def test_every_depth_has_its_blocks_and_channels(depth: int):
    with torch.device("meta"):
        network = ResNet(depth)
    stages = (network.layer1, network.layer2, network.layer3, network.layer4)
    assert tuple(len(stage) for stage in stages) == DEPTHS[depth]
    widths = (64, 128, 256, 512) if depth < 50 else (256, 512, 1024, 2048)
    assert network.channels == widths


@pytest.mark.parametrize(
    ("output_stride", "multi_grid", "third", "fourth"),
    [
        (8, (4, 8, 16), [1, 2, 2, 2, 2, 2], [4, 8, 16]),  # SPNet
        (8, None, [1, 2, 2, 2, 2, 2], [2, 4, 4]),
        (8, (1, 2, 4), [1, 2, 2, 2, 2, 2], [1, 2, 4]),
        (16, (4, 8, 16), [1] * 6, [2, 4, 8]),
        (16, None, [1] * 6, [1, 2, 2]),
        (32, None, [1] * 6, [1, 1, 1]),
        (32, (4, 8, 16), [1] * 6, [1, 2, 4]),
    ],
)
def test_dilation_of_every_block(
    output_stride: int, multi_grid: tuple[int, ...] | None, third: list[int], fourth: list[int]
):
    with torch.device("meta"):
        network = ResNet(50, output_stride=output_stride, multi_grid=multi_grid)
    assert dilations(network.layer1) == [1, 1, 1]
    assert dilations(network.layer2) == [1, 1, 1, 1]
    assert dilations(network.layer3) == third
    assert dilations(network.layer4) == fourth


@pytest.mark.parametrize(
    ("experiment", "words", "first"),
    [
        ("spnet50", [], 1),
        ("spnet50", ["TRAIN.dilate_first_block", "True"], 2),
        ("pspnet50", [], 2),  # as semseg
        ("pspnet50", ["TRAIN.dilate_first_block", "False"], 1),
    ],
)
def test_the_config_decides_the_first_blocks_dilation(
    experiment: str, words: list[str], first: int
) -> None:
    config = load_config(find_config("ade20k", experiment), words)
    with torch.device("meta"):
        network = build_network(config).backbone
    assert dilations(network.layer3) == [first, 2, 2, 2, 2, 2]


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize(("height", "width"), SIZES[:2])
def test_dilation_computes_the_same_features_more_densely(depth: int, height: int, width: int):
    """The meaning of output stride: every stride-32 feature is found in the stride-8 map."""
    dense, coarse = (ResNet(depth, output_stride=s, width=0.125).eval() for s in (8, 32))
    fill_at_random(dense)
    coarse.load_state_dict(dense.state_dict())
    image = torch.randn(1, 3, height, width)
    with torch.inference_mode():
        (*_, dense3, dense4), (*_, coarse3, coarse4) = dense(image), coarse(image)
    torch.testing.assert_close(dense3[..., ::2, ::2], coarse3, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(dense4[..., ::4, ::4], coarse4, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (NO_BLOCKS, [[], [], [], []]),
        (PAPER_BLOCKS, [[2], [3], [5], [0, 1, 2]]),
        (("all",) * 4, [[0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4, 5], [0, 1, 2]]),
        (([0], (1, 3), "none", [2, 0]), [[0], [1, 3], [], [0, 2]]),
    ],
)
def test_strip_pooling_sits_where_it_was_asked(
    choice: tuple[BlockChoice, ...], expected: list[list[int]]
):
    with torch.device("meta"):
        network = ResNet(50, strip_pooling=choice)
    assert strip_pooling_blocks(network) == expected


@pytest.mark.parametrize(("depth", "block"), [(18, BasicBlock), (50, Bottleneck)])
def test_strip_pooling_multiplies_inside_both_kinds_of_block(depth: int, block: type):
    """An SPM whose weights are all 1/2 halves what the last convolution sees, nothing else."""
    network = ResNet(depth, strip_pooling=("last", "none", "none", "none")).eval()
    carrier = network.layer1[-1]
    assert isinstance(carrier, block)
    seen: list[Tensor] = []
    last = carrier.conv2 if block is BasicBlock else carrier.conv3
    last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    nn.init.zeros_(carrier.strip_pooling.fuse.weight)
    nn.init.zeros_(carrier.strip_pooling.fuse.bias)
    x = torch.randn(1, network.channels[0], 9, 7)
    carrier(x)
    carrier.strip_pooling = nn.Identity()
    carrier(x)
    assert seen[1].min() == 0  # it follows a ReLU
    torch.testing.assert_close(seen[0], seen[1] / 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 20}, r"depth must be one of \[18, 34, 50, 101, 152\], not 20"),
        ({"output_stride": 4}, "output_stride must be 8, 16 or 32, not 4"),
        ({"stem": "shallow"}, "stem must be 'deep', 'classic' or 'cifar', not 'shallow'"),
        ({"multi_grid": (4, 8)}, "multi_grid needs 3 dilations"),
        ({"strip_pooling": ("first", "last", "last", "all")}, "or indices, not 'first'"),
        ({"strip_pooling": ([3], "none", "none", "none")}, r"blocks 0 to 2; \[3\] do not exist"),
        ({"strip_pooling": ([-1], "none", "none", "none")}, r"\[-1\] do not exist"),
    ],
    ids=["depth", "output_stride", "stem", "multi_grid", "word", "index", "negative"],
)
def test_what_does_not_exist_is_refused(options: dict, message: str):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        ResNet(**options)


def test_block_choices():
    assert chosen_blocks("none", 3) == set()
    assert chosen_blocks("last", 3) == {2}
    assert chosen_blocks("all", 3) == {0, 1, 2}
    assert chosen_blocks([2, 0, 0], 3) == {0, 2}


def test_group_norm_takes_the_place_of_every_batch_norm():
    with torch.device("meta"):
        network = ResNet(18, strip_pooling=PAPER_BLOCKS, norm_layer=group_norm)
    kinds = {type(module) for module in network.modules()}
    assert nn.GroupNorm in kinds
    assert nn.BatchNorm2d not in kinds


@pytest.mark.parametrize("channels", [1, 7, 24, 48, 64, 100, 512])
def test_groups_divide_the_channels(channels: int):
    norm = group_norm(channels)
    assert channels % norm.num_groups == 0
    assert norm.num_groups <= 32


@pytest.mark.parametrize(
    ("depth", "height", "width"), [(18, *SIZES[0]), (50, *SIZES[1]), (18, *SIZES[2])]
)
def test_classic_stem_at_stride_32_is_torchvisions_network(depth: int, height: int, width: int):
    theirs = getattr(torchvision.models, f"resnet{depth}")(weights=None).eval()
    ours = fcn(depth, width=1).eval()
    ours.backbone = ResNet(depth, stem="classic", output_stride=32).eval()
    report = load_weights(ours, theirs.state_dict(), origin="torchvision", exact=False)
    assert report.unused == ["fc.weight", "fc.bias"]
    assert all(key.startswith(("head.", "auxiliary_head.")) for key in report.new)
    image = torch.randn(2, 3, height, width)
    with torch.inference_mode():
        x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(image))))
        for index, feature in enumerate(ours.backbone(image), start=1):
            x = getattr(theirs, f"layer{index}")(x)
            torch.testing.assert_close(feature, x, rtol=0, atol=0)
