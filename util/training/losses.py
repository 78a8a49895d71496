"""Losses over the labelled pixels, or images, of the global batch.

Every loss here is a sum over local pixels divided by a total over all processes, times the number
of processes, so that the gradient that DistributedDataParallel averages is the gradient of the
mean over the global batch: one process and many give the same step. Dice is a quotient of such
sums, which the processes add up first; Lovász-softmax, which sorts pixels, is defined per image.

A batch that goes through in parts is handled alike: every part's sum is divided by the total of
all parts, so that the gradients of the parts add up to those of one pass. OHEM and Dice, which
need the predictions of all pixels at once, look at each part by itself.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ...config.schema import IGNORED_IMAGE, Config
from ..distributed import process_group

MANY_CLASSES = 16  # fill a vector of the widest processors
CROSS_ENTROPY = {"cross_entropy": 1.0}


class Truth(NamedTuple):
    """What logits are compared with.

    Args:
        label: (N,h,w) or (N,), int64.
        labelled: weight of the labelled pixels of the global batch, with all its parts.
        near: `boundary_weights` (N,h,w), and their total over the global batch, class weights
            included.
        images: how many images of the global batch have a labelled pixel.
        parts: that the batch is divided into.
    """

    label: Tensor
    labelled: Tensor
    near: tuple[Tensor, Tensor] | None
    images: Tensor | None
    parts: int


class SegmentationLoss:
    """A weighted sum of losses, of the main and of the auxiliary logits.

    Args:
        terms: {name: weight}, of `cross_entropy`, `ohem`, `focal`, `boundary`, `dice`, `lovasz`.
        ignore_label: label value that does not count.
        auxiliary_weight: weight of the auxiliary loss (0.4 in the papers).
        class_weights: (K,) weights, or None. The mean is then the weighted mean, as PyTorch's.
            Dice and Lovász, which are means over classes, ignore them.
        ohem_threshold: OHEM counts only hard pixels: those whose probability of the true class is
            at most max(threshold, the `ohem_min_kept`-th smallest of the global batch).
        ohem_min_kept: how many pixels of the global batch are kept at least.
        label_smoothing: share of the label that is spread evenly over all classes (Szegedy et al.,
            CVPR 2016, Sec. 7); in cross entropy, OHEM and boundary.
        focal_gamma: exponent of the focal loss.
        boundary_weight: extra weight of a pixel beside another class.
        boundary_width: pixels of the logits within which that fades.
        align_corners: the network's, for labels larger than the logits.
    """

    def __init__(
        self,
        terms: Mapping[str, float] = CROSS_ENTROPY,
        *,
        ignore_label: int = 255,
        auxiliary_weight: float = 0.4,
        class_weights: Tensor | None = None,
        ohem_threshold: float = 0.7,
        ohem_min_kept: int = 100_000,
        label_smoothing: float = 0.0,
        focal_gamma: float = 2.0,
        boundary_weight: float = 4.0,
        boundary_width: int = 5,
        align_corners: bool = True,
    ) -> None:
        known = {
            "cross_entropy": self._cross_entropy,
            "ohem": self._ohem,
            "focal": self._focal,
            "boundary": self._boundary,
            "dice": self._dice,
            "lovasz": self._lovasz,
        }
        self.terms = [(known[name], weight) for name, weight in terms.items()]
        self.uses = frozenset(terms)
        self.ignore_label = ignore_label
        self.auxiliary_weight = auxiliary_weight
        self.class_weights = class_weights
        self.ohem_threshold = ohem_threshold
        self.ohem_min_kept = ohem_min_kept
        self.label_smoothing = label_smoothing
        self.focal_gamma = focal_gamma
        self.boundary_weight = boundary_weight
        self.boundary_width = boundary_width
        self.align_corners = align_corners

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

        Or (N,K), None, (N,) where whole images are classified, by cross entropy.
        Labels larger than the logits are subsampled, never blended.
        A batch without any labelled pixel gives zero, and zero gradients.

        Args:
            whole: (M,H,W) labels of this process's share, where `logits` are of one of its
                `parts`. The losses of all parts then add up to the loss of the global batch.
                OHEM chooses the hard pixels of each part by itself, at least `ohem_min_kept` in
                all parts together, and Dice compares the regions of each part; both weigh a part
                by its labelled pixels.
        """
        size, aligned = logits.shape[2:], self.align_corners
        label = subsample_label(label, size, align_corners=aligned).long()
        if whole is not None:
            whole = subsample_label(whole, size, align_corners=aligned).long()
        truth = self._truth(label, label if whole is None else whole, logits, parts)
        main = self.single(logits, truth)
        if auxiliary is None:
            return main, main, torch.zeros_like(main)
        second = self.single(auxiliary, truth)
        return main + self.auxiliary_weight * second, main, second

    def single(self, logits: Tensor, truth: Truth) -> Tensor:
        """Return the loss of one set of logits, (N,K,h,w): a scalar."""
        return sum(weight * term(logits, truth) for term, weight in self.terms)

    def _truth(self, label: Tensor, whole: Tensor, logits: Tensor, parts: int) -> Truth:
        """The labels of a part, and the totals of all parts and processes."""
        labelled, near, images = self._global_weight(whole, logits), None, None
        if "boundary" in self.uses:
            weights = self._boundary_weights(whole) * self._pixel_weights(whole, logits)
            near = self._boundary_weights(label), global_total(weights, logits)
        if "lovasz" in self.uses:
            with_labels = (whole != self.ignore_label).flatten(1).any(1)
            images = global_total(with_labels, logits)
        return Truth(label, labelled, near, images, parts)

    def _cross_entropy(self, logits: Tensor, truth: Truth) -> Tensor:
        total = self._each(logits, truth.label).sum()
        return total / truth.labelled * process_group.world_size()

    def _ohem(self, logits: Tensor, truth: Truth) -> Tensor:
        """Cross entropy of the hard pixels (Shrivastava et al., CVPR 2016)."""
        least = -(-self.ohem_min_kept // truth.parts)
        hard = self._hard_label(logits.detach(), truth.label, least)
        mean = self._each(logits, hard).sum() / self._global_weight(hard, logits)
        return self._of_part(mean * process_group.world_size(), logits, truth)

    def _focal(self, logits: Tensor, truth: Truth) -> Tensor:
        """(1 - p)^gamma times the cross entropy (Lin et al., ICCV 2017, eq. 5).

        The class weights are the paper's alpha.
        """
        entropy = self._each(logits, truth.label, plain=True)
        # 1 - p; the bound keeps the gradient of an exponent below 1 finite
        missing = (-torch.expm1(-entropy)).clamp(min=1e-12)
        each = missing**self.focal_gamma * entropy
        total = (each * self._pixel_weights(truth.label, logits)).sum()
        return total / truth.labelled * process_group.world_size()

    def _boundary(self, logits: Tensor, truth: Truth) -> Tensor:
        """Weighted mean of the cross entropy, with more weight near other classes.

        As U-Net weighs the borders of cells (Ronneberger et al., MICCAI 2015, eq. 2), with another
        distance.
        """
        near, total = truth.near
        return (self._each(logits, truth.label) * near).sum() / total * process_group.world_size()

    def _dice(self, logits: Tensor, truth: Truth) -> Tensor:
        """Soft Dice, the mean over the classes that are present in the global batch.

        1 - 2 sum(p y) / sum(p + y) for each class, over all labelled pixels at once (Milletari et
        al., 3DV 2016, with the sums of Sudre et al., DLMIA 2017).
        """
        probability, valid = probabilities(logits), truth.label != self.ignore_label
        classes = probability.shape[1]
        index = truth.label.clamp(0, classes - 1)
        true = probability.gather(1, index.unsqueeze(1)).squeeze(1) * valid
        # in double: a sum over many pixels, one after the other
        zeros = torch.zeros(classes, dtype=torch.float64, device=logits.device)
        both = zeros.index_add(0, index.flatten(), true.flatten().double())
        pixels = zeros.index_add(0, index.flatten(), valid.flatten().double())
        predicted = (probability * valid.unsqueeze(1)).sum((0, 2, 3)).double()
        both, predicted, pixels = added_up(torch.stack([both, predicted, pixels]))
        present = pixels > 0
        each = torch.where(present, 1 - 2 * both / (predicted + pixels).clamp(min=1e-12), 0.0)
        mean = each.sum() / present.sum().clamp(min=1)
        return self._of_part(mean.to(probability.dtype), logits, truth)

    def _lovasz(self, logits: Tensor, truth: Truth) -> Tensor:
        """Lovász-softmax of each image, over the classes present in it; the mean over images."""
        probability, label = probabilities(logits).flatten(2), truth.label.flatten(1)
        total = lovasz_softmax(probability, label, label != self.ignore_label).sum()
        return total / truth.images * process_group.world_size()

    def _of_part(self, mean: Tensor, logits: Tensor, truth: Truth) -> Tensor:
        """The mean of a part, weighted by its share of the labelled pixels."""
        if truth.parts == 1:
            return mean
        return mean * (self._global_weight(truth.label, logits) / truth.labelled)

    def _each(self, logits: Tensor, label: Tensor, *, plain: bool = False) -> Tensor:
        """Cross entropy of every local pixel in fp32, (N,K,h,w) against (N,h,w) -> (N,h,w).

        `plain` is without class weights and label smoothing.
        """
        shape = label.shape
        if logits.shape[1] >= MANY_CLASSES and is_channels_last(logits):
            logits, label = in_rows(logits), label.flatten()
        logits = logits.to(_loss_type(logits))
        return F.cross_entropy(
            logits,
            label,
            None if plain else self._weights(logits),
            ignore_index=self.ignore_label,
            reduction="none",  # the sum of the GPU's kernel has no fixed order
            label_smoothing=0.0 if plain else self.label_smoothing,
        ).view(shape)

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
        return global_total(self._pixel_weights(label, logits), logits)

    def _pixel_weights(self, label: Tensor, logits: Tensor) -> Tensor:
        """The class weight of each pixel, 1 without class weights and 0 where it is ignored."""
        labelled = label != self.ignore_label
        weights = self._weights(logits)
        if weights is not None:
            labelled = weights[label.clamp(0, len(weights) - 1)] * labelled
        return labelled

    def _boundary_weights(self, label: Tensor) -> Tensor:
        valid = label != self.ignore_label
        nearness = boundary_nearness(label, valid, self.boundary_width)
        return 1 + self.boundary_weight * nearness

    def _weights(self, logits: Tensor) -> Tensor | None:
        """The class weights where and as the logits are; they move there once."""
        if self.class_weights is not None:
            self.class_weights = self.class_weights.to(logits.device, _loss_type(logits))
        return self.class_weights


def loss_of(config: Config, class_weights: Tensor | None = None) -> SegmentationLoss:
    """The loss that `TRAIN` describes; `class_weights` are (K,)."""
    train = config.TRAIN
    return SegmentationLoss(
        train.losses,
        ignore_label=ignore_label_of(config),
        auxiliary_weight=train.aux_weight,
        class_weights=class_weights,
        ohem_threshold=train.ohem_threshold,
        ohem_min_kept=train.ohem_min_kept,
        label_smoothing=train.label_smoothing,
        focal_gamma=train.focal_gamma,
        boundary_weight=train.boundary_weight,
        boundary_width=train.boundary_width,
        align_corners=train.align_corners,
    )


def ignore_label_of(config: Config) -> int:
    """The label value that loss and metrics leave out."""
    return IGNORED_IMAGE if config.classifies else config.TRAIN.ignore_label


def _loss_type(logits: Tensor) -> torch.dtype:
    return torch.promote_types(logits.dtype, torch.float32)


def probabilities(logits: Tensor) -> Tensor:
    """Softmax over the classes in fp32, of the shape and memory layout of the logits."""
    if logits.shape[1] >= MANY_CLASSES and is_channels_last(logits):
        rows = in_rows(logits).to(_loss_type(logits)).softmax(1)
        return rows.view(*logits.movedim(1, -1).shape).movedim(-1, 1)
    return logits.to(_loss_type(logits)).softmax(1)


def in_rows(logits: Tensor) -> Tensor:
    """(N,K,H,W), channels-last -> (M,K), a view with a row for every pixel.

    The softmax of rows that fill a vector of the processor takes a third of the time that it takes
    across planes; of shorter rows it takes several times as long.
    """
    return logits.movedim(1, -1).flatten(0, -2)


def is_channels_last(x: Tensor) -> bool:
    return x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)


