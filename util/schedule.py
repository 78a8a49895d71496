"""Learning-rate schedules, stepped per iteration."""


def poly(base_rate: float, step: int, total_steps: int, power: float = 0.9) -> float:
    """The rate that step `step` (counted from 0) runs at: base_rate * (1 - step / total)^power."""
    return base_rate * (1 - min(step, total_steps) / total_steps) ** power


def step_decay(base_rate: float, epoch: int, step_epochs: int, factor: float = 0.1) -> float:
    """The rate of an epoch that falls by `factor` every `step_epochs` epochs."""
    return base_rate * factor ** (epoch // step_epochs)
