"""Several masks of one picture, one for each class, become one label; so do Roboflow's values."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_cases import CLASSES, SIZE, grey, masks, printed, run, stored
from test_doors import home  # noqa: F401 - four images in im/, in which each test runs

from stripseg.config.errors import DataError

NAMES = {1: "car", 2: "road"}


def one_per_class(pattern: str, *, value: int = 255, overlap: bool = False) -> None:
    for index in range(4):
        for number, name in NAMES.items():
            inside = number <= CLASSES if overlap else number == CLASSES
            path = Path("ma", pattern.format(image=f"p{index}", name=name))
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(inside.astype(np.uint8) * value).save(path)


@pytest.mark.parametrize(
    "pattern", ["{image}_{name}.png", "{name}/{image}.png", "{image}/{name}.png"]
)
def test_a_mask_per_class_is_drawn_into_one_label(pattern: str, capsys) -> None:
    one_per_class(pattern)
    run()
    assert np.array_equal(stored(), CLASSES)
    assert Path("dataset/mine/names.txt").read_text().split() == ["background", "car", "road"]
    assert "masks of one class each: 8 shapes on 4 images" in printed(capsys)


def test_masks_that_overlap_go_by_the_option() -> None:
    one_per_class("{name}/{image}.png", value=1, overlap=True)
    Path("ma/road/p1.png").unlink()  # no road there
    with pytest.raises(
        DataError, match="100% of the smaller one in common: which is in front, car"
    ):
        run()
    run("--background", "ignore", "--overlap", "last")
    assert np.array_equal(stored(), np.array([255, 0, 1], np.uint8)[CLASSES])
    assert np.array_equal(np.unique(stored("p1")), [0, 255])
    run("--overlap", "first")
    assert np.array_equal(stored(), (CLASSES > 0).astype(np.uint8))


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ("{}_1.png", "{}_2.png", "their names are no classes; are these objects"),
        ("{}_mask.png", "{}_mask_1.png", "their names are no classes"),
        (
            "{}_color.png",
            "{}_labelIds.png",
            "has the values 0, 1, 2; a mask of one class has 0 and",
        ),
    ],
)
def test_masks_of_objects_and_of_several_kinds_ask(first: str, second: str, message: str) -> None:
    for index in range(4):
        for pattern in (first, second):
            grey(0, 1, 2)(CLASSES).save(Path("ma", pattern.format(f"p{index}")))
    with pytest.raises(DataError, match=message):
        run()


def test_a_mask_that_is_called_like_an_image_is_its_label() -> None:
    for index in range(2):  # p0.png and p1.png have no label
        for side in ("left", "right"):
            Image.open("im/p3.png").save(f"im/p{index}_{side}.png")
            grey(0, 255, 255)(CLASSES).save(f"ma/p{index}_{side}.png")
    run("--leave-out-broken")
    lists = [Path("dataset/mine", f"{part}.txt").read_text() for part in ("train", "val")]
    assert sorted(line.split()[0] for line in "".join(lists).splitlines()) == [
        f"im/p{index}_{side}.png" for index in range(2) for side in ("left", "right")
    ]


def test_masks_of_objects_in_a_folder_of_each_picture_are_named(home: Path) -> None:  # noqa: F811
    for index in range(2):
        for part, name in (
            ("images", f"i{index}"),
            ("masks", f"x{index}a"),
            ("masks", f"y{index}"),
        ):
            path = Path(f"d/i{index}/{part}/{name}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            grey(0, 255, 255)(CLASSES).save(path)
    with pytest.raises(DataError, match=r"such as d/i0/images/i0.png and d/i0/masks/x0a.png"):
        run("--images", "d", "--labels", "d")


def test_roboflow_names_the_values_of_its_masks() -> None:
    masks(grey(0, 1, 3))
    Path("ma/_classes.csv").write_text("Pixel Value, Class\n0, background\n1, car\n3, tree\n")
    run()
    assert Path("dataset/mine/names.txt").read_text().split() == ["background", "car", "tree"]
    assert np.array_equal(stored(), CLASSES)
    run("--values", "0=none,1=a,3=b")  # the user knows better
    assert Path("dataset/mine/names.txt").read_text().split() == ["none", "a", "b"]
    Path("ma/_classes.csv").write_text("Pixel Value, Class\n0, background\n1, car\n")
    with pytest.raises(DataError, match=r"ma/_classes.csv names 0, 1, and ma/p\d.png has 3"):
        run()
    Path("ma/_classes.csv").write_text("Pixel Value, Class\n0; background\n")
    with pytest.raises(DataError, match="_classes.csv, line 2: expected 'value, class'"):
        run()


def test_a_mask_of_another_size_or_kind_is_named(capsys) -> None:
    one_per_class("{name}/{image}.png")
    Image.new("L", (SIZE, 9)).save("ma/car/p2.png")
    with pytest.raises(DataError, match="1 broken pair"):
        run()
    one_per_class("{name}/{image}.png")
    Image.open("ma/car/p2.png").save("ma/car/p2.jpg", quality=60)
    Path("ma/car/p2.png").unlink()
    with pytest.raises(DataError, match="1 broken pair"):
        run()
    assert "ma/car/p2.jpg is a JPEG, which changes values" in printed(capsys)
