"""No name of a list, an archive or a config leads a file out of the folder it belongs to."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from stripseg.config.errors import ConfigError, DataError, TrainingError
from stripseg.dataset.description import describe
from stripseg.dataset.layout import official_pairs, read_ids
from stripseg.dataset.lists import read_list
from stripseg.dataset.packed.writer import pack
from stripseg.dataset.preparation.sbd import write_train_aug
from stripseg.dataset.results import (
    PredictionFiles,
    ProgressJournal,
    SubmissionWriter,
    prediction_names,
)
from stripseg.util.checkpoint import folder_lock
from stripseg.util.experiments.child_process import follow
from stripseg.util.experiments.study import read_study
from stripseg.util.files import atomic_write, link_or_copy, no_links, write_text
from stripseg.util.logger import run_logger
from tests.test_packed import encoding_of, make_pairs, open_packed, write_packed

COLORS = np.zeros((3, 3), np.uint8)
PREDICTION = np.zeros((4, 5), np.uint8)


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file that belongs to somebody, outside of every folder that is written to."""
    path = tmp_path / "home" / "victim"
    path.parent.mkdir()
    path.write_text("precious")
    return path


# ---- lists and predictions


def test_a_list_cannot_lead_predictions_to_the_images(tmp_path: Path) -> None:
    root, result = tmp_path / "data", tmp_path / "exp" / "result"
    for name in ("images/x.png", "a/x.png", "a/x_label.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("image")
    up = "../" * len(result.parts)
    listed = root / "list.txt"
    listed.write_text(f"a/x.png a/x_label.png\nimages/{up}{root}/images/x.png a/x_label.png\n")
    pairs = read_list(listed, root, split="train", outside=True)
    files = PredictionFiles(result, [pair.name for pair in pairs], COLORS)
    for pair in pairs:
        files.save(pair.name, PREDICTION)
    assert (root / "images/x.png").read_text() == "image"
    written = {path for path in tmp_path.rglob("*.png") if path.read_bytes()[:4] == b"\x89PNG"}
    assert len(written) == 4
    assert all(path.is_relative_to(result) for path in written)


def test_names_of_a_list_are_normalised(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png"):
        (tmp_path / name).touch()
    (tmp_path / "list.txt").write_text("x/../a.jpg\t./x//../a.png\n")
    (pair,) = read_list(tmp_path / "list.txt", tmp_path, split="train")
    assert pair.name == "a.jpg"
    assert (pair.image, pair.label) == (tmp_path / "a.jpg", tmp_path / "a.png")


@pytest.mark.parametrize(
    ("names", "files"),
    [
        (["a/x.jpg", "b/y.png"], ["x.png", "y.png"]),
        (["a/x.jpg", "b/x.jpg"], ["a/x.png", "b/x.png"]),
        (["a/x.jpg", "a/x.png"], ["a/x.jpg.png", "a/x.png.png"]),
        (["../../x.jpg", "/b/x.jpg"], ["x.png", "b/x.png"]),
        (["a/../../../x.jpg", "x/x.jpg"], ["x.png", "x/x.png"]),
    ],
)
def test_every_image_has_a_prediction_file_of_its_own(names: list[str], files: list[str]) -> None:
    assert prediction_names(names) == dict(zip(names, files, strict=True))


def test_two_images_with_the_same_prediction_file_are_refused() -> None:
    with pytest.raises(DataError, match=r"a/x.png and ../a/x.png: .*the same file; set DATA.data_"):
        prediction_names(["a/x.png", "../a/x.png", "b/y.png"])


# ---- ids


def write_ids(root: Path, text: str, name: str = "val.txt") -> Path:
    path = root / "ImageSets/Segmentation" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", ["../../../secret/p", "a/b", "..", "x\ty"])
def test_an_id_of_an_official_split_is_no_path(name: str, tmp_path: Path) -> None:
    root = tmp_path / "VOC2012"
    path = write_ids(root, f"2007_000032\n{name}\n")
    for folder in ("JPEGImages", "SegmentationClass"):
        (root / folder).mkdir()
    for file in ("secret/p.jpg", "secret/p.png"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    with pytest.raises(
        DataError, match=r"val.txt: .* is not an id; expected one such as 2007_0000"
    ):
        read_ids(path)
    with pytest.raises(DataError, match="is not an id"):
        official_pairs(describe("voc2012"), root, "val")


def test_sbds_names_stay_in_vocs_folder(tmp_path: Path) -> None:
    voc, sbd = tmp_path / "a/b/VOC2012", tmp_path / "sbd"
    write_ids(voc, "", "train.txt")
    write_ids(voc, "", "val.txt")
    sbd.mkdir()
    (sbd / "train.txt").write_text("../../x\n")
    (sbd / "val.txt").write_text("")
    with pytest.raises(DataError, match=r"train.txt: '../../x' is not an id"):
        list(write_train_aug(voc, sbd))


def test_a_studys_configs_are_names(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text('name: small\nconfigs: ["../../x y"]\n')
    with pytest.raises(ConfigError, match="'../../x y' is not 'DATASET EXPERIMENT'"):
        read_study(path)


# ---- packed copies


@pytest.mark.parametrize(
    "file", ["../outside", "/etc/hostname", "train-../x.pixels", "x.pixels", 3]
)
def test_a_packed_index_names_only_its_own_file(file: object, tmp_path: Path) -> None:
    pairs = make_pairs(tmp_path / "data", count=2)
    write_packed(pairs, tmp_path / "packed")
    index = tmp_path / "packed/train.json"
    content = json.loads(index.read_text())
    (tmp_path / "outside").write_bytes(bytes(content["bytes"]))
    index.write_text(json.dumps(content | {"file": file}))
    with pytest.raises(DataError, match=r"train.json: this index of a packed copy is damaged"):
        open_packed(pairs, tmp_path / "packed")


# ---- links


def refused(path: Path) -> str:
    return f"{path.name}: .*it is a link, which may lead anywhere; remove it"


def test_a_lock_that_is_a_link_is_refused(tmp_path: Path, victim: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/.lock").symlink_to(victim)
    with (
        pytest.raises(TrainingError, match=refused(tmp_path / "run/.lock")),
        folder_lock(tmp_path / "run"),
    ):
        pass
    assert victim.read_text() == "precious"


def test_a_log_that_is_a_link_is_refused(tmp_path: Path, victim: Path) -> None:
    (tmp_path / "train.log").symlink_to(victim)
    with pytest.raises(TrainingError, match=refused(tmp_path / "train.log")):
        run_logger(tmp_path / "train.log")
    assert victim.read_text() == "precious"


def test_a_journal_or_output_that_is_a_link_is_refused(tmp_path: Path, victim: Path) -> None:
    ProgressJournal(tmp_path, {})._file.close()
    record = tmp_path / ".journal/done-0.txt"
    record.unlink()
    record.symlink_to(victim)
    with pytest.raises(OSError, match="it is a link"):
        ProgressJournal(tmp_path, {})
    (tmp_path / "output.txt").symlink_to(victim)
    with pytest.raises(OSError, match="it is a link"):
        follow(["true"], tmp_path / "output.txt", end=lambda: False)
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("link", [".journal", "gray", "color/sub", "submission"])
def test_a_linked_folder_in_the_results_is_refused(link: str, tmp_path: Path, victim: Path) -> None:
    """Nothing is removed or replaced where it leads; the result folder itself may be a link."""
    (tmp_path / "disk").mkdir()
    result = tmp_path / "result"
    result.symlink_to(tmp_path / "disk")
    names = ["sub/a.png", "a.png"]
    PredictionFiles(result, names, COLORS).save("sub/a.png", PREDICTION)
    if (result / link).exists():
        (result / link).rename(tmp_path / "moved")
    (result / link).symlink_to(victim.parent)
    writer = SubmissionWriter(describe("cityscapes"), result / "submission")
    first = ProgressJournal if link == ".journal" else PredictionFiles
    arguments = ({},) if link == ".journal" else (names, COLORS, writer)
    with pytest.raises(DataError, match=rf"{link}: is a link to .*/home, .*; remove the link"):
        first(result, *arguments)
    assert [path.name for path in victim.parent.iterdir()] == ["victim"]
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("suffix", [".partial", ".journal"])
def test_packing_follows_no_link(suffix: str, tmp_path: Path, victim: Path) -> None:
    pairs, folder = make_pairs(tmp_path / "data", count=2), tmp_path / "packed"
    write_packed(pairs, folder)
    (pixels,) = folder.glob("train-*.pixels")
    (folder / "train.json").unlink()
    pixels.with_suffix(suffix).symlink_to(victim)
    with pytest.raises(DataError, match=refused(pixels.with_suffix(suffix))):
        list(pack(pairs, encoding_of(pairs), folder, "train"))
    assert victim.read_text() == "precious"


def test_temporary_files_have_names_that_nobody_guesses(tmp_path: Path, victim: Path) -> None:
    """Two processes of one number on two machines do not meet, and no link waits there."""
    for name in (f".a.txt.{os.getpid()}.tmp", ".a.txt.tmp"):
        (tmp_path / name).symlink_to(victim)
    names = []
    for _ in range(2):
        with atomic_write(tmp_path / "a.txt") as file:
            names.append(file.name)
            file.write(b"new")
    assert len(set(map(str, names))) == 2
    link_or_copy(tmp_path / "a.txt", tmp_path / "b.txt")
    assert (tmp_path / "b.txt").read_text() == "new"
    assert victim.read_text() == "precious"


def test_a_file_takes_the_place_of_a_link(tmp_path: Path, victim: Path) -> None:
    (tmp_path / "best.yaml").symlink_to(victim)
    write_text(tmp_path / "best.yaml", "new")
    assert (tmp_path / "best.yaml").read_text() == "new"
    assert victim.read_text() == "precious"


def test_a_file_is_made_where_there_is_none(tmp_path: Path) -> None:
    with open(tmp_path / "a", "a", opener=no_links) as file:
        file.write("x")
    assert (tmp_path / "a").read_text() == "x"
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o666 & ~umask
