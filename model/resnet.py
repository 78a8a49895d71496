"""Residual networks as segmentation backbones: dilated, with strip pooling where asked.

He et al., "Deep Residual Learning", CVPR 2016. Dilation and multi-grid as in DeepLabv3; the
strip pooling modules sit where SPNet (CVPR 2020, Sec. 3.1) puts them.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from .layers import NormLayer
from .strip_pooling import StripPoolingModule

DEPTHS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}

BlockChoice = str | Sequence[int]
"""Which blocks of a stage: "none", "last", "all", or their indices counted from 0."""


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut; the SPM, if any, stands before the second.

    The second may have a dilation of its own, as where a stage gives up its stride: the first
    still reads the undivided map of the stage before.
    """

    expansion = 1

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        stride: int = 1,
        dilations: tuple[int, int] = (1, 1),
        strip_pooling: bool = False,
        norm_layer: NormLayer = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        first, second = dilations
        self.conv1 = nn.Conv2d(
            in_channels, channels, 3, stride, padding=first, dilation=first, bias=False
        )
        self.bn1 = norm_layer(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=second, dilation=second, bias=False)
        self.bn2 = norm_layer(channels)
        self.relu = nn.ReLU(inplace=True)
        self.strip_pooling = (
            StripPoolingModule(channels, norm_layer=norm_layer) if strip_pooling else nn.Identity()
        )
        self.downsample = shortcut(in_channels, channels, stride, norm_layer)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.strip_pooling(out)
        out = self.bn2(self.conv2(out))
        return self.relu(out + self.downsample(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 (stride and dilation here), 1x1 beside a shortcut; the SPM follows the 3x3."""

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        stride: int = 1,
        dilations: tuple[int, int] = (1, 1),
        strip_pooling: bool = False,
        norm_layer: NormLayer = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        dilation, _ = dilations  # there is one 3x3
        out_channels = channels * self.expansion
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = norm_layer(channels)
        self.conv2 = nn.Conv2d(
            channels, channels, 3, stride, padding=dilation, dilation=dilation, bias=False
        )
        self.bn2 = norm_layer(channels)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = norm_layer(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.strip_pooling = (
            StripPoolingModule(channels, norm_layer=norm_layer) if strip_pooling else nn.Identity()
        )
        self.downsample = shortcut(in_channels, out_channels, stride, norm_layer)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.strip_pooling(out)
        out = self.bn3(self.conv3(out))
        return self.relu(out + self.downsample(x))


def shortcut(in_channels: int, out_channels: int, stride: int, norm_layer: NormLayer) -> nn.Module:
    """Identity, or a 1x1 projection where size or channels change."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    projection = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
    return nn.Sequential(projection, norm_layer(out_channels))


def deep_stem(channels: Sequence[int], norm_layer: NormLayer) -> nn.Sequential:
    """Three 3x3 convolutions, the first of stride 2, then max-pool: output stride 4."""
    first, second, third = channels
    return nn.Sequential(
        nn.Conv2d(3, first, 3, stride=2, padding=1, bias=False),
        norm_layer(first),
        nn.ReLU(inplace=True),
        nn.Conv2d(first, second, 3, padding=1, bias=False),
        norm_layer(second),
        nn.ReLU(inplace=True),
        nn.Conv2d(second, third, 3, padding=1, bias=False),
        norm_layer(third),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2, padding=1),
    )


def classic_stem(channels: int, norm_layer: NormLayer) -> nn.Sequential:
    """One 7x7 convolution of stride 2, then max-pool: output stride 4."""
    return nn.Sequential(
        nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False),
        norm_layer(channels),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2, padding=1),
    )


