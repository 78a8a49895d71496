"""A packed copy gives the samples that the files give, and says when it no longer can."""

import copy
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
import torch

from stripseg.config.errors import DataError
from stripseg.config.load import load_config
from stripseg.dataset.augmentation import Augmentation
from stripseg.dataset.build import build_training_set, build_validation_set
from stripseg.dataset.labels import LabelEncoding, choose_encoding
from stripseg.dataset.lists import Pair
from stripseg.dataset.packed import writer as packing
from stripseg.dataset.packed.reader import PackedPairs
from stripseg.dataset.segmentation import EvaluationSet, TrainingSet
from stripseg.tool import prepare, train
from stripseg.util.images import write_png

CLASSES = 7


def make_pairs(folder: Path, channels: int = 3, count: int = 5) -> list[Pair]:
    """Pictures from a few pixels to some hundred a side, of several file types."""
    rng = np.random.Generator(np.random.PCG64(channels))
    pairs = []
    for number in range(count):
        size = [(5, 9), (130, 61), (64, 64), (201, 300), (90, 250)][number % 5]
        image = cv2.blur(rng.integers(0, 256, (*size, channels), np.uint8), (5, 5))
        image = image.reshape(*size, channels)
        suffix = {3: ["jpg", "png", "bmp"], 1: ["png", "jpg"]}.get(channels, ["tif"])
        path = folder / f"image {number}.{suffix[number % len(suffix)]}"
        folder.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".tif":
            tifffile.imwrite(path, image, photometric="minisblack", planarconfig="contig")
        else:
            cv2.imwrite(str(path), image)
        label = rng.integers(0, CLASSES + 1, size, np.uint8)
        write_png(folder / f"{number}.png", np.where(label == CLASSES, 255, label).astype(np.uint8))
        pairs.append(Pair(path.name, path, folder / f"{number}.png"))
    return pairs


def encoding_of(pairs: list[Pair], classes: int = CLASSES) -> LabelEncoding:
    return choose_encoding(pairs, None, classes=classes)


def write_packed(pairs: list[Pair], folder: Path, **options) -> None:
    encoding = options.pop("encoding", None) or encoding_of(pairs)
    assert sum(1 for _ in packing.pack(pairs, encoding, folder, "train", **options)) == len(pairs)


def open_packed(pairs: list[Pair], folder: Path, **options) -> PackedPairs:
    encoding = options.pop("encoding", None) or encoding_of(pairs)
    options = {"channels": 3, "command": "COMMAND", **options}
    return PackedPairs(folder, "train", pairs, encoding, **options)


@pytest.fixture
def pairs(tmp_path: Path) -> list[Pair]:
    return make_pairs(tmp_path / "data")


@pytest.mark.parametrize(
    ("channels", "rotation", "share"),
    [
        *((3, (-angle, angle), share) for angle in (10.0, 180.0) for share in (0.0, 0.7)),
        *((channels, (-180.0, 180.0), 0.7) for channels in (1, 2, 4, 6)),
    ],
)
def test_crops_are_those_of_the_files_bit_for_bit(
    tmp_path: Path, channels, rotation, share
) -> None:
    """Scaled, rotated, padded, of pictures smaller and larger than the crop; pasted, jittered."""
    pairs = make_pairs(tmp_path / "data", channels)
    write_packed(pairs, tmp_path / "packed", channels=channels)
    packed = open_packed(pairs, tmp_path / "packed", channels=channels)
    augmentation = Augmentation(
        (70, 83),
        rotation=rotation,
        rare_class_probability=share,
        color_jitter=(0.4, 0.4, 0.4) if share and channels == 3 else (0, 0, 0),
        fill=list(range(9, 9 + channels)),
    )
    options = {"seed": 5, "channels": channels, "copy_paste": share}
    files, copied = (
        TrainingSet(pairs, encoding_of(pairs), augmentation, packed=source, **options)
        for source in (None, packed)
    )
    for epoch in range(20):
        for index in range(len(pairs)):
            one, other = files[epoch, index], copied[epoch, index]
            assert one.name == other.name
            assert np.array_equal(one.image, other.image), f"image, epoch {epoch}, pair {index}"
            assert np.array_equal(one.label, other.label), f"label, epoch {epoch}, pair {index}"


