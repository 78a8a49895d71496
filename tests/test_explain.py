"""Explanations tell what the modules compute, and the page shows it without asking for anything."""

import html.parser
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stripseg.config.errors import CheckpointError, ConfigError, DataError
from stripseg.config.load import config_from
from stripseg.model.build import build_network
from stripseg.model.layers import group_norm
from stripseg.model.segmenter import Segmenter
from stripseg.model.strip_pooling import MixedPoolingModule, StripPoolingModule
from stripseg.model_card import ModelCard
from stripseg.report import explain as module
from stripseg.report.explain import (
    explain,
    mixed_pooling_parts,
    radius_holding,
    receptive_field,
    share_in_cross,
    strips_left_out,
    watched,
)
from stripseg.report.explain_page import NO_STRIPS, page, pictures_of, write_explanation
from stripseg.tool import explain as command
from stripseg.trained_network import TrainedNetwork
from stripseg.util.images import write_png

SIZE = 64, 80
NAMES = ["road", "<b>sky</b>", "tree"]


class Head(nn.Sequential):
    """Layers upon the last stage."""

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        return super().forward(features[-1])


class Image(nn.Module):
    """A backbone whose only stage is the image."""

    def forward(self, image: Tensor) -> list[Tensor]:
        return [image]


def segmenter(*layers: nn.Module) -> Segmenter:
    return Segmenter(Image(), Head(*layers))


def trained(**train) -> TrainedNetwork:
    """An untrained network with three classes and running statistics that are not 0 and 1."""
    torch.manual_seed(0)
    tree = {
        "DATA": {"data_root": ".", "classes": 3, "dataset": "mine"},
        "TRAIN": {"layers": 18, "train_h": 64, "train_w": 64, "save_path": "run", **train},
        "TEST": {"base_size": 0},
    }
    config = config_from(tree, [], source="the test")
    network = build_network(config).eval()
    randomize_norms(network)
    colors = np.arange(9, dtype=np.uint8).reshape(3, 3) * 25
    card = ModelCard(NAMES, colors, config.model_dump())
    return TrainedNetwork(network, card, config, torch.device("cpu"), path="fake.pth")


def randomize_norms(network: nn.Module) -> None:
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.running_mean, -0.2, 0.2)
            nn.init.uniform_(norm.running_var, 0.5, 2)
            nn.init.uniform_(norm.bias, -0.2, 0.2)


def photo(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), np.uint8)


@pytest.fixture(scope="module")
def spnet() -> TrainedNetwork:
    return trained(arch="spnet")


@pytest.fixture(scope="module")
def explanation(spnet: TrainedNetwork) -> module.Explanation:
    return explain(spnet, photo(), (40, 10))


def test_attention_is_what_the_module_multiplies_by() -> None:
    torch.manual_seed(0)
    pooling = StripPoolingModule(8).eval()
    randomize_norms(pooling)
    x = torch.randn(1, 8, 12, 10)
    with torch.no_grad(), watched(segmenter(pooling)) as (attention, branches):
        factor = pooling(x) / x
    assert branches == []
    assert np.allclose(attention[0].mean, factor[0].mean(0), atol=1e-5)
    assert len(attention[0].channels) == 3
    for index, weights in attention[0].channels.items():
        assert np.allclose(weights, factor[0, index], atol=1e-5)
    spread = factor[0].std(dim=(1, 2))
    assert set(attention[0].channels) == set(spread.topk(3).indices.tolist())


@pytest.mark.parametrize("norm_layer", [nn.BatchNorm2d, group_norm])
def test_the_parts_of_mixed_pooling_add_up(norm_layer) -> None:
    torch.manual_seed(0)
    pooling = MixedPoolingModule(16, (4, 2), norm_layer=norm_layer).double().eval()
    randomize_norms(pooling)
    x = torch.randn(2, 16, 9, 11, dtype=torch.float64)
    parts = mixed_pooling_parts(pooling, x)
    assert torch.allclose(sum(parts.values()).relu(), pooling(x))
    with torch.no_grad(), watched(segmenter(pooling)) as (_, branches):
        pooling(x[:1])
        parts = mixed_pooling_parts(pooling, x[:1])
    for part in ("identity", "pyramid", "strips"):
        assert np.allclose(getattr(branches[0], part), parts[part][0].norm(dim=0).numpy())


def test_the_field_of_a_convolution_is_its_weights() -> None:
    convolution = nn.Conv2d(3, 2, 3, padding=1)
    field = receptive_field(segmenter(convolution), torch.randn(1, 3, 9, 11), (4, 6), 1)
    expected = np.zeros((9, 11), np.float32)
    expected[3:6, 5:8] = convolution.weight[1].detach().abs().sum(0)
    assert np.allclose(field, expected)


def test_two_convolutions_see_five_pixels_a_side() -> None:
    layers = [nn.Conv2d(width, 2, 3, padding=1) for width in (3, 2)]
    field = receptive_field(segmenter(*layers), torch.randn(1, 3, 15, 15), (7, 7), 0)
    assert (field[5:10, 5:10] > 0).all()
    field[5:10, 5:10] = 0
    assert not field.any()


def test_strips_light_the_row_and_the_column() -> None:
    """And what its 1-D convolutions of three reach beside them; without strips the pixel alone."""
    torch.manual_seed(0)
    pooling = StripPoolingModule(4).eval()
    nn.init.constant_(pooling.rows[1].bias, 3.0)  # no dead ReLU
    network = segmenter(nn.Conv2d(3, 4, 1), pooling)
    image = torch.randn(1, 3, 15, 17)
    field = receptive_field(network, image, (7, 5), 0)
    cross = np.zeros((15, 17), bool)
    cross[6:9] = cross[:, 4:7] = True
    assert (field[cross] > 0).all()
    assert not field[~cross].any()
    with strips_left_out(network):
        alone = receptive_field(network, image, (7, 5), 0)
    assert alone[7, 5] > 0
    assert np.count_nonzero(alone) == 1
    assert np.array_equal(receptive_field(network, image, (7, 5), 0), field)  # hooks are gone


