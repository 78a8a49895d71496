"""One optimizer step on one global batch, from the normalised images to the changed weights.

A step whose loss or gradient is not finite is skipped: weights and running statistics stay as they
were. Nothing here waits for the device: the decision is a tensor, which the optimizer's kernel and
`torch.where` act on; the host reads it when a line of the log is due (run_log.py).
"""

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from ..distributed import process_group
from .ema import EMA
from .losses import SegmentationLoss
from .prefetch import PreparedBatch


class StepFigures(NamedTuple):
    """What a step gives for the log, on the device.

    Args:
        losses: (3,) total, main and auxiliary loss.
        skipped: 1.0 where the step was skipped, in all processes alike.
        prediction: the classes of the training logits, of their height and width.
        gradient_norm: of all parameters together, before it is clipped; None where no step needs
            it (fp16 that does not clip).
    """

    losses: Tensor
    skipped: Tensor
    prediction: Tensor
    gradient_norm: Tensor | None = None


class TrainingStep:
    """Forward pass, loss, backward pass, update: call it with one batch after the other.

    In several parts only one of them is in memory at a time. The loss is that of the global batch
    all the same, and with norms that look at single images (group norm) so are the gradients. Batch
    norm sees one part at a time: it normalises by the part and updates its running statistics once
    per part. Processes exchange gradients once, after the last part.

    Args:
        network: the segmenter or classifier, wrapped for several processes where there are several.
        optimizer: a fused one, whose kernel leaves everything alone where `found_inf` is 1.
        dtype: of the network's arithmetic.
        accumulation_steps: parts of a batch; every process has at least that many images.
        loss_scale: the fixed factor of fp16's gradient scaler; None lets it find its own.
        ema: the moving average of the weights, or None.
        clip_grad_norm: the largest norm of the gradient of all parameters together, which a longer
            one is shortened to (Pascanu et al., ICML 2013, Sec. 3.2); None leaves it.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        optimizer: torch.optim.Optimizer,
        loss: SegmentationLoss,
        dtype: torch.dtype = torch.float32,
        accumulation_steps: int = 1,
        loss_scale: float | None = None,
        ema: EMA | None = None,
        clip_grad_norm: float | None = None,
    ) -> None:
        self.network = network
        self.optimizer = optimizer
        self.loss = loss
        self.dtype = dtype
        self.accumulation_steps = accumulation_steps
        self.loss_scale = loss_scale
        self.ema = ema
        self.clip_grad_norm = clip_grad_norm
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.scaler = torch.amp.GradScaler(
            self.parameters[0].device.type,
            enabled=dtype == torch.float16,
            init_scale=loss_scale or 2.0**16,
        )
        self.statistics = RunningStatistics(network)

    def __call__(self, batch: PreparedBatch) -> StepFigures:
        """One step; `label` is (N, H, W), or (N,) for a network that classifies images."""
        device, parts = batch.image.device, self.accumulation_steps
        of_all_parts = {"whole": batch.label, "parts": parts} if parts > 1 else {}
        sizes = part_sizes(len(batch.image), parts)
        losses, predictions = [], []
        self.statistics.remember()
        self.optimizer.zero_grad(set_to_none=True)
        partners = batch.label if batch.partner is None else batch.partner
        for index, (image, label, partner) in enumerate(
            zip(*(t.split(sizes) for t in (batch.image, batch.label, partners)), strict=True)
        ):
            with nullcontext() if index == parts - 1 else without_exchange(self.network):
                with torch.autocast(device.type, self.dtype, enabled=self.dtype != torch.float32):
                    logits, auxiliary = self.network(image)
                total, main, second = self.loss(logits, auxiliary, label, **of_all_parts)
                if batch.partner is not None:  # the same labels as `label`: so is their `whole`
                    other, _, _ = self.loss(logits, None, partner, **of_all_parts)
                    total = main = batch.share * total + (1 - batch.share) * other
                self.scaler.scale(total).backward()
            losses.append(torch.stack([total, main, second]).detach())
            narrow = torch.uint8 if logits.shape[1] <= 256 else torch.int32
            predictions.append(logits.detach().max(1).indices.to(narrow))  # argmax: 3x slower
            del logits, auxiliary, total, main, second  # before the next part needs the memory
        losses = torch.stack(losses).sum(0)

        if self.scaler.is_enabled():
            # it skips steps whose gradients are not finite, as a matter of course; a loss that is
            # not may have finite ones
            skipped = self._not_finite(losses[0])
            gradient = next(p.grad for p in self.parameters if p.grad is not None)
            gradient.masked_fill_(skipped.bool(), torch.inf)
            norm = self._gradient_norm()
        else:
            norm = self._gradient_norm()
            skipped = self._not_finite(losses[0], norm)
        if self.clip_grad_norm is not None:
            clip_grads_with_norm_(self.parameters, self.clip_grad_norm, norm)
        if self.scaler.is_enabled():
            self.scaler.step(self.optimizer)
            self.scaler.update(self.loss_scale)
        else:
            self.optimizer.found_inf = skipped  # as GradScaler tells it: its kernel changes nothing
            self.optimizer.step()
        self.statistics.restore(skipped)
        if self.ema is not None:
            self.ema.update(batch.step + 1)
        return StepFigures(losses, skipped, torch.cat(predictions), norm)

    def _gradient_norm(self) -> Tensor | None:
        """Of all parameters; None with fp16, unless they must be clipped and thus unscaled."""
        if self.scaler.is_enabled():
            if self.clip_grad_norm is None:
                return None
            self.scaler.unscale_(self.optimizer)
        return get_total_norm([p.grad for p in self.parameters if p.grad is not None])

    def _not_finite(self, *numbers: Tensor) -> Tensor:
        """1.0 where a number of any process is not finite, else 0.0: one decision for all."""
        found = ~torch.stack(numbers).isfinite().all()
        return process_group.all_reduce_max(found.float())


class RunningStatistics:
    """The floating-point buffers of a network, which a batch that is not finite would corrupt.

    All of them are copied by one operation, where a loop would queue hundreds at every step.
    """

    def __init__(self, network: nn.Module) -> None:
        by_type: dict[torch.dtype, list[Tensor]] = {}
        for buffer in network.buffers():
            if buffer.is_floating_point():
                by_type.setdefault(buffer.dtype, []).append(buffer.view(-1))
        self.buffers = list(by_type.values())
        self.before = [torch.cat(buffers) for buffers in self.buffers]

    @torch.no_grad()
    def remember(self) -> None:
        """Keep the values that the buffers have now."""
        for buffers, before in zip(self.buffers, self.before, strict=True):
            torch.cat(buffers, out=before)

    @torch.no_grad()
    def restore(self, skipped: Tensor) -> None:
        """Give the buffers the values remembered, if `skipped` is 1."""
        for buffers, before in zip(self.buffers, self.before, strict=True):
            kept = torch.where(skipped.bool(), before, torch.cat(buffers))
            torch.split_with_sizes_copy(kept, [len(buffer) for buffer in buffers], out=buffers)


def part_sizes(images: int, parts: int) -> list[int]:
    """Images of each part: the numbers differ by one at most, the larger ones first."""
    return [images // parts + (index < images % parts) for index in range(parts)]


def without_exchange(network: nn.Module) -> AbstractContextManager:
    """Gradients stay in this process, where there are several."""
    if isinstance(network, DistributedDataParallel):
        return network.no_sync()
    return nullcontext()