def global_total(values: Tensor, logits: Tensor) -> Tensor:
    """The sum over all processes, in the type of the loss; at least 1e-12."""
    total = values.sum().to(_loss_type(logits))
    return process_group.all_reduce_sum(total).clamp(min=1e-12)


def added_up(sums: Tensor) -> Tensor:
    """The sums of all processes; their gradient is that of the local ones times the processes."""
    processes = process_group.world_size()
    if processes == 1:
        return sums
    local = sums * processes
    return local + (process_group.all_reduce_sum(sums.detach().clone()) - local.detach())


def lovasz_softmax(probability: Tensor, label: Tensor, valid: Tensor) -> Tensor:
    """(N,K,P), (N,P), (N,P) -> (N,), the Lovász extension of the Jaccard loss of each image.

    Berman et al., CVPR 2018, Sec. 3.2: the mean over the classes that the image has. It is linear
    in the errors once their order is known, so one slope per probability is all that is kept.
    """
    with torch.no_grad():
        slopes = torch.empty_like(probability)
        constant = torch.zeros_like(probability[:, 0, 0])
        classes = torch.zeros_like(constant)
        for index in range(probability.shape[1]):
            truth = (label == index) & valid
            errors = (truth.to(probability.dtype) - probability[:, index]).abs()
            # ignored pixels come last, where they change no slope before them
            order = torch.where(valid, errors, -1.0).argsort(dim=1, descending=True, stable=True)
            sorted_slopes = jaccard_slopes(truth.gather(1, order), probability.dtype)
            slope = torch.empty_like(sorted_slopes).scatter_(1, order, sorted_slopes)
            present = truth.any(1)
            slope = slope * (valid & present.unsqueeze(1))
            slopes[:, index] = torch.where(truth, -slope, slope)  # the error is 1 - p, or p
            constant += (slope * truth).sum(1)
            classes += present
        classes.clamp_(min=1)
        slopes /= classes.view(-1, 1, 1)
    return (slopes * probability).sum((1, 2)) + constant / classes


