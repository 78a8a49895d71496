"""Label values: official ids are translated once, train ids pass, anything else is refused."""

import sys
from pathlib import Path

import numpy as np
import pytest

from stripseg.config.errors import ConfigError, DataError
from stripseg.dataset.description import describe
from stripseg.dataset.labels import LabelEncoding, choose_encoding, read_matlab_label
from stripseg.dataset.lists import Pair
from stripseg.util.images import write_png


def labels(folder: Path, *values: list[int], name: str = "label{}.png") -> list[Pair]:
    """One label file for each list of values."""
    pairs = []
    for index, row in enumerate(values):
        path = folder / name.format(index)
        write_png(path, np.array([row], np.uint8))
        pairs.append(Pair(f"{index}.jpg", folder / f"{index}.jpg", path))
    return pairs


def test_matlab_files_need_scipy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(DataError, match=r"a\.mat: reading \.mat files needs scipy"):
        read_matlab_label(tmp_path / "a.mat")


def choose(pairs: list[Pair], dataset: str | None, **options) -> LabelEncoding:
    description = describe(dataset) if dataset else None
    classes = description.classes if description else 4
    return choose_encoding(pairs, description, **{"classes": classes, **options})


def test_train_ids_pass_and_the_ignored_stay(tmp_path: Path) -> None:
    pairs = labels(tmp_path, [0, 3, 255, 1])
    encoding = choose(pairs, None)
    assert encoding.read(pairs[0].label).tolist() == [[0, 3, 255, 1]]


@pytest.mark.parametrize(("values", "shown"), [([0, 4], "value 4 is"), ([9, 7], "values 7, 9 are")])
def test_a_value_outside_the_classes_is_refused(tmp_path: Path, values, shown: str) -> None:
    pairs = labels(tmp_path, values)
    message = (
        rf"label0.png: label {shown} outside the classes; expected 0 to 3 and 255 .*DATA.class"
    )
    with pytest.raises(DataError, match=message):
        choose(pairs, None).read(pairs[0].label)


def test_another_ignore_label(tmp_path: Path) -> None:
    pairs = labels(tmp_path, [0, 200, 3])
    assert choose(pairs, None, ignore_label=200).read(pairs[0].label).tolist() == [[0, 200, 3]]
    with pytest.raises(DataError, match="value 200"):
        choose(pairs, None).read(pairs[0].label)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([0, 1, 150], "raw"),  # 150 is a class in the official files, and nothing among train ids
        ([0, 5, 149, 255], "train_id"),  # 255 has no place in the official files
        ([0, 5, 9], "raw"),  # could be either: the official files are the commoner
    ],
)
def test_ade20k_is_recognised_by_its_values(tmp_path: Path, values: list[int], kind: str) -> None:
    assert choose(labels(tmp_path, [3, 4], values), "ade20k").kind == kind


def test_ade20k_counts_from_one(tmp_path: Path) -> None:
    pairs = labels(tmp_path, [0, 1, 150])
    assert choose(pairs, "ade20k").read(pairs[0].label).tolist() == [[255, 0, 149]]


@pytest.mark.parametrize(
    ("name", "values", "kind", "expected"),
    [
        ("x{}_gtFine_labelIds.png", [7, 33, 0, 4], "raw", [0, 18, 255, 255]),
        ("x{}_gtFine_labelTrainIds.png", [7, 18, 0, 255], "train_id", [7, 18, 0, 255]),
    ],
)
def test_cityscapes_is_recognised_by_its_file_names(
    tmp_path: Path, name: str, values: list[int], kind: str, expected: list[int]
) -> None:
    pairs = labels(tmp_path, values, name=name)
    encoding = choose(pairs, "cityscapes")
    assert encoding.kind == kind
    assert encoding.read(pairs[0].label).tolist() == [expected]


def test_camvids_twelfth_value_is_unlabelled(tmp_path: Path) -> None:
    """The SegNet tutorial's labels; with 255 instead they are in train ids."""
    pairs = labels(tmp_path, [0, 10, 11])
    encoding = choose(pairs, "camvid", classes=11)
    assert encoding.kind == "raw"
    assert encoding.read(pairs[0].label).ravel().tolist() == [0, 10, 255]
    pairs = labels(tmp_path, [0, 10, 255])
    assert choose(pairs, "camvid", classes=11).kind == "train_id"


def test_a_declaration_beats_recognition(tmp_path: Path) -> None:
    pairs = labels(tmp_path, [1, 150])
    encoding = choose(pairs, "ade20k", declared="train_id")
    with pytest.raises(
        DataError, match=r"value 150 .* set DATA.labels to raw \(now: train_id, dec"
    ):
        encoding.read(pairs[0].label)


def test_a_wrong_recognition_names_the_switch(tmp_path: Path) -> None:
    pairs = labels(tmp_path, [1, 150], [0, 255])
    encoding = choose(pairs[:1], "ade20k")
    with pytest.raises(DataError, match=r"set DATA.labels to train_id \(now: raw, recognised"):
        encoding.read(pairs[1].label)


def test_raw_labels_of_a_dataset_without_an_encoding(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="bdd100k has no official encoding"):
        choose(labels(tmp_path, [1]), "bdd100k", declared="raw")
    with pytest.raises(ConfigError, match="this dataset has no official encoding"):
        choose(labels(tmp_path, [1]), None, declared="raw")


def test_raw_labels_with_another_class_count(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"DATA.classes is 10, and ade20k's .* 150 classes"):
        choose(labels(tmp_path, [150]), "ade20k", classes=10)


def test_sixteen_bit_values_that_fit_are_read(tmp_path: Path) -> None:
    from PIL import Image

    path = tmp_path / "wide.png"
    encoding = choose([], None)
    Image.fromarray(np.array([[0, 3, 255]], np.uint16)).save(path)
    assert encoding.read(path).tolist() == [[0, 3, 255]]
    Image.fromarray(np.array([[0, 300]], np.uint16)).save(path)
    with pytest.raises(DataError, match="label value 300 is outside the classes; expected 0 to"):
        encoding.read(path)
