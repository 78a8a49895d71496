"""The decoder of DeepLabv3+ behind every head: stride 4, any size, weights, export."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import stripseg
from stripseg.config.compatibility import check_same_network
from stripseg.config.errors import CheckpointError, ConfigError
from stripseg.config.load import load_config
from stripseg.config.schema import Config
from stripseg.engine import build_engine
from stripseg.export import export_network
from stripseg.model.build import HEADS, build_segmenter
from stripseg.model.decoder import Decoder, take_off_classifier
from stripseg.model.folding import fold_batch_norm
from stripseg.model.segmenter import Segmenter
from stripseg.model.weights import load_weights
from stripseg.tool.summary import UNKNOWN, summarise
from stripseg.trained_network import from_content
from stripseg.util.training.losses import loss_of

YAML = Path(__file__).resolve().parent.parent / "config/shapes/shapes_spnet18.yaml"
SLIM = ["TRAIN.width", "0.125", "TRAIN.train_h", "64", "TRAIN.train_w", "64"]


def config_of(*overrides: str, decoder: str = "deeplabv3plus") -> Config:
    return load_config(YAML, [*SLIM, "TRAIN.decoder", decoder, *overrides])


def network_of(*overrides: str, decoder: str = "deeplabv3plus") -> Segmenter:
    torch.manual_seed(0)
    return build_segmenter(config_of(*overrides, decoder=decoder))


@pytest.mark.parametrize("arch", HEADS)
def test_every_head_gets_finer_logits_and_everything_learns(arch: str) -> None:
    network = network_of("TRAIN.arch", arch)
    image = torch.randn(2, 3, 65, 49)
    output = network(image)
    assert output.logits.shape == output.auxiliary.shape == (2, 9, 65, 49)
    (output.logits.square().mean() + output.auxiliary.square().mean()).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
    with torch.no_grad():
        assert network.eval().coarse_logits(image).shape == (2, 9, 17, 13)  # of 9 x 7 without


def test_it_computes_what_the_paper_says() -> None:
    """Step by step in float64: 48 channels of the early stage beside the resized features."""
    torch.manual_seed(1)
    decoder = Decoder(300, 64, 5, norm_layer=nn.Identity).double().eval()
    features, early = torch.randn(1, 300, 5, 4).double(), torch.randn(1, 64, 9, 7).double()
    weights = [m.weight for m in decoder.modules() if isinstance(m, nn.Conv2d)]
    assert [tuple(w.shape) for w in weights] == [
        (48, 64, 1, 1),
        (256, 348, 3, 3),
        (256, 256, 3, 3),
        (5, 256, 1, 1),
    ]
    fine = F.interpolate(features, (9, 7), mode="bilinear", align_corners=True)
    x = torch.cat([fine, F.conv2d(early, weights[0]).relu()], 1)
    for weight in weights[1:3]:
        x = F.conv2d(x, weight, padding=1).relu()
    expected = F.conv2d(x, weights[3], decoder.classifier.bias)
    torch.testing.assert_close(decoder(features, early), expected)


def test_it_sees_what_the_head_cannot() -> None:
    """A change of the early stage alone changes the logits where it is, at stride 4."""
    decoder = Decoder(16, 8, 3).eval()
    features, early = torch.randn(1, 16, 4, 4), torch.zeros(1, 8, 32, 32)
    changed = early.clone()
    changed[:, :, 10, 20] = 5
    difference = (decoder(features, early) - decoder(features, changed)).abs().sum(1)[0]
    rows, columns = difference.nonzero().T
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (8, 12, 18, 22)


def test_it_enlarges_features_as_logits_are_enlarged() -> None:
    network = network_of("TRAIN.arch", "fcn", "TRAIN.align_corners", "False").eval()
    with torch.no_grad():
        features = network.features(torch.randn(1, 3, 64, 64))
        enlarged = F.interpolate(network.head(features), (16, 16), mode="bilinear")
        expected = network.decoder(enlarged, features[0])
        torch.testing.assert_close(network.decode(features), expected)
        assert not torch.allclose(network.decoder(network.head(features), features[0]), expected)
    again = Segmenter(**network.inference_parts())
    assert not again.align_corners


@pytest.mark.parametrize("zoom_factor", ["1", "2", "4", "8"])
def test_the_loss_takes_logits_of_every_zoom_factor(zoom_factor: str) -> None:
    config = config_of("TRAIN.zoom_factor", zoom_factor)
    output = build_segmenter(config)(torch.randn(2, 3, 64, 64))
    assert output.logits.shape == output.auxiliary.shape
    loss, _, _ = loss_of(config)(*output, torch.randint(9, (2, 64, 64)))
    assert loss.isfinite()


@pytest.mark.parametrize("name", ["resnet10t", "convnext_atto"])
def test_backbones_of_timm(name: str) -> None:
    pytest.importorskip("timm")
    words = ["TRAIN.backbone", f"timm/{name}", "TRAIN.output_stride", "32", "TRAIN.width", "1"]
    network = network_of(*words).eval()
    with torch.no_grad():
        assert network.coarse_logits(torch.randn(1, 3, 65, 49)).shape == (1, 9, 17, 13)


def test_a_backbone_without_finer_maps_is_refused() -> None:
    pytest.importorskip("timm")
    words = ["TRAIN.backbone", "timm/vit_tiny_patch16_224", "TRAIN.output_stride", "32"]
    with pytest.raises(ConfigError, match=r"all its maps at stride 16.*leave TRAIN\.decoder out"):
        network_of(*words, "TRAIN.width", "1")


def test_a_head_without_classifier_is_refused() -> None:
    with pytest.raises(ValueError, match="a convolution `classifier`, and Linear has none"):
        take_off_classifier(nn.Linear(1, 1))


def test_a_classifier_of_images_has_no_decoder() -> None:
    with pytest.raises(ConfigError, match=r"TRAIN\.decoder deeplabv3plus does not go with"):
        load_config(YAML, ["TRAIN.arch", "classifier", "TRAIN.decoder", "deeplabv3plus"])


def test_windows_that_overlap_give_probabilities() -> None:
    config = config_of("TEST.test_h", "40", "TEST.test_w", "40", "TEST.base_size", "70")
    engine = build_engine(
        config,
        build_segmenter(config).eval(),
        device=torch.device("cpu"),
        dtype=torch.float32,
        batch_size=4,
    )
    image = np.random.Generator(np.random.PCG64(1)).integers(0, 256, (37, 70, 3), np.uint8)
    torch.testing.assert_close(engine.probabilities(image).sum(0), torch.ones(37, 70))


def test_folding_takes_the_decoder_too() -> None:
    network = network_of("TRAIN.aux_weight", "0").eval()
    image = torch.randn(1, 3, 65, 49)
    folded = fold_batch_norm(network, image)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.decoder.modules())
    with torch.no_grad():
        torch.testing.assert_close(folded(image)[0], network(image)[0], rtol=1e-3, atol=1e-4)


def test_without_it_nothing_is_different() -> None:
    plain, again = network_of(decoder="none"), network_of()
    own = {key for key in again.state_dict() if key.startswith("decoder.")}
    assert own
    assert set(again.state_dict()) - own == {
        key for key in plain.state_dict() if not key.startswith("head.classifier.")
    }
    assert not any(key.startswith("decoder.") for key in plain.state_dict())


def test_a_checkpoint_without_decoder_is_a_start_and_no_test() -> None:
    plain, network = network_of(decoder="none"), network_of()
    state = plain.state_dict()
    report = load_weights(network, state, origin="w", exact=False)
    assert report.new == [key for key in network.state_dict() if is_new(key)]
    assert report.unused == ["head.classifier.weight", "head.classifier.bias"]
    assert torch.equal(network.head.conv[0].weight, plain.head.conv[0].weight)
    with pytest.raises(CheckpointError, match="check TRAIN.arch, backbone.*decoder"):
        load_weights(network, state, origin="w", exact=True)
    with pytest.raises(CheckpointError, match=r"not in the network: decoder\."):
        load_weights(plain, network.state_dict(), origin="w", exact=False)


def is_new(key: str) -> bool:
    return key.startswith("decoder.") and not key.endswith("num_batches_tracked")


def test_a_backbone_file_leaves_head_and_decoder_new() -> None:
    network = network_of()
    state = {k: v for k, v in network.state_dict().items() if k.startswith("backbone.")}
    report = load_weights(network, state, origin="w", exact=False)
    assert {key.partition(".")[0] for key in report.new} == {"head", "decoder", "auxiliary_head"}


def test_a_checkpoint_knows_its_decoder() -> None:
    content = {"config": config_of().model_dump(mode="json")}
    check_same_network(content, config_of(), origin="last.pth")
    with pytest.raises(CheckpointError, match=r"TRAIN\.decoder deeplabv3plus, and now it is none"):
        check_same_network(content, config_of(decoder="none"), origin="last.pth")
    del content["config"]["TRAIN"]["decoder"]  # of a version that did not have it
    check_same_network(content, config_of(decoder="none"), origin="last.pth")


def test_create_model_takes_it() -> None:
    network = stripseg.create_model(
        "psp", backbone="resnet18", classes=4, width=0.125, decoder="deeplabv3plus"
    )
    assert network.eval()(torch.zeros(1, 3, 33, 41)).shape == (1, 4, 33, 41)
    assert network.decoder in network.new_layers()


def test_the_summary_counts_it() -> None:
    parts = {part.name: part for part in summarise(network_of(), (65, 97))}
    assert list(parts)[-3:] == ["head", "decoder", "auxiliary head"]
    decoder = parts["decoder"]
    assert (decoder.shape, decoder.stride, decoder.receptive_field) == ((9, 17, 25), 4, None)
    expected = sum(p.numel() for p in network_of().decoder.parameters())
    assert decoder.parameters == expected
    fcn = summarise(network_of("TRAIN.arch", "fcn"), (65, 97))
    assert [part.receptive_field for part in fcn if part.name == "decoder"] == [UNKNOWN]


@pytest.mark.long  # the FCN of timm's small network has it in tests/test_export.py
@pytest.mark.parametrize("arch", ["fcn", "spnet"])
def test_it_is_exported_with_free_height_and_width(
    small_shapes: Path, tmp_path: Path, arch: str
) -> None:
    pytest.importorskip("onnx")
    config = config_of("TRAIN.arch", arch, "DATA.data_root", str(small_shapes))
    torch.manual_seed(2)
    state = build_segmenter(config).state_dict()
    content = {"config": config.model_dump(mode="json"), "state_dict": state}
    trained = from_content(content, "last.pth", torch.device("cpu"))
    export = export_network(trained, tmp_path / "network.onnx")
    assert all(row.fits for row in export.comparisons)
