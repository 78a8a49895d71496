"""Synchronized batch norm on any backend: statistics of the global batch, on CPU ranks too.

It costs one collective per layer in the forward pass and one in the backward pass, and weights
every process by its pixels, so uneven shares of a batch are exact. PyTorch's own SyncBatchNorm
refuses CPU tensors, and on GPUs the host waits three times per layer for the length of a boolean
index, which finds processes without images (pytorch issue 78549); here every process has some.
"""

import contextlib
import warnings

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from . import process_group


class _ByKernels(torch.autograd.Function):
    """Batch norm with the statistics of all processes: (N, C, ...) -> the same shape and layout.

    By PyTorch's own kernels for GPUs, which sum in float32 whatever the type of `x`, save nothing
    but `x` and small vectors, and update the running statistics on the way.
    """

    @staticmethod
    def forward(
        ctx,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
        eps: float,
    ) -> Tensor:
        x = x.contiguous(memory_format=_layout(x))
        channels = x.shape[1]
        mean, inverse_std = torch.batch_norm_stats(x, eps)
        own = torch.cat([mean, inverse_std, mean.new_full((1,), x.numel() // channels)])
        means, inverse_stds, counts = process_group.all_gather(own).split(
            [channels, channels, 1], 1
        )
        mean, inverse_std = torch.batch_norm_gather_stats_with_counts(
            x, means, inverse_stds, running_mean, running_var, momentum, eps, counts.view(-1)
        )
        ctx.save_for_backward(x, weight, mean, inverse_std, counts.to(torch.int32))
        return torch.batch_norm_elemt(x, weight, bias, mean, inverse_std, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse_std, counts = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=_layout(x))
        of_x, of_weight, of_bias = ctx.needs_input_grad[:3]
        total, product, weight_gradient, bias_gradient = torch.batch_norm_backward_reduce(
            gradient, x, mean, inverse_std, weight, of_x, of_weight, of_bias
        )
        x_gradient = None
        if of_x:
            both = process_group.all_reduce_sum(torch.cat([total, product]))
            total, product = both.split(len(mean))
            x_gradient = torch.batch_norm_backward_elemt(
                gradient, x, mean, inverse_std, weight, total, product, counts
            )
        parameters = weight_gradient if of_weight else None, bias_gradient if of_bias else None
        return x_gradient, *parameters, None, None, None, None


def _layout(x: Tensor) -> torch.memory_format:
    last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


class _BySums(torch.autograd.Function):
    """(x - mean) / std with mean and std of all processes: (N, C, ...) -> the same shape.

    For CPU ranks, for which PyTorch has no such kernels.
    """

    @staticmethod
    def forward(ctx, x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        dims = [d for d in range(x.dim()) if d != 1]
        exact = x.device.type == "cpu" and x.dtype != torch.bfloat16
        wide = x.detach().double() if exact else x.detach().float()
        local_count = x.numel() / x.shape[1]
        local_mean = wide.mean(dims)
        local_square = wide.square().mean(dims)
        totals = torch.cat(
            [
                local_mean * local_count,
                local_square * local_count,
                local_mean.new_tensor([local_count]),
            ]
        )
        process_group.all_reduce_sum(totals)
        channels = x.shape[1]
        count = totals[-1]
        mean = totals[:channels] / count
        variance = (totals[channels:-1] / count - mean.square()).clamp_(min=0)
        shape = [1, -1] + [1] * (x.dim() - 2)
        inverse_std = (variance + eps).rsqrt()
        normalized = ((x - mean.view(shape)) * inverse_std.view(shape)).to(x.dtype)
        ctx.save_for_backward(normalized, inverse_std, count)
        ctx.mark_non_differentiable(mean, variance, count)
        return normalized, mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor, *_: Tensor) -> tuple[Tensor, None]:
        normalized, inverse_std, count = ctx.saved_tensors
        dims = [d for d in range(gradient.dim()) if d != 1]
        shape = [1, -1] + [1] * (gradient.dim() - 2)
        totals = torch.stack([gradient.sum(dims), (gradient * normalized).sum(dims)]).to(
            count.dtype
        )
        process_group.all_reduce_sum(totals)
        mean_gradient, mean_product = (totals / count).to(gradient.dtype)
        centred = gradient - mean_gradient.view(shape) - normalized * mean_product.view(shape)
        return (centred * inverse_std.view(shape)).to(gradient.dtype), None


class SyncBatchNorm(_BatchNorm):
    """Batch norm over the batches of all processes: (N, C, ...) -> (N, C, ...).

    Equal to `nn.BatchNorm2d` on the concatenated batch, in outputs, gradients and running
    statistics. With one process, and in evaluation, it is plain batch norm.

    Raises:
        ValueError: training with a single value per channel, over all processes.
    """

    def _check_input_dim(self, x: Tensor) -> None:
        if x.dim() < 2:
            raise ValueError(f"expected at least 2 dimensions (N, C, ...), got {x.dim()}")

    def forward(self, x: Tensor) -> Tensor:
        self._check_input_dim(x)
        if not self.training or process_group.world_size() == 1:
            return super().forward(x)
        return self._by_kernels(x) if x.is_cuda else self._by_sums(x)

    def _by_kernels(self, x: Tensor) -> Tensor:
        tracked = self.track_running_stats
        running = (self.running_mean, self.running_var) if tracked else (None, None)
        momentum = self._count_batch() if tracked else 0.0
        return _ByKernels.apply(x, self.weight, self.bias, *running, momentum, self.eps)

    def _by_sums(self, x: Tensor) -> Tensor:
        normalized, mean, variance, count = _BySums.apply(x, self.eps)
        if self.track_running_stats:
            self._update(mean, variance, count)
        if not self.affine:
            return normalized
        shape = [1, -1] + [1] * (x.dim() - 2)
        weight, bias = self.weight.view(shape), self.bias.view(shape)
        return normalized * weight.to(x.dtype) + bias.to(x.dtype)

    @torch.no_grad()
    def _count_batch(self) -> float:
        """Return the share of this batch in the running statistics."""
        self.num_batches_tracked.add_(1)
        if self.momentum is None:  # the mean over all batches
            return 1.0 / float(self.num_batches_tracked)
        return self.momentum

    @torch.no_grad()
    def _update(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        momentum = self._count_batch()
        unbiased = variance * (count / (count - 1).clamp(min=1)).to(variance.dtype)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), momentum)


class SyncBatchNormActivation(SyncBatchNorm):
    """In the place of timm's batch norm, with the `drop` and `act` that it carries."""

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x)))