def test_whole_pictures_are_those_of_the_files(pairs, tmp_path: Path) -> None:
    write_packed(pairs, tmp_path / "packed", workers=2)
    packed = open_packed(pairs, tmp_path / "packed")
    encoding = encoding_of(pairs)
    packed.read(0)  # so that there is a mapping, which a copy for another process leaves behind
    files = EvaluationSet(pairs, encoding)
    copied = EvaluationSet(pairs, encoding, packed=copy.deepcopy(packed))
    for index in range(len(pairs)):
        one, other = files[index], copied[index]
        assert np.array_equal(one.image, other.image), f"whole image {index}"
        assert np.array_equal(one.label, other.label), f"whole label {index}"
        assert other.image.flags.writeable, "torch takes no read-only arrays"


def test_a_copy_serves_a_part_of_the_list_in_another_order(pairs, tmp_path: Path) -> None:
    write_packed(pairs, tmp_path / "packed")
    chosen = [pairs[3], pairs[0]]
    packed = open_packed(chosen, tmp_path / "packed")
    assert [packed.read(i)[0].shape[:2] for i in range(2)] == [(201, 300), (5, 9)]


def test_only_the_pages_of_the_crop_are_read(tmp_path: Path) -> None:
    """What lies outside of the window never comes to memory (Linux maps up to 2 MB at a time)."""
    maps = Path("/proc/self/smaps")
    if not maps.is_file():
        pytest.skip("Linux's /proc")
    folder = tmp_path / "data"
    folder.mkdir()
    image = np.zeros((4000, 2000, 3), np.uint8)
    cv2.imwrite(str(folder / "a.png"), image)
    write_png(folder / "b.png", image[..., 0])
    pairs = [Pair("a.png", folder / "a.png", folder / "b.png")]
    write_packed(pairs, tmp_path / "packed")
    packed = open_packed(pairs, tmp_path / "packed")
    augmentation = Augmentation((100, 100), scale=(1.0, 1.0))
    TrainingSet(pairs, encoding_of(pairs), augmentation, seed=0, packed=packed)[0, 0]
    lines = maps.read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.endswith(".pixels"))
    resident = next(line for line in lines[start:] if line.startswith("Rss:"))
    assert int(resident.split()[1]) * 1024 < packed.bytes / 4, "more than the crop was loaded"


def test_labels_are_translated_once(tmp_path: Path) -> None:
    """Raw ids 1 to 3 become 0 to 2; a second translation would turn 0 into ignored."""
    pairs = make_pairs(tmp_path / "data", count=2)
    raw = np.resize(np.array([0, 1, 2, 3], np.uint8), (5, 9))
    write_png(pairs[0].label, raw)
    table = np.full(256, -1, np.int16)
    table[:4] = [255, 0, 1, 2]
    encoding = LabelEncoding(table, 3, 255, "raw")
    write_packed(pairs[:1], tmp_path / "packed", encoding=encoding)
    packed = open_packed(pairs[:1], tmp_path / "packed", encoding=encoding)
    assert np.array_equal(packed.read(0)[1], np.array([255, 0, 1, 2], np.uint8)[raw])
    still = {"rotate_probability": 0.0, "flip_probability": 0.0, "scale": (1.0, 1.0)}
    augmentation = Augmentation((5, 9), **still)
    sample = TrainingSet(pairs[:1], encoding, augmentation, seed=0, packed=packed)[0, 0]
    assert np.array_equal(sample.label, packed.read(0)[1]), "translated again while training"


@pytest.mark.parametrize("which", ["image", "label"])
@pytest.mark.parametrize("how", ["time", "size"])
def test_a_changed_source_is_noticed(pairs, tmp_path: Path, which: str, how: str) -> None:
    write_packed(pairs, tmp_path / "packed")
    path = getattr(pairs[2], which)
    state = path.stat()
    if how == "size":
        path.write_bytes(path.read_bytes() + b"\0")
    change = 1 if how == "time" else 0
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + change))
    with pytest.raises(DataError, match=f"{path.name}: has changed since .*pack again: COMMAND"):
        open_packed(pairs, tmp_path / "packed")
    write_packed(pairs, tmp_path / "packed")
    open_packed(pairs, tmp_path / "packed")
    assert len(list((tmp_path / "packed").glob("*.pixels"))) == 1


