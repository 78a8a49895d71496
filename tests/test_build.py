"""Every config that ships becomes the network it names, which takes a training step and a test."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from yamls import SHIPPED

from stripseg.config.errors import ConfigError
from stripseg.config.load import load_config
from stripseg.engine import build_engine
from stripseg.model import build as building
from stripseg.model.build import HEADS, build_segmenter, check_sizes
from stripseg.model.strip_pooling import MixedPoolingModule, StripPoolingModule
from stripseg.util.training.losses import SegmentationLoss
from stripseg.util.training.optimizer import build_optimizer

ROOT = Path(__file__).resolve().parent.parent
BACKBONES = ["resnet34", "resnet50d", "pyconvresnet18", "pyconvhgresnet50"]
# those on encoders of timm: test_modern_encoders.py
CONFIGS = {path: load_config(path) for path in SHIPPED}
SEGMENTERS = [
    path
    for path, config in CONFIGS.items()
    if not (config.classifies or config.TRAIN.backbone.startswith("timm/"))
]
NARROW = ["TRAIN.width", "0.125"]


@pytest.mark.parametrize("path", SEGMENTERS, ids=lambda path: path.stem)
def test_every_shipped_config_trains(path: Path) -> None:
    config = load_config(path, NARROW)
    torch.manual_seed(0)
    segmenter = build_segmenter(config)
    classes = config.DATA.classes
    optimizer = build_optimizer(
        segmenter,
        segmenter.new_layers(),
        base_lr=config.TRAIN.base_lr,
        head_lr_factor=config.TRAIN.head_lr_factor,
        momentum=config.TRAIN.momentum,
        weight_decay=config.TRAIN.weight_decay,
        name=config.TRAIN.optimizer,
    )
    output = segmenter(torch.randn(2, 3, 41, 49))
    assert output.logits.shape == output.auxiliary.shape == (2, classes, 41, 49)
    loss, _, _ = SegmentationLoss()(*output, torch.randint(classes, (2, 41, 49)))
    loss.backward()
    assert all(p.grad is not None for p in segmenter.parameters())  # of ours, none is without use
    before = segmenter.backbone.stem[0].weight.clone()
    optimizer.step()
    assert loss.isfinite()
    assert not torch.equal(segmenter.backbone.stem[0].weight, before)


@pytest.mark.parametrize("path", SEGMENTERS, ids=lambda path: path.stem)
def test_every_shipped_config_tests_a_picture(path: Path) -> None:
    """With the config's own scales and flips, in windows of a smaller crop."""
    sides = [f"{section}_{side}" for section in ("TRAIN.train", "TEST.test") for side in "hw"]
    crop = [word for side in sides for word in (side, "49")]
    config = load_config(path, [*crop, *NARROW, "TEST.base_size", "60"])
    network = build_segmenter(config).eval()
    engine = build_engine(
        config, network, device=torch.device("cpu"), dtype=torch.float32, batch_size=4
    )
    image = np.random.Generator(np.random.PCG64(1)).integers(0, 256, (37, 70, 3), np.uint8)
    scores = engine.probabilities(image)
    assert scores.shape == (config.DATA.classes, 37, 70)
    torch.testing.assert_close(scores.sum(0), torch.ones(37, 70))


@pytest.mark.parametrize("output_stride", ["8", "16", "32"])
@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("arch", HEADS)
def test_every_head_sits_on_every_backbone(arch: str, backbone: str, output_stride: str) -> None:
    words = ["TRAIN.arch", arch, "TRAIN.backbone", backbone, "TRAIN.output_stride", output_stride]
    words += ["TRAIN.train_h", "41", "TRAIN.train_w", "33", *NARROW]
    network = build_segmenter(load_config(ROOT / "config/shapes/shapes_spnet18.yaml", words))
    output = network(torch.randn(2, 3, 41, 33))
    assert output.logits.shape == output.auxiliary.shape == (2, 9, 41, 33)


