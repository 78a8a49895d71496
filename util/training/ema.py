"""Averages of the weights over the steps, which often predict better than the weights themselves.

Polyak and Juditsky, 1992; as a moving average in Szegedy et al., CVPR 2016, Sec. 8.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


class WeightAverage:
    """Exponential moving average of a network's weights and running statistics.

    Args:
        network: on its device; its tensors are changed in place from here on.
        decay: share of the average that a step keeps; 0 averages nothing. The first steps keep
            (1 + step) / (10 + step) at most, so that the start is soon forgotten.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = network
        self.decay = decay
        self.live = network.state_dict() if decay else {}  # shares memory with the network
        self.tensors = {key: tensor.clone() for key, tensor in self.live.items()}
        self.floats = [key for key, tensor in self.live.items() if tensor.is_floating_point()]
        self.others = [key for key in self.live if key not in self.floats]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after step `step`, counted from 1."""
        if not self.decay:
            return
        keep = min(self.decay, (1 + step) / (10 + step))
        averages = [self.tensors[key] for key in self.floats]
        torch._foreach_lerp_(averages, [self.live[key] for key in self.floats], 1 - keep)
        for key in self.others:
            self.tensors[key].copy_(self.live[key])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside the block the network has the averages."""
        weights = {key: tensor.clone() for key, tensor in self.live.items()}
        self._fill(self.live, self.tensors)
        try:
            yield
        finally:
            self._fill(self.live, weights)

    def contents(self) -> dict[str, Any]:
        """What a checkpoint holds: in `state_dict` the weights that are to be used.

        Those that training goes on with are in `training_weights`, where they are others.
        """
        if not self.decay:
            return {"state_dict": self.network.state_dict()}
        return {"state_dict": self.tensors, "training_weights": self.network.state_dict()}

    def restore(self, content: Mapping[str, Any]) -> None:
        """Go on from a checkpoint whose `state_dict` the network has been given already."""
        self._fill(self.tensors, content["state_dict"] if self.decay else {})
        if "training_weights" in content:
            self._fill(self.network.state_dict(), content["training_weights"])

    @torch.no_grad()
    def _fill(self, targets: Mapping[str, torch.Tensor], values: Mapping[str, Any]) -> None:
        for key, value in values.items():
            targets[key].copy_(value)
