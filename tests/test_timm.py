"""Backbones of timm: any head on them, any size, their weight files, synchronized batch norm."""

import numpy as np
import pytest
import torch
from processes import run_processes
from torch import Tensor, nn

from stripseg.config.errors import CheckpointError, ConfigError
from stripseg.config.load import load_config
from stripseg.model.backbone.timm_backbone import (
    SameConvolution,
    TimmBackbone,
    create_features,
)
from stripseg.model.build import HEADS, build_segmenter
from stripseg.model.fcn import FCNHead
from stripseg.model.segmenter import Segmenter
from stripseg.model.weights import load_weights
from stripseg.tool.summary import UNKNOWN, summarise
from stripseg.util.distributed import process_group, sync_batch_norm
from stripseg.util.training.losses import loss_of
from stripseg.util.training.optimizer import optimizer_of
from stripseg.util.training.parallelize import place_network

timm = pytest.importorskip("timm")
YAML = "config/shapes/shapes_spnet18.yaml"
SMALL = ["convnext_atto", "resnet10t", "mobilenetv3_small_050", "vit_tiny_patch16_224"]
FAMILIES = [*SMALL, "swin_tiny_patch4_window7_224", "efficientnet_b0", "regnetx_002"]
BRANCHED = "hrnet_w18_small"  # has branches that no map of its own needs


def segmenter(name: str, *overrides: str) -> Segmenter:
    crop = ["TRAIN.train_h", "64", "TRAIN.train_w", "64", "TRAIN.output_stride", "32"]
    return build_segmenter(load_config(YAML, ["TRAIN.backbone", f"timm/{name}", *crop, *overrides]))


