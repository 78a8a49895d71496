"""Names and colours of classes as people write them, and what hides beside labels and images."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from test_cases import CLASSES, grey, masks, printed, run, stored
from test_doors import COLOURS, config, doctor, home  # noqa: F401 - a fixture

from stripseg.config.errors import DataError
from stripseg.config.load import load_config
from stripseg.dataset.annotations.yolo import class_names
from stripseg.dataset.description import read_names
from stripseg.dataset.preparation import check
from stripseg.dataset.preparation.custom import read_table
from stripseg.dataset.results import PredictionFiles
from stripseg.training_run import training_data

TABLE = [((0, 0, 0), "none"), ((200, 0, 0), "road 2"), ((0, 0, 200), "sea")]


@pytest.mark.parametrize(
    "text",
    [
        "#000000 none\n#C80000 road 2\n#0000c8 sea\n",
        "name,hex\nnone,#000000\nroad 2,#c80000\nsea,#0000c8\n",
        "# a comment\n0 none 0 0 0\n1 road 2 200 0 0\n2 sea 0 0 200\n",
        "0 0 0 none\n200 0 0 road 2\n0 0 200 sea\n",
        "1 0 0 0 none\n2 200 0 0 road 2\n3 0 0 200 sea\n",
        "id,r,g,b,name\n0,0,0,0,none\n1,200,0,0,road 2\n2,0,0,200,sea\n",
    ],
)
def test_tables_as_people_write_them(text: str) -> None:
    Path("t.txt").write_text(text)
    assert read_table(Path("t.txt")) == TABLE


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# none\n\n", "t.txt: holds no colours"),
        ("0 0 0 none\nroad 2 of 3\n", "t.txt, line 2: expected 'R G B name', got 'road 2 of 3'"),
        ("0 0 0 none\n0 0 0 road\n", "t.txt, line 2: the colour 0 0 0 is listed twice"),
    ],
)
def test_a_table_without_colours_is_refused(text: str, message: str) -> None:
    Path("t.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        read_table(Path("t.txt"))


def test_colours_of_one_name_are_one_class(capsys) -> None:
    masks(lambda ids: Image.fromarray(COLOURS[ids]))
    Path("t.txt").write_text("0 0 0 none\n200 0 0 car\n0 0 200 car\n")
    assert run("--colors", "t.txt")["DATA"]["classes"] == 2
    assert np.array_equal(stored(), CLASSES > 0)
    assert "the table names 2 colours 'car': they are one class" in printed(capsys)


def test_names_may_have_comments_and_numbers() -> None:
    for text in ("# classes\nroad\n\ncar 2\n", "0: road\n1: car 2\n", "0 road\n1\tcar 2\n"):
        Path("classes.txt").write_text(text)
        assert read_names(Path("classes.txt")) == ["road", "car 2"]
        assert class_names(Path())[1] == ["road", "car 2"]
    Path("classes.txt").write_text("1 euro\n2 euro\n")
    assert read_names(Path("classes.txt")) == ["1 euro", "2 euro"]
    Path("classes.txt").write_text("1: road\n0: car\n")
    with pytest.raises(DataError, match="its names have the numbers 1, 0; expected 0, 1, 2"):
        read_names(Path("classes.txt"))


def test_comments_and_blank_lines_are_no_names_of_classes(capsys) -> None:
    masks(grey(0, 1, 2))
    Path("n.txt").write_text("# mine\nroad\n\ncar\ncar\n")
    told = doctor(capsys, classes=3, names_path="n.txt")
    assert "two classes are called 'car'" in told
    Path("n.txt").write_text("  # mine\n#\nroad\n#car\ncar\n")
    told = doctor(capsys, classes=3, names_path="n.txt")
    assert "n.txt" not in told


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}, "the id 1 as 'a' and"),
        ({"images": [{"id": 1, "file_name": f"p{i}.png"} for i in (0, 1)]}, "image 1: has the id"),
        ({"categories": [{"id": "1", "name": "a"}]}, "the category 1, which is not listed: '1'"),
    ],
)
def test_ids_that_mean_two_things_are_refused(change: dict, message: str) -> None:
    shape = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[1, 1, 9, 1, 9, 9]]}
    content = {
        "images": [{"id": 1, "file_name": "p0.png"}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [shape],
    }
    Path("ma/c.json").write_text(json.dumps(content | change))
    with pytest.raises(DataError, match=message):
        run()


def test_the_project_of_roboflow_is_no_class(capsys) -> None:
    images = [{"id": i, "file_name": f"p{i}.png"} for i in range(4)]
    categories = [{"id": 0, "name": "street", "supercategory": "none"}]
    categories += [{"id": 1, "name": "car", "supercategory": "street"}]
    ring = [9, 9, 50, 9, 50, 50]
    shapes = [{"image_id": i, "category_id": 1, "segmentation": [ring]} for i in range(4)]
    content = {"images": images, "categories": categories, "annotations": shapes}
    Path("ma/c.json").write_text(json.dumps(content))
    run()
    assert Path("dataset/mine/names.txt").read_text().split() == ["background", "car"]
    assert "the category 'street' is that of the others" in printed(capsys)


def test_codes_in_equal_steps_are_classes_unless_said_otherwise(capsys) -> None:
    masks(grey(0, 10, 20))
    assert run()["DATA"]["classes"] == 3
    assert "multiples of 10, and taken for 3 classes" in printed(capsys)
    assert run("--ids-from", "0")["DATA"]["classes"] == 21
    masks(lambda ids: Image.fromarray(ids.astype(np.uint16) * 1000))
    with pytest.raises(DataError, match="--ids-from 0: .* has the value 2000, and a label holds"):
        run("--ids-from", "0")


def test_instances_of_a_class_ask() -> None:
    def ids(classes: np.ndarray) -> Image.Image:
        halves = (np.arange(classes.shape[1]) // 60).astype(np.uint16)
        return Image.fromarray(classes.astype(np.uint16) * 256 + halves)

    masks(ids)
    with pytest.raises(DataError, match=r"instance ids \(class \* 256 \+ instance\)"):
        run()


def test_ids_in_alpha_are_written_anew() -> None:
    black = np.zeros((*CLASSES.shape, 3), np.uint8)
    masks(lambda ids: Image.fromarray(np.dstack([black, ids])))
    run("--alpha")
    assert np.array_equal(stored(), CLASSES)


def test_values_of_dithering_are_named(capsys) -> None:
    checkered = np.indices(CLASSES.shape).sum(axis=0) % 2
    codes = np.array([0, 60, 100], np.uint8)
    masks(lambda ids: Image.fromarray(codes[ids] + (ids == 1) * checkered.astype(np.uint8)))
    run()
    assert "the values 60, 61 fill no area anywhere" in printed(capsys)


def test_masks_of_8_and_of_16_bits_are_of_one_class(capsys) -> None:
    masks(grey(0, 255, 255))
    Image.fromarray((CLASSES > 0).astype(np.uint16) * 65535).save("ma/p1.png")
    assert run()["DATA"]["classes"] == 2
    assert np.array_equal(stored("p1"), CLASSES > 0)
    assert "255 and 65535 are taken for the same class" in printed(capsys)


def test_not_a_number_is_named() -> None:
    for index in range(4):
        label = CLASSES.astype(np.float32)
        label[0] = np.nan
        tifffile.imwrite(f"ma/p{index}.tif", label)
    with pytest.raises(DataError, match="holds NaN, not a number; write a whole number"):
        run()


def test_training_on_nothing_but_ignored_pixels_is_refused(monkeypatch) -> None:
    """Unless it is that of the first images only that are looked at."""
    monkeypatch.setattr(check, "QUICK", 2)
    masks(grey(255, 255, 255))
    with pytest.raises(DataError, match="every pixel of all labels that were looked at is ignored"):
        training_data(load_config(Path(config(3))))
    grey(0, 1, 2)(CLASSES).save("ma/p2.png")
    assert len(training_data(load_config(Path(config(3)))))


def test_archives_files_and_circles_of_links(home: Path) -> None:  # noqa: F811
    masks(grey(0, 1, 2))
    os.symlink("..", "im/again")
    run()
    Path("x.zip").write_bytes(b"PK")
    Path("zipped").mkdir()
    Path("zipped/x.tar.gz").write_bytes(b"x")
    for option, path, message in (
        ("--images", "x.zip", "x.zip: is an archive; unpack it"),
        ("--images", "zipped", "zipped/x.tar.gz: is an archive; unpack it"),
        ("--labels", "x.zip", "x.zip: is an archive; unpack it"),
        ("--images", "im/p0.png", "im/p0.png: is a file; name the folder that it is in"),
    ):
        with pytest.raises(DataError, match=message):
            run(option, path)


def test_a_second_test_replaces_what_the_first_one_wrote(tmp_path: Path) -> None:
    label, colors = np.zeros((2, 2), np.uint8), np.zeros((2, 3), np.uint8)
    for names, gone in ((["a.jpg", "b.jpg"], 0), (["b.jpg"], 1), (["b.jpg"], 0)):
        files = PredictionFiles(tmp_path / "result", names, colors)
        for name in names:
            files.save(name, label)
        (tmp_path / "result/gray/own.png").write_bytes(b"x")  # nobody knows whose
        assert files.replace_earlier() == gone
    left = sorted(p.name for p in (tmp_path / "result").rglob("*.png"))
    assert left == ["b.png", "b.png", "own.png"]
    corrected = tmp_path / "result/gray/b.png"
    os.utime(corrected, ns=(0, (tmp_path / "result/.predictions").stat().st_mtime_ns + 1))
    assert PredictionFiles(tmp_path / "result", ["c.jpg"], colors).replace_earlier() == 0
    assert corrected.is_file()
