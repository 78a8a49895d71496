"""Activation checkpointing: a block's inner features are computed again in the backward pass.

Chen et al., "Training Deep Nets with Sublinear Memory Cost", arXiv 1604.06174.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def run_blocks(blocks: nn.Sequential, x: Tensor, *, recompute: bool) -> Tensor:
    """`blocks(x)`; with `recompute` only what lies between two blocks is kept while training.

    Outputs, gradients and running statistics are those of plain `blocks(x)`. Dropout draws the
    same numbers both times.
    """
    if not (recompute and blocks.training and torch.is_grad_enabled()):
        return blocks(x)
    for block in blocks:
        x = checkpoint(
            block, x, use_reentrant=False, context_fn=lambda block=block: contexts(block)
        )
    return x


def contexts(block: nn.Module) -> tuple[AbstractContextManager, AbstractContextManager]:
    """What surrounds the forward pass and its repetition."""
    return nullcontext(), statistics_kept(block)


@contextmanager
def statistics_kept(block: nn.Module) -> Iterator[None]:
    """Running statistics that change inside are copies, which are thrown away.

    Batch norm without any would keep fewer tensors than in the first pass, which PyTorch refuses.
    """
    buffers = [(m, name, b) for m in block.modules() for name, b in m.named_buffers(recurse=False)]
    for module, name, buffer in buffers:
        setattr(module, name, buffer.clone())
    try:
        yield
    finally:
        for module, name, buffer in buffers:
            setattr(module, name, buffer)
