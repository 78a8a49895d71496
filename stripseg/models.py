"""Networks by name: `create_model`, `list_models`, `list_backbones`."""

from fnmatch import fnmatch
from typing import Any

from torch import Tensor

from .config.errors import ConfigError
from .config.load import config_from, option_meant, suggestion
from .config.schema import AUTO, TIMM, Config, NetworkOptions
from .model.build import HEADS, build_segmenter, own_backbones
from .model.pretrained import load_named_weights
from .model.segmenter import Segmenter
from .model.weights import load_weights
from .util.checkpoint import read_checkpoint

CROP = ("train_h", "train_w")  # PSANet's mask has its size
RUN_ONLY = ("zoom_factor", "aux_weight", "activation_checkpointing")  # of training runs
WEIGHTS = 'pretrained (a file, "auto", or True for a backbone timm/NAME)'
# what timm and segmentation_models.pytorch call our arguments
ELSEWHERE = {
    "num_classes": "classes",
    "in_chans": "in_channels",
    "arch": "model",
    "model_name": "model",
    "encoder_name": "backbone",
    "encoder_weights": WEIGHTS,
    "checkpoint_path": WEIGHTS,
}


class LogitsSegmenter(Segmenter):
    """A `Segmenter` whose output is the logits alone: (N, C, H, W) -> (N, K, H, W).

    Attributes:
        config: the options that describe it; `DATA.mean` and `DATA.std` are how images must be
            normalised for the weights to start from.
    """

    config: Config

    def forward(self, image: Tensor) -> Tensor:  # type: ignore[override]  # a tensor is the point
        return super().forward(image).logits


def create_model(
    model: str = "spnet",
    *,
    classes: int | None = None,
    backbone: str = "resnet50",
    in_channels: int = 3,
    pretrained: str | bool = False,
    **options: Any,
) -> LogitsSegmenter:
    """A segmentation network with fresh weights: (N, C, H, W) normalised -> (N, K, H, W) logits.

    Any height and width; its checkpoints have the keys of trained networks.

    Args:
        model: the head; `list_models` names them.
        classes: K; it has no default.
        backbone: `list_backbones` names them.
        pretrained: a file of weights for the backbone or for all of it, recognised by its content;
            True or "timm" takes timm's for `timm/NAME`, which may download them; "auto" what is on
            this machine (docs/checkpoints.md), with the mean and std that it says.
        options: further options of the network, such as `output_stride=16` or
            `mixed_pooling_modules=1`: those of TRAIN in docs/config.md.
    Raises:
        TypeError: `classes` is missing, or a word is another library's, with ours.
        ConfigError: a name or value that does not exist, with the nearest one that does.
        CheckpointError: the weights are missing, damaged or fit no part of the network.

    >>> import torch, stripseg
    >>> model = stripseg.create_model("spnet", backbone="resnet18", classes=11).eval()
    >>> model(torch.zeros(1, 3, 97, 129)).shape
    torch.Size([1, 11, 97, 129])
    """
    for foreign in filter(ELSEWHERE.__contains__, options):
        raise TypeError(f"create_model: {foreign} is called {ELSEWHERE[foreign]} here")
    if classes is None:
        raise TypeError("create_model: name the number of classes, such as classes=11")
    word = TIMM if pretrained is True else pretrained
    if word == TIMM and not backbone.startswith("timm/"):
        raise ConfigError(
            f"pretrained={pretrained!r}: there are no weights to fetch for {backbone}; name a "
            "file, or take a backbone timm/NAME"
        )
    named = str(word) if word in (AUTO, TIMM) else None
    config = network_config(model, classes, backbone, in_channels, options, pretrained=named)
    network = LogitsSegmenter(**build_segmenter(config).inference_parts())
    network.config = config
    if named:
        load_named_weights(network, backbone, named)
    elif pretrained:
        content = read_checkpoint(str(pretrained))
        load_weights(network, content, origin=str(pretrained), exact=False)
    return network


def network_config(
    model: str,
    classes: int,
    backbone: str,
    in_channels: int,
    options: dict[str, Any],
    *,
    pretrained: str | None = None,
) -> Config:
    """The config that describes such a network alone, and the normalisation of its weights."""
    for key in options:
        if key in RUN_ONLY or key not in {*NetworkOptions.model_fields, *CROP}:
            raise ConfigError(f"{key}: is not an option of create_model{suggestion(key)}")
    words = [word for key, value in options.items() for word in (option_meant(key), value)]
    network = {"arch": model, "backbone": backbone, "aux_weight": 0, "pretrained": pretrained}
    content = {
        "DATA": {"data_root": ".", "classes": classes, "in_channels": in_channels},
        "TRAIN": network,
    }
    return config_from(content, words, source="create_model")


def list_models(pattern: str = "*") -> list[str]:
    """The heads that `create_model` knows, sorted, by a pattern such as "ps*".

    >>> import stripseg
    >>> stripseg.list_models()
    ['fcn', 'psa', 'psp', 'pyconvsegnet', 'spnet']
    """
    return sorted(name for name in HEADS if fnmatch(name, pattern))


def list_backbones(pattern: str = "*") -> list[str]:
    """The backbones that `create_model` knows; those of timm (`timm/NAME`) where it is installed.

    >>> import stripseg
    >>> stripseg.list_backbones("resnet18*")
    ['resnet18', 'resnet18d', 'resnet18s']
    """
    names = list(own_backbones())
    try:
        import timm
    except ImportError:
        pass
    else:
        names += [f"timm/{name}" for name in timm.list_models()]
    return sorted(name for name in names if fnmatch(name, pattern))
