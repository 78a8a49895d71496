"""The shipped configs of SPNet's head on encoders of timm, on small relatives of the encoders."""

from pathlib import Path

import numpy as np
import pytest
import torch
from yamls import SHIPPED

from stripseg.config.errors import ConfigError
from stripseg.config.load import load_config
from stripseg.config.schema import Config
from stripseg.engine import build_engine
from stripseg.model.backbone.timm_backbone import TimmBackbone
from stripseg.model.build import build_segmenter
from stripseg.util.training.losses import loss_of
from stripseg.util.training.optimizer import optimizer_of

timm = pytest.importorskip("timm")
RELATIVES = {  # small enough for a test
    "timm/convnext_tiny": "timm/convnext_atto",
    "timm/convnext_base": "timm/convnext_atto",
    "timm/vit_small_patch16_dinov3": "timm/test_vit4",  # without its tokens and rotations
}
PATHS = [path for path in SHIPPED if "_convnext_" in path.stem or "_dinov3_" in path.stem]
SHAPES = "config/shapes/shapes_spnet18.yaml"


def small(path: Path, relative: str = "") -> Config:
    sides = [f"{section}_{side}" for section in ("TRAIN.train", "TEST.test") for side in "hw"]
    crop = [word for side in sides for word in (side, "64")]
    relative = relative or RELATIVES[load_config(path).TRAIN.backbone]
    return load_config(path, ["TRAIN.backbone", relative, "TEST.base_size", "70", *crop])


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_each_names_an_encoder_that_timm_has(path: Path) -> None:
    train = load_config(path).TRAIN
    assert timm.is_model(train.backbone.removeprefix("timm/"))
    assert (train.optimizer, train.decay_norms_and_biases) == ("adamw", False)
    assert train.drop_path > 0
    assert train.layer_lr_decay < 1
    assert train.warmup_epochs > 0


def test_there_are_three_for_each_dataset() -> None:
    assert sorted(path.parent.name for path in PATHS) == ["ade20k"] * 3 + ["cityscapes"] * 3


def test_tokens_and_positions_have_no_weight_decay() -> None:
    path = next(path for path in PATHS if "_dinov3_" in path.stem)
    config = small(path, "timm/vit_tiny_patch16_dinov3_qkvb")
    network = build_segmenter(config)
    names = {id(p): name for name, p in network.backbone.network.model.named_parameters()}
    decayed = {
        names.get(id(p)): group["weight_decay"] > 0
        for group in optimizer_of(config, network).param_groups
        for p in group["params"]
    }
    assert not decayed["cls_token"]
    assert not decayed["reg_token"]
    assert decayed["blocks.0.mlp.fc1.weight"]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_each_takes_a_step_and_tests_a_picture(path: Path) -> None:
    config = small(path)
    torch.manual_seed(0)
    network, classes = build_segmenter(config), config.DATA.classes
    optimizer = optimizer_of(config, network)
    before = [p.detach().clone() for p in network.backbone.parameters()]
    output = network(torch.randn(2, 3, 64, 64))
    loss, _, _ = loss_of(config)(*output, torch.randint(classes, (2, 64, 64)))
    loss.backward()
    optimizer.step()
    assert loss.isfinite()
    assert any(
        not torch.equal(p, old)
        for p, old in zip(network.backbone.parameters(), before, strict=True)
    )
    engine = build_engine(
        config, network.eval(), device=torch.device("cpu"), dtype=torch.float32, batch_size=4
    )
    image = np.random.Generator(np.random.PCG64(1)).integers(0, 256, (37, 70, 3), np.uint8)
    torch.testing.assert_close(engine.probabilities(image).sum(0), torch.ones(37, 70))


def test_drop_path_leaves_branches_out_in_training_alone() -> None:
    backbone = TimmBackbone("convnext_atto", drop_path=0.5)
    rates = [m.drop_prob for m in backbone.modules() if type(m).__name__ == "DropPath"]
    assert max(rates) == 0.5
    assert rates == sorted(rates)
    plain = TimmBackbone("convnext_atto")
    plain.load_state_dict(backbone.state_dict())
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(backbone.eval()(image)[-1], plain.eval()(image)[-1])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["TRAIN.drop_path", "0.1"], r"TRAIN\.drop_path 0\.1 is for backbones of timm"),
        (
            ["TRAIN.drop_path", "0.1", "TRAIN.backbone", "timm/hrnet_w18_small"],
            "timm/hrnet_w18_small has no drop path; set TRAIN.drop_path 0",
        ),
    ],
)
def test_backbones_without_drop_path_say_so(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_segmenter(load_config(SHAPES, [*words, "TRAIN.output_stride", "32"]))
