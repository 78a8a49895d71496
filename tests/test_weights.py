"""Weights of any author load completely, or an error says which tensors stand in the way.

The author's files are made here from our own tensors: `AUTHORS` turns our names into theirs and is
written down independently of the tables under test. `test_compat.py` has the authors' real lists.
"""

from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType

import pytest
import torch
from reference import fcn, fill_at_random, spnet
from torch import Tensor, nn

from stripseg.config.errors import CheckpointError
from stripseg.model.segmenter import Segmenter
from stripseg.model.weights import FAMILIES, load_weights, translate

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
        state |= {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
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


def test_every_family_is_tested():
    """Here on a small network, or by the authors' own lists of keys in test_compat.py."""
    listed = {"semseg PSPNet", "semseg PSANet", "PyConvSegNet", "PyConv backbone"}
    assert {*AUTHORS, *listed, "stripseg encoder"} == {family.name for family in FAMILIES}


@pytest.mark.parametrize("author", WHOLE)
@pytest.mark.parametrize("exact", [True, False], ids=["exact", "initial"])
def test_a_whole_model_arrives_tensor_by_tensor(author: str, exact: bool):
    network = build(author)
    report = load(network, theirs(author), exact=exact)
    assert (report.family, report.new, report.unused) == (author, [], [])
    assert report.matched == len(network.state_dict())
    for key, value in expected(author).items():
        assert torch.equal(network.state_dict()[key], value), key


@pytest.mark.parametrize("author", BACKBONES)
def test_a_backbone_arrives_tensor_by_tensor(author: str):
    network = build(author)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    report = load(network, theirs(author))
    wanted, arrived = expected(author), 0
    for key, value in network.state_dict().items():
        brought = key.startswith("backbone.") and not (
            author in THEIRS and ".strip_pooling." in key
        )
        arrived += brought
        assert torch.equal(value, (wanted if brought else before)[key]), key
    assert report.matched == arrived


@pytest.mark.parametrize("author", THEIRS)
def test_what_a_backbone_file_cannot_bring_stays_new_and_is_reported(author: str):
    network = build(author)
    report = load(network, theirs(author))
    assert set(report.new) == {
        key
        for key in network.state_dict()
        if (not key.startswith("backbone.") or ".strip_pooling." in key)
        and not key.endswith("num_batches_tracked")
    }
    assert report.unused == ["fc.weight", "fc.bias"]
    text = str(report)
    assert f"{author}: {report.matched} tensors loaded; left new: " in text
    assert text.endswith("not used: fc.weight, fc.bias")


def test_our_own_backbone_brings_its_strip_pooling():
    report = load(spnet(), theirs("stripseg backbone"))
    assert all(key.startswith(("head.", "auxiliary_head.")) for key in report.new)
    assert report.unused == []


@pytest.mark.parametrize("wrap", WRAPPINGS.values(), ids=WRAPPINGS)
@pytest.mark.parametrize("author", AUTHORS)
def test_the_wrapping_does_not_matter(author: str, wrap: Callable[[State], Mapping]):
    with torch.device("meta"):  # names are enough to recognise a family
        state = build(author).state_dict()
    for ours, name in AUTHORS[author]:
        state = {key.replace(ours, name, 1): value for key, value in state.items()}
    bare = translate(state, origin="weights.pth")
    family, translated, _ = translate(wrap(state), origin="weights.pth")
    assert family.name == bare[0].name == author
    assert list(translated) == list(bare[1])


@pytest.mark.parametrize("spnets", SPNET_NAMES)
def test_spnets_names_become_ours(spnets: str):
    marks = ("pretrained.conv1.0.weight", "head.trans_layer.0.weight")
    content = {key: torch.zeros(1) for key in (*marks, spnets)}
    _, state, _ = translate(content, origin="weights.pth")
    assert SPNET_NAMES[spnets] in state


@pytest.mark.parametrize("author", AUTHORS)
def test_files_older_than_num_batches_tracked_are_complete(author: str):
    state = theirs(author)
    old = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    assert len(old) < len(state)
    network = build(author)
    load(network, old, exact=author in WHOLE)
    key = "backbone.layer4.1.bn2.running_mean"
    assert torch.equal(network.state_dict()[key], expected(author)[key])


@pytest.mark.parametrize("author", WHOLE)
def test_another_class_count_is_an_error_where_the_model_must_fit(author: str):
    message = refusal(spnet(classes=7), theirs(author), exact=True)
    assert "check DATA.classes" in message
    for text in ("head.classifier.weight is (5, 128, 1, 1) in the file and (7, 128, 1, 1)", "(7,)"):
        assert text in message


@pytest.mark.parametrize("author", WHOLE)
def test_another_class_count_leaves_new_classifiers_for_fine_tuning(author: str):
    network = spnet(classes=7)
    before = network.head.classifier.weight.clone()
    report = load(network, theirs(author))
    assert sorted(report.new) == [
        "auxiliary_head.classifier.bias",
        "auxiliary_head.classifier.weight",
        "head.classifier.bias",
        "head.classifier.weight",
    ]
    assert torch.equal(network.head.classifier.weight, before)
    key = "head.reduce.0.weight"
    assert torch.equal(network.state_dict()[key], expected(author)[key])


@pytest.mark.parametrize(
    ("author", "stem", "remedy"),
    [
        ("Encoding backbone", "classic", "deep"),
        ("semseg backbone", "classic", "deep"),
        ("torchvision backbone", "deep", "classic"),
        ("stripseg backbone", "classic", "deep"),
    ],
)
def test_the_other_stem_names_the_switch(author: str, stem: str, remedy: str):
    message = refusal(spnet(stem=stem), theirs(author))
    assert f"set TRAIN.stem to '{remedy}'" in message


@pytest.mark.parametrize("author", ["stripseg", "SPNet"])
def test_the_other_stem_of_a_whole_model_is_an_error_too(author: str):
    message = refusal(spnet(stem="classic"), theirs(author))
    assert "stem" in message
    assert "backbone.stem.0.weight is (64, 3, 3, 3) in the file and (64, 3, 7, 7)" in message


@pytest.mark.parametrize("author", BACKBONES)
def test_another_depth_is_an_error_that_lists_tensors(author: str):
    message = refusal(build(author, depth=34), theirs(author))
    assert "another architecture" in message
    assert "missing in the file: backbone.layer1.2.conv1.weight" in message
    message = refusal(build(author), theirs(author, depth=34))
    assert "not in the network: backbone.layer1.2.conv1.weight" in message


@pytest.mark.parametrize("author", AUTHORS)
@pytest.mark.parametrize("missing", ["layer3.1.bn2.running_var", "layer4.0.conv2.weight"])
def test_a_missing_backbone_tensor_is_never_silently_new(author: str, missing: str):
    state = theirs(author)
    (key,) = [key for key in state if key.endswith(missing)]
    del state[key]
    assert f"missing in the file: backbone.{missing}" in refusal(build(author), state)


def test_a_missing_head_tensor_of_a_whole_model_is_an_error():
    state = theirs("SPNet")
    del state["head.strip_pool1.conv2_3.0.weight"]
    for exact in (True, False):
        message = refusal(spnet(), state, exact=exact)
        assert "missing in the file: head.mixed_pooling.0.columns.0.weight" in message


@pytest.mark.parametrize("author", WHOLE)
def test_strip_pooling_on_one_side_only_is_an_error_for_testing(author: str):
    without = {key: v for key, v in theirs(author).items() if "strip_pooling." not in key}
    without = {key: value for key, value in without.items() if ".spm." not in key}
    message = refusal(spnet(), without, exact=True)
    assert "missing in the file: backbone.layer1.1.strip_pooling." in message
    assert "spm_on" in message
    message = refusal(spnet(spm_on=False), theirs(author), exact=True)
    assert "not in the network: backbone.layer1.1.strip_pooling." in message


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "initial"])
@pytest.mark.parametrize("author", WHOLE)
def test_the_auxiliary_head_may_be_absent_on_either_side(author: str, exact: bool):
    state = theirs(author)
    auxiliary = [key for key in state if key.startswith(("auxiliary_head.", "auxlayer."))]
    report = load(spnet(auxiliary=False), state, exact=exact)
    assert len(report.unused) == len(auxiliary)
    without = {key: value for key, value in state.items() if key not in auxiliary}
    report = load(spnet(), without, exact=exact)
    assert report.new
    assert all(key.startswith("auxiliary_head.") for key in report.new)


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "initial"])
def test_half_an_auxiliary_head_is_an_error(exact: bool):
    state = theirs("SPNet")
    del state["auxlayer.conv5.0.weight"]
    message = refusal(spnet(), state, exact=exact)
    assert "missing in the file: auxiliary_head.conv.0.weight" in message


