"""Residual networks as backbones: dilated, with strip pooling or attention where asked.

He et al., "Deep Residual Learning", CVPR 2016. Dilation and multi-grid as in DeepLabv3; the
strip pooling modules sit where SPNet (CVPR 2020, Sec. 3.1) puts them, attention modules behind
the last norm of every block, where their authors have them.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..layers import NormLayer
from ..strip_pooling import StripPoolingModule
from .attention import build_attention

DEPTHS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}

STAGE_CHANNELS = (64, 128, 256, 512)

BlockChoice = str | Sequence[int]
"""Which blocks of a stage: "none", "last", "all", or their indices counted from 0."""


class BasicBlock(nn.Module):
    """Two convolutions beside a shortcut; the SPM, if any, stands before the second.

    `conv1` carries the stride and leads from the block's input to `width` channels, `conv2` from
    there to `out_channels`.
    """

    expansion = 1

    def __init__(
        self,
        conv1: nn.Module,
        conv2: nn.Module,
        shortcut: nn.Module,
        *,
        width: int,
        out_channels: int,
        strip_module: Callable[..., nn.Module],
        attention_module: Callable[..., nn.Module],
        norm_layer: NormLayer,
    ) -> None:
        super().__init__()
        self.conv1 = conv1
        self.bn1 = norm_layer(width)
        self.conv2 = conv2
        self.bn2 = norm_layer(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.strip_pooling = strip_module(width, norm_layer=norm_layer)
        self.attention = attention_module(out_channels, norm_layer=norm_layer)
        self.downsample = shortcut

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.strip_pooling(out)
        out = self.attention(self.bn2(self.conv2(out)))
        return self.relu(out + self.downsample(x))


class Bottleneck(nn.Module):
    """1x1, spatial convolution, 1x1 beside a shortcut; the SPM follows the spatial one.

    `conv2`, from `width` to `width` channels, carries stride and dilation.
    """

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        conv2: nn.Module,
        shortcut: nn.Module,
        *,
        width: int,
        out_channels: int,
        strip_module: Callable[..., nn.Module],
        attention_module: Callable[..., nn.Module],
        norm_layer: NormLayer,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = norm_layer(width)
        self.conv2 = conv2
        self.bn2 = norm_layer(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = norm_layer(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.strip_pooling = strip_module(width, norm_layer=norm_layer)
        self.attention = attention_module(out_channels, norm_layer=norm_layer)
        self.downsample = shortcut

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.strip_pooling(out)
        out = self.attention(self.bn3(self.conv3(out)))
        return self.relu(out + self.downsample(x))


def deep_stem(in_channels: int, channels: Sequence[int], norm_layer: NormLayer) -> nn.Sequential:
    """Three 3x3 convolutions, the first of stride 2, then max-pool: output stride 4."""
    first, second, third = channels
    return nn.Sequential(
        nn.Conv2d(in_channels, first, 3, stride=2, padding=1, bias=False),
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


def classic_stem(in_channels: int, channels: int, norm_layer: NormLayer) -> nn.Sequential:
    """One 7x7 convolution of stride 2, then max-pool: output stride 4."""
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, 7, stride=2, padding=3, bias=False),
        norm_layer(channels),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2, padding=1),
    )


def cifar_stem(in_channels: int, channels: int, norm_layer: NormLayer) -> nn.Sequential:
    """One 3x3 convolution that keeps the size, for images of 32x32 pixels."""
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, 3, padding=1, bias=False),
        norm_layer(channels),
        nn.ReLU(inplace=True),
    )


def scaled_channels(channels: int, width: float) -> int:
    """`channels` times a factor, as a multiple of 8 and at least 8."""
    return channels if width == 1 else max(8, round(channels * width / 8) * 8)


class ResNet(nn.Module):
    """(N, in_channels, H, W) -> the four stage features, at strides 4, 8 and `output_stride`.

    Args:
        depth: 18, 34, 50, 101 or 152.
        in_channels: of the image.
        stem: "deep" (three 3x3 of `stem_width`, `stem_width` and twice that), "classic" (one
            7x7 of 64), or "cifar" (one 3x3 of 64 that keeps the size: the stages are at strides 1,
            2, 4 and 8, nothing is dilated).
        stem_width: 64 in semseg's, SPNet's and Encoding's 50s, 32 in Encoding's 50d.
        width: factor of all channels (Zagoruyko and Komodakis, "Wide Residual Networks", BMVC
            2016, widen the inner ones alone); each is a multiple of 8.
        average_down: shortcuts halve their map by averaging (ResNet-D), not by striding.
        output_stride: 8, 16 or 32; strides that are taken away become dilation.
        dilate_first_block: where dilation takes a stride's place, the first block of the stage is
            dilated like the others, as in semseg's and PyConvSegNet's networks; by default it
            still reads the map of the stage before, as in Encoding's and SPNet's.
        multi_grid: dilations of the last stage's blocks at output stride 8 (4, 8, 16 in SPNet),
            scaled with it at 16 and 32; None leaves the stage at one dilation.
        strip_pooling: for each stage the blocks that carry a strip pooling module.
        strip_module: what these carry, called with the channels and `norm_layer`.
        attention: the module behind the last norm of every block, before the addition.
        activation_checkpointing: keep only the features between blocks in training.
    Raises:
        ValueError: a depth, stem, output stride, attention or choice of blocks that does not exist.
    """

    def __init__(
        self,
        depth: int = 50,
        *,
        in_channels: int = 3,
        stem: str = "deep",
        stem_width: int = 64,
        width: float = 1.0,
        average_down: bool = False,
        output_stride: int = 8,
        dilate_first_block: bool = False,
        multi_grid: Sequence[int] | None = None,
        strip_pooling: Sequence[BlockChoice] = ("none", "none", "none", "none"),
        strip_module: Callable[..., nn.Module] = StripPoolingModule,
        attention: str = "none",
        norm_layer: NormLayer = nn.BatchNorm2d,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if depth not in DEPTHS:
            raise ValueError(f"depth must be one of {sorted(DEPTHS)}, not {depth}")
        if output_stride not in (8, 16, 32):
            raise ValueError(f"output_stride must be 8, 16 or 32, not {output_stride}")
        if stem not in ("deep", "classic", "cifar"):
            raise ValueError(f"stem must be 'deep', 'classic' or 'cifar', not {stem!r}")
        if stem == "cifar" and output_stride != 8:
            raise ValueError(f"the stem 'cifar' has output_stride 8, not {output_stride}")
        self.activation_checkpointing = activation_checkpointing
        self.block = BasicBlock if depth < 50 else Bottleneck
        self.norm_layer = norm_layer
        self.average_down = average_down
        self.attention_module = (
            nn.Identity if attention == "none" else partial(build_attention, attention)
        )
        self.strip_module = strip_module
        # as if behind a stem of stride 4, as the others are
        self.output_stride = 32 if stem == "cifar" else output_stride
        self.stage_channels = tuple(scaled_channels(c, width) for c in STAGE_CHANNELS)
        first = scaled_channels(stem_width if stem == "deep" else 64, width)
        self.stem = self.build_stem(in_channels, stem, first)
        self._in_channels = 2 * first if stem == "deep" else first
        dilations = stage_dilations(
            DEPTHS[depth], self.output_stride, multi_grid, dilate_first_block=dilate_first_block
        )
        stages = []
        for index, stride in enumerate(self.stage_strides()):
            carriers = chosen_blocks(strip_pooling[index], DEPTHS[depth][index])
            stages.append(self._stage(index, stride, dilations[index], carriers))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.channels = tuple(map(self.channels_of, range(4)))
        initialise(self)

    def build_stem(self, in_channels: int, stem: str, width: int) -> nn.Sequential:
        if stem == "deep":
            return deep_stem(in_channels, (width, width, 2 * width), self.norm_layer)
        if stem == "cifar":
            return cifar_stem(in_channels, width, self.norm_layer)
        return classic_stem(in_channels, width, self.norm_layer)

    def stage_strides(self) -> tuple[int, int, int, int]:
        """The stride of each stage's first block; the stem has divided by 4, or CIFAR's by 1."""
        return 1, 2, *last_strides(self.output_stride)

    def width(self, stage: int) -> int:
        """Inner channels of the blocks of a stage (0 to 3)."""
        return self.stage_channels[stage]

    def channels_of(self, stage: int) -> int:
        """Channels between the blocks of a stage."""
        return self.stage_channels[stage] * self.block.expansion

    def spatial_convolution(
        self, stage: int, in_channels: int, out_channels: int, *, stride: int, dilation: int
    ) -> nn.Module:
        """The convolution of a block that sees neighbours."""
        return conv3x3(in_channels, out_channels, stride=stride, dilation=dilation)

    def second_convolution(self, channels: int, *, dilation: int) -> nn.Module:
        """The second convolution of a basic block."""
        return conv3x3(channels, channels, dilation=dilation)

    def shortcut(self, in_channels: int, out_channels: int, stride: int) -> nn.Module:
        """Identity, or a 1x1 projection where size or channels change."""
        if stride == 1 and in_channels == out_channels:
            return nn.Identity()
        if self.average_down:
            pool = nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False)
            return nn.Sequential(pool, *self._projection(in_channels, out_channels))
        return nn.Sequential(*self._projection(in_channels, out_channels, stride))

    def _projection(self, in_channels: int, out_channels: int, stride: int = 1) -> list[nn.Module]:
        projection = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
        return [projection, self.norm_layer(out_channels)]

    def _stage(
        self, stage: int, stride: int, dilations: Sequence[tuple[int, int]], carriers: set[int]
    ) -> nn.Sequential:
        width, out_channels = self.width(stage), self.channels_of(stage)
        blocks = []
        for index, (first, second) in enumerate(dilations):
            options = {"stride": stride if index == 0 else 1, "dilation": first}
            common = {
                "shortcut": self.shortcut(self._in_channels, out_channels, options["stride"]),
                "width": width,
                "out_channels": out_channels,
                "strip_module": self.strip_module if index in carriers else nn.Identity,
                "attention_module": self.attention_module,
                "norm_layer": self.norm_layer,
            }
            if self.block is BasicBlock:
                conv1 = self.spatial_convolution(stage, self._in_channels, width, **options)
                conv2 = self.second_convolution(width, dilation=second)
                blocks.append(BasicBlock(conv1, conv2, **common))
            else:
                conv2 = self.spatial_convolution(stage, width, width, **options)
                blocks.append(Bottleneck(self._in_channels, conv2, **common))
            self._in_channels = out_channels
        return nn.Sequential(*blocks)

    def layers(self) -> list[list[nn.Parameter]]:
        """The parameters of the stem and of each stage, for layer-wise learning rates."""
        stages = (self.stem, self.layer1, self.layer2, self.layer3, self.layer4)
        return [list(stage.parameters()) for stage in stages]

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        run = partial(run_blocks, recompute=self.activation_checkpointing)
        stage1 = run(self.layer1, self.stem(image))
        stage2 = run(self.layer2, stage1)
        stage3 = run(self.layer3, stage2)
        stage4 = run(self.layer4, stage3)
        return stage1, stage2, stage3, stage4


def run_blocks(blocks: nn.Sequential, x: Tensor, *, recompute: bool) -> Tensor:
    """Return `blocks(x)`; with `recompute` training keeps only the features between two blocks.

    Those inside are computed again in the backward pass (Chen et al., "Training Deep Nets with
    Sublinear Memory Cost", arXiv 1604.06174). Outputs, gradients and running statistics are those
    of plain `blocks(x)`; dropout draws the same numbers both times.
    """
    if not (recompute and blocks.training and torch.is_grad_enabled()):
        return blocks(x)
    for block in blocks:
        x = checkpoint(
            block, x, use_reentrant=False, context_fn=lambda block=block: contexts(block)
        )
    return x


def contexts(block: nn.Module) -> tuple[AbstractContextManager, AbstractContextManager]:
    """What surrounds the forward pass and its repetition."""
    return nullcontext(), statistics_kept(block)


@contextmanager
def statistics_kept(block: nn.Module) -> Iterator[None]:
    """Running statistics that change inside are copies, which are thrown away.

    Batch norm without any would keep fewer tensors than in the first pass, which PyTorch refuses.
    """
    buffers = [(m, name, b) for m in block.modules() for name, b in m.named_buffers(recurse=False)]
    for module, name, buffer in buffers:
        setattr(module, name, buffer.clone())
    try:
        yield
    finally:
        for module, name, buffer in buffers:
            setattr(module, name, buffer)


def conv3x3(in_channels: int, out_channels: int, *, stride: int = 1, dilation: int = 1):
    return nn.Conv2d(
        in_channels, out_channels, 3, stride, padding=dilation, dilation=dilation, bias=False
    )


def last_strides(output_stride: int) -> tuple[int, int]:
    """The strides of the two last stages, which dilation may replace."""
    return 2 if output_stride >= 16 else 1, 2 if output_stride == 32 else 1


def stage_dilations(
    blocks: Sequence[int],
    output_stride: int,
    multi_grid: Sequence[int] | None,
    *,
    dilate_first_block: bool = False,
) -> list[list[tuple[int, int]]]:
    """The dilations of the spatial convolutions of every block (two in basic ones), by stage.

    Where dilation takes a stride's place, the first convolution of the stage still reads the map
    of the stage before and keeps its dilation, unless told otherwise; all that follow are dilated,
    so that pretrained weights compute the features they were trained for, only more densely.
    Multi-grid sets every block of the last stage.
    """
    last = {8: 4, 16: 2, 32: 1}[output_stride]
    third = 2 if output_stride == 8 else 1
    result = [[(1, 1)] * count for count in blocks]
    for stage, before, dilation in ((2, 1, third), (3, third, last)):
        result[stage] = [(dilation, dilation)] * blocks[stage]
        if not dilate_first_block:
            result[stage][0] = (before, dilation)
    if multi_grid is not None:
        if len(multi_grid) < blocks[3]:
            raise ValueError(f"multi_grid needs {blocks[3]} dilations, one per block: {multi_grid}")
        scaled = [max(1, value * last // 4) for value in multi_grid[: blocks[3]]]
        result[3] = [(dilation, dilation) for dilation in scaled]
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
