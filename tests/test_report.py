"""What a test leaves beside its figures: the record of every image, and the page."""

import base64
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from stripseg.command_line import as_json
from stripseg.config.errors import ConfigError, DataError
from stripseg.config.load import load_config
from stripseg.dataset.results import PredictionFiles
from stripseg.dataset.segmentation import Sample
from stripseg.report import page as report_page
from stripseg.report.charts import figures, line_chart
from stripseg.report.page import MOST_CLASSES, command_of, write_report
from stripseg.report.records import (
    BINS,
    ImageRecord,
    TestRecords,
    boundary_distance,
    examine,
    greatest,
    read_records,
    sum_of,
    write_records,
)
from stripseg.tool import compare, test
from stripseg.util.images import write_png
from stripseg.util.metrics import scores_of

IGNORE = 255


def record(label: np.ndarray, prediction: np.ndarray, confidence=None, classes: int = 3):
    known = label != IGNORE
    pairs = label[known].astype(int) * classes + prediction[known]
    counts = np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
    return examine("a.png", label, prediction, confidence, counts, ignore_label=IGNORE)


def blobs(seed: int, height: int = 40, width: int = 50, classes: int = 3) -> np.ndarray:
    small = np.random.default_rng(seed).random((5, 6, classes)).astype(np.float32)
    return (
        cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC).argmax(2).astype(np.uint8)
    )


def test_the_distance_to_a_boundary_is_that_to_the_nearest_pixel_of_another_class() -> None:
    classes = blobs(0, 12, 15)
    found = boundary_distance(classes)
    rows, columns = np.indices(classes.shape)
    for (y, x), value in np.ndenumerate(classes):
        nearest = np.maximum(abs(rows - y), abs(columns - x))[classes != value].min()
        assert found[y, x] == nearest
    assert (boundary_distance(np.zeros((4, 5), np.uint8)) == 255).all()


def test_boundary_iou_equals_that_of_each_class_alone() -> None:
    label, prediction = blobs(1), blobs(2)
    width = round(0.02 * float(np.hypot(*label.shape)))
    for index, intersection, union in record(label, prediction).boundary:
        rings = []
        for classes in (label, prediction):
            mask = (classes == index).astype(np.uint8)
            inner = cv2.erode(mask, np.ones((3, 3), np.uint8), iterations=width, borderValue=1)
            rings.append((mask == 1) & (inner == 0))
        assert intersection == (rings[0] & rings[1]).sum()
        assert union == (rings[0] | rings[1]).sum()


def test_objects_are_counted_by_size_and_elongation() -> None:
    label = np.zeros((200, 200), np.uint8)
    label[10:20, 10:20] = 1  # small, square
    label[50:54, 20:100] = 2  # small, twenty times as long as wide
    label[100:160, 100:160] = 1  # medium
    prediction = label.copy()
    prediction[50:52, 20:100] = 0
    found = record(label, prediction)
    assert found.sizes == [[2, 420, 260], [1, 3600, 3600], [1, 35980, 35980]]
    assert found.elongations[3] == [1, 320, 160]
    assert found.elongations[0][0] == 3
    assert found.distance == [
        [found.distance[0][0], 160],
        *([row[0], 0] for row in found.distance[1:]),
    ]
    assert sum(row[0] for row in found.distance) == label.size


def test_an_object_in_a_ring_of_unlabelled_pixels_has_its_own_width() -> None:
    """As in VOC, whose objects are ringed by 255."""
    label = np.zeros((200, 300), np.uint8)
    label[95:110, 45:160] = IGNORE
    label[100:105, 50:155] = 1  # 21 times as long as wide
    found = record(label, np.where(label == IGNORE, 0, label))
    assert found.elongations[3] == [1, 525, 525]
    assert [row[0] for row in found.boundary] == [0, 1]
    assert all(union > 0 and hits == union for _, hits, union in found.boundary)


def test_the_greatest_value_of_each_region() -> None:
    regions = np.array([0, 1, 0, 2, 1])
    values = np.array([3, 200, 9, 0, 7], np.uint8)
    assert greatest(regions, values, 3).tolist() == [9, 200, 0]
    assert greatest(regions, values, 5000)[:3].tolist() == [9, 200, 0]


