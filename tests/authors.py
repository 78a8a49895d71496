"""Files of other authors, made from our own tensors.

`AUTHORS` turns our names into theirs and is written down independently of the tables under test;
`test_compat.py` has the authors' real lists.
"""

from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType

import pytest
import torch
from reference import fcn, fill_at_random, spnet
from torch import Tensor

from stripseg.config.errors import CheckpointError
from stripseg.model.segmenter import Segmenter
from stripseg.model.weights import load_weights

State = dict[str, Tensor]

# our prefix or part -> the author's, replaced in this order
AUTHORS: dict[str, list[tuple[str, str]]] = {
    "stripseg": [],
    "stripseg backbone": [("backbone.", "")],
    "SPNet": [
        (".strip_pooling.rows.0.", ".spm.conv1."),
        (".strip_pooling.rows.1.", ".spm.bn1."),
        (".strip_pooling.columns.0.", ".spm.conv2."),
        (".strip_pooling.columns.1.", ".spm.bn2."),
        (".strip_pooling.fuse.", ".spm.conv3."),
        ("backbone.stem.7.", "pretrained.bn1."),
        ("backbone.stem.", "pretrained.conv1."),
        ("backbone.", "pretrained."),
        ("auxiliary_head.conv.", "auxlayer.conv5."),
        ("auxiliary_head.classifier.", "auxlayer.conv5.4."),
        ("head.reduce.", "head.trans_layer."),
        ("head.conv.", "head.score_layer."),
        ("head.classifier.", "head.score_layer.4."),
        ("head.mixed_pooling.0.", "head.strip_pool1."),
        ("head.mixed_pooling.1.", "head.strip_pool2."),
        (".reduce_short.", ".conv1_1."),
        (".reduce_long.", ".conv1_2."),
        (".full.", ".conv2_0."),
        (".pooled.0.", ".conv2_1."),
        (".pooled.1.", ".conv2_2."),
        ("l1.columns.", "l1.conv2_3."),
        ("l2.columns.", "l2.conv2_3."),
        ("l1.rows.", "l1.conv2_4."),
        ("l2.rows.", "l2.conv2_4."),
        (".fuse_short.", ".conv2_5."),
        (".fuse_long.", ".conv2_6."),
        (".expand.", ".conv3."),
    ],
    "Encoding backbone": [
        ("backbone.stem.7.", "bn1."),
        ("backbone.stem.", "conv1."),
        ("backbone.", ""),
    ],
    "semseg backbone": [
        ("backbone.stem.0.", "conv1."),
        ("backbone.stem.1.", "bn1."),
        ("backbone.stem.3.", "conv2."),
        ("backbone.stem.4.", "bn2."),
        ("backbone.stem.6.", "conv3."),
        ("backbone.stem.7.", "bn3."),
        ("backbone.", ""),
    ],
    "torchvision backbone": [
        ("backbone.stem.0.", "conv1."),
        ("backbone.stem.1.", "bn1."),
        ("backbone.", ""),
    ],
}
BACKBONES = [name for name in AUTHORS if "backbone" in name]
WHOLE = [name for name in AUTHORS if "backbone" not in name]
THEIRS = [name for name in BACKBONES if "stripseg" not in name]

WRAPPINGS: dict[str, Callable[[State], Mapping]] = {
    "bare": lambda state: state,
    "state_dict": lambda state: {
        "epoch": 120,
        "state_dict": state,
        "optimizer": {"param_groups": []},
    },
    "model": lambda state: {"model": state, "step": 3},
    "module": lambda state: {f"module.{key}": value for key, value in state.items()},
    "both": lambda state: {
        "epoch": 120,
        "state_dict": {f"module.{key}": value for key, value in state.items()},
    },
}

