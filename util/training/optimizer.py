"""The optimizer and its learning rate: parameter groups, schedules, and states that are loaded."""

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...config.errors import ConfigError
from ...config.schema import Config, TrainSection


def optimizer_of(config: Config, segmenter: nn.Module) -> torch.optim.Optimizer:
    """The optimizer that `TRAIN` describes.

    Raises:
        ConfigError: layer-wise learning rates for a backbone whose layers are not known.
    """
    train = config.TRAIN
    layers: list[list[nn.Parameter]] = []
    if train.layer_lr_decay < 1:
        origin = config.origin("TRAIN.layer_lr_decay")
        if not hasattr(segmenter.backbone, "layers"):
            raise ConfigError(
                f"{origin}: backbone {train.backbone} does not name its layers (`layers()`); set "
                "TRAIN.layer_lr_decay 1"
            )
        try:
            layers = segmenter.backbone.layers()
        except ValueError as error:
            raise ConfigError(f"{origin}: {error}") from error
    return build_optimizer(
        segmenter,
        segmenter.new_layers(),
        base_lr=train.base_lr,
        head_lr_factor=train.head_lr_factor,
        momentum=train.momentum,
        weight_decay=train.weight_decay,
        name=train.optimizer,
        decay_norms_and_biases=train.decay_norms_and_biases,
        undecayed=getattr(segmenter.backbone, "undecayed", list)(),
        layers=layers,
        layer_lr_decay=train.layer_lr_decay,
    )


def build_optimizer(
    network: nn.Module,
    new_layers: list[nn.Module],
    *,
    base_lr: float,
    head_lr_factor: float,
    momentum: float,
    weight_decay: float,
    name: str = "sgd",
    decay_norms_and_biases: bool = True,
    undecayed: Iterable[nn.Parameter] = (),
    layers: Sequence[Sequence[nn.Parameter]] = (),
    layer_lr_decay: float = 1.0,
) -> torch.optim.Optimizer:
    """Return SGD, AdamW or Adam with two groups: the backbone, and new layers at a higher rate.

    Each group keeps its factor as `lr_factor`, see `set_lr`. `momentum` is also the first beta of
    AdamW and Adam. Adam's weight decay is part of the gradient. Parameters that need no gradient
    are left out.

    Args:
        decay_norms_and_biases: False divides the groups by whether their parameters have one
            dimension at most: these have no weight decay (He et al., CVPR 2019, Sec. 3.1).
        undecayed: parameters of more dimensions that then have none either, such as position
            embeddings.
        layers: of the backbone, the first one first. With `layer_lr_decay` below 1 each is a group
            that learns at that factor times the rate of the next one, and the last at `base_lr`
            (Clark et al., ELECTRA, ICLR 2020).
    """
    new = {id(p) for layer in new_layers for p in layer.parameters()}
    factors = {
        id(p): layer_lr_decay ** (len(layers) - number)
        for number, layer in enumerate(layers, start=1)
        for p in layer
    }
    without = {id(p) for p in undecayed}
    parameters = [p for p in network.parameters() if p.requires_grad]
    grouped: dict[tuple[bool, float, float], list[nn.Parameter]] = {}
    for p in parameters:
        factor = head_lr_factor if id(p) in new else factors.get(id(p), 1.0)
        decays = decay_norms_and_biases or (p.dim() > 1 and id(p) not in without)
        decay = weight_decay if decays else 0.0
        grouped.setdefault((id(p) in new, factor, decay), []).append(p)
    groups = [
        {"params": grouped[key], "lr_factor": key[1], "weight_decay": key[2]}
        for key in sorted(grouped)
    ]
    if name in ("adamw", "adam"):
        kind = torch.optim.AdamW if name == "adamw" else torch.optim.Adam
        betas = (momentum, 0.999)
        return kind(groups, lr=base_lr, betas=betas, weight_decay=weight_decay, fused=True)
    optimizer = torch.optim.SGD(
        groups, lr=base_lr, momentum=momentum, weight_decay=weight_decay, fused=True
    )
    if momentum:  # zeros give the same first step, and stay valid if it is skipped
        for parameter in parameters:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load what `state_dict` gave, in the memory layout that the parameters have now.

    The fused kernels of the CPU read parameters, gradients and states side by side as they lie in
    memory, so a momentum needs the memory format of its weight, whichever it was saved in. Groups
    keep the `lr_factor` that they were built with; older checkpoints call it `rate_factor`.

    Raises:
        ValueError, KeyError: the state belongs to other parameters or to another optimizer.
    """
    factors = [group["lr_factor"] for group in optimizer.param_groups]
    optimizer.load_state_dict(dict(state))
    for group, factor in zip(optimizer.param_groups, factors, strict=True):
        group.pop("rate_factor", None)
        group["lr_factor"] = factor
        for parameter in group["params"]:
            entries = optimizer.state[parameter]
            for name, value in entries.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    entries[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the backbone's learning rate; the other groups get their multiple of it."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]


def lr_at(train: TrainSection, step: int, steps_per_epoch: int) -> float:
    """Return the backbone's learning rate of a step, counted from 0, of the whole run.

    During `warmup_epochs` it grows linearly and reaches `base_lr` with their last step (Goyal et
    al., 2017, Sec. 2.2). Poly and cosine then run over the remaining steps; milestones count
    epochs from the start of the run.
    """
    warmup = train.warmup_epochs * steps_per_epoch
    base_lr, remaining = train.base_lr, train.epochs * steps_per_epoch - warmup
    if step < warmup:
        return base_lr * (step + 1) / warmup
    if train.schedule == "step":
        passed = bisect_right(sorted(train.milestones), step // steps_per_epoch)
        return step_decay(base_lr, passed, train.rate_decay)
    if train.schedule == "cosine":
        return cosine(base_lr, step - warmup, remaining)
    return poly(base_lr, step - warmup, remaining, train.power)


def poly(base_lr: float, step: int, total_steps: int, power: float = 0.9) -> float:
    """Return base_lr * (1 - step / total_steps) ^ power; `step` is counted from 0."""
    return base_lr * (1 - min(step, total_steps) / total_steps) ** power


def cosine(base_lr: float, step: int, total_steps: int) -> float:
    """Return half a cosine wave down to 0 (Loshchilov and Hutter, SGDR, ICLR 2017, eq. 5)."""
    return base_lr * (1 + math.cos(math.pi * min(step, total_steps) / total_steps)) / 2


def step_decay(base_lr: float, drops: int, factor: float = 0.1) -> float:
    """Return the learning rate after `drops` multiplications by `factor`."""
    return base_lr * factor**drops
