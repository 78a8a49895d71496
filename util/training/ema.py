"""Exponential moving average of the weights, which often predicts better than the weights.

Polyak and Juditsky, 1992; as a moving average in Szegedy et al., CVPR 2016, Sec. 8.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class EMA:
    """Exponential moving average of a network's weights and running statistics.

    Args:
        network: on its device; its tensors are changed in place from here on.
        decay: share of the average that a step keeps. The first steps keep (1 + step) / (10 + step)
            at most, so that the start is soon forgotten.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.live = network.state_dict()  # shares memory with the network
        self.tensors = {key: tensor.clone() for key, tensor in self.live.items()}
        self.floats = [key for key, tensor in self.live.items() if tensor.is_floating_point()]
        # counters, of each type all together: two operations instead of one per layer
        self.others: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
        for key, tensor in self.live.items():
            if key not in self.floats:
                kept, live = self.others.setdefault(tensor.dtype, ([], []))
                kept.append(self.tensors[key].view(-1))
                live.append(tensor.view(-1))

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the averages with the weights after step `step`, counted from 1."""
        keep = min(self.decay, (1 + step) / (10 + step))
        averages = [self.tensors[key] for key in self.floats]
        update = get_ema_multi_avg_fn(keep)
        update(averages, [self.live[key] for key in self.floats], None)
        for kept, live in self.others.values():
            torch.split_with_sizes_copy(torch.cat(live), [len(x) for x in live], out=kept)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside the block the network has the averages."""
        weights = {key: tensor.clone() for key, tensor in self.live.items()}
        fill(self.live, self.tensors)
        try:
            yield
        finally:
            fill(self.live, weights)

    def load_state_dict(self, averages: Mapping[str, Tensor]) -> None:
        """Restore saved averages."""
        fill(self.tensors, averages)


@torch.no_grad()
def fill(targets: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Copy values into tensors that others hold."""
    for key, value in values.items():
        targets[key].copy_(value)
