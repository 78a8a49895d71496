"""More inputs that could become a wrong class without a word, beside those of test_cases.py."""

import json
import struct
import unicodedata
import zlib
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
import yaml
from PIL import Image
from test_cases import CLASSES, SIZE, grey, masks, printed, run, stored

from stripseg.config.errors import CheckpointError, ConfigError, DataError, DeviceError
from stripseg.config.load import load_config
from stripseg.dataset.build import build_classes
from stripseg.dataset.generated import shapes
from stripseg.dataset.lists import read_list
from stripseg.dataset.preparation.match import LABEL_SUFFIXES, match, unread_files
from stripseg.dataset.results import PredictionFiles
from stripseg.engine import check_same_classes, load_network
from stripseg.tool import check
from stripseg.training_run import build_trainer, training_data
from stripseg.util import logger
from stripseg.util.distributed import process_group
from stripseg.util.images import read_image, read_label

COLOURS = np.array([(0, 0, 0), (200, 0, 0), (0, 0, 200)], np.uint8)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with four images in im/, in which the test runs."""
    monkeypatch.chdir(tmp_path)
    Path("ma").mkdir()
    images([f"p{index}.png" for index in range(4)])
    return tmp_path


def images(names: list[str], folder: str = "im") -> None:
    rng = np.random.default_rng(0)
    Path(folder).mkdir(exist_ok=True)
    for name in names:
        pixels = rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8)
        Image.fromarray(pixels).save(Path(folder, name))


def renamed(images_: str, labels: str) -> None:
    """The images and their labels, called as the patterns say."""
    masks(grey(0, 1, 2))
    for index in range(4):
        Path(f"im/p{index}.png").rename(Path("im", images_.format(index)))
        Path(f"ma/p{index}.png").rename(Path("ma", labels.format(index)))


def counted(path: Path, objects: int) -> None:
    label = np.zeros((SIZE, SIZE), np.uint8)
    for index in range(objects):
        row, column = divmod(index, 4)
        label[row * 40 + 4 : row * 40 + 30, column * 40 + 4 : column * 40 + 30] = index + 1
    Image.fromarray(label).save(path)


def test_numbers_of_objects_are_told_from_classes(capsys) -> None:
    for index in range(4):
        counted(Path(f"ma/p{index}.png"), 3 + 2 * index)
    run()
    assert "to 9 at most: are these numbers of objects" in printed(capsys)
    assert run("--values", "0=background,1-9=object")["DATA"]["classes"] == 2
    assert np.array_equal(np.unique(stored("p3")), [0, 1])
    assert Path("dataset/mine/colors.txt").read_text().startswith("0 0 0\n")
    assert "numbers of objects" in doctor(capsys, classes=10)


@pytest.mark.parametrize("few", [True, False])
def test_classes_within_each_other_are_no_numbers_of_objects(few: bool, capsys) -> None:
    for index, count in enumerate((1, 2, 3, 5) if few else (6, 8, 9, 9)):
        counted(Path(f"ma/p{index}.png"), count)
    run()
    assert "numbers of objects" not in printed(capsys)


def test_values_of_one_name_are_one_class(capsys) -> None:
    masks(grey(0, 128, 255))
    run("--values", "0=none,128=car,255=car")
    assert np.array_equal(stored(), CLASSES > 0)
    assert Path("dataset/mine/names.txt").read_text().split() == ["none", "car"]
    run("--values", "0=none,128=car,255=ignore,7=tree")
    assert np.array_equal(np.unique(stored()), [0, 1, 255])
    assert "absent from all labels (each counts as IoU 0): tree" in printed(capsys)


def test_an_ignored_value_that_never_occurs_is_named(capsys) -> None:
    masks(grey(0, 1, 2))
    run("--ignore", "9")
    assert "no label has the value 9, which --ignore names" in printed(capsys)


def test_ids_that_were_resized_with_smoothing_are_named(capsys) -> None:
    def smooth(ids: np.ndarray) -> Image.Image:
        large = Image.fromarray(np.array([0, 3, 6], np.uint8)[ids]).resize((SIZE + 8, SIZE + 8), 0)
        return large.resize((SIZE, SIZE), Image.Resampling.BILINEAR)

    masks(smooth)
    run()
    told = printed(capsys)
    assert "the values 1, 2, 5 fill no area anywhere" in told
    assert "--values 0=NAME,3=NAME,6=NAME --snap" in told
    run("--values", "0=a,3=b,6=c", "--snap")
    assert (stored() == CLASSES).mean() > 0.97


def test_one_class_in_two_codes_is_named(capsys) -> None:
    for index in range(4):
        grey(0, 100 if index else 1, 0)(CLASSES).save(f"ma/p{index}.png")
    run()
    assert "--values 0=background,1=object,100=object" in printed(capsys)


def palettes(colors: list[tuple], void: tuple) -> None:
    """Labels with a row of 255, each with the palette of its place in the lists."""
    for index in range(4):
        ids = CLASSES.copy()
        ids[0] = 255
        label = Image.fromarray(ids, "P")
        palette = np.zeros((256, 3), np.uint8)
        palette[:3] = colors[index % len(colors)]
        palette[255] = void[index % len(void)]
        label.putpalette(palette.flatten().tolist())
        label.save(f"ma/p{index}.png")


def test_the_ignored_index_stays_ignored_where_palettes_differ(capsys) -> None:
    palettes([COLOURS, COLOURS[[0, 2, 1]]], [(224, 224, 192)])
    assert run()["DATA"]["classes"] == 3
    assert "the palettes differ: value 1" in printed(capsys)
    assert np.array_equal(np.unique(stored()), [0, 1, 2, 255])
    palettes([COLOURS, COLOURS[[0, 2, 1]]], [(200, 0, 0)])
    with pytest.raises(DataError, match=r"ignored pixels \(255\) in some files and of a class"):
        run()


def test_palettes_that_differ_go_by_a_table() -> None:
    palettes([COLOURS, COLOURS[[0, 2, 1]]], [(224, 224, 192)])
    Path("t.txt").write_text("0 0 200 water\n200 0 0 road\n0 0 0 none\n224 224 192 ignore\n")
    run("--colors", "t.txt")
    assert np.array_equal(stored("p0")[1:], np.array([2, 1, 0])[CLASSES][1:])
    assert np.array_equal(stored("p1")[1:], np.array([2, 0, 1])[CLASSES][1:])
    assert stored()[0].tolist() == [255] * SIZE


def test_the_ignored_index_stays_ignored_beside_colours() -> None:
    palettes([COLOURS], [(224, 224, 192)])
    Image.fromarray(COLOURS[CLASSES]).save("ma/p0.png")
    assert run()["DATA"]["classes"] == 3
    assert stored("p1")[0].tolist() == [255] * SIZE


def test_palettes_may_differ_in_the_ignored_index(capsys) -> None:
    palettes([COLOURS], [(224, 224, 192), (255, 255, 255)])
    assert run()["DATA"]["classes"] == 3
    assert "palettes differ" not in printed(capsys)


def test_an_index_beyond_its_palette_is_named() -> None:
    for index in range(4):
        rows = b"".join(b"\0" + row.tobytes() for row in np.array([0, 1, 7], np.uint8)[CLASSES])
        parts = (
            (b"IHDR", struct.pack(">IIBBBBB", SIZE, SIZE, 8, 3, 0, 0, 0)),
            (b"PLTE", bytes([0, 0, 0, 200 * (index % 2), 0, 0])),
            (b"IDAT", zlib.compress(rows)),
            (b"IEND", b""),
        )
        content = b"\x89PNG\r\n\x1a\n"
        for kind, body in parts:
            content += struct.pack(">I", len(body)) + kind + body
            content += struct.pack(">I", zlib.crc32(kind + body))
        Path(f"ma/p{index}.png").write_bytes(content)
    with pytest.raises(DataError, match=r"ma/p0.png: has the index 7, and its palette has no"):
        run()


@pytest.mark.parametrize("orientation", [3, 6])
def test_a_label_with_its_photos_orientation_is_turned_with_it(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    drawn = np.zeros((20, 32), np.uint8)
    drawn[:8, :12] = 1
    for index in range(4):
        Path(f"im/p{index}.png").unlink()
        photo = Image.fromarray((drawn * 255)[..., None].repeat(3, axis=2))
        photo.save(f"im/p{index}.jpg", exif=exif, quality=95)
        Image.fromarray(drawn).save(f"ma/p{index}.png", exif=exif)
    run()
    assert np.array_equal(stored() > 0, read_image(Path("im/p0.jpg"))[..., 0] > 127)


def test_an_orientation_of_the_label_alone_is_named(capsys) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    masks(grey(0, 1, 2), exif=exif)
    run()
    assert "4 label(s), such as ma/p0.png, have an EXIF orientation" in printed(capsys)


def test_accents_are_equal_however_they_are_stored() -> None:
    renamed("caf\u00e9{}.png", unicodedata.normalize("NFD", "caf\u00e9{}.png"))
    run()
    assert np.array_equal(stored("caf\u00e90"), CLASSES)


@pytest.mark.parametrize(
    ("image", "label"), [("{}.png", "{:03}.png"), ("image{:03}.png", "label{:03}.png")]
)
def test_names_of_a_number_each_are_paired_by_it(image: str, label: str, capsys) -> None:
    renamed(image, label)
    run()
    assert "are paired by the numbers in their names" in printed(capsys)
    assert np.array_equal(stored(Path(image.format(0)).stem), CLASSES)


@pytest.mark.parametrize("label", ["{0}_{0}.png", "1{:03}.png"])
def test_other_numbers_are_not_paired(label: str) -> None:
    renamed("{}.png", label)
    with pytest.raises(DataError):
        run()


def test_numbers_pair_only_where_each_has_a_partner() -> None:
    images([f"{index}.png" for index in range(4)], "numbered")
    masks(grey(0, 1, 2))
    for index in range(4):
        Path(f"ma/p{index}.png").rename(f"ma/{index + 1:03}.png")
    assert match(Path("numbered"), Path("ma"))[0] == []


@pytest.mark.parametrize(
    ("image", "label", "warned"),
    [
        ("berlin_{}.png", "munich_{}.png", True),
        ("2020-01-0{}.png", "2021-01-0{}.png", True),
        ("img_{}.png", "mask_{}.png", False),
        ("berlin_{}.png", "mask_{}.png", False),
        ("IMG_{}.png", "img_{}.png", False),
        ("Berlin_{}.png", "berlin_{}.png", False),
    ],
)
def test_beginnings_of_two_places_are_named(image, label, warned: bool, capsys) -> None:
    renamed(image, label)
    run()
    assert ("are these the right folders?" in printed(capsys)) is warned


def test_files_that_are_not_read_are_named(capsys) -> None:
    masks(grey(0, 1, 2))
    Path("im/x.heic").write_bytes(b"x")
    run()
    assert "1 file(s) such as im/x.heic are left out: .heic" in printed(capsys)
    Path("ma/x.gif").write_bytes(b"x")
    assert list(unread_files(Path("ma"))) == [".gif"]
    assert not unread_files(Path("ma"), LABEL_SUFFIXES)
    Path("ma/x.gif").unlink()
    for path in Path("ma").iterdir():
        path.rename(path.with_suffix(".npy"))
    with pytest.raises(DataError, match=r"no image below it .*ma/p\d.npy is of another format"):
        run()


def annotated(shapes: list[dict], **names: str) -> None:
    """A LabelMe file for each image."""
    for index in range(4):
        content = {
            "shapes": shapes,
            "imagePath": names.get(f"p{index}", f"p{index}.png"),
            "imageHeight": SIZE,
            "imageWidth": SIZE,
        }
        Path(f"ma/p{index}.json").write_text(json.dumps(content))


def square(label: str, corner: float, side: float) -> dict:
    x, y = corner, corner + side
    return {"label": label, "points": [[x, x], [y, x], [y, y], [x, y]]}


def test_coordinates_that_are_shares_are_refused() -> None:
    annotated([square("car", 0.1, 0.5), square("tree", 0.7, 0.2)])
    with pytest.raises(DataError, match="all coordinates lie between 0 and 1, and LabelMe counts"):
        run()


def test_names_of_one_thing_are_told_when_data_are_prepared(capsys) -> None:
    annotated([square("car", 5, 40), square("Cars", 90, 40)])
    run()
    assert "the classes 'car' and 'Cars' may be one thing" in printed(capsys)


def test_a_file_that_names_the_picture_of_another_is_told(capsys) -> None:
    annotated([square("car", 5, 40)], p0="p1.png", p1="p0.png")
    run()
    assert "p1.json names p0.png as its picture, and im/p1.png is called like it" in printed(capsys)


def test_classes_of_a_table_that_never_occur_are_told(capsys) -> None:
    masks(lambda ids: Image.fromarray(COLOURS[ids]))
    Path("t.txt").write_text("0 0 0 none\n200 0 0 road\n0 0 200 water\n9 9 9 tree\n")
    run("--colors", "t.txt")
    assert "absent from all labels (each counts as IoU 0): tree" in printed(capsys)


@pytest.mark.parametrize(
    ("line", "value"),
    [("0 5 5 25 5 25 25 5 25", "25"), ("0 0.5 0.5 0.3 0.3 0.4 0.4 2 0.6 0.6 2", "2")],
)
def test_pixels_and_keypoints_are_no_outlines_of_yolo(line: str, value: str) -> None:
    Path("ma/classes.txt").write_text("car\n")
    for index in range(4):
        Path(f"ma/p{index}.txt").write_text(line)
    with pytest.raises(DataError, match=f"p0.txt, line 1: has the coordinate {value}; expected sh"):
        run()


def test_a_task_that_was_skipped_is_no_background(capsys) -> None:
    points = {"points": [[10, 10], [50, 10], [50, 50]], "polygonlabels": ["cat"]}
    result = {"original_width": SIZE, "original_height": SIZE, "value": points}
    result["type"] = "polygonlabels"
    tasks = [
        {
            "id": index,
            "data": {"image": f"p{index}.png"},
            "annotations": [{"was_cancelled": index == 1, "result": [result]}][: index != 2],
        }
        for index in range(4)
    ]
    Path("ma/tasks.json").write_text(json.dumps(tasks))
    with pytest.raises(DataError, match=r"2 broken pair\(s\)"):
        run()
    told = printed(capsys)
    assert "2 task(s) are not annotated, or were skipped" in told
    assert "im/p1.png: has no label" in told


def test_what_took_the_place_of_a_file_is_named() -> None:
    Path("a.png").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n")
    with pytest.raises(DataError, match="a.png: holds a pointer of Git LFS.*git lfs pull"):
        read_image(Path("a.png"))
    Path("b.png").write_bytes(b"\n<!DOCTYPE html><html>Not found</html>")
    with pytest.raises(DataError, match="b.png: holds a web page and not the label"):
        read_label(Path("b.png"))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_inks_are_no_bands(channels: int) -> None:
    Image.new("CMYK", (9, 9), (10, 20, 30, 40)).save("a.tif")
    with pytest.raises(DataError, match="a.tif: holds CMYK.*save it as RGB"):
        read_image(Path("a.tif"), channels)


def test_bands_of_a_label_are_counted() -> None:
    tifffile.imwrite("a.tif", np.zeros((2, 9, 9), np.uint8), planarconfig="separate")
    with pytest.raises(DataError, match="a.tif: has 2 bands; a label has one index per pixel"):
        read_label(Path("a.tif"))


@pytest.mark.parametrize(
    "content",
    [
        b"im/p0.png ma/p0.png\rim/p1.png ma/p1.png\r",
        b'"im/p0.png" "ma/p0.png"\n"im/p1.png" "ma/p1.png"\n',
    ],
)
def test_lists_of_old_programs_are_read(content: bytes, home: Path) -> None:
    masks(grey(0, 1, 2))
    Path("list.txt").write_bytes(content)
    pairs = read_list(Path("list.txt"), home, split="train")
    assert [pair.label for pair in pairs] == [home / "ma/p0.png", home / "ma/p1.png"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("im/p0.png ma/p0.png\n".encode("utf-16-le"), "has zero bytes.*save it in UTF-8"),
        ("im/p0.png\u200b ma/p0.png\n".encode(), r"the invisible character U\+200B: remove it"),
    ],
)
def test_what_is_not_seen_in_a_list_is_named(content: bytes, message: str, home: Path) -> None:
    masks(grey(0, 1, 2))
    Path("list.txt").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_list(Path("list.txt"), home, split="train")


def config(classes: int, **test: str) -> str:
    """A config by hand for the four pairs; its path."""
    Path("list.txt").write_text("".join(f"im/p{i}.png ma/p{i}.png\n" for i in range(4)))
    content = {
        "DATA": {"data_root": ".", "train_list": "list.txt", "classes": classes},
        "TRAIN": {"layers": 18, "train_h": 33, "train_w": 33, "batch_size": 2, "workers": 0},
        "TEST": {"test_list": "list.txt", **test},
    }
    content["TRAIN"] |= {"evaluate": False, "save_path": "run"}
    Path("own.yaml").write_text(yaml.safe_dump(content))
    return "own.yaml"


def doctor(capsys, *words: str, classes: int, **test: str) -> str:
    """What `check` prints."""
    capsys.readouterr()
    check.main(["--config", config(classes, **test), "--workers", "1", *words])
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("levels", "classes", "doubt"),
    [
        ((0, 0, 0), 2, "all pixels are of class 0 or ignored"),
        ((1, 2, 3), 4, "every class but 0 occurs: do ids count from 1"),
        ((0, 1, 2), 3, None),
    ],
)
def test_the_look_before_training_warns(levels, classes: int, doubt: str | None, capsys) -> None:
    masks(grey(*levels))
    training_data(load_config(Path(config(classes))))
    told = capsys.readouterr().err
    assert doubt in told if doubt else told == ""


def test_the_doctor_goes_on_past_files_that_are_missing(capsys) -> None:
    masks(grey(0, 1, 2))
    Path("im/p1.png").unlink()
    Path("ma/p2.png").unlink()
    told = doctor(capsys, "--fix", "clean", classes=3)
    assert "error: im/p1.png: image file does not exist" in told
    assert "error: ma/p2.png: label file does not exist" in told
    assert "2 error(s)" in told
    assert len(Path("clean/train.txt").read_text().splitlines()) == 2
    for path in Path("im").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"list.txt, line 1: im/p0.png does not exist"):
        doctor(capsys, classes=3)


@pytest.mark.parametrize(
    ("levels", "classes"), [((0, 255, 255), 2), ((1, 2, 3), 3), ((0, 100, 200), 3)]
)
def test_the_doctor_corrects_values_in_copies(levels, classes: int, capsys) -> None:
    masks(grey(*levels))
    before = Path("ma/p0.png").read_bytes()
    assert "4 label(s) are corrected" in doctor(capsys, "--fix", "clean", classes=classes)
    assert Path("ma/p0.png").read_bytes() == before
    expected = np.minimum(CLASSES, classes - 1)
    assert np.array_equal(read_label(Path("clean/labels/p0.png")), expected)
    told = doctor(capsys, "DATA.train_list", "clean/train.txt", classes=classes)
    assert "4 pairs: 0 error(s)" in told


def test_the_doctor_corrects_colours_by_their_table_alone(capsys) -> None:
    masks(lambda ids: Image.fromarray(COLOURS[ids]))
    told = doctor(capsys, "--fix", "clean", classes=3)
    assert "name the classes with TEST.colors_path" in told
    assert not Path("clean/labels").exists()
    Path("colors.csv").write_text("0 0 200\n0 0 0\n200 0 0\n")
    doctor(capsys, "--fix", "clean", classes=3, colors_path="colors.csv")
    assert np.array_equal(read_label(Path("clean/labels/p0.png")), np.array([1, 2, 0])[CLASSES])


@pytest.mark.parametrize("levels", [(0, 128, 255), (0, 1, 3)])
def test_the_doctor_corrects_nothing_that_is_a_question(levels, capsys) -> None:
    """0, 128, 255 may be two classes; 0, 1, 3 are four, and the config says three."""
    masks(grey(*levels))
    doctor(capsys, "--fix", "clean", classes=3)
    assert not list(Path("clean").rglob("*.png"))


def test_the_doctor_turns_labels_of_the_stored_size(capsys) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    masks(grey(0, 1, 2))
    for index in range(2):
        Image.fromarray(CLASSES[:80]).save(f"ma/p{index}.png")
        Image.fromarray(np.zeros((80, SIZE, 3), np.uint8) + index).save(
            f"im/p{index}.png", exif=exif
        )
    told = doctor(capsys, "--fix", "clean", classes=3)
    assert "2 label(s) are corrected" in told
    assert np.array_equal(read_label(Path("clean/labels/p0.png")), np.rot90(CLASSES[:80], -1))
    assert len(Path("clean/train.txt").read_text().splitlines()) == 4


def test_a_label_of_the_stored_size_names_the_cure(capsys) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    masks(grey(0, 1, 2))
    Image.fromarray(CLASSES[:80]).save("ma/p0.png")
    Image.fromarray(np.zeros((80, SIZE, 3), np.uint8)).save("im/p0.png", exif=exif)
    assert "before its EXIF orientation turns it" in doctor(capsys, classes=3)


def test_the_cause_of_a_jpeg_is_no_other(capsys) -> None:
    masks(grey(0, 1, 3))
    Image.open("ma/p0.png").save("ma/p0.jpg", quality=50)
    Path("ma/p0.jpg").rename("ma/p0.png")
    told = doctor(capsys, classes=4)
    assert "is a JPEG, which changes the values" in told
    assert "count from 1" not in told


@pytest.mark.parametrize(
    ("key", "value"), [("mean", "[0.485, 0.456, 0.406]"), ("std", "[0.229, 0.224, 0.225]")]
)
def test_one_of_mean_and_std_of_images_of_0_to_1_is_refused(key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"DATA.{key} .*multiply it by 255"):
        load_config(Path(config(3)), [f"DATA.{key}", value])


def test_one_image_to_validate_on_is_said(capsys) -> None:
    masks(grey(0, 1, 2))
    run()
    assert "there is one image to validate on" in printed(capsys)
    run("--validation", "0.7")
    assert "there is one image to validate on" not in printed(capsys)


def test_background_is_black() -> None:
    masks(grey(0, 255, 255))
    run()
    assert Path("dataset/mine/colors.txt").read_text() == "0 0 0\n128 0 0\n"
    Path("names.txt").write_text("Background\ncar\n")
    for names, first in (("names.txt", (0, 0, 0)), (None, (128, 0, 0))):
        words = ["TEST.names_path", names] if names else []
        classes = build_classes(load_config(Path(config(2)), words))
        assert tuple(classes.colors[0]) == first
        Path("names.txt").unlink(missing_ok=True)


def test_predictions_of_other_images_are_found(tmp_path: Path) -> None:
    for name in ("a.png", "b/c.png"):
        path = tmp_path / "result/gray" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    files = PredictionFiles(tmp_path / "result", ["im/a.jpg"], np.zeros((2, 3), np.uint8))
    assert files.left_over() == [tmp_path / "result/gray/b/c.png"]


def test_drawing_shapes_says_how_far_it_is(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(logger, "LINE_SECONDS", 0)
    shapes.write_shapes(tmp_path / "shapes", train=3, val=1, height=16, width=16)
    assert "drawing train: 1 of 3 images" in capsys.readouterr().err


def test_weights_of_classes_in_another_order_are_refused(
    small_config: Path, tmp_path: Path
) -> None:
    """Of a data set that was prepared again: old weights would be read under new names."""
    build_trainer(load_config(small_config), torch.device("cpu")).fit(until=3)
    names = list(build_classes(load_config(small_config)).names)
    for order, refused in (([1, 0, *range(2, 9)], True), (range(9), False)):
        Path("other.txt").write_text("\n".join(names[index] for index in order))
        words = ["TEST.names_path", "other.txt"]
        words += ["TEST.model_path", str(tmp_path / "run/model/last.pth")]
        for use in (load_network, build_trainer):
            with (
                pytest.raises(CheckpointError, match=f"with {names[0]!r} as class 0, .* class 1")
                if refused
                else nullcontext()
            ):
                use(load_config(small_config, words), torch.device("cpu"))


def test_other_names_of_classes_are_allowed() -> None:
    Path("names.txt").write_text("road\nsky\n")
    loaded = load_config(Path(config(2)))
    for names in ([], ["class 0", "class 1"], ["road", "heaven"]):
        check_same_classes(names, loaded, origin="best.pth")
    with pytest.raises(CheckpointError, match="renumbered"):
        check_same_classes(["grass", "road"], loaded, origin="best.pth")


def test_a_process_says_whom_it_waits_for(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """Variables of a program that is gone: nobody else comes."""
    monkeypatch.setattr(process_group, "SILENT_SECONDS", 0)
    place = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(process_group.free_port())}
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", **place}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DeviceError, match=r"2 processes could not meet at localhost.*unset RANK"):
        process_group.start(torch.device("cpu"), timeout_minutes=-0.97)
    assert "process 0 waits at localhost" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two' in the environment, not a number"),
        ({"RANK": "2"}, "RANK is 2 and WORLD_SIZE 2: left over"),
        ({"MASTER_PORT": ""}, "MASTER_PORT is '' in the environment"),
    ],
)
def test_an_environment_without_sense_is_named(variable, message: str, monkeypatch) -> None:
    usual = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1234"}
    for name, value in {**usual, **variable}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DeviceError, match=message):
        process_group.start(torch.device("cpu"))