def test_left_out_means_weights_of_one_and_branches_of_zero() -> None:
    torch.manual_seed(0)
    strip, mixed = StripPoolingModule(8).eval(), MixedPoolingModule(8, (4, 2)).eval()
    x = torch.randn(1, 8, 9, 11)
    mixed.long_range = lambda y: torch.zeros_like(mixed.short_range(y))
    expected = mixed(x)
    del mixed.long_range
    with strips_left_out(nn.ModuleList([strip, mixed])):
        assert torch.equal(strip(x), x)
        assert torch.equal(mixed(x), expected)
    assert not torch.equal(mixed(x), expected)


def test_a_network_is_explained(spnet: TrainedNetwork, explanation: module.Explanation) -> None:
    assert explanation.mask.shape == SIZE
    assert explanation.pixel == (40, 10)
    assert explanation.class_index == explanation.mask[40, 10]
    assert [a.name for a in explanation.attention][:2] == [
        "backbone.layer1.1.strip_pooling",
        "backbone.layer2.1.strip_pooling",
    ]
    assert len(explanation.attention) == 5
    assert [b.name for b in explanation.branches] == [
        "head.mixed_pooling.0",
        "head.mixed_pooling.1",
    ]
    assert all(0 < a.mean.min() <= a.mean.max() < 1 for a in explanation.attention)
    assert explanation.field.shape == explanation.field_without_strips.shape == SIZE
    assert not np.allclose(explanation.field, explanation.field_without_strips)
    # the network is as it was
    assert not any(m._forward_hooks for m in spnet.network.modules())
    assert all(parameter.grad is None for parameter in spnet.network.parameters())


def test_a_pixel_is_one_of_the_users_image(spnet: TrainedNetwork, monkeypatch) -> None:
    """Also where a smaller copy of it is explained."""
    monkeypatch.setattr(module, "LONG_SIDE", 40)
    small = explain(spnet, photo(), (63, 79))
    assert small.mask.shape == (32, 40)
    assert small.pixel == (31, 39)
    assert explain(spnet, photo()).pixel == (16, 20)
    for pixel in ((64, 0), (0, 80), (-1, 0)):
        message = "the image has rows 0 to 63 and columns 0 to 79"
        with pytest.raises(ConfigError, match=message):
            explain(spnet, photo(), pixel)


def test_radius_and_cross_of_a_known_field() -> None:
    field = np.zeros((41, 41))
    field[20, 20], field[20, 30], field[0, 0] = 6, 3, 1
    assert radius_holding(field, (20, 20), 0.5) == 0
    assert radius_holding(field, (20, 20), 0.9) == 10
    share, area = share_in_cross(field, (20, 20), 1)
    assert share == pytest.approx(0.9)
    assert area == pytest.approx((2 * 3 * 41 - 9) / 41**2)
    assert radius_holding(np.zeros((3, 3)), (1, 1), 0.5) == 0


class Page(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append((tag, dict(attrs)))


def test_the_page_is_whole(explanation: module.Explanation, tmp_path: Path) -> None:
    paths = write_explanation(explanation, tmp_path / "out", title="<script>alert(1)</script>.jpg")
    assert len(paths) == 2 + 5 + 2 + 1
    assert all(path.is_file() for path in paths)
    text = paths[-1].read_text(encoding="utf-8")
    parsed = Page()
    parsed.feed(text)
    tags = [tag for tag, _ in parsed.tags]
    assert tags.count("img") == 3 + 2 + 5 * 4 + 2 * 3
    assert not {"script", "link", "b", "iframe"} & set(tags)
    sources = [attributes["src"] for tag, attributes in parsed.tags if tag == "img"]
    assert all(source.startswith("data:image/") for source in sources)
    assert "http" not in text
    assert "prefers-color-scheme:dark" in text
    assert "width=device-width" in text
    assert "was not trained again" in text


def test_maps_are_colours_over_the_image(explanation: module.Explanation) -> None:
    pictures = {picture.file: picture.pixels for picture in pictures_of(explanation)}
    assert pictures["strip_pooling_01"].shape[1] > 4 * 400
    assert pictures["receptive_field"].shape[1] > 2 * 400
    assert all(picture.std() > 15 for picture in pictures.values())


def test_a_network_without_strips_gets_the_field_and_a_line() -> None:
    found = explain(trained(arch="psp"), photo())
    assert not found.has_strips
    assert found.field_without_strips is None
    pictures = pictures_of(found)
    assert [picture.file for picture in pictures] == ["prediction", "receptive_field"]
    assert NO_STRIPS in page(found, pictures, "image")


def test_the_command_writes_and_names_mistakes(
    spnet: TrainedNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(command, "load", lambda path, device: spnet)
    write_png(tmp_path / "a.png", photo())
    words = ["best.pth", str(tmp_path / "a.png"), "--output", str(tmp_path / "out")]
    command.main([*words, "--pixel", "3", "4"])
    assert str(tmp_path / "out/explain.html") in capsys.readouterr().out
    with pytest.raises(DataError, match="absent.png: image file does not exist"):
        command.main(["best.pth", str(tmp_path / "absent.png")])
    with pytest.raises(DataError, match="name one image"):
        command.main(["best.pth", str(tmp_path)])


def test_an_export_is_refused(spnet: TrainedNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "OnnxNetwork", nn.Module)
    with pytest.raises(CheckpointError, match=r"fake.pth: is an export.*explain the checkpoint"):
        explain(spnet, photo())