def test_a_missing_source_is_named(pairs, tmp_path: Path) -> None:
    write_packed(pairs, tmp_path / "packed")
    pairs[1].label.unlink()
    with pytest.raises(DataError, match=r"1\.png: cannot be looked at \(No such file"):
        open_packed(pairs, tmp_path / "packed")


def test_another_list_labels_or_channels_are_noticed(pairs, tmp_path: Path) -> None:
    write_packed(pairs[:3], tmp_path / "packed")
    with pytest.raises(DataError, match=r"has no image 3\.jpg with the label .*3\.png; the list"):
        open_packed(pairs, tmp_path / "packed")
    with pytest.raises(DataError, match=r"another label encoding \(DATA.labels.*pack again"):
        open_packed(pairs[:3], tmp_path / "packed", encoding=encoding_of(pairs, CLASSES + 1))
    with pytest.raises(DataError, match=r"another DATA.in_channels \(3, and this run needs 4\)"):
        open_packed(pairs[:3], tmp_path / "packed", channels=4)
    with pytest.raises(DataError, match=r"train\.json: does not exist.*COMMAND"):
        open_packed(pairs, tmp_path / "elsewhere")


def test_a_truncated_or_lost_copy_is_noticed(pairs, tmp_path: Path) -> None:
    write_packed(pairs, tmp_path / "packed")
    file = next((tmp_path / "packed").glob("*.pixels"))
    size = file.stat().st_size
    os.truncate(file, size - 1)
    with pytest.raises(DataError, match=rf"is truncated \({size - 1} bytes\); expected {size} byt"):
        open_packed(pairs, tmp_path / "packed")
    file.unlink()
    with pytest.raises(DataError, match="the packed copy does not exist; expected"):
        open_packed(pairs, tmp_path / "packed")


def edited(change: Callable[[dict], object]) -> Callable[[str], str]:
    def edit(text: str) -> str:
        index = json.loads(text)
        change(index)
        return json.dumps(index)

    return edit


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[]",
        lambda text: "\0" * 40,
        edited(lambda index: index.pop("header")),
        edited(lambda index: index["entries"].__setitem__(1, 5)),
        edited(lambda index: index["entries"][1].pop("offset")),
        edited(lambda index: index["entries"][1].update(offset="0")),
        edited(lambda index: index["entries"][1].update(offset=10**12)),
        edited(lambda index: index["entries"][1].update(offset=-1)),
        edited(lambda index: index["entries"][1].update(height=2)),
        edited(lambda index: index["entries"][1].update(height=-8, width=-8, pixels=64)),
        edited(lambda index: index["entries"][1].update(sources=[1])),
        edited(lambda index: index.update(bytes=float("inf"))),
        lambda text: "[" * 100_000,
    ],
)
def test_a_damaged_index_is_named(pairs, tmp_path: Path, damage: Callable[[str], str]) -> None:
    write_packed(pairs, tmp_path / "packed")
    index = tmp_path / "packed" / "train.json"
    index.write_text(damage(index.read_text()))
    with pytest.raises(DataError, match=r"train\.json: this index of a packed copy is damaged"):
        open_packed(pairs, tmp_path / "packed")