def test_confidence_is_counted_where_there_are_labels() -> None:
    label, prediction = blobs(3), blobs(3)
    prediction[:10] = 1
    label[30:] = IGNORE
    confidence = np.random.default_rng(0).integers(0, 256, label.shape).astype(np.uint8)
    rows = np.array(record(label, prediction, confidence).calibration)
    known = label != IGNORE
    assert rows.shape == (BINS, 3)
    assert rows[:, 0].sum() == known.sum()
    assert rows[:, 1].sum() == (label == prediction)[known].sum()
    assert rows[:, 2].sum() == pytest.approx(confidence[known].sum() / 255, abs=0.01)
    top = known & (confidence >= 238)
    assert rows[-1, 0] == top.sum()
    assert record(label, prediction).calibration == []


def test_a_sure_contradiction_inside_a_region_is_a_suspect() -> None:
    label, prediction = np.zeros((60, 80), np.uint8), np.zeros((60, 80), np.uint8)
    label[30:, :] = 1
    prediction[30:, :] = 1
    prediction[5:15, 20:40] = 2
    prediction[40:50, 20:40] = 2
    confidence = np.full(label.shape, 250, np.uint8)
    confidence[40:50] = 128
    assert record(label, prediction, confidence).suspects == [[0, 2, 200, 5, 20, 15, 40]]


def test_records_are_read_as_they_were_written(tmp_path: Path) -> None:
    label = blobs(4)
    confidence = np.full(label.shape, 200, np.uint8)
    images = [record(label, blobs(5), confidence), ImageRecord("ü <b>.png", (3, 4))]
    kept = TestRecords({"classes": ["a", "b", "c"], "colors": [[0, 0, 0]] * 3}, images)
    write_records(tmp_path, kept)
    again = read_records(tmp_path)
    assert list(again.images) == images
    assert again.names == ["a", "b", "c"]
    own = record(label, label)
    assert own.mean_iou == own.pixel_accuracy == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: "", "line 1: is not JSON"),
        (lambda text: text.replace('"version":1', '"version":9'), "has version 9"),
        (lambda text: text.replace("per-image record", "x"), "is not the per-image record"),
        (lambda text: text[:-40], "line 2: is not JSON"),
        (lambda text: text.replace("[[0,", "[[7,", 1), "line 2: is not the record of an image"),
        (lambda text: text.replace('"size":[40,50]', '"size":[40]'), "line 2: is not the record"),
        (lambda text: text.replace('"classes":["a"', '"classes":[1'), "must be the names"),
        (lambda text: text[: text.index("\n") + 1], "has 0 images, and line 1 promises 1"),
        (lambda text: re.sub(r"\[0,0,\d+\]", "[0,0,0]", text), "line 2: is not the record"),
    ],
)
def test_a_damaged_record_is_refused_with_its_line(tmp_path: Path, change, message: str) -> None:
    facts = {"classes": ["a", "b", "c"]}
    path = write_records(tmp_path, TestRecords(facts, [record(blobs(1), blobs(2))]))
    path.write_text(change(path.read_text()))
    with pytest.raises(DataError, match=message):
        read_records(path)


def test_a_folder_without_records_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not found; expected the folder of a test"):
        read_records(tmp_path)


@pytest.fixture
def words(trained_config: Path) -> list[str]:
    return ["--config", str(trained_config)]


def data_of(page: str) -> dict:
    return json.loads(re.search('id="data">(.*?)</script>', page, re.DOTALL).group(1))


def test_a_test_writes_its_records_and_its_page(words, tmp_path: Path, capsys) -> None:
    test.main(words)
    folder = tmp_path / "run/result"
    figures = json.loads((folder / "metrics.json").read_text())
    records = read_records(folder)
    own = scores_of(torch.from_numpy(sum_of(records.images, len(records.names))))
    assert (own.mean_iou, own.mean_accuracy) == (figures["mIoU"], figures["mAcc"])
    page = (folder / "report.html").read_text()
    data = data_of(page)
    assert f"mIoU {figures['mIoU']:.4f}" in page
    assert "unreliable" in page
    assert len(data["images"]) == len(data["thumbs"]) == 3
    assert sorted(index for _, indices in data["gallery"] for index in indices) == [0, 1, 2]
    layers = data["full"][0]
    assert len(layers) == 4
    assert base64.b64decode(layers[1].partition(",")[2]).startswith(b"\x89PNG")
    assert not re.search('(src|href)="?(http|//|file)', page)
    # again with the saved predictions, against the first test
    test.main([*words, "TEST.has_prediction", "True", "--against", str(folder)])
    again = (folder / "report.html").read_text()
    assert "Too few units to decide" in again
    assert "do not tell how sure" in again
    counts = [image.counts for image in read_records(folder).images]
    assert counts == [image.counts for image in records.images]


