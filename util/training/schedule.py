"""Learning-rate schedules, stepped per iteration."""

import math
from bisect import bisect_right

from ...config.schema import TrainSection


def poly(base_rate: float, step: int, total_steps: int, power: float = 0.9) -> float:
    """The rate that step `step` (counted from 0) runs at: base_rate * (1 - step / total)^power."""
    return base_rate * (1 - min(step, total_steps) / total_steps) ** power


def cosine(base_rate: float, step: int, total_steps: int) -> float:
    """Half a cosine wave down to 0 (Loshchilov and Hutter, SGDR, ICLR 2017, eq. 5)."""
    return base_rate * (1 + math.cos(math.pi * min(step, total_steps) / total_steps)) / 2


def step_decay(base_rate: float, epoch: int, step_epochs: int, factor: float = 0.1) -> float:
    """The rate of an epoch that falls by `factor` every `step_epochs` epochs."""
    return base_rate * factor ** (epoch // step_epochs)


def rate_at(train: TrainSection, step: int, steps_per_epoch: int) -> float:
    """The rate of a step, counted from 0, of the whole run.

    Through `warmup_epochs` it grows evenly and reaches the base rate with their last step (Goyal et
    al., 2017, Sec. 2.2). Poly and cosine then run over the steps that are left; milestones count
    epochs from the start of the run.
    """
    warm = train.warmup_epochs * steps_per_epoch
    base, left = train.base_lr, train.epochs * steps_per_epoch - warm
    if step < warm:
        return base * (step + 1) / warm
    if train.schedule == "step":
        return base * train.rate_decay ** bisect_right(
            sorted(train.milestones), step // steps_per_epoch
        )
    if train.schedule == "cosine":
        return cosine(base, step - warm, left)
    return poly(base, step - warm, left, train.power)
