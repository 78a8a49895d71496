"""Steps whose loss or gradient is not finite are skipped: weights and statistics stay as they were.

Nothing here waits for the device: the verdict of a step is a tensor, the optimizer's kernel and
`torch.where` act on it, and the host looks only when a line of the log is due.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class NonFiniteGuard:
    """Watches the steps of one network and optimizer.

    Args:
        network: whose buffers (running statistics) a bad batch would spoil.
        optimizer: a fused one, whose kernel leaves everything alone where `found_inf` is 1.
        device: of the network.
    """

    def __init__(
        self, network: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device
    ) -> None:
        self.buffers = [b for b in network.buffers() if b.is_floating_point()]
        self.before = [buffer.clone() for buffer in self.buffers]
        self.optimizer = optimizer
        self.device = device
        self.seen: list[tuple[int, Sequence[str], Tensor]] = []  # since the last look
        self.in_a_row = 0
        self.total = 0

    def before_step(self) -> None:
        """Remember the running statistics."""
        if self.buffers:
            torch._foreach_copy_(self.before, self.buffers)

    def judge(self, loss: Tensor, *, gradients: bool) -> Tensor:
        """1.0 where the step must be skipped, on the device.

        `gradients` False looks at the loss alone, where a gradient scaler watches these.
        """
        found = ~loss.detach().isfinite()
        if gradients:
            grads = [
                p.grad
                for group in self.optimizer.param_groups
                for p in group["params"]
                if p.grad is not None
            ]
            norms = torch.stack(torch._foreach_norm(grads))
            found = found | ~norms.isfinite().all()
        return found.float()

    def keep_or_restore(self, bad: Tensor) -> None:
        """Put the running statistics back where the step is bad."""
        for buffer, before in zip(self.buffers, self.before, strict=True):
            buffer.copy_(torch.where(bad.bool(), before, buffer))

    def note(self, step: int, names: Sequence[str], bad: Tensor) -> None:
        self.seen.append((step, names, bad))

    def look(self) -> list[str]:
        """What to say of the steps skipped since the last look; counts them."""
        if not self.seen:
            return []
        verdicts = torch.stack([bad for _, _, bad in self.seen]).tolist()
        skipped = []
        for (step, names, _), bad in zip(self.seen, verdicts, strict=True):
            self.in_a_row = self.in_a_row + 1 if bad else 0
            if bad:
                skipped.append(
                    f"step {step} skipped: its loss or gradient is not finite; images of this "
                    f"process: {', '.join(names)}"
                )
        self.total += len(skipped)
        self.seen.clear()
        return skipped
