"""Copies between the host and a device, for which neither waits."""

import numpy as np
import torch
from torch import Tensor


def upload(array: np.ndarray, device: torch.device) -> Tensor:
    """Copy to the device; a GPU's copy is from pinned memory, and the host does not wait for it.

    On the CPU the tensor and the array are the same memory, where the array can be written to.
    """
    tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class HostCopy:
    """A tensor on its way to the host's memory, which the device's later work does not hold up."""

    def __init__(self, tensor: Tensor) -> None:
        self.copy, self.event = tensor, None
        if tensor.device.type == "cuda":
            self.copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self.copy.copy_(tensor, non_blocking=True)
            self.event = torch.cuda.Event()
            # by default it would be an event of the current GPU, which may be another one
            self.event.record(torch.cuda.current_stream(tensor.device))

    def array(self) -> np.ndarray:
        """The values, once they have arrived."""
        if self.event is not None:
            self.event.synchronize()
        return self.copy.numpy()
