"""Mixup and CutMix: each image is mixed with another one, and so are their labels."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Mixture(NamedTuple):
    """`image` (N, C, H, W); `partner` (N,), the labels of the images mixed in.

    An image counts `share` as its own label and 1 - `share` as its partner's.
    """

    image: Tensor
    partner: Tensor
    share: float


def mix(
    image: Tensor, label: Tensor, *, mixup: float, cutmix: float, generator: np.random.Generator
) -> Mixture:
    """Mix each image with the one at the other end of the batch.

    Mixup (Zhang et al., ICLR 2018, eq. 1): share * x + (1 - share) * x', as float32. CutMix (Yun et
    al., ICCV 2019, eq. 1): a rectangle of x' is pasted into x and takes 1 - share of the area. The
    share is drawn from Beta(a, a).

    Args:
        image: (N, C, H, W) uint8.
        label: (N,).
        mixup, cutmix: alpha of the Beta distribution; 0 switches one off. With both, one is drawn
            for each batch.
    """
    use_cutmix = cutmix > 0 and (mixup == 0 or generator.random() < 0.5)
    strength = cutmix if use_cutmix else mixup
    share, partner = float(generator.beta(strength, strength)), image.flip(0)
    if not use_cutmix:
        return Mixture(torch.lerp(partner.float(), image.float(), share), label.flip(0), share)
    height, width = image.shape[-2:]
    side = np.sqrt(1 - share)
    row, column = generator.integers(0, [height, width])  # of the rectangle's centre
    top, bottom = edges(row, side * height, height)
    left, right = edges(column, side * width, width)
    mixed = image.clone(memory_format=torch.preserve_format)
    mixed[..., top:bottom, left:right] = partner[..., top:bottom, left:right]
    cut = (bottom - top) * (right - left) / (height * width)
    return Mixture(mixed, label.flip(0), 1 - cut)


def edges(centre: int, length: float, limit: int) -> tuple[int, int]:
    """Return the first pixel of a stretch and the one after its last, cut off at the border."""
    half = int(length) // 2
    return max(int(centre) - half, 0), min(int(centre) + half, limit)
