"""A network on its device, compiled, and as one of several processes."""

import inspect
import logging
import warnings
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ...config.errors import TrainingError, first_line
from ...config.schema import Config
from ..distributed import process_group, sync_batch_norm
from ..memory import is_out_of_memory
from .step import without_exchange

STEPS_WORTH_COMPILING = 5000  # training steps, which save what the compiler takes, a minute or two


def check_batch_norm(config: Config, segmenter: nn.Module) -> None:
    """Find out before training whether a batch leaves batch norm a single value per channel.

    Only one image can: a pass without data (meta tensors) over the batch that batch norm will see.
    """
    train = config.TRAIN
    share = images_at_least(
        train.batch_size,
        process_group.world_size(),
        train.accumulation_steps,
        synchronized=train.sync_bn,
    )
    if share > 1:
        return
    hollow = deepcopy(segmenter).to("meta").train()
    image = torch.empty(share, config.DATA.in_channels, train.train_h, train.train_w, device="meta")
    try:
        with torch.no_grad():
            hollow(image)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise TrainingError(
            f"TRAIN.batch_size {train.batch_size} with crop {train.train_h}x{train.train_w} leaves "
            f"batch norm one value per channel ({share} image a pass); raise TRAIN.batch_size "
            "or the crop, lower TRAIN.accumulation_steps, or set TRAIN.norm group"
        ) from error