def test_a_stopped_packing_goes_on(pairs, tmp_path: Path, monkeypatch) -> None:
    """What was finished is not decoded again, and the result is that of one go."""
    once, twice = tmp_path / "once", tmp_path / "twice"
    write_packed(pairs, once)
    stopped = packing.pack(pairs, encoding_of(pairs), twice, "train")
    for _ in range(3):
        next(stopped)
    stopped.close()
    assert {path.suffix for path in twice.iterdir()} == {".partial", ".journal", ""}
    with pytest.raises(DataError, match=r"train\.json: does not exist"):
        open_packed(pairs, twice)
    journal = next(twice.glob("*.journal"))
    journal.write_text(journal.read_text() + "[4, 20")  # a line that a power cut left
    decoded = []
    original = packing.read_pair
    monkeypatch.setattr(
        packing, "read_pair", lambda pair, *a, **k: decoded.append(pair) or original(pair, *a, **k)
    )
    write_packed(pairs, twice)
    assert decoded == pairs[3:], "pairs that were finished are decoded again"
    name = next(once.glob("*.pixels")).name
    assert (once / name).read_bytes() == (twice / name).read_bytes(), "resumed packing differs"
    assert json.loads((once / "train.json").read_text()) == json.loads(
        (twice / "train.json").read_text()
    )
    decoded.clear()
    write_packed(pairs, twice)
    assert not decoded, "a whole copy is packed again"
    assert {path.suffix for path in twice.iterdir()} == {".json", ".pixels", ""}


def test_the_earlier_copy_serves_until_the_new_one_is_whole(pairs, tmp_path: Path) -> None:
    write_packed(pairs, tmp_path / "packed")
    more = [*pairs, *make_pairs(tmp_path / "data" / "more", count=2)]
    stopped = packing.pack(more, encoding_of(more), tmp_path / "packed", "train")
    next(stopped)
    with pytest.raises(DataError, match="another process is packing there"):
        next(packing.pack(more, encoding_of(more), tmp_path / "packed", "train"))
    stopped.close()
    assert len(open_packed(pairs, tmp_path / "packed").read(0)) == 2


def test_a_full_disk_is_told_before_the_work(pairs, tmp_path: Path, monkeypatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(packing.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DataError, match=r"takes 0\.00 GB, and its disk has 0\.00 GB left; make"):
        write_packed(pairs, tmp_path / "packed")
    assert not list((tmp_path / "packed").glob("train*"))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_bad_pair_stops_the_packing_or_stays_bad(pairs, tmp_path: Path, workers: int) -> None:
    pairs[1].image.write_bytes(pairs[1].image.read_bytes()[:60])
    with pytest.raises(DataError, match=r"image 1\.png: image file is truncated.*; fix it or"):
        write_packed(pairs, tmp_path / "packed", workers=workers)
    write_packed(pairs, tmp_path / "packed", workers=workers, keep_bad=True)
    packed = open_packed(pairs, tmp_path / "packed")
    options = {"seed": 1, "skip_bad": True}
    one, other = (
        TrainingSet(pairs, encoding_of(pairs), Augmentation((30, 30)), packed=p, **options)[0, 1]
        for p in (None, packed)
    )
    assert one.problem == other.problem
    assert "truncated" in other.problem
    assert np.array_equal(one.image, other.image)


def test_training_from_a_copy_gives_the_same_weights(small_config: Path, tmp_path: Path, capsys):
    """The whole way: pack, train from files, train from the copy, with loader processes."""
    out = tmp_path / "packed"
    words = ["--config", str(small_config)]
    prepare.main(["pack", *words, "--out", str(out), "--workers", "2"])
    printed = capsys.readouterr().out
    assert f"to train from it: DATA.packed {out}" in printed
    weights = []
    for name, packed in (("files", []), ("copy", ["DATA.packed", str(out)])):
        folder = tmp_path / name
        run = [*words, "TRAIN.epochs", "1", "TRAIN.workers", "1", "TRAIN.save_path", str(folder)]
        train.main([*run, *packed])
        weights.append(torch.load(folder / "last.pth", weights_only=True)["state_dict"])
    assert weights[0].keys() == weights[1].keys()
    for key, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][key]), f"{key} differs when trained from the copy"


def test_the_option_reaches_both_lists(small_config: Path, tmp_path: Path) -> None:
    words = ["DATA.packed", str(tmp_path / "packed")]
    config = load_config(str(small_config), words)
    with pytest.raises(
        DataError, match=rf"stripseg prepare pack --config {small_config} DATA.packed .* --out"
    ):
        build_training_set(config)
    prepare.main(["pack", "--config", str(small_config), *words, "--workers", "1"])
    assert build_training_set(config).packed is not None
    assert build_validation_set(config).packed is not None
    with pytest.raises(SystemExit):
        prepare.main(["pack", "--config", str(small_config)])
