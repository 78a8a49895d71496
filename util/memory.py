"""Free and used memory, which errors mean that there was not enough of it, copies to the host."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..config.errors import OutOfMemoryError, first_line
from ..config.schema import TestSection, TrainSection

try:
    import resource
except ImportError:  # Windows
    resource = None

CGROUP = Path("/sys/fs/cgroup")
MEMINFO = Path("/proc/meminfo")
UNKNOWN = 8 * 2**30  # bytes, where the system does not report it
# what PyTorch, the CPU's allocator, cuBLAS and cuDNN say when an allocation has failed
OUT_OF_MEMORY = (
    "out of memory",
    "not enough memory",
    "DefaultCPUAllocator: can't allocate",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "nable to find an engine to execute this computation",  # cuDNN has no room for its workspace
)


def free_memory(device: torch.device) -> int:
    """Return the bytes that can still be allocated on the device, within a container's limits.

    On a GPU, what PyTorch has cached and does not use counts as free.
    """
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


def peak_memory(device: torch.device) -> dict[str, float]:
    """Most memory so far, GiB: of this process (without loader workers), and of PyTorch on a GPU.

    {"peak_memory_gib": 1.5, "peak_cuda_gib": 3.2}; what the system does not report is left out.
    """
    figures = {}
    if resource is not None:
        unit = 1 if sys.platform == "darwin" else 1024  # bytes
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        figures["peak_memory_gib"] = peak * unit / 2**30
    if device.type == "cuda":
        figures["peak_cuda_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    return figures


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether the error says that an allocation has failed, on any device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY)


@contextmanager
def explained_out_of_memory(
    remedies: Sequence[str], *, phase: str, last: Path | None = None
) -> Iterator[None]:
    """Turn an allocation that fails into a message with the remedies.

    Args:
        phase: "training", "validating", ...: completes the message "out of memory while".
        last: the newest checkpoint, which the failure leaves as it is.
    Raises:
        OutOfMemoryError: in place of PyTorch's error.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        kept = f"; {last} is as it was" if last is not None and last.is_file() else ""
        raise OutOfMemoryError(
            f"out of memory while {phase} ({first_line(error)}): {', or '.join(remedies)}{kept}"
        ) from error


def training_remedies(train: TrainSection) -> list[str]:
    """Return what to change where a training step does not fit the memory, best first."""
    remedies = []
    if not train.activation_checkpointing and not train.backbone.startswith("timm/"):
        remedies.append("set TRAIN.activation_checkpointing True")
    if train.precision == "fp32":
        remedies.append("set TRAIN.precision bf16")
    return [
        *remedies,
        f"raise TRAIN.accumulation_steps above {train.accumulation_steps}",
        f"lower TRAIN.batch_size below {train.batch_size}",
        f"lower the crop, TRAIN.train_h {train.train_h} and TRAIN.train_w {train.train_w}",
    ]


def validation_remedies(train: TrainSection) -> list[str]:
    """Return what to change where a validation does not fit the memory that training leaves."""
    return [
        f"lower TRAIN.batch_size_val below {train.batch_size_val}",
        "lower the window, TEST.test_h and TEST.test_w",
        *training_remedies(train),
    ]


def testing_remedies(test: TestSection, *, batch_size: int | None) -> list[str]:
    """Return what to change where a test does not fit the memory.

    Args:
        batch_size: images of a classifier in one pass; None where windows are tested, of which
            one at a time has been tried.
    """
    remedies = [f"lower the window, TEST.test_h {test.test_h} and TEST.test_w {test.test_w}"]
    if batch_size is not None:
        remedies = [f"lower TEST.batch_size below {batch_size}"]
    return [*remedies, "free memory that other programs take"]


class HostCopy:
    """A tensor on its way to the host's memory, which the device's later work does not hold up."""

    def __init__(self, tensor: Tensor) -> None:
        self.copy, self.event = tensor, None
        if tensor.device.type != "cuda":
            return
        try:
            self.copy = torch.empty_like(tensor, device="cpu", pin_memory=True)
        except RuntimeError:  # the system has no more memory to pin: a copy that blocks
            self.copy = tensor.to("cpu")
            return
        self.copy.copy_(tensor, non_blocking=True)
        self.event = torch.cuda.Event()
        # by default it would be an event of the current GPU, which may be another one
        self.event.record(torch.cuda.current_stream(tensor.device))

    def tensor(self) -> Tensor:
        """The values, once they have arrived."""
        if self.event is not None:
            self.event.synchronize()
        return self.copy

    def array(self) -> np.ndarray:
        """The same as an array."""
        return self.tensor().numpy()
