"""Normalisation of images before they enter the network."""

from collections.abc import Sequence

import torch
from torch import Tensor


class Normalization:
    """(N, C, H, W) pixels of 0..255 -> float32, minus `mean`, divided by `std`.

    Args:
        mean, std: one value per channel, in pixel units.
        device: where the images will be.
    """

    def __init__(
        self, mean: Sequence[float], std: Sequence[float], device: torch.device | str = "cpu"
    ) -> None:
        self.mean, self.std = (
            torch.tensor(values, dtype=torch.float32, device=device).view(1, -1, 1, 1)
            for values in (mean, std)
        )

    def __call__(self, image: Tensor) -> Tensor:
        return (image.float() - self.mean) / self.std
