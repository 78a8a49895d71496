"""Losses over the labelled pixels, or images, of the global batch.

Every loss here is a sum over local pixels divided by a total over all processes, times the number
of processes, so that the gradient that DistributedDataParallel averages is the gradient of the
mean over the global batch: one process and many give the same step.

A batch that goes through in parts is handled alike: every part's sum is divided by the total of
all parts, so that the gradients of the parts add up to those of one pass.
"""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from ..distributed import process_group

MANY_CLASSES = 16  # fill a vector of the widest processors


class SegmentationLoss:
    """Cross entropy or OHEM of the main and the auxiliary logits.

    Args:
        ignore_label: label value that does not count.
        auxiliary_weight: weight of the auxiliary loss (0.4 in the papers).
        class_weights: (K,) weights, or None. The mean is then the weighted mean, as PyTorch's.
        ohem_threshold: with a number, only hard pixels count: those whose probability of the true
            class is at most max(threshold, the `ohem_min_kept`-th smallest of the global batch).
        ohem_min_kept: how many pixels of the global batch are kept at least.
        label_smoothing: share of the label that all classes get alike (Szegedy et al., CVPR 2016,
            Sec. 7).
    """

    def __init__(
        self,
        *,
        ignore_label: int = 255,
        auxiliary_weight: float = 0.4,
        class_weights: Tensor | None = None,
        ohem_threshold: float | None = None,
        ohem_min_kept: int = 100_000,
        label_smoothing: float = 0.0,
    ) -> None:
        self.ignore_label = ignore_label
        self.auxiliary_weight = auxiliary_weight
        self.class_weights = class_weights
        self.ohem_threshold = ohem_threshold
        self.ohem_min_kept = ohem_min_kept
        self.label_smoothing = label_smoothing

    def __call__(
        self,
        logits: Tensor,
        auxiliary: Tensor | None,
        label: Tensor,
        *,
        whole: Tensor | None = None,
        parts: int = 1,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(N,K,h,w), the same or None, (N,H,W) -> total, main and auxiliary loss (scalars).

        Or (N,K), None, (N,) where whole images are classified.
        Labels larger than the logits are subsampled at aligned corners, never blended.
        A batch without any labelled pixel gives zero, and zero gradients.

        Args:
            whole: (M,H,W) labels of this process's share, where `logits` are of one of its
                `parts`. The losses of all parts then add up to the loss of the global batch.
                OHEM chooses the hard pixels of each part by itself, at least `ohem_min_kept` in
                all parts together, and weighs a part by its labelled pixels.
        """
        label = subsample_label(label, logits.shape[2:]).long()
        if whole is not None:
            whole = subsample_label(whole, logits.shape[2:]).long()
        labelled = self._global_weight(label if whole is None else whole, logits)
        main = self.single(logits, label, labelled=labelled, parts=parts)
        if auxiliary is None:
            return main, main, torch.zeros_like(main)
        second = self.single(auxiliary, label, labelled=labelled, parts=parts)
        return main + self.auxiliary_weight * second, main, second

    def single(self, logits: Tensor, label: Tensor, *, labelled: Tensor, parts: int = 1) -> Tensor:
        """Return the loss of one set of logits, (N,K,h,w) against (N,h,w): a scalar.

        `labelled` is the weight of the labelled pixels of the whole global batch; OHEM needs that
        of the hard ones, and weights a part by its share of the labelled ones.
        """
        if self.ohem_threshold is None:
            return self._sum(logits, label) / labelled * process_group.world_size()
        hard = self._hard_label(logits.detach(), label, -(-self.ohem_min_kept // parts))
        mean = self._sum(logits, hard) / self._global_weight(hard, logits)
        mean = mean * process_group.world_size()
        return mean if parts == 1 else mean * (self._global_weight(label, logits) / labelled)

    def _sum(self, logits: Tensor, label: Tensor) -> Tensor:
        """Sum of the cross entropy over the local pixels, (N,K,h,w) against (N,h,w), in fp32."""
        if logits.shape[1] >= MANY_CLASSES and is_channels_last(logits):
            logits, label = in_rows(logits), label.flatten()
        logits = logits.to(_loss_type(logits))
        return F.cross_entropy(
            logits,
            label,
            self._weights(logits),
            ignore_index=self.ignore_label,
            reduction="none",  # the kernel of GPUs would sum in any order
            label_smoothing=self.label_smoothing,
        ).sum()

    def _hard_label(self, logits: Tensor, label: Tensor, least: int) -> Tensor:
        """`label` with the ignore label on easy pixels; at least `least` pixels are kept."""
        valid = label != self.ignore_label
        true_class = label.clamp(0, logits.shape[1] - 1).unsqueeze(1)
        probability = logits.to(_loss_type(logits)).softmax(1).gather(1, true_class).squeeze(1)
        limit: float | Tensor = self.ohem_threshold
        if least > 0:
            limit = global_kth_smallest(probability, valid, least).clamp(min=self.ohem_threshold)
        return torch.where(valid & (probability <= limit), label, self.ignore_label)

    def _global_weight(self, label: Tensor, logits: Tensor) -> Tensor:
        """Labelled pixels of all processes, or the sum of their class weights; at least 1e-12."""
        labelled = label != self.ignore_label
        weights = self._weights(logits)
        if weights is not None:
            labelled = weights[label.clamp(0, len(weights) - 1)] * labelled
        weight = labelled.sum().to(_loss_type(logits))
        return process_group.all_reduce_sum(weight).clamp(min=1e-12)

    def _weights(self, logits: Tensor) -> Tensor | None:
        """The class weights where and as the logits are; they move there once."""
        if self.class_weights is not None:
            self.class_weights = self.class_weights.to(logits.device, _loss_type(logits))
        return self.class_weights


def _loss_type(logits: Tensor) -> torch.dtype:
    return torch.promote_types(logits.dtype, torch.float32)


def in_rows(logits: Tensor) -> Tensor:
    """(N,K,H,W), channels-last -> (M,K), a view with a row for every pixel.

    The softmax of rows that fill a vector of the processor takes a third of the time that it takes
    across planes; of shorter rows it takes several times as long.
    """
    return logits.movedim(1, -1).flatten(0, -2)


def is_channels_last(x: Tensor) -> bool:
    return x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)


def global_kth_smallest(values: Tensor, valid: Tensor, k: int) -> Tensor:
    """Return the k-th smallest valid value over all processes, a scalar.

    Infinity when there are not more than k. Shapes do not depend on how many are valid, so nothing
    waits for the device.
    """
    infinity = float("inf")
    candidates = torch.where(valid, values, infinity).flatten()
    size = min(k, candidates.numel())
    smallest = values.new_full((k,), infinity)
    smallest[:size] = torch.topk(candidates, size, largest=False, sorted=False).values
    total = process_group.all_reduce_sum(valid.sum())
    if process_group.world_size() > 1:
        gathered = [torch.empty_like(smallest) for _ in range(process_group.world_size())]
        dist.all_gather(gathered, smallest)
        smallest = torch.cat(gathered)
    kth = torch.topk(smallest, k, largest=False, sorted=False).values.amax()
    return torch.where(total > k, kth, infinity)


def subsample_label(label: Tensor, size: torch.Size) -> Tensor:
    """Nearest labels on a smaller grid whose corners meet: (N,H,W) -> (N,*size); (N,) stays."""
    if tuple(label.shape[1:]) == tuple(size):
        return label
    rows, columns = (
        torch.linspace(0, old - 1, new, device=label.device).round().long()
        for old, new in zip(label.shape[-2:], size, strict=True)
    )
    return label[:, rows][:, :, columns]


def balanced_class_weights(pixels: Tensor) -> Tensor:
    """Class weights from class frequencies: 1 / log(1.02 + frequency), scaled to mean 1.

    The bounded inverse frequency of ENet (Paszke et al., 2016, Sec. 5.2); absent classes weigh 1.
    """
    frequency = pixels.double() / pixels.sum().clamp(min=1)
    weights = 1.0 / torch.log(1.02 + frequency)
    present = pixels > 0
    weights = weights / weights[present].mean() if present.any() else torch.ones_like(weights)
    return torch.where(present, weights, torch.ones_like(weights)).float()