def test_without_pictures_or_page(words, tmp_path: Path) -> None:
    test.main([*words, "TEST.save_predictions", "False"])
    folder = tmp_path / "run/result"
    assert "so there are no pictures" in (folder / "report.html").read_text()
    assert not (folder / "gray").exists()
    (folder / "report.html").unlink()
    test.main([*words, "TEST.report", "False"])
    assert not (folder / "report.html").exists()
    assert len(read_records(folder).images) == 3
    assert read_records(folder).images[0].distance == []


def test_pictures_of_another_test_are_not_shown(words, tmp_path: Path) -> None:
    """Predictions that lie in the folder, but are not those that the figures are of."""
    test.main(words)
    folder = tmp_path / "run/result"
    for path in (folder / "gray").iterdir():
        write_png(path, np.full((72, 88), 3, np.uint8))
    test.main([*words, "TEST.save_predictions", "False"])
    assert data_of((folder / "report.html").read_text())["thumbs"] == []


def test_many_pictures_keep_to_their_budget(
    small_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """12 images of 683x512 whose predictions are as noisy as can be, and a fifth of the bytes."""
    monkeypatch.setattr(report_page, "MOST_BYTES", report_page.MOST_BYTES // 5)
    rng = np.random.default_rng(0)
    label = blobs(0, 512, 683)
    samples, images, files = [], [], PredictionFiles(tmp_path, ["0.png"], np.zeros((3, 3)))
    files.relative = {f"{index}.png": f"{index}.png" for index in range(12)}
    for index in range(12):
        noisy = rng.random(label.shape) < 0.3
        prediction = np.where(noisy, rng.integers(0, 3, label.shape), label).astype(np.uint8)
        write_png(tmp_path / f"gray/{index}.png", prediction)
        photo = rng.integers(0, 256, (512, 683, 3)).astype(np.uint8)
        samples.append(Sample(photo, label, f"{index}.png", index))
        counts = np.bincount(label.ravel().astype(int) * 3 + prediction.ravel(), minlength=9)
        images.append(
            examine(f"{index}.png", label, prediction, None, counts.reshape(3, 3), ignore_label=255)
        )
    facts = {
        "classes": ["a", "b", "c"],
        "colors": [[0, 0, 0], [255, 0, 0], [0, 0, 255]],
        "scales": [1.0],
        "flip": True,
        "crop": [48, 40],
        "base_size": 0,
        "checkpoint": None,
    }
    path = write_report(load_config(small_config), TestRecords(facts, images), samples, files)
    assert path.stat().st_size < 3e6
    data = data_of(path.read_text())
    assert len(data["thumbs"]) == 12
    assert 1 < len(data["full"]) < 12


def test_wrong_words_are_told_before_the_test(words, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not found; expected the folder of a test"):
        test.main([*words, "--against", str(tmp_path)])
    with pytest.raises(ConfigError, match="--groups nowhere: matches nothing in the name"):
        test.main([*words, "--groups", "nowhere"])
    assert not (tmp_path / "run/result/metrics.json").exists()


class NoPictures:
    """In the place of a dataset and of prediction files, of which nothing can be read."""

    def __getitem__(self, index: int) -> None:
        return None


def test_names_are_escaped_and_a_large_test_stays_small(small_config: Path, tmp_path: Path) -> None:
    """2,000 images of 150 classes: what is not a picture takes below 3 MB."""
    rng = np.random.default_rng(0)
    evil = "</script><img src=x onerror=alert(1)>&"
    names = [evil, *(f"class {index}" for index in range(1, 150))]
    images = []
    for index in range(2000):
        own = rng.choice(150, 10, replace=False)
        rows = [[int(a), int(b), int(rng.integers(1, 9999))] for a in own[:5] for b in own]
        images.append(ImageRecord(f"{evil}{index}.jpg", (300 + index % 9, 400), rows))
    facts = {
        "classes": names,
        "colors": rng.integers(0, 256, (150, 3)).tolist(),
        "scales": [1.0],
        "flip": True,
        "crop": [48, 40],
        "base_size": 0,
        "checkpoint": None,
    }
    config = load_config(small_config)
    path = write_report(config, TestRecords(facts, images), NoPictures(), None, groups="none")
    page = path.read_text()
    assert "<img src=x" not in page
    assert page.count("<script") == 2
    assert len(page) < 3e6
    assert page.count("class=cell") == MOST_CLASSES**2
    assert data_of(page)["classes"][0] == evil


def result_folder(folder: Path, seed: int, *, share: float) -> Path:
    """What a test of 12 images leaves; `share` of the pixels is predicted at random."""
    rng = np.random.default_rng(seed)
    root = folder.parent / "data"
    images = []
    for index in range(12):
        label, name = blobs(index), f"street/{index}.png"
        wrong = rng.random(label.shape) < share
        prediction = np.where(wrong, rng.integers(0, 3, label.shape), label).astype(np.uint8)
        counts = np.bincount(label.ravel().astype(int) * 3 + prediction.ravel(), minlength=9)
        images.append(
            examine(name, label, prediction, None, counts.reshape(3, 3), ignore_label=255)
        )
        write_png(folder / "gray" / f"{index}.png", prediction)
        write_png(root / name, np.repeat(label[..., None] * 80, 3, 2))
    facts = {
        "classes": ["a", "<i>b", "c"],
        "colors": [[0, 0, 0], [255, 0, 0], [0, 0, 255]],
        "data_root": str(root),
    }
    write_records(folder, TestRecords(facts, images))
    return folder


def test_tests_are_compared_in_words_figures_and_pictures(tmp_path: Path, capsys) -> None:
    a, b = (result_folder(tmp_path / n, i, share=s) for n, i, s in (("a", 0, 0.3), ("b", 1, 0.2)))
    page = tmp_path / "page.html"
    compare.main([str(a), str(b), "--output", str(page)])
    told = capsys.readouterr().out
    assert "b is better than a by" in told
    assert "12 units" in told
    content = page.read_text()
    data = data_of(content)
    assert [title for title, _ in data["gallery"]] == ["Lost most", "Gained most"]
    assert data["layers"] == ["image", "a", "b"]
    assert len(data["full"]) == len(data["images"]) > 0
    assert "<i>b" not in content.replace("\\u003c", "<").split("data")[0]
    result = compare.main([str(a), str(b), "--output", str(tmp_path / "folder")])
    assert (tmp_path / "folder/compare.html").read_text() == content
    (figures,) = json.loads(as_json(result.figures))
    assert figures["difference"]["p"] < 0.05
    assert set(figures["classes"]) == {"a", "<i>b", "c"}


def test_seeds_and_several_methods(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    folders = [str(result_folder(Path(f"m{i}/val"), i, share=0.3)) for i in range(4)]
    shift = str(result_folder(Path("m9/val"), 9, share=0.1))
    compare.main([",".join(folders[:2]), ",".join(folders[2:]), shift])
    told = capsys.readouterr().out
    assert "(2 seeds)" in told
    assert "m2 and m0 cannot be told apart" in told
    assert "m9 is better than m0" in told
    assert Path("compare.html").is_file()


def test_a_comparison_needs_two_tests(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected two tests or more"):
        compare.main([str(tmp_path)])
    with pytest.raises(ConfigError, match="--names: expected 2, one per test, got 1"):
        compare.main(["a", "b", "--names", "one"])


def test_a_line_of_one_point_is_seen() -> None:
    assert line_chart("mIoU", {"val": [(3, 0.5)]}).count("<circle") == 1
    assert "<circle" not in line_chart("mIoU", {"val": [(i, i) for i in range(20)]})


def test_the_ends_of_an_axis_are_told_apart() -> None:
    assert figures((159.5, 160, 160.5)) == ["159.5", "160", "160.5"]
    assert figures((2.6, 2.74, 2.87)) == ["2.6", "2.74", "2.87"]


def test_the_command_has_only_what_a_user_gives(small_config: Path) -> None:
    words = ["TRAIN.train_gpu", "[]", "TEST.scales", "[1.0]"]
    told = command_of(load_config(small_config, words), "auto")
    assert told == f"stripseg test --config {small_config} TEST.scales '[1.0]'"
