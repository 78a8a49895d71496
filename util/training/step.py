"""The forward and backward passes of one step: the whole batch at once, or in parts."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .losses import SegmentationLoss
from .mixup import Mixture
from .optimizer import autocast


class StepResult(NamedTuple):
    """`figures` (3,): total, main and auxiliary loss; `prediction` of the training logits, of the
    labels' shape, or None where these are smaller than the labels."""

    figures: Tensor
    prediction: Tensor | None


def part_sizes(images: int, parts: int) -> list[int]:
    """How many images each part has: they differ by one at most, the larger ones first."""
    return [images // parts + (index < images % parts) for index in range(parts)]


def forward_backward(
    network: nn.Module,
    loss: SegmentationLoss,
    image: Tensor,
    label: Tensor,
    *,
    prepare: Callable[[Tensor], Tensor],
    scaler: torch.amp.GradScaler,
    dtype: torch.dtype,
    parts: int = 1,
    mixture: Mixture | None = None,
) -> StepResult:
    """Add the gradients of this process's share to the parameters.

    `image` is (N, C, H, W), `label` (N, H, W), or (N,) for a network that classifies images.

    In several parts only one of them is in memory at a time. The loss is that of the global batch
    all the same, and with norms that look at single images (group norm) so are the gradients. Batch
    norm sees one part at a time: it normalises by the part and updates its running statistics once
    a part. Processes exchange gradients once, after the last part.

    Args:
        prepare: from pixels to what the network sees.
        parts: how many; every process needs as many, and at least that many images.
        mixture: takes the place of `image`, and its labels count beside `label`.
    """
    share, partner = 1.0, label
    if mixture is not None:
        image, partner, share = mixture.image, mixture.partner, mixture.share
    figures, predictions = [], []
    sizes = part_sizes(len(image), parts)
    pieces = zip(image.split(sizes), label.split(sizes), partner.split(sizes), strict=True)
    for number, (pixels, truth, other) in enumerate(pieces, start=1):
        with nullcontext() if number == parts else without_exchange(network):
            with autocast(image.device, dtype):
                logits, auxiliary = network(prepare(pixels))
            context = {"whole": label, "parts": parts} if parts > 1 else {}
            total, main, second = loss(logits, auxiliary, truth, **context)
            if mixture is not None:  # label and partner are the same labels: so is their `whole`
                total = main = share * total + (1 - share) * loss(logits, None, other, **context)[0]
            scaler.scale(total).backward()
        figures.append(torch.stack([total, main, second]).detach())
        if logits.shape[2:] == label.shape[1:]:
            narrow = torch.uint8 if logits.shape[1] <= 256 else torch.int32
            predictions.append(logits.detach().max(1).indices.to(narrow))  # argmax takes 3 x
        del logits, auxiliary, total, main, second  # before the next part needs the memory
    prediction = torch.cat(predictions) if predictions else None
    return StepResult(torch.stack(figures).sum(0), prediction)


def without_exchange(network: nn.Module) -> AbstractContextManager:
    """Gradients stay in this process, where there are several."""
    if isinstance(network, DistributedDataParallel):
        return network.no_sync()
    return nullcontext()
