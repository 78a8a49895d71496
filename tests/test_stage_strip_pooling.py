"""TRAIN.spm_stages: strip pooling modules between any backbone and what stands behind it."""

from pathlib import Path

import pytest
import torch

import stripseg
from stripseg.config.compatibility import check_same_network
from stripseg.config.errors import CheckpointError, ConfigError
from stripseg.config.load import load_config
from stripseg.model.build import build_segmenter
from stripseg.model.segmenter import Segmenter
from stripseg.model.strip_pooling import StripPoolingModule
from stripseg.model.weights import load_weights
from stripseg.tool.summary import summarise
from stripseg.util.training.optimizer import optimizer_of

YAML = Path(__file__).resolve().parent.parent / "config/shapes/shapes_spnet18.yaml"
BACKBONES = {"resnet18": "0.125", "pyconvresnet50": "0.125", "timm/convnext_atto": "1"}


def network_of(*words: str, backbone: str = "resnet18") -> Segmenter:
    if backbone.startswith("timm/"):
        pytest.importorskip("timm")
    torch.manual_seed(0)
    slim = ["TRAIN.backbone", backbone, "TRAIN.width", BACKBONES[backbone]]
    size = ["TRAIN.train_h", "64", "TRAIN.train_w", "64", "TRAIN.output_stride", "16"]
    return build_segmenter(load_config(YAML, [*slim, *size, *words]))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_head_sees_what_the_modules_let_through(backbone: str) -> None:
    everywhere = ["TRAIN.spm_stages", "[1,3,4]", "TRAIN.decoder", "deeplabv3plus"]
    network = network_of(*everywhere, backbone=backbone)
    assert list(network.strip_pooling) == ["1", "3", "4"]
    output = network(torch.randn(2, 3, 65, 49))
    assert output.logits.shape == output.auxiliary.shape == (2, 9, 65, 49)
    (output.logits.square().mean() + output.auxiliary.square().mean()).backward()
    for name, parameter in network.strip_pooling.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
    image = torch.randn(1, 3, 40, 64)
    with torch.no_grad():
        plain = list(network.eval().backbone(image))
        for stage, module in network.strip_pooling.items():
            assert isinstance(module, StripPoolingModule)
            plain[int(stage) - 1] = module(plain[int(stage) - 1])
        expected = network.decoder(network.head(plain), plain[0])
        assert torch.equal(network.coarse_logits(image), expected)


def test_they_learn_at_the_rate_of_the_head() -> None:
    config = load_config(
        YAML, ["TRAIN.width", "0.125", "TRAIN.spm_stages", "[4]", "TRAIN.head_lr_factor", "7"]
    )
    network = build_segmenter(config)
    factors = {
        id(p): group["lr_factor"]
        for group in optimizer_of(config, network).param_groups
        for p in group["params"]
    }
    assert {factors[id(p)] for p in network.strip_pooling.parameters()} == {7}
    assert {factors[id(p)] for p in network.backbone.parameters()} == {1}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("[2]", "nothing looks at the features of stage 2; leave it out"),
        ("[1]", r"features of stage 1; only a TRAIN\.decoder does"),
        ("[3] TRAIN.aux_weight 0", r"features of stage 3; only TRAIN\.aux_weight above 0 does"),
        ("[5]", r"TRAIN\.spm_stages.*5"),
    ],
)
def test_a_stage_that_nothing_looks_at_is_refused(words: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        network_of("TRAIN.spm_stages", *words.split())


def test_weights_of_a_network_without_them_start_one_with_them() -> None:
    state = network_of().state_dict()
    network = network_of("TRAIN.spm_stages", "[4]")
    load_weights(network, {"state_dict": state}, origin="w.pth", exact=False)
    assert torch.equal(
        network.backbone.state_dict()["layer1.0.conv1.weight"],
        state["backbone.layer1.0.conv1.weight"],
    )
    with pytest.raises(CheckpointError, match="spm_stages"):
        load_weights(network, {"state_dict": state}, origin="w.pth", exact=True)
    partly = {k: v for k, v in network.state_dict().items() if k != "strip_pooling.4.fuse.bias"}
    with pytest.raises(CheckpointError, match="strip_pooling.4.fuse.bias"):
        load_weights(network, {"state_dict": partly}, origin="w.pth", exact=False)


def test_checkpoints_from_before_the_option_are_of_networks_without_it() -> None:
    config = load_config(YAML, ["TRAIN.spm_stages", "[4]"])
    stored = load_config(YAML).model_dump(mode="json")
    del stored["TRAIN"]["spm_stages"]
    check_same_network({"config": stored}, load_config(YAML), origin="old.pth")
    with pytest.raises(CheckpointError, match=r"TRAIN\.spm_stages \[\], and now it is \[4\]"):
        check_same_network({"config": stored}, config, origin="old.pth")


def test_create_model_and_summary_know_them() -> None:
    model = stripseg.create_model("spnet", backbone="resnet18", classes=3, spm_stages=[4])
    assert list(model.strip_pooling) == ["4"]
    wrapped = stripseg.wrap(model, test_h=64, test_w=64).network
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(wrapped(image).logits, model.eval()(image))
    network = network_of("TRAIN.spm_stages", "[4]")
    parts = {part.name: part for part in summarise(network, (64, 64))}
    assert parts["strip pooling 4"].parameters == sum(
        p.numel() for p in network.strip_pooling.parameters()
    )
    assert sum(part.parameters for part in parts.values()) == sum(
        p.numel() for p in network.parameters()
    )