def jaccard_slopes(truth: Tensor, dtype: torch.dtype) -> Tensor:
    """(N,P) bool in the order of falling errors -> by how much each one raises the Jaccard loss.

    The differences of Algorithm 1 of the paper in closed form and whole numbers: the losses of many
    pixels are numbers near 1, whose differences would lose digits. A pixel of the class that is
    wrong leaves the intersection; another one joins the union.
    """
    found = truth.cumsum(1)
    intersection = found[:, -1:] - found
    union = intersection + torch.arange(1, truth.shape[1] + 1, device=truth.device)
    joins = intersection.to(dtype) / (union * (union - 1).clamp(min=1))
    return torch.where(truth, 1 / union.to(dtype), joins)


def boundary_nearness(label: Tensor, valid: Tensor, width: int) -> Tensor:
    """(N,H,W) -> 1 beside a pixel of another class, 0 from `width` pixels further on, float32.

    The distance d is that of the larger coordinate, to the nearest labelled pixel of another class,
    across ignored ones too: max(0, 1 - (d - 1) / width).
    """
    values = label.float()
    highest, lowest = (
        torch.where(valid, signed, -torch.inf).unsqueeze(1) for signed in (values, -values)
    )
    nearness = torch.zeros_like(values)
    for _ in range(width):  # the window grows by one pixel on each side
        highest, lowest = (F.max_pool2d(extreme, 3, 1, 1) for extreme in (highest, lowest))
        nearness += (valid & (highest != -lowest).squeeze(1)) / width
    return nearness


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
    smallest = process_group.all_gather(smallest).flatten()
    kth = torch.topk(smallest, k, largest=False, sorted=False).values.amax()
    return torch.where(total > k, kth, infinity)


