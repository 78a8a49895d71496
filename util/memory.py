"""How much memory a device has left, what an error says about it, and who keeps freed memory."""

import ctypes
import os
from collections.abc import Callable
from pathlib import Path

import torch

CGROUP = Path("/sys/fs/cgroup")
MEMINFO = Path("/proc/meminfo")
UNKNOWN = 8 * 2**30  # bytes, where the system does not tell
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # glibc's M_TRIM_THRESHOLD and M_MMAP_THRESHOLD
MAPPED_FROM = 2**30, 2**25  # bytes; larger blocks go back to the system; old glibc takes 2**25


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on the device, within the limits of a container.

    What this process has freed counts as free.
    """
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    give_back_freed_memory()
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
    """Have this process and those it forks keep freed memory for the next tensor; can they?

    By default glibc gives large blocks back to the system, which has to fill each page with zeros
    when the next tensor of the same size asks for it (docs/performance.md tells what that costs).
    The process then stays at its peak size. Whoever has set glibc's own variables is left alone,
    and systems without glibc are as they are.
    """
    variables = {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_"}
    if variables & os.environ.keys() or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    set_option = glibc("mallopt")
    if set_option is None:
        return False
    mapped = any(set_option(MMAP_THRESHOLD, size) for size in MAPPED_FROM)
    return bool(set_option(TRIM_THRESHOLD, -1)) and mapped


def give_back_freed_memory() -> None:
    """Freed memory that the process has kept goes back to the system, where it can be seen."""
    trim = glibc("malloc_trim")
    if trim is not None:
        trim(0)


def glibc(name: str) -> Callable[..., int] | None:
    """A function of the C library, if that is glibc."""
    try:
        return getattr(ctypes.CDLL("libc.so.6"), name)
    except (OSError, AttributeError):
        return None
