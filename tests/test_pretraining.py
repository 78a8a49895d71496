"""Pretraining on folders of images, and what segmentation gets of it."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from stripseg.config.errors import ConfigError, DataError
from stripseg.config.load import load_config
from stripseg.dataset.classification.build import build_evaluation_images, build_training_images
from stripseg.dataset.classification.images import MiddleCrop, ResizedCrop, read_folders
from stripseg.model.build import build_network
from stripseg.training_run import build_trainer
from stripseg.util.images import write_png
from stripseg.util.metrics import ConfusionMatrix

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """train/ and val/ of three classes, red, green and blue pictures of several sizes."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for channel, name in enumerate(("a_red", "b_green", "c_blue")):
            for index in range(count):
                height, width = rng.integers(40, 90, 2)
                image = rng.integers(0, 80, (height, width, 3), np.uint8)
                image[..., channel] += 150
                write_png(tmp_path / "data" / split / name / f"{index}.png", image)
    return tmp_path / "data"


@pytest.fixture
def config_file(folders: Path, tmp_path: Path) -> Path:
    content = {
        "base": str(ROOT / "config/imagenet/imagenet_resnet50.yaml"),
        "DATA": {"data_root": str(folders), "classes": 3},
        "TRAIN": {
            "layers": 18,
            "width": 0.125,
            "train_h": 64,
            "train_w": 64,
            "base_lr": 0.05,
            "batch_size": 6,
            "epochs": 2,
            "warmup_epochs": 1,
            "workers": 0,
            "print_freq": 1,
            "precision": "fp32",
            "save_path": str(tmp_path / "run"),
        },
        "TEST": {"precision": "fp32", "workers": 0},
    }
    path = tmp_path / "pictures_resnet18.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def test_folders_are_classes_in_alphabetical_order(folders: Path) -> None:
    images = read_folders(folders / "train")
    assert images.classes == ["a_red", "b_green", "c_blue"]
    assert images.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    for index, label in enumerate(images.labels):
        assert images.read(index).mean((0, 1)).argmax() == label


def test_training_crops_are_a_function_of_seed_epoch_and_index(config_file: Path) -> None:
    first, again = (build_training_images(load_config(config_file)) for _ in range(2))
    assert first[0, 3].image.shape == (64, 64, 3)
    assert np.array_equal(first[1, 3].image, again[1, 3].image)
    assert not np.array_equal(first[0, 3].image, first[1, 3].image)


def test_rectangles_have_the_area_and_ratio_asked_for() -> None:
    """Seen in what comes out: a picture whose pixels are their places, (row, column)."""
    image = np.zeros((100, 120, 3), np.uint8)
    image[..., 0], image[..., 1] = np.arange(100)[:, None], np.arange(120)
    crop = ResizedCrop((64, 64), (0.2, 0.5))
    shares, ratios, places, mirrored = [], [], set(), 0
    for seed in range(300):
        found = crop(image, np.random.default_rng(seed)).astype(float)
        assert found.shape == (64, 64, 3)
        height = (found[-1, :, 0].mean() - found[0, :, 0].mean()) * 64 / 63
        width = (found[:, -1, 1].mean() - found[:, 0, 1].mean()) * 64 / 63
        mirrored += width < 0
        shares.append(height * abs(width) / 12000)
        ratios.append(abs(width) / height)
        places.add((round(found[..., 0].min()), round(found[..., 1].min())))
    assert 0.18 < min(shares) < 0.23
    assert 0.47 < max(shares) < 0.52
    assert 0.71 < min(ratios) < 0.8
    assert 1.25 < max(ratios) < 1.4
    assert len(places) > 200
    assert 110 < mirrored < 190


