"""Every catalog file is consistent, and raw labels become the train ids others expect."""

import json

import numpy as np
import pytest
from pydantic import ValidationError

from stripseg.config.errors import ConfigError, DataError
from stripseg.dataset import description as catalog
from stripseg.dataset.description import (
    DatasetDescription,
    available,
    default_colors,
    describe,
    raw_to_train_table,
    read_colors,
    read_names,
)

MINIMAL = {
    "name": "tiny",
    "homepage": "none",
    "licence": "none",
    "classes": 2,
    "names": ["a", "b"],
    "colors": [[0, 0, 0], [1, 1, 1]],
    "splits": {"train": 1},
}
EVIDENCE = {"otherwise": "raw"}


@pytest.mark.parametrize(
    ("name", "classes"), [("ade20k", 150), ("camvid", 11), ("cityscapes", 19), ("shapes", 9)]
)
def test_counts_and_lengths_agree(name: str, classes: int):
    description = describe(name)
    assert name in available()
    assert description.classes == len(description.names) == len(description.colors) == classes
    assert len(set(description.names)) == classes
    assert description.ignore == 255


def test_every_file_of_the_catalog_is_valid():
    assert {describe(name).name for name in available()} == set(available())


@pytest.mark.parametrize("name", ["ade20k", "cityscapes"])
def test_evidence_is_conclusive(name: str):
    """A value counted as evidence for one encoding must be impossible in the other."""
    description = describe(name)
    raw = set(np.flatnonzero(raw_to_train_table(description) != catalog.FORBIDDEN))
    train = {*range(description.classes), description.ignore}
    assert set(description.evidence.raw_values) == raw - train
    assert set(description.evidence.train_values) == train - raw


def test_camvid_is_in_segnets_order():
    names = "Sky Building Pole Road Pavement Tree SignSymbol Fence Car Pedestrian Bicyclist"
    assert list(describe("camvid").names) == names.split()


def test_ade20k_shift():
    table = raw_to_train_table(describe("ade20k"))
    assert table.shape == (256,)
    assert table.dtype == np.int16
    assert table[[0, 1, 150, 151, 255]].tolist() == [255, 0, 149, -1, -1]


def test_cityscapes_ids():
    table = raw_to_train_table(describe("cityscapes"))
    assert table[[7, 8, 11, 33]].tolist() == [0, 1, 2, 18]
    assert (table[:7] == 255).all()
    assert (table[34:] == -1).all()
    assert sorted(table[(table >= 0) & (table < 255)]) == list(range(19))


def test_train_ids_pass_through_where_nothing_is_raw():
    table = raw_to_train_table(describe("bdd100k"))
    assert table[:20].tolist() == [*range(19), -1]
    assert table[255] == 255


def test_unknown_dataset_names_the_nearest():
    with pytest.raises(ConfigError, match=r"'cityscape': did you mean cityscapes"):
        describe("cityscape")
    with pytest.raises(ConfigError, match="ade20k or bdd100k or camvid or cityscapes"):
        describe("zzz")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": ["a"]}, "1 names for 2 classes"),
        ({"colour": 1}, "colour"),
        ({"colors": [[0, 0, 0], [1, 1, 256]]}, "256|255"),
        ({"ignore": 1}, "one of the 2 classes"),
        ({"raw_labels": {"kind": "shift", "offset": -1}}, "give both or neither"),
        (
            {"raw_labels": {"kind": "table", "known": [0, 3], "map": {4: 0}}, "evidence": EVIDENCE},
            "outside `known`",
        ),
        (
            {"raw_labels": {"kind": "table", "known": [0, 3], "map": {3: 7}}, "evidence": EVIDENCE},
            "not classes",
        ),
    ],
)
def test_inconsistent_descriptions_are_refused(change: dict, message: str):
    assert DatasetDescription(**MINIMAL).classes == 2
    with pytest.raises(ValidationError, match=message):
        DatasetDescription(**{**MINIMAL, **change})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: tiny\nclases: 3\n", "tiny.yaml: "),
        ("- a\n- b\n", "not a YAML mapping"),
        ("a: [", "not a YAML mapping"),
        (json.dumps({**MINIMAL, "name": "other"}), "name is 'other', but the file says 'tiny'"),
    ],
)
def test_a_bad_catalog_file_is_named(tmp_path, monkeypatch, text: str, message: str):
    (tmp_path / "tiny.yaml").write_text(text)
    monkeypatch.setattr(catalog, "CATALOG", tmp_path)
    with pytest.raises(ConfigError, match=message):
        describe("tiny")


def test_text_files_tolerate_crlf_and_blank_lines(tmp_path):
    (tmp_path / "names.txt").write_bytes("\ufeffsky\r\ntraffic light \r\n\r\nTür".encode())
    (tmp_path / "colors.txt").write_bytes(b"0 0 0\r\n\r\n 255\t128  1 \r\n")
    assert read_names(tmp_path / "names.txt") == ["sky", "traffic light", "Tür"]
    assert read_colors(tmp_path / "colors.txt") == [(0, 0, 0), (255, 128, 1)]


@pytest.mark.parametrize("line", ["1 2", "1 2 3 4", "1,2,3", "red", "-1 0 0", "0 0 256", "1.0 2 3"])
def test_malformed_colours_are_located(tmp_path, line: str):
    path = tmp_path / "colors.txt"
    path.write_text(f"0 0 0\n\n{line}\n")
    with pytest.raises(DataError, match=r"colors\.txt, line 3: .*" + line.replace(".", r"\.")):
        read_colors(path)


def test_unreadable_text_files(tmp_path):
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00\x01")
    for read in (read_names, read_colors):
        with pytest.raises(DataError, match="missing"):
            read(tmp_path / "missing.txt")
        with pytest.raises(DataError, match="expected one"):
            read(tmp_path / "empty.txt")
        with pytest.raises(DataError, match="UTF-8"):
            read(tmp_path / "binary.txt")


def test_default_colors_are_distinct_and_stable():
    colors = default_colors(255)
    assert len(set(colors)) == 255
    assert colors[:3] == [(128, 0, 0), (0, 128, 0), (128, 128, 0)]
    assert colors[254] == (224, 224, 192)  # the last entry of PASCAL VOC's palette
    assert default_colors(7) == colors[:7]
    assert default_colors(0) == []
    with pytest.raises(DataError, match="256"):
        default_colors(256)
