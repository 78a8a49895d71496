"""Batch norm folded into the convolutions before it, for networks that only predict.

Testing does not fold, so that its figures are those of validation; deployment may.
"""

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

BATCH_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)


@torch.no_grad()
def fold_batch_norm(network: nn.Module, image: Tensor) -> nn.Module:
    """Return a copy of `network` in evaluation mode with batch norm folded into convolutions.

    In evaluation, batch norm is a factor and a shift per channel, which the weights of the
    convolution before it can take in: fewer passes over the maps, the same output up to rounding.
    A forward pass of `image` (N, C, H, W) shows which convolution feeds which batch norm, and a
    second one that the output has stayed the same; if it has not, because the output of a
    convolution is used twice, nothing is folded.
    """
    whole = deepcopy(network).eval()
    folded = deepcopy(whole)
    for convolution, norm in feeding_pairs(folded, image):
        replace(folded, convolution, fuse_conv_bn_eval(convolution, norm))
        replace(folded, norm, nn.Identity())
    before, after = (first_tensor(part(image)) for part in (whole, folded))
    tolerance = 1e-3 * before.abs().max().item() + 1e-6
    return folded if torch.allclose(after, before, rtol=1e-3, atol=tolerance) else whole


def first_tensor(output: Tensor | tuple) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def feeding_pairs(network: nn.Module, image: Tensor) -> list[tuple[nn.Conv2d, nn.Module]]:
    """(convolution, batch norm) where the first one's output goes into the second.

    Both run once in a forward pass: shared layers are left alone.
    """
    runs: dict[nn.Module, int] = {}
    outputs: dict[int, tuple[nn.Conv2d, Tensor]] = {}
    pairs: list[tuple[nn.Conv2d, nn.Module]] = []

    def after_convolution(module: nn.Module, _: object, output: Tensor) -> None:
        runs[module] = runs.get(module, 0) + 1
        outputs[id(output)] = module, output  # kept, so that no other tensor gets its id

    def before_norm(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        runs[module] = runs.get(module, 0) + 1
        if id(inputs[0]) in outputs and module.running_mean is not None:
            pairs.append((outputs[id(inputs[0])][0], module))

    hooks = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            hooks.append(module.register_forward_hook(after_convolution))
        elif isinstance(module, BATCH_NORMS):
            hooks.append(module.register_forward_pre_hook(before_norm))
    network(image)
    for hook in hooks:
        hook.remove()
    return [pair for pair in pairs if all(runs[part] == 1 for part in pair)]


def replace(network: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put `new` in the place of `old`, wherever in the network it is."""
    for parent in network.modules():
        for name, child in parent.named_children():
            if child is old:
                setattr(parent, name, new)