def convert(network: nn.Module, *, device: torch.device, use_apex: bool = False) -> nn.Module:
    """Replace every batch norm of `network` by a synchronized one, keeping its weights.

    It is this file's, or NVIDIA apex's on GPUs where `use_apex` asks for it and the installed apex
    still has one (it dropped it in 2025).
    """
    if use_apex:
        if device.type == "cuda":
            with contextlib.suppress(ImportError):
                from apex.parallel import convert_syncbn_model

                return convert_syncbn_model(network)
        warn_no_apex()
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, _converted(child))
    return network


def carries_activation(module: nn.Module) -> bool:
    """Return whether this is timm's batch norm, with a dropout and an activation inside."""
    return isinstance(module, nn.BatchNorm2d) and any(module.children())


def warn_no_apex() -> None:
    warnings.warn(
        "Distributed.use_apex: no NVIDIA apex with Sync-BN is usable here (new releases dropped "
        "it); our own synchronized batch norm and PyTorch's mixed precision are used",
        stacklevel=3,
    )


def _converted(plain: nn.BatchNorm2d) -> SyncBatchNorm:
    kind = SyncBatchNormActivation if carries_activation(plain) else SyncBatchNorm
    new = kind(
        plain.num_features, plain.eps, plain.momentum, plain.affine, plain.track_running_stats
    )
    for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        setattr(new, name, getattr(plain, name))  # the same tensors, whatever device and type
    for name, child in plain.named_children():
        new.add_module(name, child)
    new.training = plain.training
    return new
