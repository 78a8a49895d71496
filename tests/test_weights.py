"""Weights of any author load completely, tensor by tensor."""

from collections.abc import Callable, Mapping

import pytest
import torch
from authors import (
    AUTHORS,
    BACKBONES,
    SPNET_NAMES,
    THEIRS,
    WHOLE,
    WRAPPINGS,
    State,
    build,
    expected,
    load,
    theirs,
)
from reference import spnet

from stripseg.model.weights import FAMILIES, translate


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


def test_a_moving_average_is_taken_last_and_said():
    state = spnet().state_dict()
    report = load(spnet(), {"model_ema": {"state_dict": state}})
    assert report.matched == len(state)
    assert "tensors loaded, the moving average of the weights ('model_ema')" in str(report)
    report = load(spnet(), {"model_ema": {}, "model": state})
    assert (report.matched, report.average) == (len(state), None)


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
