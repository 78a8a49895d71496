"""Submissions hold what each server wants: its ids, its file names, its archive."""

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from stripseg.config.errors import DataError
from stripseg.config.load import load_config
from stripseg.dataset.description import available, describe, raw_to_train_table
from stripseg.dataset.results import SubmissionWriter, stored_values
from stripseg.model.build import build_segmenter
from stripseg.tool import test as tool_test

WITH_SERVER = [name for name in available() if describe(name).submission]


@pytest.mark.parametrize("name", WITH_SERVER)
def test_the_servers_ids_lead_back_to_the_classes(name: str) -> None:
    description = describe(name)
    values = stored_values(description)
    assert len(set(values.tolist())) == description.classes
    if description.submission.values == "raw":
        table = raw_to_train_table(description)
        assert table[values].tolist() == list(range(description.classes))


@pytest.mark.parametrize(
    ("dataset", "name", "file", "value_of_class_one"),
    [
        ("ade20k", "images/ADE_test_00000001.jpg", "ADE_test_00000001.png", 2),
        (
            "cityscapes",
            "leftImg8bit/test/berlin/berlin_000000_000019_leftImg8bit.png",
            "berlin_000000_000019_leftImg8bit.png",
            8,
        ),
        (
            "voc2012",
            "JPEGImages/2008_000006.jpg",
            "results/VOC2012/Segmentation/comp6_test_cls/2008_000006.png",
            1,
        ),
        ("bdd100k", "images/10k/test/ac6d4f42-00000000.jpg", "ac6d4f42-00000000.png", 1),
    ],
)
def test_files_are_the_servers(
    dataset: str, name: str, file: str, value_of_class_one: int, tmp_path: Path
) -> None:
    description = describe(dataset)
    writer = SubmissionWriter(description, tmp_path / "submission")
    width, height = description.submission.size or (30, 20)
    writer.save(name, np.ones((height, width), np.uint8))
    content = unpacked(writer.pack([name]))
    assert list(content) == [file]
    picture = Image.open(io.BytesIO(content[file]))
    assert picture.size == (width, height)
    assert np.unique(np.array(picture)).tolist() == [value_of_class_one]
    if dataset == "voc2012":
        assert picture.getpalette()[3:6] == [128, 0, 0]
    else:
        assert picture.mode == "L"


def unpacked(archive: Path) -> dict[str, bytes]:
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as packed:
            return {name: packed.read(name) for name in packed.namelist()}
    with tarfile.open(archive) as packed:
        return {member.name: packed.extractfile(member).read() for member in packed}


def test_another_size_than_the_servers_is_refused(tmp_path: Path) -> None:
    writer = SubmissionWriter(describe("cityscapes"), tmp_path)
    with pytest.raises(DataError, match="takes predictions of 2048x1024 .* is 1024x512"):
        writer.save("a_leftImg8bit.png", np.zeros((512, 1024), np.uint8))


def test_testing_the_test_split_packs_a_submission(tmp_path: Path) -> None:
    root = tmp_path / "ADEChallengeData2016"
    (root / "release_test/testing").mkdir(parents=True)
    for number in (1, 2):
        noise = np.random.Generator(np.random.PCG64(number)).integers(0, 256, (40, 50, 3), np.uint8)
        Image.fromarray(noise).save(root / f"release_test/testing/ADE_test_0000000{number}.jpg")
    content = {
        "DATA": {"dataset": "ade20k", "data_root": str(tmp_path), "classes": 150},
        "TRAIN": {"arch": "fcn", "layers": 18, "train_h": 49, "train_w": 49},
        "TEST": {"test_list": "test.txt", "split": "test", "base_size": 0, "workers": 0},
    }
    content["TEST"] |= {"save_folder": str(tmp_path / "out"), "model_path": str(tmp_path / "w.pth")}
    path = tmp_path / "ade20k_fcn18.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    torch.save(build_segmenter(load_config(path)).state_dict(), tmp_path / "w.pth")
    tool_test.main(["--config", str(path)])
    files = unpacked(tmp_path / "out/submission.zip")
    assert list(files) == ["ADE_test_00000001.png", "ADE_test_00000002.png"]
    for name, data in files.items():
        gray = np.array(Image.open(tmp_path / "out/gray" / name))
        assert np.array_equal(np.array(Image.open(io.BytesIO(data))), gray + 1)
