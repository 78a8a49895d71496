"""Optimizer, its parameter groups, and numeric precision."""

import contextlib

import torch
from torch import nn

from ...config.errors import DeviceError

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def build_optimizer(
    network: nn.Module,
    new_layers: list[nn.Module],
    *,
    base_rate: float,
    new_layer_factor: float,
    momentum: float,
    weight_decay: float,
    name: str = "sgd",
) -> torch.optim.Optimizer:
    """SGD, AdamW or Adam with two groups: the backbone, and new layers at a multiple of its rate.

    Each group keeps its factor as `rate_factor`; the trainer multiplies the schedule by it.
    `momentum` is also the first beta of the others. Adam's weight decay is part of the gradient.
    """
    new = {id(p) for layer in new_layers for p in layer.parameters()}
    parameters = list(network.parameters())
    groups = [
        {"params": [p for p in parameters if id(p) not in new], "rate_factor": 1.0},
        {"params": [p for p in parameters if id(p) in new], "rate_factor": new_layer_factor},
    ]
    groups = [group for group in groups if group["params"]]
    if name in ("adamw", "adam"):
        kind = torch.optim.AdamW if name == "adamw" else torch.optim.Adam
        betas = (momentum, 0.999)
        return kind(groups, lr=base_rate, betas=betas, weight_decay=weight_decay, fused=True)
    optimizer = torch.optim.SGD(
        groups, lr=base_rate, momentum=momentum, weight_decay=weight_decay, fused=True
    )
    if momentum:  # zero is what the first step means, and stays if that step is skipped
        for parameter in parameters:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate_factor"]


def choose_precision(name: str, device: torch.device, *, key: str) -> torch.dtype:
    """ "fp32", "bf16", "fp16", or "auto": bf16 where the hardware multiplies it natively.

    Raises:
        DeviceError: fp16 on the CPU, whose range needs gradient scaling nobody gains from there.
    """
    if name == "auto":
        return torch.bfloat16 if has_native_bfloat16(device) else torch.float32
    if name == "fp16" and device.type == "cpu":
        raise DeviceError(f"{key}: fp16 needs a GPU; on the CPU use bf16 or fp32")
    return PRECISIONS[name]


def has_native_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="ignore") as info:
            flags = info.read()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags or " bf16" in flags


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager:
    """Mixed precision for a forward pass; nothing for fp32."""
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype)
