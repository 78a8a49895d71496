"""`TRAIN.batch_size auto`: the largest batch whose training step fits the memory."""

import gc
import os
from collections.abc import Callable

import torch
from torch import Tensor

from ..distributed import process_group
from ..memory import free_memory, is_out_of_memory

MARGIN = 0.9  # share of a GPU's free memory that a step may take: fragments, larger later steps
CPU_SHARE = 0.5  # of the memory that is available: loader processes and others want some as well
CPU_MOST = 16  # images of all processes of a machine; more gain nothing on a CPU
Fits = Callable[[int], bool]
Step = Callable[[int], None]  # makes one training step with this many images of this process


def largest_that_fits(fits: Fits, *, least: int, most: int) -> int:
    """The largest number of images, `least` to `most`, that `fits`; 0 if not even `least` does.

    The number is doubled while it fits; between the last that did and the first that did not it
    is found by bisection.
    """
    if not fits(least):
        return 0
    good, bad = least, most + 1
    while good < most:
        attempt = min(2 * good, most) if bad > most else (good + bad) // 2
        if attempt == good:
            break
        if fits(attempt):
            good = attempt
        else:
            bad = attempt
    return good


def fits_gpu(step: Step, device: torch.device) -> Fits:
    """Return a test by trying: a step fits with a tenth of the GPU's free memory to spare."""

    def fits(images: int) -> bool:
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(device)
        budget = MARGIN * (free + torch.cuda.memory_reserved(device))
        fitted = False
        try:
            step(images)  # the first one of a size also tries out convolution algorithms
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
            step(images)
            torch.cuda.synchronize(device)
            fitted = torch.cuda.max_memory_reserved(device) <= budget
        except RuntimeError as error:
            if not is_too_much(error):
                raise
        gc.collect()  # the error's frames held tensors
        torch.cuda.empty_cache()
        return fitted

    return fits


def is_too_much(error: RuntimeError) -> bool:
    """Return whether a GPU's error says that the batch is too large."""
    return is_out_of_memory(error) or "32-bit index" in str(error)  # kernels that count that far


def fits_cpu(step: Step, *, least: int, available: int | None = None) -> Fits:
    """Return a test by an estimate: trying could make the machine run out of memory.

    One step of `least` images shows how many bytes an image leaves for the backward pass. Twice
    that, for gradients and work space, must fit into this process's part of half of what is
    available.

    Args:
        available: bytes; by default what the machine has.
    """
    kept = bytes_kept(lambda: step(least)) / least
    if available is None:
        available = free_memory(torch.device("cpu"))
    part = CPU_SHARE * available / int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return lambda images: 2 * kept * images <= part


def bytes_kept(work: Callable[[], None]) -> int:
    """Bytes of the tensors that forward passes in `work` keep for their backward passes."""
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if not (tensor.is_leaf and tensor.requires_grad):  # parameters are there anyway
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        work()
    return sum(sizes.values())


def agreed_share(fits: Fits, *, least: int, most: int) -> int:
    """Images of every process: the smallest of what each of them finds; 0 if one finds none.

    The processes search by themselves, since one may run out of memory where another does not.
    """
    with process_group.alone():
        share = largest_that_fits(fits, least=least, most=most)
    return process_group.smallest(share)
