"""Official downloads are read where they lie: folders, lists of ids, raw labels, each once."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from scipy.io import savemat

from stripseg.config.errors import ConfigError, DataError
from stripseg.config.load import load_config
from stripseg.config.validate import check_files
from stripseg.dataset.build import build_evaluation_set, build_pairs, official_splits
from stripseg.dataset.description import available, describe
from stripseg.dataset.labels import read_matlab_label
from stripseg.dataset.layout import expression, official_pairs
from stripseg.tool import prepare

RAW = np.arange(12, dtype=np.uint8).reshape(3, 4)


def image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((*RAW.shape, 3), np.uint8)).save(path)


def label(path: Path, values: np.ndarray = RAW, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(values)
    if palette:
        picture.putpalette([8 * (255 - i) % 256 for i in range(256) for _ in range(3)])
    picture.save(path)


def matlab(path: Path, **variables: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, variables)


def config(root: Path, dataset: str, split: str):
    """A config whose lists are named like an official split, and do not exist."""
    lists = {"train_list": f"{split}.txt", "val_list": f"{split}.txt"}
    classes = describe(dataset).classes
    content = {
        "DATA": {"dataset": dataset, "data_root": str(root), "classes": classes, **lists},
        "TEST": {"test_list": f"{split}.txt"},
    }
    path = root / "any_layout.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return load_config(path)


def ade20k(root: Path) -> None:
    for kind, stem in (("training", "ADE_train_00000001"), ("validation", "ADE_val_00000001")):
        image(root / f"ADEChallengeData2016/images/{kind}/{stem}.jpg")
        label(root / f"ADEChallengeData2016/annotations/{kind}/{stem}.png")


def cityscapes(root: Path) -> None:
    for split, city in (("train", "aachen"), ("val", "frankfurt")):
        name = f"{split}/{city}/{city}_000001_000019"
        image(root / f"leftImg8bit/{name}_leftImg8bit.png")
        label(root / f"gtFine/{name}_gtFine_labelIds.png")
        label(root / f"gtFine/{name}_gtFine_color.png", 7 * RAW)
        label(root / f"gtCoarse/{name}_gtCoarse_labelIds.png")


def voc2012(root: Path) -> None:
    base = root / "VOCdevkit/VOC2012"
    image(base / "JPEGImages/2007_000032.jpg")
    image(base / "JPEGImages/2007_000033.jpg")
    label(base / "SegmentationClass/2007_000032.png", palette=True)
    (base / "ImageSets/Segmentation").mkdir(parents=True)
    (base / "ImageSets/Segmentation/train.txt").write_text("2007_000032\n")


def pascal_context(root: Path) -> None:
    image(root / "VOCdevkit/VOC2010/JPEGImages/2008_000002.jpg")
    ids = np.array([[2, 9, 18, 459], [0, 1, 326, 458], [23, 25, 31, 33]], np.uint16)
    matlab(root / "VOCdevkit/VOC2010/trainval/2008_000002.mat", LabelMap=ids)
    (root / "VOCdevkit/VOC2010/train.txt").write_text("2008_000002")


def lmo(root: Path) -> None:
    places = "spatial_envelope_256x256_static_8outdoorcategories"
    image(root / f"Images/{places}/coast_1.jpg")
    matlab(root / f"SemanticLabels/{places}/coast_1.mat", S=RAW)
    (root / "trainval.txt").write_text(f"{places}\\coast_1.jpg\r\n")


def bdd100k(root: Path) -> None:
    image(root / "bdd100k/images/10k/train/a-1.jpg")
    label(root / "bdd100k/labels/sem_seg/masks/train/a-1.png")


def cocostuff(root: Path) -> None:
    image(root / "images/train2017/000000000009.jpg")
    values = RAW.copy()
    values[2] = [12, 24, 181, 255]
    label(root / "annotations/train2017/000000000009.png", values)


VOID = 255
SHIFTED = [VOID, *range(11)]
EXPECTED = {  # what the labels above mean, written down by hand from the datasets' documents
    (ade20k, "train", "ade20k"): SHIFTED,
    (ade20k, "val", "ade20k"): SHIFTED,
    (cityscapes, "train", "cityscapes"): [VOID] * 7 + [0, 1, VOID, VOID, 2],
    (cityscapes, "val", "cityscapes"): [VOID] * 7 + [0, 1, VOID, VOID, 2],
    (cityscapes, "train_coarse", "cityscapes"): [VOID] * 7 + [0, 1, VOID, VOID, 2],
    (voc2012, "train", "voc2012"): list(range(12)),
    (pascal_context, "train", "pascal_context"): [0, 1, 2, VOID, VOID, VOID, 41, 58, 5, 6, 7, 8],
    (pascal_context, "train", "pascal_context60"): [1, 2, 3, 0, 0, 0, 42, 59, 6, 7, 8, 9],
    (lmo, "trainval", "lmo"): SHIFTED,
    (bdd100k, "train", "bdd100k"): list(range(12)),
    # 11 is one of the values that never occur in the official files
    (cocostuff, "train", "cocostuff"): [0, 1, 2, 3, 4, 5, 6, 7, 11, 23, 170, VOID],
}


@pytest.mark.parametrize(
    ("make", "split", "dataset"), EXPECTED, ids=lambda x: getattr(x, "__name__", x)
)
def test_official_folders_are_read_in_place(make, split: str, dataset: str, tmp_path: Path) -> None:
    make(tmp_path)
    settings = config(tmp_path, dataset, split)
    check_files(settings, "train", official_splits=official_splits(settings))
    samples = build_evaluation_set(settings, f"{split}.txt", split="val")
    assert len(samples) == 1
    assert samples[0].label.ravel().tolist() == EXPECTED[make, split, dataset]


def test_every_described_dataset_has_a_layout_or_lists_of_its_own() -> None:
    with_lists = {"camvid", "shapes"}
    assert {name for name in available() if not describe(name).layout} == with_lists


def test_a_list_of_pairs_goes_before_the_layout(tmp_path: Path) -> None:
    ade20k(tmp_path)
    image(tmp_path / "other.jpg")
    label(tmp_path / "other.png")
    (tmp_path / "train.txt").write_text("other.jpg other.png\n")
    pairs = build_pairs(config(tmp_path, "ade20k", "train"), "train.txt", split="train")
    assert [pair.name for pair in pairs] == ["other.jpg"]


def test_a_list_of_ids_chooses_from_the_layout(tmp_path: Path) -> None:
    voc2012(tmp_path)
    (tmp_path / "val.txt").write_text("2007_000032\n")
    pairs = build_pairs(config(tmp_path, "voc2012", "val"), "val.txt", split="val")
    assert [pair.name for pair in pairs] == ["JPEGImages/2007_000032.jpg"]


def test_the_test_split_needs_no_labels(tmp_path: Path) -> None:
    voc2012(tmp_path)
    (tmp_path / "test.txt").write_text("2007_000033\n")
    settings = config(tmp_path, "voc2012", "test")
    assert build_pairs(settings, "test.txt", split="test")[0].label is None
    with pytest.raises(DataError, match=r"split test has no labels; set TEST.split test"):
        build_pairs(settings, "test.txt", split="val")


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    ade20k(tmp_path)
    settings = config(tmp_path, "ade20k", "val")
    (tmp_path / "ADEChallengeData2016/annotations/validation/ADE_val_00000001.png").unlink()
    with pytest.raises(DataError, match=r"ADE_val_00000001.png: the label of .* does not exist"):
        build_pairs(settings, "val.txt", split="val")
    (tmp_path / "ADEChallengeData2016/images/validation/ADE_val_00000001.jpg").unlink()
    with pytest.raises(DataError, match=r"no image of ade20k's split val.*set DATA.data_root"):
        build_pairs(settings, "val.txt", split="val")
    voc2012(tmp_path)
    (tmp_path / "val.txt").write_text("2007_999999\n")
    with pytest.raises(DataError, match="2007_999999: its image .* does not exist"):
        build_pairs(config(tmp_path, "voc2012", "val"), "val.txt", split="val")
    with pytest.raises(DataError, match="lmo has no split 'val'"):
        official_pairs(describe("lmo"), tmp_path, "val")


def test_a_list_of_another_name_must_exist(tmp_path: Path) -> None:
    ade20k(tmp_path)
    settings = config(tmp_path, "ade20k", "mine")
    with pytest.raises(ConfigError, match="DATA.train_list mine.txt does not exist"):
        check_files(settings, "train", official_splits=official_splits(settings))


def test_a_place_stands_for_the_same_text_everywhere() -> None:
    pattern = expression("a/{city}/{city}_{id}.png")
    assert pattern.fullmatch("a/bonn/bonn_1.png")["id"] == "1"
    assert pattern.fullmatch("a/bonn/ulm_1.png") is None
    assert pattern.fullmatch("a/bonn/bonn_1xpng") is None


def test_sbds_struct_is_read(tmp_path: Path) -> None:
    matlab(tmp_path / "a.mat", GTcls={"Segmentation": RAW})
    assert np.array_equal(read_matlab_label(tmp_path / "a.mat"), RAW)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be decoded as a .mat file"),
        (b"MATLAB 5.0 MAT-file" + bytes(200), "cannot be decoded as a .mat file|holds none of"),
        ({"X": RAW}, "holds none of the variables S, LabelMap, GTcls"),
        ({"S": RAW * 0.5}, "S is not a map of integers but float64"),
    ],
)
def test_damaged_matlab_files_are_named(content, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        matlab(path, **content)
    with pytest.raises(DataError, match=rf"a.mat: ({message})"):
        read_matlab_label(path)
    with pytest.raises(DataError, match="b.mat: label file does not exist"):
        read_matlab_label(tmp_path / "b.mat")


def test_train_aug_joins_voc_and_sbd_without_vocs_validation(tmp_path: Path) -> None:
    """VOC's own label goes before SBD's; a second run keeps what is there."""
    voc, sbd = tmp_path / "VOCdevkit/VOC2012", tmp_path / "benchmark_RELEASE/dataset"
    for name in ("own", "both", "sbd", "val"):
        image(voc / f"JPEGImages/{name}.jpg")
    label(voc / "SegmentationClass/own.png", palette=True)
    label(voc / "SegmentationClass/both.png", palette=True)
    for name in ("both", "sbd", "val"):
        matlab(sbd / f"cls/{name}.mat", GTcls={"Segmentation": 20 - RAW})
    (voc / "ImageSets/Segmentation").mkdir(parents=True)
    (voc / "ImageSets/Segmentation/train.txt").write_text("own\nboth\n")
    (voc / "ImageSets/Segmentation/val.txt").write_text("val\n")
    (sbd / "train.txt").write_text("both\nsbd\n")
    (sbd / "val.txt").write_text("val\n")
    words = ["voc2012", str(tmp_path), "--sbd", str(sbd), "--lists", str(tmp_path / "lists")]
    prepare.main(words)
    prepare.main(words)
    samples = build_evaluation_set(
        config(tmp_path, "voc2012", "train_aug"), "train_aug.txt", split="train"
    )
    found = {Path(sample.name).stem: sample.label for sample in samples}
    assert sorted(found) == ["both", "own", "sbd"]
    assert np.array_equal(found["both"], RAW)
    assert np.array_equal(found["sbd"], 20 - RAW)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_plain_copy_holds_train_ids_and_is_not_shifted_again(
    workers: str, tmp_path: Path
) -> None:
    """It reads back as the original does; a second run writes nothing, a lost file comes back."""
    ade20k(tmp_path)
    copy = tmp_path / "copy"
    words = ["ade20k", str(tmp_path), "--lists", str(tmp_path / "lists"), "--workers", workers]
    words += ["--convert", str(copy)]
    prepare.main(words)
    samples = build_evaluation_set(config(copy, "ade20k", "train"), "train.txt", split="train")
    assert samples.encoding.kind == "train_id"
    assert samples[0].label.ravel().tolist() == SHIFTED
    written = {path: path.stat().st_mtime_ns for path in copy.rglob("*.png")}
    lost = next(iter(written))
    lost.unlink()
    prepare.main(words)
    after = {path: path.stat().st_mtime_ns for path in copy.rglob("*.png")}
    assert after.keys() == written.keys()
    assert all(after[path] == time for path, time in written.items() if path != lost)


def test_ids_alone_do_not_name_cityscapes_files(tmp_path: Path) -> None:
    cityscapes(tmp_path)
    (tmp_path / "val.txt").write_text("frankfurt_000001_000019\n")
    with pytest.raises(DataError, match="bare ids cannot say which files are meant"):
        build_pairs(config(tmp_path, "cityscapes", "val"), "val.txt", split="val")
