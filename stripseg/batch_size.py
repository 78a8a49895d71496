"""`TRAIN.batch_size auto`: the largest batch whose training step fits the memory."""

import gc
import logging
from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from .config.errors import TrainingError
from .config.schema import Config
from .util.distributed import process_group
from .util.images import Normalization
from .util.memory import free_memory, is_out_of_memory
from .util.training.ema import EMA
from .util.training.losses import loss_of
from .util.training.optimizer import optimizer_of
from .util.training.prefetch import PreparedBatch
from .util.training.step import TrainingStep

MARGIN = 0.9  # share of a GPU's free memory that a step may take: fragments, larger later steps
CPU_SHARE = 0.5  # of the memory that is available: loader processes and others want some as well
CPU_MOST = 16  # images of all processes of a machine; more gain nothing on a CPU
# errors of kernels with 32-bit indexing, such as the upsampling of torch 2.11 and older
TOO_MANY_ELEMENTS = ("32-bit index", "canUse32BitIndexMath", "INT_MAX")
Fits = Callable[[int], bool]
Step = Callable[[int], None]  # makes one training step with this many images of this process


def settle_batch_size(
    config: Config,
    segmenter: nn.Module,
    *,
    images: int,
    device: torch.device,
    dtype: torch.dtype,
    resumed: Mapping[str, Any] | None,
    log: logging.Logger,
    fits: Fits | None = None,
) -> Config:
    """The config with a number for `TRAIN.batch_size auto`: the resumed run's, or a found one.

    Args:
        segmenter: stays as it is; a copy is tried out.
        images: in the training list: no batch can have more.
        resumed: content of the checkpoint that the run resumes from, if any.
        fits: whether a step with this many images per process fits. By default it is tried out.
    Raises:
        TrainingError: not even the smallest batch fits.
    """
    train = config.TRAIN
    if train.batch_size != "auto":
        return config
    before = ((resumed or {}).get("config") or {}).get("TRAIN", {}).get("batch_size")
    if isinstance(before, int):
        log.info(f"TRAIN.batch_size auto: {before}, as in the run that is resumed")
        return with_batch_size(config, before)
    processes = process_group.world_size()
    least = 2 if train.norm == "batch" else 1  # one image may leave batch norm a single value
    most = images if device.type == "cuda" else min(images, CPU_MOST)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        fits = fits or fits_on(device, trial_step(config, segmenter, device, dtype), least)
        share = agreed_share(fits, least=least, most=max(least, most // processes))
    if share == 0:
        raise TrainingError(
            f"TRAIN.batch_size auto: a step with {least} images of {train.train_h}x{train.train_w} "
            f"does not fit the memory; lower TRAIN.train_h and TRAIN.train_w, or set "
            "TRAIN.activation_checkpointing true or TRAIN.precision bf16"
        )
    batch = share * processes
    log.info(
        f"TRAIN.batch_size auto: {batch}, {share} a process; TRAIN.base_lr stays {train.base_lr:g}"
    )
    return with_batch_size(config, batch)


def fits_on(device: torch.device, step: Step, least: int) -> Fits:
    if device.type == "cuda":
        return fits_gpu(step, device)
    with process_group.alone():
        return fits_cpu(step, least=least)


def with_batch_size(config: Config, batch: int) -> Config:
    train = config.TRAIN.model_copy(update={"batch_size": batch})
    return config.model_copy(update={"TRAIN": train})


def trial_step(
    config: Config, segmenter: nn.Module, device: torch.device, dtype: torch.dtype
) -> Step:
    """images -> nothing: one training step on random data, by a copy of the network."""
    train = config.TRAIN
    network = deepcopy(segmenter).to(device).train()
    if train.channels_last:
        network.to(memory_format=torch.channels_last)
    train_step = TrainingStep(
        network,
        optimizer=optimizer_of(config, network),
        loss=loss_of(config),
        dtype=dtype,
        ema=EMA(network, train.average_decay) if train.average_decay else None,
        clip_grad_norm=train.clip_grad_norm,
    )
    normalize = Normalization(config.DATA.mean, config.DATA.std, device)
    layout = torch.channels_last if train.channels_last else torch.contiguous_format

    def step(images: int) -> None:
        size = (train.train_h, train.train_w)
        shape = (images, config.DATA.in_channels, *size)
        image = torch.randint(256, shape, dtype=torch.uint8, device=device)
        image = normalize(image).contiguous(memory_format=layout)
        shape = (images,) if config.classifies else (images, *size)
        label = torch.randint(config.DATA.classes, shape, device=device)
        train_step(PreparedBatch(0, image, label, partner=None, share=1.0, names=[], problems=[]))

    return step


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
    return is_out_of_memory(error) or any(text in str(error) for text in TOO_MANY_ELEMENTS)


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
    part = CPU_SHARE * available / max(1, process_group.number_of("LOCAL_WORLD_SIZE", 1))
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
