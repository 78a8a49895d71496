"""Batches onto the device, beside the computation."""

from collections.abc import Iterator
from copy import copy

import torch

from .settings import Batch


def to_device(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """The batches with `image` and `label` on `device`, one at a time; on the CPU as they come.

    Kernels are only queued, so the host asks for the next batch while the GPU still computes, and
    a copy on a stream of its own goes on beside that. It needs batches in pinned memory.
    """
    if device.type != "cuda":
        yield from batches
        return
    side = torch.cuda.Stream(device)
    for batch in batches:
        moved = copy(batch)
        with torch.cuda.stream(side):
            moved.image = batch.image.to(device, non_blocking=True)
            moved.label = batch.label.to(device, non_blocking=True)
        computing = torch.cuda.current_stream(device)
        computing.wait_stream(side)
        for tensor in (moved.image, moved.label):
            tensor.record_stream(computing)  # its memory is not given away before that is done
        yield moved