def test_a_whole_model_without_strip_pooling_initialises_one_with():
    without = {key: value for key, value in theirs("SPNet").items() if ".spm." not in key}
    report = load(spnet(), without)
    assert report.new
    assert all(".strip_pooling." in key for key in report.new)


def test_half_a_strip_pooling_module_is_an_error():
    state = theirs("SPNet")
    del state["pretrained.layer1.1.spm.conv1.weight"]
    message = refusal(spnet(), state)
    assert "missing in the file: backbone.layer1.1.strip_pooling.rows.0.weight" in message


@pytest.mark.parametrize("author", BACKBONES)
def test_a_backbone_alone_cannot_be_tested(author: str):
    for network in (build(author), spnet(stem="classic")):  # said before the stem is looked at
        assert "holds only a backbone" in refusal(network, theirs(author), exact=True)


@pytest.mark.parametrize("content", [{}, {"state_dict": {}}, {"epoch": 3, "model": {"a": 1}}])
def test_a_file_without_tensors_is_refused(content: Mapping):
    assert "holds no tensors" in refusal(spnet(), content)


def test_an_unknown_family_is_refused_and_the_known_ones_are_listed():
    message = refusal(spnet(), nn.Linear(2, 3).state_dict())
    assert "weight, bias" in message
    assert all(family.name in message for family in FAMILIES)


def test_half_precision_weights_become_the_networks_precision():
    half = {
        key: value.half() if value.is_floating_point() else value
        for key, value in theirs("stripseg").items()
    }
    network = spnet()
    load(network, half, exact=True)
    weight = network.head.classifier.weight
    assert weight.dtype == torch.float32
    assert torch.equal(weight, half["head.classifier.weight"].float())
