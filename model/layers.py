"""Small parts that several networks share."""

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NormLayer = Callable[[int], nn.Module]


def group_norm(channels: int) -> nn.GroupNorm:
    """Group norm for batches too small for batch norm: at most 32 groups that divide `channels`."""
    groups = next(count for count in range(min(32, channels), 0, -1) if channels % count == 0)
    return nn.GroupNorm(groups, channels)


def conv_norm(
    in_channels: int,
    out_channels: int,
    kernel_size: int | tuple[int, int],
    norm_layer: NormLayer,
    *,
    stride: int = 1,
    dilation: int = 1,
    relu: bool = True,
) -> nn.Sequential:
    """Convolution without bias that keeps the size at stride 1, norm and, by default, ReLU."""
    height, width = (kernel_size,) * 2 if isinstance(kernel_size, int) else kernel_size
    convolution = nn.Conv2d(
        in_channels,
        out_channels,
        (height, width),
        stride=stride,
        padding=(height // 2 * dilation, width // 2 * dilation),
        dilation=dilation,
        bias=False,
    )
    layers: list[nn.Module] = [convolution, norm_layer(out_channels)]
    if relu:
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def resize(x: Tensor, size: Sequence[int], *, align_corners: bool = True) -> Tensor:
    """Bilinear, as in semseg and SPNet with aligned corners: (N,C,h,w) -> (N,C,*size).

    One row or one column becomes a plain repetition, which is what a strip needs.
    """
    if not torch.compiler.is_exporting() and tuple(x.shape[-2:]) == tuple(size):
        return x  # an export would be valid for this size alone, or for all others
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=align_corners)


def bin_masks(
    size: int, bins: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Masks (bins, size), 1 where an element is in the bin, and float32 (bins,) elements per bin.

    The borders are those of adaptive pooling.
    """
    index = torch.arange(bins, device=device)
    element = torch.arange(size, device=device)
    start = torch.div(index * size, bins, rounding_mode="floor")
    end = torch.div((index + 1) * size + bins - 1, bins, rounding_mode="floor")
    inside = (element >= start[:, None]) & (element < end[:, None])
    return inside.to(dtype), (end - start).float()


@lru_cache(maxsize=64)
def kept_bin_masks(
    size: int, bins: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The same, made once: a dozen small kernels. Training may use what a test has made."""
    with torch.inference_mode(False):
        return bin_masks(size, bins, dtype, device)


def grid_average_pool(x: Tensor, bins: int) -> Tensor:
    """Adaptive average pooling to bins x bins as two matrix products: (N,C,H,W) -> (N,C,bins,bins).

    Equals `F.adaptive_avg_pool2d`, and is besides deterministic in its CUDA backward pass and
    exportable at dynamic sizes. Maps smaller than the grid are repeated, as adaptive pooling does.
    """
    # a compiler puts them into its graph, and an export must make them for any size
    masks = kept_bin_masks if x.is_cuda and not torch.compiler.is_compiling() else bin_masks
    rows, row_counts = masks(x.shape[-2], bins, x.dtype, x.device)
    columns, column_counts = masks(x.shape[-1], bins, x.dtype, x.device)
    # weights of 1/n would be rounded in half precision and not add up to one; zeros and ones are
    # exact, and the counts, in float32, divide after each product: float16 holds the sums of one
    means = ((rows @ x) / row_counts[:, None]).to(x.dtype)  # (N, C, bins, W)
    return ((means @ columns.T) / column_counts).to(x.dtype)
