"""PyTorch's kernels of synchronized batch norm for GPUs, in plain operations.

PyTorch has them for CUDA alone (aten/src/ATen/native/cuda/Normalization.cuh). Importing this file
registers the same formulas, with what the kernels ask of their arguments, for tensors on the CPU
and for those without values.
"""

import torch
from torch import Tensor

LIBRARY = torch.library.Library("aten", "IMPL")


def wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def per_channel(x: Tensor, *vectors: Tensor | None) -> list[Tensor]:
    shape = [1, -1] + [1] * (x.dim() - 2)
    ones = torch.ones(x.shape[1], device=x.device)
    return [(ones if vector is None else vector).view(shape) for vector in vectors]


def dims(x: Tensor) -> list[int]:
    return [d for d in range(x.dim()) if d != 1]


def like(x: Tensor, values: Tensor) -> Tensor:
    """In the type and the layout of x."""
    return torch.empty_like(x).copy_(values)


def batch_norm_stats(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    variance, mean = torch.var_mean(wide(x), dims(x), unbiased=False)
    return mean, (variance + eps).rsqrt()


def batch_norm_gather_stats_with_counts(
    x: Tensor,
    means: Tensor,
    inverse_stds: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    counts: Tensor,
) -> tuple[Tensor, Tensor]:
    """Merged one process after the other."""
    mean, squares, n = (torch.zeros_like(means[0]) for _ in range(3))
    for m, inverse_std, count in zip(means, inverse_stds, counts, strict=True):
        own = (inverse_std**-2 - eps) * count
        squares = squares + own + (mean - m) ** 2 * n * count / (n + count)
        mean = (n * mean + count * m) / (n + count)
        n = n + count
    if running_mean is not None and running_var is not None:
        assert counts.dtype == running_mean.dtype
        running_mean.copy_((1 - momentum) * running_mean + momentum * mean)
        running_var.copy_((1 - momentum) * running_var + momentum * squares / (n - 1))
    return mean, (squares / n + eps).rsqrt()


def batch_norm_elemt(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    inverse_std: Tensor,
    eps: float,
) -> Tensor:
    factor, centre, scale = per_channel(x, weight, mean, inverse_std)
    out = (wide(x) - centre) * scale * factor
    return like(x, out if bias is None else out + per_channel(x, bias)[0])


def batch_norm_backward_reduce(
    gradient: Tensor,
    x: Tensor,
    mean: Tensor,
    inverse_std: Tensor,
    weight: Tensor | None,
    of_x: bool,
    of_weight: bool,
    of_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    # of other strides than x the kernels would make copies
    assert gradient.stride() == x.stride(), (gradient.stride(), x.stride())
    total = wide(gradient).sum(dims(x))
    product = (wide(gradient) * (wide(x) - per_channel(x, mean)[0])).sum(dims(x))
    kind = mean.dtype if weight is None else weight.dtype
    return total, product, (product * inverse_std).to(kind), total.to(kind)


def batch_norm_backward_elemt(
    gradient: Tensor,
    x: Tensor,
    mean: Tensor,
    inverse_std: Tensor,
    weight: Tensor | None,
    total: Tensor,
    product: Tensor,
    counts: Tensor,
) -> Tensor:
    assert counts.dtype == torch.int32  # read as they lie in memory
    assert counts.is_contiguous()
    n = counts.sum()
    factor, centre, scale, of_mean, of_scale = per_channel(
        x, weight, mean, inverse_std, total / n, product / n * inverse_std**2
    )
    return like(x, (wide(gradient) - of_mean - (wide(x) - centre) * of_scale) * scale * factor)


for kernel in (
    batch_norm_stats,
    batch_norm_gather_stats_with_counts,
    batch_norm_elemt,
    batch_norm_backward_reduce,
    batch_norm_backward_elemt,
):
    for kind in ("CPU", "Meta"):
        LIBRARY.impl(kernel.__name__, kernel, kind)
