"""Numeric precision: which type a network computes in, and what "fp32" means on a GPU."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..config.errors import DeviceError

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_precision(name: str, device: torch.device, *, key: str) -> torch.dtype:
    """Return the type for "fp32", "bf16", "fp16", or "auto": bf16 where the hardware multiplies it.

    Raises:
        DeviceError: fp16 on the CPU, whose range needs gradient scaling and which gains nothing.
    """
    if name == "auto":
        return torch.bfloat16 if has_native_bfloat16(device) else torch.float32
    if name == "fp16" and device.type == "cpu":
        raise DeviceError(f"{key}: fp16 needs a GPU; on the CPU use bf16 or fp32")
    return PRECISIONS[name]


def name_of(dtype: torch.dtype) -> str:
    """The name of one of `PRECISIONS`, such as "bf16"."""
    return next(name for name, kind in PRECISIONS.items() if kind == dtype)


def has_native_bfloat16(device: torch.device) -> bool:
    """Return whether the device multiplies bf16 numbers in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="ignore") as info:
            flags = info.read()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags or " bf16" in flags


def set_numerics(*, deterministic: bool = False) -> None:
    """Set, for this process, what GPUs may trade for speed; training and testing call it once.

    `fp32` means fp32: neither matrix products nor convolutions round their inputs to TF32. By
    default PyTorch lets convolutions do so and matrix products not. cuDNN tries out its algorithms
    once per size: training crops and test windows have one size each.

    Args:
        deterministic: only deterministic algorithms, so that two runs on the same kind of GPU are
            equal bit for bit; cuDNN then chooses without trying. Slower.
    """
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:  # cuBLAS reads this when it starts
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)


@contextmanager
def restored_numerics() -> Iterator[None]:
    """Put back, at the end, what `set_numerics` may set: the settings are the caller's."""
    cuda, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = cuda.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    deterministic = torch.are_deterministic_algorithms_enabled()
    try:
        yield
    finally:
        cuda.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before
        if torch.are_deterministic_algorithms_enabled() != deterministic:
            torch.use_deterministic_algorithms(deterministic)


@contextmanager
def exact_numerics() -> Iterator[None]:
    """No TF32, and cuDNN tries out its algorithms, inside the block alone."""
    with restored_numerics():
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = True
        yield
