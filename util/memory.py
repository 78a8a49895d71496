"""How much memory a device has left, what an error says about it, and who keeps freed memory."""

import ctypes
import os
from pathlib import Path

import torch

CGROUP = Path("/sys/fs/cgroup")
MEMINFO = Path("/proc/meminfo")
UNKNOWN = 8 * 2**30  # bytes, where the system does not tell
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # glibc's M_TRIM_THRESHOLD and M_MMAP_THRESHOLD
MAPPED_FROM = 2**30  # bytes; larger blocks go back to the system when they are freed


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on the device, within the limits of a container."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    try:
        lines = MEMINFO.read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return UNKNOWN
    return min(free * 1024, _left_in_container())


def _left_in_container() -> int:
    try:
        limit = (CGROUP / "memory.max").read_text(encoding="ascii").strip()
        used = int((CGROUP / "memory.current").read_text(encoding="ascii"))
        return max(0, int(limit) - used) if limit != "max" else 2**62
    except (OSError, ValueError):
        return 2**62


def is_out_of_memory(error: BaseException) -> bool:
    """Did an allocation fail, on whatever device?"""
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return True
    words = ("out of memory", "not enough memory")  # of libraries on a GPU; of the CPU's allocator
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def keep_freed_memory() -> bool:
    """Have this process and its children keep freed memory for the next tensor; was that possible?

    By default glibc gives large blocks back to the system, which has to fill each page with zeros
    when the next tensor of the same size asks for it: on two CPU cores a sixth of a training step,
    a quarter of a test (docs/performance.md). The process then stays at its peak size. Whoever has
    set glibc's own variables is left alone, and systems without glibc are as they are.
    """
    if {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"} & os.environ.keys():
        return False
    try:
        set_option = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(set_option(MMAP_THRESHOLD, MAPPED_FROM) and set_option(TRIM_THRESHOLD, -1))
