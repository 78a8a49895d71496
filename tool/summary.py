"""What networks cost: `stripseg summary DATASET EXPERIMENT [DATASET EXPERIMENT ...]`.

One config gets a table of its parts at the training crop, several are compared, one line each.
Multiply-adds count convolutions and matrix products; activations are what the layers put out in
float32 for one image.
"""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from stripseg import command_line
from stripseg.command_line import Result
from stripseg.config.load import find_config, load_config, stored_config
from stripseg.config.schema import Config
from stripseg.model.backbone.attention import (
    ConvolutionalBlockAttention,
    EfficientChannelAttention,
    GatedChannelTransformation,
    SqueezeAndExcitation,
    TripletAttention,
)
from stripseg.model.backbone.resnet import ResNet
from stripseg.model.build import build_network
from stripseg.model.classifier import ImageClassifier
from stripseg.model.fcn import FCNHead
from stripseg.model.strip_pooling import StripPoolingModule


def main(argv: Sequence[str]) -> Result:
    """Build each network without memory for it, measure, print."""
    parser = command_line.command_parser("stripseg summary", __doc__)
    parser.add_argument(
        "words",
        nargs="*",
        metavar="DATASET EXPERIMENT | FILE [SECTION.KEY VALUE]",
        help="configs by name, or trained networks; then options of the configs",
    )
    parser.add_argument(
        "--config", action="append", default=[], help="a YAML file; may be repeated"
    )
    parser.add_argument(
        "--checkpoint",
        action="append",
        default=[],
        help="a checkpoint of stripseg; may be repeated",
    )
    options = parser.parse_args(argv)
    names, files = [], []
    for word in options.words:
        (files if command_line.is_network(word) else names).append(word)
    first_key = next((i for i, word in enumerate(names) if "." in word), len(names))
    names, overrides = names[:first_key], names[first_key:]
    options.checkpoint += files
    if len(names) % 2 or not (names or options.config or options.checkpoint):
        parser.error("name a dataset and an experiment, such as: ade20k spnet50")
    configs = [
        load_config(find_config(*pair), overrides)
        for pair in zip(names[::2], names[1::2], strict=True)
    ]
    configs += [load_config(path, overrides) for path in options.config]
    if overrides and options.checkpoint:
        parser.error("options change configs, not what a checkpoint holds; name its config instead")
    for path in options.checkpoint:
        card = command_line.card_of(path)
        print("\n".join([path, *(f"  {line}" for line in card.lines())]))
        configs.append(stored_config(card.config, path))
    results = [(config, summarise_config(config)) for config in configs]
    if len(results) == 1:
        print(part_table(results[0][1]))
    print(comparison(results))
    return Result([figures_of(*result) for result in results])


def figures_of(config: Config, parts: Sequence["Part"]) -> dict:
    """What `--json` prints of a network."""
    return {
        "dataset": config.DATA.dataset,
        "experiment": config.experiment,
        "crop": [config.TRAIN.train_h, config.TRAIN.train_w],
        "parts": parts,
    }


def summarise_config(config: Config) -> list["Part"]:
    train = config.TRAIN
    with torch.device("meta"):
        network = build_network(config)
    size = (train.train_h, train.train_w)
    return summarise(network, size, in_channels=config.DATA.in_channels)


UNKNOWN = 0
POOLING = (  # what lets a value see its whole row and column, or the whole map
    StripPoolingModule,
    EfficientChannelAttention,
    GatedChannelTransformation,
    TripletAttention,
    SqueezeAndExcitation,
    ConvolutionalBlockAttention,
)


@dataclass(frozen=True)
class Part:
    """One part of a network at one input size.

    Args:
        parameters, multiply_adds: of the part; multiply-adds of convolutions and matrix products.
        activations: bytes of float32 that its layers put out, per image; what additions,
            products and concatenations put out is not among them.
        shape: (C, H, W) of its output.
        stride: input pixels per output pixel, rounded.
        receptive_field: side in input pixels that a value can depend on through convolutions;
            None behind pooling over strips or the whole map, which see everything; UNKNOWN where
            the network is not ours.
    """

    name: str
    parameters: int
    multiply_adds: int
    activations: int
    shape: tuple[int, int, int]
    stride: int
    receptive_field: int | None


def summarise(segmenter: nn.Module, size: tuple[int, int], *, in_channels: int = 3) -> list[Part]:
    """The parts of a `Segmenter` or `ImageClassifier` in order.

    Computed on meta tensors, so that nothing is allocated.
    """
    network = deepcopy(segmenter).to("meta").eval()
    image = torch.empty(1, in_channels, *size, device="meta")
    if not isinstance(network.backbone, ResNet):
        field = Field(UNKNOWN)
        part, features = measure("backbone", network.backbone, image, size, field)
        parts, fields = [part], [field] * len(features)
    else:
        parts, features, fields = stages(network.backbone, image, size)
    if isinstance(network, ImageClassifier):
        means, field = features[-1].mean(dim=(2, 3)), Field(None)
        return [*parts, measure("classifier", network.classifier, means, size, field)[0]]
    features = list(features)
    for stage, module in network.strip_pooling.items():
        index = int(stage) - len(features) - 1  # from the end: `fields` may begin with the stem
        fields[index] = field_after(module, fields[index])
        name = f"strip pooling {stage}"
        part, features[index] = measure(name, module, features[index], size, fields[index])
        parts.append(part)
    field = field_after(network.head, fields[-1])
    part, out = measure("head", network.head, features, size, field)
    parts.append(part)
    if network.decoder is not None:
        field = Field(None if field.side is None else UNKNOWN)
        parts.append(measure("decoder", network.decoder, (out, features[0]), size, field)[0])
    if network.auxiliary_head is not None:
        field = field_after(network.auxiliary_head, fields[-2])
        parts.append(measure("auxiliary head", network.auxiliary_head, features, size, field)[0])
    return parts