class ResNet(nn.Module):
    """(N, 3, H, W) -> the four stage features, at strides 4, 8 and `output_stride`.

    Args:
        depth: 18, 34, 50, 101 or 152.
        stem: "deep" (64, 64, 128 channels) or "classic" (one 7x7 of 64).
        output_stride: 8, 16 or 32; strides that are taken away become dilation.
        multi_grid: dilations of the last stage's blocks at output stride 8 (4, 8, 16 in SPNet),
            scaled with it at 16 and 32; None leaves the stage at one dilation.
        strip_pooling: for each stage the blocks that carry a strip pooling module.
    Raises:
        ValueError: a depth, stem, output stride or choice of blocks that does not exist.
    """

    def __init__(
        self,
        depth: int = 50,
        *,
        stem: str = "deep",
        output_stride: int = 8,
        multi_grid: Sequence[int] | None = None,
        strip_pooling: Sequence[BlockChoice] = ("none", "none", "none", "none"),
        norm_layer: NormLayer = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        if depth not in DEPTHS:
            raise ValueError(f"depth must be one of {sorted(DEPTHS)}, not {depth}")
        if output_stride not in (8, 16, 32):
            raise ValueError(f"output_stride must be 8, 16 or 32, not {output_stride}")
        if stem not in ("deep", "classic"):
            raise ValueError(f"stem must be 'deep' or 'classic', not {stem!r}")
        self.block = BasicBlock if depth < 50 else Bottleneck
        self.norm_layer = norm_layer
        self.stem = (
            deep_stem((64, 64, 128), norm_layer) if stem == "deep" else classic_stem(64, norm_layer)
        )
        self.output_stride = output_stride
        self._in_channels = 128 if stem == "deep" else 64
        dilations = stage_dilations(DEPTHS[depth], output_stride, multi_grid)
        stages = []
        for index, (channels, stride) in enumerate(
            zip((64, 128, 256, 512), stage_strides(output_stride), strict=True)
        ):
            carriers = chosen_blocks(strip_pooling[index], DEPTHS[depth][index])
            stages.append(self._stage(channels, stride, dilations[index], carriers))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.channels = tuple(c * self.block.expansion for c in (64, 128, 256, 512))
        initialise(self)

    def _stage(
        self, channels: int, stride: int, dilations: Sequence[tuple[int, int]], carriers: set[int]
    ) -> nn.Sequential:
        blocks = []
        for index, block_dilations in enumerate(dilations):
            block = self.block(
                self._in_channels,
                channels,
                stride=stride if index == 0 else 1,
                dilations=block_dilations,
                strip_pooling=index in carriers,
                norm_layer=self.norm_layer,
            )
            self._in_channels = channels * self.block.expansion
            blocks.append(block)
        return nn.Sequential(*blocks)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        stage1 = self.layer1(self.stem(image))
        stage2 = self.layer2(stage1)
        stage3 = self.layer3(stage2)
        stage4 = self.layer4(stage3)
        return stage1, stage2, stage3, stage4


def stage_strides(output_stride: int) -> tuple[int, int, int, int]:
    """The stride of each stage's first block; the stem has already divided by 4."""
    return 1, 2, 2 if output_stride >= 16 else 1, 2 if output_stride == 32 else 1


def stage_dilations(
    blocks: Sequence[int], output_stride: int, multi_grid: Sequence[int] | None
) -> list[list[tuple[int, int]]]:
    """The dilations of the 3x3 convolutions of every block, stage by stage.

    Where dilation takes a stride's place, the first 3x3 of the stage still reads the map of the
    stage before and keeps its dilation; all that follow are dilated, so that pretrained weights
    compute the features they were trained for, only more densely. Multi-grid sets every block of
    the last stage.
    """
    last = {8: 4, 16: 2, 32: 1}[output_stride]
    third = 2 if output_stride == 8 else 1
    result = [[(1, 1)] * count for count in blocks[:2]]
    result.append([(1, third)] + [(third, third)] * (blocks[2] - 1))
    if multi_grid is None:
        result.append([(third, last)] + [(last, last)] * (blocks[3] - 1))
    else:
        if len(multi_grid) < blocks[3]:
            raise ValueError(f"multi_grid needs {blocks[3]} dilations, one a block: {multi_grid}")
        scaled = [max(1, value * last // 4) for value in multi_grid[: blocks[3]]]
        result.append([(dilation, dilation) for dilation in scaled])
    return result


def chosen_blocks(choice: BlockChoice, blocks: int) -> set[int]:
    """ "none", "last", "all" or indices -> the set of block indices of a stage."""
    named = {"none": set(), "last": {blocks - 1}, "all": set(range(blocks))}
    if isinstance(choice, str):
        if choice not in named:
            raise ValueError(f"choose blocks by 'none', 'last', 'all' or indices, not {choice!r}")
        return named[choice]
    wrong = [index for index in choice if not 0 <= index < blocks]
    if wrong:
        raise ValueError(f"this stage has blocks 0 to {blocks - 1}; {wrong} do not exist")
    return set(choice)


def initialise(network: nn.Module) -> None:
    """He initialisation, fan out, of the convolutions that ReLU follows (a shortcut's too)."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.bias is None:
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
