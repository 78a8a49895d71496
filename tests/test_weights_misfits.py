"""Weights that do not fit: an error says which tensors stand in the way, or what stayed new."""

from collections.abc import Mapping

import pytest
import torch
from authors import AUTHORS, BACKBONES, WHOLE, build, expected, load, refusal, theirs
from reference import spnet
from torch import nn

from stripseg.model.families import recognise
from stripseg.model.weights import FAMILIES


@pytest.mark.parametrize("author", WHOLE)
def test_another_class_count_is_an_error_where_the_model_must_fit(author: str):
    message = refusal(spnet(classes=7), theirs(author), exact=True)
    assert "check DATA.classes" in message
    for text in ("head.classifier.weight is (5, 16, 1, 1) in the file and (7, 16, 1, 1)", "(7,)"):
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
    assert "backbone.stem.0.weight is (8, 3, 3, 3) in the file and (8, 3, 7, 7)" in message


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


@pytest.mark.parametrize(
    "keys",
    [
        ("backbone.conv1.weight", "decode_head.conv_seg.weight"),  # mmsegmentation
        ("backbone.conv1.weight", "classifier.0.weight"),  # torchvision
        ("backbone.layer1.0.conv1.weight", "head.fc.weight"),  # mmpretrain
    ],
)
def test_backbones_of_others_are_not_ours(keys: tuple[str, ...]) -> None:
    own = ["backbone.stages.0.weight", "head.classifier.weight"]  # a network with a backbone added
    assert recognise(keys) is None
    assert recognise(keys, target=own) is None
    assert recognise(own) is None
    assert recognise(own, target=own).name == "stripseg"
