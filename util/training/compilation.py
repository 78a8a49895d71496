"""torch.compile of a network, and the way on without it."""

import logging
from collections.abc import Sequence

import torch
from torch import nn

from ..precision import autocast


def compile_or_eager(
    network: nn.Module, shape: Sequence[int], *, dtype: torch.dtype, channels_last: bool
) -> nn.Module:
    """The compiled network, or `network` itself where it cannot be compiled, which the log tells.

    Compilation happens when a network is first used, so one forward and backward pass on random
    data of `shape` (N, C, H, W) is made here; running statistics, random numbers and gradients are
    put back. The result shares the tensors of `network`, whose `state_dict` keys stay as they are.

    Raises:
        torch.OutOfMemoryError: the pass does not fit the device.
    """
    log = logging.getLogger("stripseg")
    device = next(network.parameters()).device
    buffers = list(network.buffers())
    before = [buffer.clone() for buffer in buffers]
    was_training = network.training
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            compiled = torch.compile(network)
            image = torch.randn(*shape, device=device)
            if channels_last:
                image = image.contiguous(memory_format=torch.channels_last)
            compiled.train()
            with autocast(device, dtype):
                outputs = [out for out in compiled(image) if out is not None]
            sum(out.float().mean() for out in outputs).backward()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # the compiler's own errors have no common ancestor
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            log.warning(f"warning: TRAIN.compile: not possible here ({reason}); going on without")
            compiled = network
        finally:
            network.zero_grad(set_to_none=True)
            network.train(was_training)
            with torch.no_grad():
                for buffer, old in zip(buffers, before, strict=True):
                    buffer.copy_(old)
    if compiled is not network:
        log.info("the network is compiled (TRAIN.compile)")
    return compiled