def test_crops_are_the_generators_alone() -> None:
    """Whatever torch's own generator has done before; and it goes on as if nothing was drawn."""
    image = np.random.default_rng(0).integers(0, 256, (50, 60, 3), np.uint8)
    crop = ResizedCrop((32, 32))
    torch.manual_seed(1)
    first = crop(image, np.random.default_rng(5))
    after = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(after, torch.rand(3))
    assert np.array_equal(first, crop(image, np.random.default_rng(5)))
    assert not np.array_equal(first, crop(image, np.random.default_rng(6)))


def test_the_test_sees_the_middle() -> None:
    image = np.zeros((70, 140, 3), np.uint8)
    image[:, 60:80] = 200
    middle = MiddleCrop((56, 56))(image)
    assert middle.shape == (56, 56, 3)
    assert middle[:, 20:36].min() > 150
    assert middle[:, :15].max() == middle[:, 41:].max() == 0


def test_pretraining_trains_and_starts_a_segmenter(
    config_file: Path, small_config: Path, tmp_path: Path
) -> None:
    """The checkpoint of the run is `TRAIN.pretrained`: its averaged weights, tensor for tensor."""
    trainer = build_trainer(load_config(config_file, ["TRAIN.stem", "deep"]), CPU)
    trainer.fit()
    assert trainer.step == 4
    overrides = ["TRAIN.pretrained", str(tmp_path / "run" / "last.pth"), "TRAIN.resume", "none"]
    segmenter = build_trainer(load_config(small_config, overrides), CPU).segmenter
    trained = {
        key.removeprefix("backbone."): value
        for key, value in trainer.ema.tensors.items()
        if key.startswith("backbone.")
    }
    fresh = [key for key in segmenter.backbone.state_dict() if key not in trained]
    assert all(".strip_pooling." in key for key in fresh)
    for key, value in trained.items():
        assert torch.equal(segmenter.backbone.state_dict()[key], value), key


@pytest.mark.parametrize("backbone", ["resnet50d", "pyconvresnet18", "timm/resnet10t"])
def test_every_backbone_can_be_a_classifier(config_file: Path, backbone: str) -> None:
    words = ["TRAIN.backbone", backbone, "TRAIN.layers", ""]
    if backbone.startswith("timm/"):
        pytest.importorskip("timm")
        words += ["TRAIN.width", "1"]
    network = build_network(load_config(config_file, words))
    assert network(torch.rand(2, 3, 64, 64)).logits.shape == (2, 3)


def test_more_classes_than_a_byte_can_count(config_file: Path) -> None:
    """Labels, predictions and the confusion matrix of 1000 classes."""
    network = build_network(load_config(config_file, ["DATA.classes", "1000"]))
    assert network.classifier.out_features == 1000
    confusion = ConfusionMatrix(1000, ignore_label=-1)
    confusion.update(torch.tensor([999, 255, 3], dtype=torch.int32), torch.tensor([999, 255, -1]))
    assert confusion.counts.sum() == 2
    assert confusion.counts[999, 999] == confusion.counts[255, 255] == 1


def test_a_bad_image_stops_the_run_or_is_left_out(
    config_file: Path, folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folders / "train" / "b_green" / "1.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"b_green/1\.png"):
        build_trainer(load_config(config_file, ["TRAIN.bad_data", "stop"]), CPU).fit()
    trainer = build_trainer(load_config(config_file), CPU)
    said = []
    monkeypatch.setattr(trainer.run_log.log, "error", said.append)
    trainer.fit()
    assert sum("left out: " in line and "1.png" in line for line in said) == 2  # once an epoch
    assert trainer.step == 4


def test_folders_that_disagree_are_refused(config_file: Path, folders: Path) -> None:
    (folders / "val" / "d_none").mkdir()
    config = load_config(config_file)
    with pytest.raises(DataError, match="d_none: a class without images"):
        build_evaluation_images(config, "val")
    (folders / "val" / "d_none").rmdir()
    (folders / "val" / "c_blue").rename(folders / "val" / "c_azure")
    with pytest.raises(ConfigError, match="names other classes than train"):
        build_evaluation_images(config, "val")