def subsample_label(label: Tensor, size: torch.Size, *, align_corners: bool = True) -> Tensor:
    """Nearest labels on a smaller grid: (N,H,W) -> (N,*size); (N,) stays.

    The grid lies on the labels as the network's `align_corners` lays logits on the image.
    """
    if tuple(label.shape[1:]) == tuple(size):
        return label
    rows, columns = (
        nearest_indices(old, new, align_corners=align_corners, device=label.device)
        for old, new in zip(label.shape[-2:], size, strict=True)
    )
    return label[:, rows][:, :, columns]


def nearest_indices(old: int, new: int, *, align_corners: bool, device: torch.device) -> Tensor:
    """(new,) int64: for each place of a smaller grid the nearest of `old`, the later of two."""
    if align_corners:
        return torch.linspace(0, old - 1, new, device=device).round().long()
    return torch.div(
        (2 * torch.arange(new, device=device) + 1) * old, 2 * new, rounding_mode="floor"
    )


def balanced_class_weights(pixels: Tensor) -> Tensor:
    """Class weights from class frequencies: 1 / log(1.02 + frequency), scaled to mean 1.

    The bounded inverse frequency of ENet (Paszke et al., 2016, Sec. 5.2); absent classes weigh 1.
    """
    frequency = pixels.double() / pixels.sum().clamp(min=1)
    weights = 1.0 / torch.log(1.02 + frequency)
    present = pixels > 0
    weights = weights / weights[present].mean() if present.any() else torch.ones_like(weights)
    return torch.where(present, weights, torch.ones_like(weights)).float()