def images_at_least(batch: int, processes: int, parts: int, *, synchronized: bool) -> int:
    """The fewest images that batch norm sees at once, of all processes together if synchronized.

    Raises:
        TrainingError: a process has fewer images than parts.
    """
    least = [len(range(rank, batch, processes)) // parts for rank in range(processes)]
    if min(least) == 0:
        raise TrainingError(
            f"TRAIN.accumulation_steps {parts} is more than the {batch // processes} images that "
            f"some of the {processes} processes have of TRAIN.batch_size {batch}; lower it, or "
            "raise the batch"
        )
    return sum(least) if synchronized else min(least)


def place_network(
    config: Config,
    segmenter: nn.Module,
    device: torch.device,
    *,
    dtype: torch.dtype = torch.float32,
    steps: int = 0,
) -> nn.Module:
    """Move the network to its device, compile it, and make it one of several processes.

    Args:
        dtype: what it computes in.
        steps: of the whole run: `TRAIN.compile auto` compiles for many only.
    """
    train = config.TRAIN
    segmenter.to(device)
    if train.channels_last:
        segmenter.to(memory_format=torch.channels_last)
    synchronized = train.sync_bn and train.norm == "batch"
    if synchronized and process_group.world_size() > 1:
        with warnings.catch_warnings():
            if not process_group.is_main():
                warnings.simplefilter("ignore")
            sync_batch_norm.convert(segmenter, device=device, use_apex=config.Distributed.use_apex)
    processes = process_group.world_size()
    distribute = partial(one_of_several, device=device, synchronized=synchronized)
    auto = train.compile == "auto"
    compiles = is_worth_compiling(config, device, steps) if auto else train.compile
    if compiles and synchronized and processes > 1:
        # graphs break there on GPUs, and warming up must not wait for others: docs/scale.md
        logging.getLogger("stripseg").warning(
            f"{'note' if auto else 'warning'}: TRAIN.compile: not with batch norm that {processes} "
            "processes share; continuing without it. To compile, set TRAIN.norm group or "
            "TRAIN.sync_bn False"
        )
    elif compiles:
        images = -(-train.batch_size // processes // train.accumulation_steps)
        return compile_or_eager(
            segmenter,
            (images, config.DATA.in_channels, train.train_h, train.train_w),
            dtype=dtype,
            channels_last=train.channels_last,
            distribute=distribute,
        )
    return distribute(segmenter)


def is_worth_compiling(config: Config, device: torch.device, steps: int) -> bool:
    """What `TRAIN.compile auto` means: a GPU, many steps, and no option that stands against it.

    Kernels are chosen by their speed, so that equal runs are not equal bit for bit.
    """
    hindered = config.TRAIN.activation_checkpointing or config.TRAIN.deterministic
    return device.type == "cuda" and steps >= STEPS_WORTH_COMPILING and not hindered


def one_of_several(network: nn.Module, *, device: torch.device, synchronized: bool) -> nn.Module:
    """Return a network whose gradients the processes average; `network` itself with one process."""
    if process_group.world_size() == 1:
        return network
    # newer releases of PyTorch renamed the switch for synchronizing buffers in every forward pass
    known = inspect.signature(DistributedDataParallel).parameters
    switch = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    return DistributedDataParallel(
        network,
        device_ids=[device.index] if device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        **{switch: not synchronized},
    )


def compile_or_eager(
    network: nn.Module,
    shape: Sequence[int],
    *,
    dtype: torch.dtype,
    channels_last: bool,
    distribute: Callable[[nn.Module], nn.Module] = lambda network: network,
) -> nn.Module:
    """Return `distribute(network)` with the network compiled, or as it is if any process cannot.

    Compilation happens when a network is first used, so one forward and backward pass on random
    data of `shape` (N, C, H, W) is made here; running statistics, random numbers and gradients are
    restored. The pass goes through what `distribute` returns, without exchange of gradients: inside
    DistributedDataParallel the compiler divides the network as that divides the gradients, so that
    the first ones are exchanged while the others are computed; a single graph gives all at its end.
    The result shares the tensors of `network`, whose `state_dict` keys stay as they are. Every
    process must call it, and all return the same kind.

    Raises:
        RuntimeError, MemoryError: the pass does not fit the device of some process; see
            `is_out_of_memory`.
    """
    log = logging.getLogger("stripseg")
    placed = None
    compiled, failure = attempt(torch.compile, network)
    if not any_failure(failure):  # else some would wait for others in `distribute`
        placed = distribute(compiled)
        _, failure = attempt(try_out, placed, network, shape, dtype, channels_last)
        if not any_failure(failure):
            log.info("the network is compiled (TRAIN.compile)")
            return placed
    reason = first_line(failure) if failure else "another process cannot"
    log.warning(f"warning: TRAIN.compile: not possible ({reason}); continuing without it")
    if isinstance(placed, DistributedDataParallel):
        placed.module = network  # it has the gradients of these parameters
        return placed
    return distribute(network)


def attempt(work: Callable, *given: object) -> tuple[Any, Exception | None]:
    """What `work` returns, or its error: those of the compiler have no common base class."""
    try:
        return work(*given), None
    except Exception as error:
        return None, error


def any_failure(failure: Exception | None) -> bool:
    """Return whether this failed in any process.

    Raises:
        RuntimeError, MemoryError: in one of them for want of memory.
    """
    full = failure is not None and is_out_of_memory(failure)
    if process_group.any_process(full):  # all of them must end
        raise failure if full else torch.OutOfMemoryError("another process has too little memory")
    return process_group.any_process(failure is not None)


def try_out(
    placed: nn.Module,
    network: nn.Module,
    shape: Sequence[int],
    dtype: torch.dtype,
    channels_last: bool,
) -> None:
    """A forward and a backward pass of `placed`, which consists of `network`, on random data."""
    device = next(network.parameters()).device
    buffers = list(network.buffers())
    before = [buffer.clone() for buffer in buffers]
    was_training = network.training
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            image = torch.randn(*shape, device=device)
            if channels_last:
                image = image.contiguous(memory_format=torch.channels_last)
            placed.train()
            with without_exchange(placed):
                with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                    outputs = [out for out in placed(image) if out is not None]
                sum(out.float().mean() for out in outputs).backward()
    finally:
        network.zero_grad(set_to_none=True)
        placed.train(was_training)
        network.train(was_training)
        with torch.no_grad():
            for buffer, old in zip(buffers, before, strict=True):
                buffer.copy_(old)