@pytest.mark.parametrize(
    ("name", "strip_pooling_modules", "mixed_pooling_modules"),
    [("ade20k_spnet50", 6, 2), ("ade20k_spnet101", 6, 2), ("camvid_spnet18", 5, 2)],
)
def test_strip_pooling_stands_where_the_released_networks_have_it(
    name: str, strip_pooling_modules: int, mixed_pooling_modules: int
) -> None:
    """The last block of stages one to three and every block of stage four (paper, Sec. 3.1)."""
    with torch.device("meta"):
        segmenter = build_segmenter(load_config(ROOT / f"config/{name.split('_')[0]}/{name}.yaml"))
    counts = [
        sum(isinstance(module, kind) for module in segmenter.modules())
        for kind in (StripPoolingModule, MixedPoolingModule)
    ]
    assert counts == [strip_pooling_modules, mixed_pooling_modules]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["TRAIN.arch", "spnett"], r"TRAIN.arch must be one of spnet, .*did you mean spnet\?"),
        (["TRAIN.backbone", "resnet20"], r"TRAIN.*resnet20"),
        (["TRAIN.output_stride", "12"], r"output_stride"),
        (["TRAIN.spm_blocks", "[[7], none, none, none]"], r"blocks 0 to 1"),
    ],
)
def test_what_cannot_be_built_names_the_option(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_segmenter(load_config(ROOT / "config/shapes/shapes_spnet18.yaml", overrides))


class OwnBackbone(nn.Module):
    """Of a user: with a branch that leads to no map, and one that cannot be traced without data."""

    channels = (8, 8, 8, 8)

    def __init__(self, *, traceable: bool, **_: object) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=8, padding=1)
        self.unused = nn.Conv2d(8, 8, 1)
        self.traceable = traceable

    def forward(self, image: Tensor) -> list[Tensor]:
        features = self.stem(image)
        if not self.traceable:
            assert features.isfinite().all().item()
        return [features] * 4


@pytest.mark.parametrize("traceable", [True, False])
def test_a_backbone_of_ones_own_freezes_what_it_does_not_use(
    monkeypatch: pytest.MonkeyPatch, traceable: bool
) -> None:
    """Where that can be found without data; where it cannot, the network is built all the same."""
    known = {"own": partial(OwnBackbone, traceable=traceable)}
    monkeypatch.setattr(building, "own_backbones", lambda stem: known)
    words = ["TRAIN.arch", "fcn", "TRAIN.backbone", "own", "TRAIN.spm_on", "False"]
    network = build_segmenter(load_config(ROOT / "config/shapes/shapes_spnet18.yaml", words))
    frozen = [key for key, p in network.named_parameters() if not p.requires_grad]
    assert frozen == ["backbone.unused.weight", "backbone.unused.bias"] * traceable
    assert network(torch.randn(2, 3, 40, 40)).logits.shape == (2, 9, 40, 40)


@pytest.mark.parametrize(
    ("key", "side", "multiple", "told"),
    [
        ("TRAIN.train_w", 465, 8, "465 must be a multiple of 8, .* resnet18, .* 464 or 472"),
        ("TEST.test_h", 512, 14, "512 must be a multiple of 14, .* take 504 or 518"),
        ("TEST.test_h", 24, 32, "24 must be a multiple of 32, .* take 32, or TRAIN.align"),
    ],
)
def test_strides_must_divide_sizes_where_logits_lie_between_pixels(
    key: str, side: int, multiple: int, told: str
) -> None:
    sizes = dict.fromkeys(("TRAIN.train_h", "TRAIN.train_w", "TEST.test_h", "TEST.test_w"), "448")
    words = [word for pair in {**sizes, key: str(side)}.items() for word in pair]
    backbone = SimpleNamespace(multiple=multiple) if multiple != 8 else SimpleNamespace()
    path = ROOT / "config/shapes/shapes_spnet18.yaml"
    with pytest.raises(ConfigError, match=f"command line: {key} {told}"):
        check_sizes(load_config(path, [*words, "TRAIN.align_corners", "False"]), backbone)
    check_sizes(load_config(path, words), backbone)
    words[words.index(key) + 1] = "448"
    check_sizes(load_config(path, [*words, "TRAIN.align_corners", "False"]), backbone)