@pytest.mark.parametrize("arch", HEADS)
def test_every_head_sits_on_a_modern_backbone(arch: str) -> None:
    network = segmenter("convnext_atto", "TRAIN.arch", arch)
    output = network(torch.randn(2, 3, 65, 50))
    assert output.logits.shape == output.auxiliary.shape == (2, 9, 65, 50)
    (output.logits.square().mean() + output.auxiliary.square().mean()).backward()
    assert network.backbone.network.model.stem[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("name", [*SMALL, "swin_tiny_patch4_window7_224", BRANCHED])
def test_maps_cover_images_of_any_size(name: str) -> None:
    backbone = TimmBackbone(name).eval()
    with torch.no_grad():
        maps = backbone(torch.randn(1, 3, 41, 75))
    assert tuple(m.shape[1] for m in maps) == backbone.channels
    for m, stride in zip(maps, backbone.strides, strict=True):
        assert m.shape[-2:] == (-(-41 // stride), -(-75 // stride))


def test_output_stride_is_timms() -> None:
    assert TimmBackbone("convnext_atto", output_stride=8).strides == (4, 8, 8, 8)
    with pytest.raises(ValueError, match=r"cannot be had at output stride 8; set TRAIN.output_str"):
        TimmBackbone("mobilenetv3_small_050", output_stride=8)


@pytest.mark.parametrize("name", [*SMALL, "efficientnet_b0"])
def test_weight_files_of_timm_load_whole(name: str) -> None:
    source = timm.create_model(name).eval()
    network = Segmenter(*backbone_and_head(name)).eval()
    report = load_weights(network, source.state_dict(), origin="w", exact=False)
    loaded = network.backbone.network.model.state_dict()
    assert report.family == "timm backbone"
    assert report.matched == len(loaded) == len(source.state_dict()) - len(report.unused)
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in loaded.items())


def test_the_stem_of_a_timm_file_adapts_to_the_images_channels() -> None:
    network = Segmenter(*backbone_and_head("convnext_atto", in_channels=6))
    state = timm.create_model("convnext_atto").state_dict()
    report = load_weights(network, state, origin="w", exact=False)
    assert report.adapted == ["backbone.network.model.stem.0.weight"]


def test_weights_of_another_network_are_refused() -> None:
    network = Segmenter(*backbone_and_head("convnext_atto"))
    with pytest.raises(CheckpointError, match="does not fit the network"):
        load_weights(network, timm.create_model("resnet10t").state_dict(), origin="w", exact=False)


def test_a_trained_network_is_loaded_back() -> None:
    network, again = (Segmenter(*backbone_and_head("resnet10t")) for _ in range(2))
    report = load_weights(again, network.state_dict(), origin="w", exact=True)
    assert report.family == "stripseg"
    assert not report.new
    assert not report.unused


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("convnext_tinny", [], "timm has no model 'convnext_tinny'"),
        ("convnext_atto", ["TRAIN.norm", "group"], "TRAIN.norm must be batch"),
        ("maxvit_tiny_tf_224", [], "does not take images of 64x64"),
    ],
)
def test_what_timm_cannot_do_is_said(name: str, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        segmenter(name, *overrides)


def test_without_timm_its_installation_is_named(monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(ValueError, match="not installed: pip install timm"):
        TimmBackbone("convnext_atto")


def test_synchronized_batch_norm_keeps_the_activation_inside() -> None:
    plain = TimmBackbone("mobilenetv3_small_050").train()
    image = torch.randn(2, 3, 64, 64)
    before = {key: value.clone() for key, value in plain.state_dict().items()}
    expected = plain(image)
    plain.load_state_dict(before)
    converted = sync_batch_norm.convert(plain, device=torch.device("cpu"))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in converted.modules())
    assert list(converted.state_dict()) == list(before)
    for ours, theirs in zip(converted(image), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def backbone_and_head(name: str, **options) -> tuple[TimmBackbone, FCNHead]:
    backbone = TimmBackbone(name, **options)
    return backbone, FCNHead(backbone.channels, classes=4)


def test_the_summary_counts_a_timm_backbone_as_one_part() -> None:
    parts = summarise(segmenter("convnext_atto"), (64, 64))
    backbone, head = parts[:2]
    assert (backbone.name, backbone.shape, backbone.stride) == ("backbone", (320, 2, 2), 32)
    expected = sum(p.numel() for p in TimmBackbone("convnext_atto").parameters())
    assert backbone.parameters == expected
    assert backbone.multiply_adds > 10**7
    assert (head.name, head.receptive_field) == ("head", UNKNOWN)


def learning(network: nn.Module) -> dict[str, nn.Parameter]:
    return {key: p for key, p in network.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("name", "weight"),
    [
        *((name, "0.4") for name in (*FAMILIES, BRANCHED)),
        # without the auxiliary head, those whose maps have layers of their own
        *((name, "0") for name in (BRANCHED, "vit_tiny_patch16_224", FAMILIES[4])),
    ],
)
def test_every_parameter_that_learns_gets_a_gradient(name: str, weight: str) -> None:
    network = segmenter(name, "TRAIN.aux_weight", weight).train()
    assert name not in FAMILIES or len(learning(network)) == len(list(network.parameters()))
    output = network(torch.randn(2, 3, 64, 64))
    sum(logits.sum() for logits in output if logits is not None).backward()
    assert [key for key, p in learning(network).items() if p.grad is None] == []
    assert [key for key, p in network.named_parameters() if p.grad is not None] == [
        *learning(network)
    ]


@pytest.fixture(scope="module")
def branched() -> Segmenter:
    return segmenter(BRANCHED)


def test_branches_without_a_use_are_frozen_and_nothing_else(branched: Segmenter) -> None:
    """Of the other families nothing is: see the test above."""
    network = branched
    frozen = [key for key, p in network.named_parameters() if not p.requires_grad]
    assert len(frozen) == 42
    assert all(key.startswith("backbone.network.model.") for key in frozen)
    backbone = {f"backbone.{key}" for key in TimmBackbone(BRANCHED).state_dict()}
    assert backbone == {key for key in network.state_dict() if key.startswith("backbone.")}


def test_the_optimizer_leaves_frozen_parameters_as_they_are(branched: Segmenter) -> None:
    network = branched
    optimizer = optimizer_of(load_config(YAML, ["TRAIN.weight_decay", "0.1"]), network)
    before = {key: p.detach().clone() for key, p in network.named_parameters()}
    network.train()(torch.randn(2, 3, 64, 64)).logits.sum().backward()
    optimizer.step()
    for key, parameter in network.named_parameters():
        assert parameter.requires_grad or torch.equal(parameter, before[key]), key


def three_steps(name: str) -> dict[str, Tensor]:
    """Sums of the parameters after three steps as one of several processes, each with its image."""
    torch.manual_seed(0)
    options = ["TRAIN.train_h", "64", "TRAIN.train_w", "64", "TRAIN.output_stride", "32"]
    config = load_config(YAML, ["TRAIN.backbone", f"timm/{name}", *options])
    network = build_segmenter(config)
    optimizer = optimizer_of(config, network)
    placed = place_network(config, network, torch.device("cpu")).train()
    loss_of_output = loss_of(config)
    generator = torch.Generator().manual_seed(process_group.rank())
    for _ in range(3):
        image = torch.randn(1, 3, 64, 64, generator=generator)
        label = torch.randint(0, 9, (1, 64, 64), generator=generator)
        loss = loss_of_output(*placed(image), label)[0]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {key: p.double().sum() for key, p in network.named_parameters()}


@pytest.mark.slow
@pytest.mark.parametrize("name", [BRANCHED, "mobilenetv3_small_050"])
def test_two_processes_train(name: str) -> None:
    first, second = run_processes(2, three_steps, name)
    assert first == second
    assert all(np.isfinite(value) for value in first.values())


@pytest.mark.parametrize("output_stride", [8, 32])
def test_same_convolutions_pad_by_constants(output_stride: int) -> None:
    """As timm's do that look at the size, on sides that the strides divide."""
    torch.manual_seed(0)
    backbone = TimmBackbone("tf_efficientnet_lite0", output_stride=output_stride).eval()
    assert any(isinstance(module, SameConvolution) for module in backbone.modules())
    plain = create_features("tf_efficientnet_lite0", 3, output_stride).eval()
    plain.load_state_dict(backbone.network.state_dict())
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        for ours, theirs in zip(backbone.network(image), plain(image), strict=True):
            assert torch.equal(ours, theirs)
