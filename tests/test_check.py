"""The dataset doctor finds what is wrong, names the likely cause, and leaves sound data alone."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from stripseg.command_line import as_json
from stripseg.config.errors import DataError
from stripseg.dataset.description import default_colors
from stripseg.dataset.labels import choose_encoding
from stripseg.dataset.lists import Pair
from stripseg.dataset.preparation.check import examine_pair, look
from stripseg.tool import check, train


@pytest.fixture
def data(small_shapes: Path, small_config: Path, tmp_path: Path) -> Path:
    """A copy of the small dataset to damage; `small_config` points at it."""
    root = tmp_path / "data"
    shutil.copytree(small_shapes, root)
    content = yaml.safe_load(small_config.read_text())
    content["DATA"]["data_root"] = str(root)
    small_config.write_text(yaml.safe_dump(content))
    return root


def report(config: Path, capsys) -> tuple[int | None, str]:
    code = check.main(["--config", str(config), "--workers", "1"]).exit_code
    return code, capsys.readouterr().out


def files(root: Path, what: str) -> list[Path]:
    return sorted((root / what).rglob("*.*"))


def test_sound_data_passes(data: Path, small_config: Path, capsys) -> None:
    code, text = report(small_config, capsys)
    assert code == 0
    assert "error:" not in text
    assert "9 pairs: 0 error(s)" in text
    assert "image sizes (height x width): 72x88 to 72x88" in text


def test_the_json_has_the_same(data: Path, small_config: Path) -> None:
    content = json.loads(as_json(check.main(["--config", str(small_config)]).figures))
    assert content["pairs"] == {"train": 6, "val": 3}
    labels = [np.array(Image.open(path)) for path in files(data, "labels/train")]
    assert content["pixels"]["train"] == [
        sum(int((label == index).sum()) for label in labels) for index in range(9)
    ]
    assert content["ignored"]["train"] == sum(int((label == 255).sum()) for label in labels)
    assert len(content["class_weights"]) == 9


def test_a_file_for_the_json_is_written_as_in_earlier_versions(
    small_config: Path, tmp_path: Path
) -> None:
    path = tmp_path / "report.json"
    result = check.main(["--config", str(small_config), "--json", str(path)])
    assert json.loads(path.read_text()) == json.loads(as_json(result.figures))


def test_damaged_files_are_named(data: Path, small_config: Path, capsys) -> None:
    image, label = files(data, "images/train")[0], files(data, "labels/val")[1]
    image.write_bytes(image.read_bytes()[:100])
    Image.fromarray(np.zeros((5, 6), np.uint8)).save(label)
    code, text = report(small_config, capsys)
    assert code == check.FOUND_ERRORS
    assert f"error: {image}: image file is truncated" in text
    assert f"its label {label} 6x5 pixels" in text
    assert "2 error(s)" in text


def test_ignored_files_leaks_and_duplicates(data: Path, small_config: Path, capsys) -> None:
    label = files(data, "labels/train")[2]
    Image.fromarray(np.full((72, 88), 255, np.uint8)).save(label)
    images, val = files(data, "images/train"), files(data, "images/val")
    shutil.copyfile(images[0], images[1])
    shutil.copyfile(images[3], val[0])
    near = np.array(Image.open(images[4])).astype(int) + 2
    Image.fromarray(near.clip(0, 255).astype(np.uint8)).save(val[1], quality=95)
    code, text = report(small_config, capsys)
    assert code == check.FOUND_ERRORS
    assert "every pixel is ignored" in text
    assert "error: 1 time(s) pictures are equal across train and val" in text
    assert "warning: 1 time(s) pictures are equal within train" in text
    assert "warning: 1 time(s) pictures look alike across train and val" in text
    assert f"train: {images[4].relative_to(data)}" in text


def test_classes_that_never_occur_are_named(data: Path, small_config: Path, capsys) -> None:
    for path in files(data, "labels/val"):
        label = np.array(Image.open(path))
        Image.fromarray(np.where(label == 3, 1, label)).save(path)
    _, text = report(small_config, capsys)
    line = next(line for line in text.splitlines() if "never occurs in val" in line)
    assert "wire" in line


def test_a_crop_larger_than_the_images_is_warned_of(data: Path, small_config, capsys) -> None:
    check.main(["--config", str(small_config), "TRAIN.train_h", "200", "TRAIN.train_w", "200"])
    assert "smaller than the crop of 200x200" in capsys.readouterr().out


def grey_of_palette(label: np.ndarray) -> np.ndarray:
    colors = np.array([(0, 0, 0), *default_colors(20)], np.uint8)[label]
    return np.array(Image.fromarray(colors).convert("L"))


@pytest.mark.parametrize(
    ("make", "classes", "cause"),
    [
        (lambda label: label + 1, 9, "labels that count from 1"),
        (lambda label: label + 14, 19, "look like Cityscapes' labelIds"),
        (grey_of_palette, 9, "look like a palette PNG that was saved as grey"),
        (lambda label: label * 28, 9, ""),
    ],
)
def test_the_likely_cause_is_told(make, classes: int, cause: str, tmp_path: Path) -> None:
    label = np.arange(81, dtype=np.uint8).reshape(9, 9) % 9
    Image.fromarray(make(label).astype(np.uint8)).save(tmp_path / "l.png")
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "i.png")
    pair = Pair("i.png", tmp_path / "i.png", tmp_path / "l.png")
    encoding = choose_encoding([pair], None, classes=classes)
    error = examine_pair(pair, split="train", encoding=encoding, channels=3).error
    assert "outside the classes" in error
    assert cause in error
    assert any(word in error for word in ("look like", "Either")) == bool(cause)


def test_looks_are_close_for_pictures_that_look_alike() -> None:
    rng = np.random.Generator(np.random.PCG64(1))
    first, other = (np.kron(rng.integers(0, 256, (8, 9)), np.ones((10, 10))) for _ in range(2))
    alike = first * 0.9 + 5 + rng.normal(0, 2, first.shape)
    looks = [look(picture[..., None]) for picture in (first, alike, other)]
    assert (looks[0] ^ looks[1]).bit_count() <= 3
    assert (looks[0] ^ looks[2]).bit_count() > 10


def test_training_refuses_what_the_doctor_sees_at_once(data: Path, small_config: Path) -> None:
    label = files(data, "labels/train")[0]
    Image.fromarray(np.full((72, 88), 9, np.uint8)).save(label)
    told = r"9 is outside .* all that is wrong .*stripseg check --conf"
    with pytest.raises(DataError, match=told):
        train.main(["--config", str(small_config)])