def field_after(module: nn.Module, field: "Field") -> "Field":
    return field if field.side == UNKNOWN else field.after(module)


def stages(
    backbone: nn.Module, image: Tensor, size: tuple[int, int]
) -> tuple[list[Part], list[Tensor], list["Field"]]:
    """(the stem and the stages, the stages' features, the receptive fields) of a ResNet."""
    parts, features, fields = [], [image], [Field()]
    for name in ("stem", "layer1", "layer2", "layer3", "layer4"):
        module = getattr(backbone, name)
        fields.append(fields[-1].after(module))
        part, out = measure(name.replace("layer", "stage "), module, features[-1], size, fields[-1])
        parts.append(part)
        features.append(out)
    return parts, features[2:], fields


def measure(
    name: str,
    module: nn.Module,
    x: Tensor | list[Tensor] | tuple[Tensor, ...],
    size: tuple[int, int],
    field: "Field",
) -> tuple[Part, Tensor | list[Tensor]]:
    """(the part's costs, its output); a list of outputs has the shape of its last.

    A tuple `x` is the part's arguments.
    """
    sizes: list[int] = []

    def note(_module: nn.Module, _inputs: object, out: object) -> None:
        if isinstance(out, Tensor):
            sizes.append(out.numel())

    handles = [
        layer.register_forward_hook(note)
        for layer in module.modules()
        if not list(layer.children()) and not isinstance(layer, (nn.Identity, nn.Dropout2d))
    ]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        out = module(*x) if isinstance(x, tuple) else module(x)
    for handle in handles:
        handle.remove()
    last = out if isinstance(out, Tensor) else out[-1]
    part = Part(
        name=name,
        parameters=sum(p.numel() for p in module.parameters()),
        multiply_adds=counter.get_total_flops() // 2,
        activations=4 * sum(sizes),
        shape=tuple(last.shape[1:]),
        stride=round(size[0] / last.shape[-2]),
        receptive_field=field.side,
    )
    return part, out


@dataclass(frozen=True)
class Field:
    """A receptive field and how far apart neighbouring values look, in input pixels."""

    side: int | None = 1
    jump: int = 1

    def after(self, module: nn.Module) -> "Field":
        """The field behind `module`; a head other than FCN's pools over the whole map."""
        side, jump = self.side, self.jump
        for layers in main_path(module):
            kernels = [layer for layer in layers if hasattr(layer, "kernel_size")]
            if side is not None:
                side += max((reach(layer) for layer in kernels), default=0) * jump
            jump *= max((first(layer.stride) for layer in kernels), default=1)
        pools = any(isinstance(m, POOLING) for m in module.modules())
        is_head = hasattr(module, "classifier") and not isinstance(module, FCNHead)
        return Field(None if pools or is_head else side, jump)


def main_path(module: nn.Module) -> Iterator[list[nn.Module]]:
    """The layers that follow one another, parallel ones together; shortcuts see no more."""
    for child in module.children():
        if hasattr(child, "downsample"):  # a residual block
            convolutions = [child.conv1, child.conv2, getattr(child, "conv3", None)]
            yield from (list(c.modules()) for c in convolutions if c is not None)
        else:
            yield list(child.modules())


def reach(layer: nn.Module) -> int:
    return (first(layer.kernel_size) - 1) * first(getattr(layer, "dilation", 1))


def first(value: int | tuple[int, ...]) -> int:
    return value if isinstance(value, int) else value[0]


def part_table(parts: Sequence[Part]) -> str:
    """The parts as a table, with their sum."""
    head = (
        f"{'part':15}{'output':>20}{'stride':>8}{'field':>8}{'parameters':>13}{'GMAC':>9}"
        f"{'activations':>14}"
    )
    lines = [head]
    for p in parts:
        shape = " x ".join(map(str, p.shape))
        field = {None: "all", UNKNOWN: "?"}.get(p.receptive_field, str(p.receptive_field))
        lines.append(
            f"{p.name:15}{shape:>20}{p.stride:8}{field:>8}{p.parameters:13,}"
            f"{p.multiply_adds / 1e9:9.2f}{p.activations / 2**20:11.1f} MB"
        )
    return "\n".join(lines)


def comparison(results: Sequence[tuple[Config, Sequence[Part]]]) -> str:
    """One line for each network; without the auxiliary head, which only training has."""
    lines = [
        f"{'network':36}{'crop':>11}{'parameters':>13}{'+ auxiliary':>13}{'GMAC':>9}"
        f"{'activations':>14}"
    ]
    for config, parts in results:
        tested = [part for part in parts if part.name != "auxiliary head"]
        name = f"{config.DATA.dataset} {config.experiment}"
        crop = f"{config.TRAIN.train_h}x{config.TRAIN.train_w}"
        lines.append(
            f"{name:36}{crop:>11}{sum(p.parameters for p in tested):13,}"
            f"{sum(p.parameters for p in parts):13,}"
            f"{sum(p.multiply_adds for p in tested) / 1e9:9.1f}"
            f"{sum(p.activations for p in tested) / 2**20:11.0f} MB"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    command_line.run_command(main)