# what a reader of the paper and of the released code would pair with a finger
SPNET_NAMES = {
    "pretrained.conv1.0.weight": "backbone.stem.0.weight",
    "pretrained.conv1.4.running_mean": "backbone.stem.4.running_mean",
    "pretrained.bn1.bias": "backbone.stem.7.bias",
    "pretrained.layer1.0.conv1.weight": "backbone.layer1.0.conv1.weight",
    "pretrained.layer3.5.bn3.weight": "backbone.layer3.5.bn3.weight",
    "pretrained.layer4.0.downsample.1.bias": "backbone.layer4.0.downsample.1.bias",
    "pretrained.layer4.2.spm.conv1.weight": "backbone.layer4.2.strip_pooling.rows.0.weight",
    "pretrained.layer4.2.spm.bn2.bias": "backbone.layer4.2.strip_pooling.columns.1.bias",
    "pretrained.layer4.2.spm.conv3.bias": "backbone.layer4.2.strip_pooling.fuse.bias",
    "head.trans_layer.0.weight": "head.reduce.0.weight",
    "head.strip_pool1.conv1_1.0.weight": "head.mixed_pooling.0.reduce_short.0.weight",
    "head.strip_pool1.conv1_2.1.bias": "head.mixed_pooling.0.reduce_long.1.bias",
    "head.strip_pool2.conv2_0.0.weight": "head.mixed_pooling.1.full.0.weight",
    "head.strip_pool2.conv2_1.0.weight": "head.mixed_pooling.1.pooled.0.0.weight",
    "head.strip_pool2.conv2_2.0.weight": "head.mixed_pooling.1.pooled.1.0.weight",
    "head.strip_pool1.conv2_3.0.weight": "head.mixed_pooling.0.columns.0.weight",
    "head.strip_pool1.conv2_4.0.weight": "head.mixed_pooling.0.rows.0.weight",
    "head.strip_pool1.conv2_5.0.weight": "head.mixed_pooling.0.fuse_short.0.weight",
    "head.strip_pool1.conv2_6.1.running_var": "head.mixed_pooling.0.fuse_long.1.running_var",
    "head.strip_pool2.conv3.0.weight": "head.mixed_pooling.1.expand.0.weight",
    "head.score_layer.0.weight": "head.conv.0.weight",
    "head.score_layer.1.bias": "head.conv.1.bias",
    "head.score_layer.4.weight": "head.classifier.weight",
    "auxlayer.conv5.1.weight": "auxiliary_head.conv.1.weight",
    "auxlayer.conv5.4.bias": "auxiliary_head.classifier.bias",
}


def build(author: str, **options) -> Segmenter:
    """The small network that a file of this author fits."""
    return fcn(**options) if "torchvision" in author else spnet(**options)


@cache
def expected(author: str, depth: int = 18) -> Mapping[str, Tensor]:
    """What our network must hold after loading `theirs`; shared, so read-only."""
    network = build(author, depth=depth)
    fill_at_random(network)
    return MappingProxyType(network.state_dict())


def theirs(author: str, depth: int = 18) -> State:
    """A file of this author: random tensors, with the classifier of ImageNet in a backbone."""
    state = dict(expected(author, depth))
    if author in BACKBONES:
        state = {key: value for key, value in state.items() if key.startswith("backbone.")}
    if author in THEIRS:
        state = {key: value for key, value in state.items() if ".strip_pooling." not in key}
    for ours, their in AUTHORS[author]:
        state = {key.replace(ours, their, 1): value for key, value in state.items()}
    if author in THEIRS:
        state |= {"fc.weight": torch.zeros(1000, 64), "fc.bias": torch.zeros(1000)}
    return state


def load(network: Segmenter, content: Mapping, *, exact: bool = False):
    return load_weights(network, content, origin="weights.pth", exact=exact)


def refusal(network: Segmenter, content: Mapping, *, exact: bool = False) -> str:
    """The message of the error; whatever it says, the network must be as it was."""
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(CheckpointError) as error:
        load(network, content, exact=exact)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert str(error.value).startswith("weights.pth")
    return str(error.value)
