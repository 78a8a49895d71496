"""What a trained network looks at in one image: `explain(trained_network, image)`.

Three questions, each answered by arrays: what the strip pooling modules (SPM) let through, what the
two branches of the mixed pooling modules (MPM) add, and which pixels decide the class of one pixel,
with and without strip pooling. Pictures and page: explain_page.py.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config.errors import CheckpointError, ConfigError
from ..model.segmenter import Segmenter
from ..model.strip_pooling import MixedPoolingModule, StripPoolingModule
from ..onnx_network import OnnxNetwork
from ..trained_network import Source, TrainedNetwork
from ..util.images import Normalization
from ..util.inference.score_map import half_pixel_resize, scaled_size

LONG_SIDE = 1024  # pixels: of larger images a smaller copy is explained, in one piece
CHANNELS = 3  # shown of every strip pooling module


@dataclass(frozen=True)
class StripAttention:
    """The weights in (0, 1) that a strip pooling module multiplies its input by.

    Args:
        name: of the module in the network.
        mean: (h, w), over all channels, at the size of the module's input.
        channels: {index: (h, w)} of the channels that vary most over the image.
    """

    name: str
    mean: np.ndarray
    channels: Mapping[int, np.ndarray]


@dataclass(frozen=True)
class BranchNorms:
    """What the parts of a mixed pooling module's sum weigh, before its last ReLU.

    Args:
        name: of the module in the network.
        identity, pyramid, strips: (h, w), the norm over channels of the module's input, of what
            the short-range and of what the long-range branch adds to it.
    """

    name: str
    identity: np.ndarray
    pyramid: np.ndarray
    strips: np.ndarray


@dataclass(frozen=True)
class Explanation:
    """The answers for one image.

    Args:
        image: (H, W, C) uint8, as the network saw it: in one piece, at the size it tests with.
        mask: (H, W), the class of every pixel.
        pixel: (row, column) in `image` whose class is explained.
        class_index: that class.
        names, colors: of the classes.
        attention: of every strip pooling module, in the order of the network.
        branches: of every mixed pooling module.
        field: (H, W), the absolute gradient of the class's logit at the pixel with respect to
            every pixel of the image, summed over its channels: the effective receptive field.
        field_without_strips: the same with strip pooling left out; None where there is none.
    """

    image: np.ndarray
    mask: np.ndarray
    pixel: tuple[int, int]
    class_index: int
    names: list[str]
    colors: np.ndarray
    attention: list[StripAttention]
    branches: list[BranchNorms]
    field: np.ndarray
    field_without_strips: np.ndarray | None

    @property
    def has_strips(self) -> bool:
        return bool(self.attention or self.branches)


def explain(
    trained_network: TrainedNetwork, image: Source, pixel: tuple[int, int] | None = None
) -> Explanation:
    """Explain what a network sees in one image.

    The image goes through the network as a whole, at the size of `TEST.base_size` and with a long
    side of at most 1024 pixels: without windows, mirroring and scales, so that a strip is a row or
    column of the image.

    Args:
        image: whatever `predict` takes for one image.
        pixel: (row, column) in that image, from 0; its centre if None.
    Raises:
        CheckpointError: the network is an export, whose modules cannot be looked into.
        ConfigError: the pixel is outside of the image.
        DataError: the image is missing, damaged, or has another number of channels.
    """
    network = trained_network.network
    if isinstance(network, OnnxNetwork):
        raise CheckpointError(
            f"{trained_network.path}: is an export, whose modules cannot be looked into; explain "
            "the checkpoint (.pth) it was made from"
        )
    pixels, _ = trained_network.read(image)
    height, width = pixels.shape[:2]
    row, column = (height // 2, width // 2) if pixel is None else pixel
    if not (0 <= row < height and 0 <= column < width):
        raise ConfigError(
            f"pixel {row} {column}: the image has rows 0 to {height - 1} and columns 0 to "
            f"{width - 1}"
        )
    seen, normalized = network_input(trained_network, pixels)
    size = seen.shape[:2]
    place = row * size[0] // height, column * size[1] // width
    network.eval()
    with torch.no_grad(), watched(network) as (attention, branches):
        logits = logits_of(network, normalized)
    mask = logits[0].argmax(0).cpu().numpy()
    class_index = int(mask[place])
    field = receptive_field(network, normalized, place, class_index)
    without = None
    if attention or branches:
        with strips_left_out(network):
            without = receptive_field(network, normalized, place, class_index)
    return Explanation(
        image=seen,
        mask=mask,
        pixel=place,
        class_index=class_index,
        names=trained_network.names,
        colors=trained_network.colors,
        attention=attention,
        branches=branches,
        field=field,
        field_without_strips=without,
    )


def network_input(trained_network: TrainedNetwork, pixels: np.ndarray) -> tuple[np.ndarray, Tensor]:
    """((H, W, C) uint8, (1, C, H, W) normalised) of the size at which an image is explained."""
    config, device = trained_network.config, trained_network.device
    size = scaled_size(pixels.shape[:2], 1.0, config.TEST.base_size)
    if max(size) > LONG_SIDE:
        size = scaled_size(pixels.shape[:2], 1.0, LONG_SIDE)
    if config.TRAIN.arch == "psa" and config.TRAIN.compact:  # takes no other size
        size = config.TEST.test_h, config.TEST.test_w
    tensor = torch.from_numpy(pixels).to(device).permute(2, 0, 1)[None].float()
    scaled = half_pixel_resize(tensor, size)
    seen = scaled[0].round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()
    normalize = Normalization(config.DATA.mean, config.DATA.std, device)
    layout = torch.channels_last if config.TEST.channels_last else torch.contiguous_format
    return seen, normalize(scaled).contiguous(memory_format=layout)


@contextmanager
def watched(network: nn.Module) -> Iterator[tuple[list[StripAttention], list[BranchNorms]]]:
    """Within the block a forward pass of one image fills the two lists."""
    attention: list[StripAttention] = []
    branches: list[BranchNorms] = []
    names = {module: name for name, module in network.named_modules()}

    def after_strip_pooling(module: StripPoolingModule, inputs: tuple, _: Any) -> None:
        attention.append(summed_up(names[module], module.attention(inputs[0])[0]))

    def after_mixed_pooling(module: MixedPoolingModule, inputs: tuple, _: Any) -> None:
        parts = mixed_pooling_parts(module, inputs[0])
        norms = {
            part: parts[part][0].norm(dim=0).cpu().numpy()
            for part in ("identity", "pyramid", "strips")
        }
        branches.append(BranchNorms(names[module], **norms))

    hooks = [(module, after_strip_pooling) for module in found(network, StripPoolingModule)]
    hooks += [(module, after_mixed_pooling) for module in found(network, MixedPoolingModule)]
    with hooked(hooks):
        yield attention, branches


def found(network: nn.Module, kind: type[nn.Module]) -> list[nn.Module]:
    return [module for module in network.modules() if isinstance(module, kind)]


@contextmanager
def hooked(hooks: Iterable[tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    """Forward hooks on modules within the block."""
    handles = [module.register_forward_hook(hook) for module, hook in hooks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def summed_up(name: str, weights: Tensor) -> StripAttention:
    """The mean of (C, h, w) weights over channels, and the channels that vary most."""
    varying = weights.std(dim=(1, 2), unbiased=False).topk(min(CHANNELS, len(weights))).indices
    channels = {index: weights[index].cpu().numpy() for index in varying.tolist()}
    return StripAttention(name, weights.mean(0).cpu().numpy(), channels)


def mixed_pooling_parts(module: MixedPoolingModule, x: Tensor) -> dict[str, Tensor]:
    """The four parts, (N, C, H, W) or (1, C, 1, 1), whose sum the module's last ReLU is given.

    The last convolution and its norm are linear, for the statistics that the norm has: what they
    make of each branch adds up, with the norm's shift, to what they make of both.
    """
    convolution, norm = module.expand
    computed = {"short": module.short_range, "long": module.long_range}
    branches = {name: computed[name](x) for name in module.branches}

    def contribution(wanted: str) -> Tensor:
        """What the last convolution makes of one branch, the other being zero."""
        kept = (y if name == wanted else torch.zeros_like(y) for name, y in branches.items())
        return convolution(torch.cat(list(kept), dim=1))

    pyramid, strips = contribution("short"), contribution("long")
    scale, shift = scale_and_shift(norm, pyramid + strips)
    return {"identity": x, "pyramid": pyramid * scale, "strips": strips * scale, "shift": shift}


def scale_and_shift(norm: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """(N or 1, C, 1, 1) such that scale * x + shift is what a batch or group norm makes of x."""
    if isinstance(norm, nn.GroupNorm):
        groups = x.unflatten(1, (norm.num_groups, -1)).flatten(2)  # (N, groups, elements)
        each = x.shape[1] // norm.num_groups
        mean = groups.mean(2).repeat_interleave(each, dim=1)
        variance = groups.var(2, unbiased=False).repeat_interleave(each, dim=1)
    else:
        mean, variance = norm.running_mean[None], norm.running_var[None]
    scale = norm.weight * (variance + norm.eps).rsqrt()
    return scale[..., None, None], (norm.bias - mean * scale)[..., None, None]


@contextmanager
def strips_left_out(network: nn.Module) -> Iterator[None]:
    """Within the block the network computes without strip pooling, and is not retrained.

    Strip pooling modules let everything through (their weights are 1), and the long-range branch of
    mixed pooling modules gives zeros.
    """

    def identity(_: nn.Module, inputs: tuple, __: Tensor) -> Tensor:
        return inputs[0]

    def zeros(_: nn.Module, __: tuple, output: Tensor) -> Tensor:
        return torch.zeros_like(output)

    hooks = [(module, identity) for module in found(network, StripPoolingModule)]
    hooks += [
        (module.fuse_long, zeros)
        for module in found(network, MixedPoolingModule)
        if "long" in module.branches
    ]
    with hooked(hooks):
        yield


def logits_of(network: Segmenter, image: Tensor) -> Tensor:
    """(1, C, H, W) normalised -> (1, K, H, W), of any size."""
    height, width = image.shape[-2:]
    if not network.align_corners:  # sizes that the strides divide
        multiple = getattr(network.backbone, "multiple", 32)
        image = F.pad(image, (0, -width % multiple, 0, -height % multiple))
    logits = network.resize(network(image).logits, image.shape[-2:])
    return logits[..., :height, :width]


def receptive_field(
    network: Segmenter, image: Tensor, pixel: tuple[int, int], class_index: int
) -> np.ndarray:
    """(H, W): how much the logit of a class at a pixel changes with every pixel of the image.

    The absolute gradient, summed over the channels of the (1, C, H, W) normalised image.
    """
    with torch.enable_grad():
        image = image.detach().requires_grad_()
        logits = logits_of(network, image)
        (gradient,) = torch.autograd.grad(logits[0, class_index, pixel[0], pixel[1]], image)
    return gradient.abs().sum(dim=(0, 1)).cpu().numpy()


def radius_holding(field: np.ndarray, pixel: tuple[int, int], share: float) -> float:
    """The distance from the pixel, in pixels, within which a share of the (H, W) field lies."""
    rows, columns = np.indices(field.shape)
    distance = np.hypot(rows - pixel[0], columns - pixel[1]).ravel()
    order = np.argsort(distance)
    held = np.cumsum(field.ravel()[order], dtype=np.float64)
    return float(distance[order][np.searchsorted(held, share * held[-1])]) if held[-1] else 0.0


def share_in_cross(field: np.ndarray, pixel: tuple[int, int], reach: int) -> tuple[float, float]:
    """(share of the field, share of the area) of the rows and columns up to `reach` away."""
    rows, columns = np.indices(field.shape)
    cross = (abs(rows - pixel[0]) <= reach) | (abs(columns - pixel[1]) <= reach)
    total = field.sum(dtype=np.float64)
    return float(field[cross].sum(dtype=np.float64) / (total or 1.0)), float(cross.mean())
