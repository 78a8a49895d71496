"""What the model tests compare with: the modules of the paper as plain formulas, small networks.

The formulas use nothing of `stripseg`: they take the named weights of the module under test and
are written from the paper (Hou et al., CVPR 2020), figure by figure, with PyTorch's own pooling
and interpolation.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stripseg.model.backbone.resnet import ResNet
from stripseg.model.fcn import FCNHead
from stripseg.model.segmenter import Segmenter
from stripseg.model.spnet import SPNetHead

Weights = Mapping[str, Tensor]

PAPER_BLOCKS = ("last", "last", "last", "all")
NO_BLOCKS = ("none", "none", "none", "none")


def spnet(
    depth: int = 18,
    classes: int = 5,
    *,
    spm_on: bool = True,
    auxiliary: bool = True,
    stem: str = "deep",
    dropout: float = 0.1,
    zoom_factor: int = 8,
    width: float = 0.125,
    **norm,
) -> Segmenter:
    """SPNet as released: multi-grid 4, 8, 16 and two mixed pooling modules."""
    backbone = ResNet(
        depth,
        stem=stem,
        width=width,
        multi_grid=(4, 8, 16),
        strip_pooling=PAPER_BLOCKS if spm_on else NO_BLOCKS,
        **norm,
    )
    head = SPNetHead(backbone.channels, classes, dropout=dropout, **norm)
    return Segmenter(
        backbone,
        head,
        FCNHead(backbone.channels, classes, stage=2, dropout=dropout, **norm)
        if auxiliary
        else None,
        zoom_factor=zoom_factor,
    )


def fcn(
    depth: int = 18, classes: int = 5, *, stem: str = "classic", width: float = 0.125, **norm
) -> Segmenter:
    """The plain baseline: dilated ResNet, FCN head and auxiliary head."""
    backbone = ResNet(depth, stem=stem, width=width, **norm)
    head = FCNHead(backbone.channels, classes, **norm)
    return Segmenter(backbone, head, FCNHead(backbone.channels, classes, stage=2, **norm))


def parameter_count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def fill_at_random(module: nn.Module, seed: int = 0) -> None:
    """Every tensor away from its initial value, so that no mistake hides behind a 0 or a 1."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in module.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        noise = torch.randn(value.shape, generator=generator, dtype=value.dtype)
        if name.endswith("running_var"):
            value.copy_(0.5 + noise.abs())
        elif value.ndim >= 2:
            value.copy_(noise / value[0].numel() ** 0.5)
        else:
            value.copy_(0.3 * noise + (0.8 if name.endswith("weight") else 0.1))


def batch_norm(x: Tensor, weights: Weights, name: str, *, training: bool) -> Tensor:
    if training:
        mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
    else:
        mean, variance = weights[f"{name}.running_mean"], weights[f"{name}.running_var"]
    mean, variance, scale, shift = (
        value[:, None, None]
        for value in (mean, variance, weights[f"{name}.weight"], weights[f"{name}.bias"])
    )
    return (x - mean) / torch.sqrt(variance + 1e-5) * scale + shift


def conv_bn(x: Tensor, weights: Weights, name: str, *, training: bool) -> Tensor:
    """Convolution `name`.0 without bias that keeps the size, batch norm `name`.1."""
    kernel = weights[f"{name}.0.weight"]
    padding = (kernel.shape[2] // 2, kernel.shape[3] // 2)
    return batch_norm(F.conv2d(x, kernel, padding=padding), weights, f"{name}.1", training=training)


def aligned(x: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=True)


def strip_pooling_module(x: Tensor, weights: Weights, *, training: bool) -> Tensor:
    """Fig. 2: two strips, each convolved along itself, expanded, added, turned into weights."""
    size = x.shape[2:]
    rows = conv_bn(F.adaptive_avg_pool2d(x, (None, 1)), weights, "rows", training=training)
    columns = conv_bn(F.adaptive_avg_pool2d(x, (1, None)), weights, "columns", training=training)
    both = torch.relu(aligned(rows, size) + aligned(columns, size))
    logits = F.conv2d(both, weights["fuse.weight"], weights["fuse.bias"])
    return x / (1 + torch.exp(-logits))


def mixed_pooling_module(
    x: Tensor, weights: Weights, pool_sizes: Sequence[int], *, training: bool
) -> Tensor:
    """Fig. 3: short-range pyramid (b, left), long-range strips (b, right), residual sum (a)."""
    size = x.shape[2:]

    def layer(value: Tensor, name: str) -> Tensor:
        return conv_bn(value, weights, name, training=training)

    short = torch.relu(layer(x, "reduce_short"))
    pyramid = layer(short, "full")
    for index, bins in enumerate(pool_sizes):
        pooled = F.adaptive_avg_pool2d(short, bins)
        pyramid = pyramid + aligned(layer(pooled, f"pooled.{index}"), size)
    short = torch.relu(layer(torch.relu(pyramid), "fuse_short"))

    long = torch.relu(layer(x, "reduce_long"))
    columns = aligned(layer(F.adaptive_avg_pool2d(long, (1, None)), "columns"), size)
    rows = aligned(layer(F.adaptive_avg_pool2d(long, (None, 1)), "rows"), size)
    long = torch.relu(layer(torch.relu(columns + rows), "fuse_long"))

    return torch.relu(x + layer(torch.cat([short, long], dim=1), "expand"))
