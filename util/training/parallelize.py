"""A network onto its device and among its processes."""

import inspect
import warnings
from copy import deepcopy

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ...config.errors import TrainingError
from ...config.schema import Config
from ..distributed import process_group, sync_batch_norm
from .compilation import compile_or_eager


def check_batch_norm(config: Config, segmenter: nn.Module) -> None:
    """Find out before training whether a batch leaves batch norm a single value a channel.

    A pass without data (meta tensors) over the batch that batch norm will see.
    """
    train = config.TRAIN
    share = images_at_least(
        train.batch_size,
        process_group.world_size(),
        train.accumulation_steps,
        synchronized=train.sync_bn,
    )
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
) -> nn.Module:
    """Move the network to its device, compile it where `TRAIN.compile` asks for that, and make it
    one of several processes where there are; `dtype` is what it computes in."""
    train = config.TRAIN
    segmenter.to(device)
    if train.channels_last:
        segmenter.to(memory_format=torch.channels_last)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    synchronized = train.sync_bn and train.norm == "batch"
    if synchronized and process_group.world_size() > 1:
        with warnings.catch_warnings():
            if not process_group.is_main():
                warnings.simplefilter("ignore")
            sync_batch_norm.convert(segmenter, device=device, use_apex=config.Distributed.use_apex)
    network = segmenter
    if train.compile:
        images = -(-train.batch_size // process_group.world_size() // train.accumulation_steps)
        network = compile_or_eager(
            segmenter,
            (images, config.DATA.in_channels, train.train_h, train.train_w),
            dtype=dtype,
            channels_last=train.channels_last,
        )
        if process_group.any_process(network is segmenter):
            network = segmenter
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
