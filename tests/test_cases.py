"""Inputs of public bug reports: each ends with the right value, or with a question to answer.

The masks, photos and lists are made here; docs/datasets.md has the table.
"""

import contextlib
import importlib.util
import io
import os
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
import yaml
from PIL import Image, ImageFilter

from stripseg.config.errors import ConfigError, DataError, DeviceError
from stripseg.config.load import load_config
from stripseg.dataset import loader
from stripseg.dataset.lists import read_list
from stripseg.dataset.preparation import custom
from stripseg.dataset.preparation.match import inspect, match
from stripseg.model.weights import unwrap
from stripseg.tool import check, demo, prepare
from stripseg.training_run import build_trainer
from stripseg.util import images
from stripseg.util.distributed import process_group
from stripseg.util.distributed.slurm import slurm_step
from stripseg.util.images import read_image, read_label

SIZE = 192
CLASSES = np.zeros((48, 48), np.uint8)
CLASSES[8:30, 10:40] = 1
CLASSES[32:44, 4:20] = 2
CLASSES = np.roll(CLASSES.repeat(4, axis=0).repeat(4, axis=1), (3, 5), (0, 1))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    Path("im").mkdir()
    Path("ma").mkdir()
    for index in range(4):
        pixels = rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8)
        Image.fromarray(pixels).save(f"im/p{index}.png")
    return tmp_path


def masks(make, suffix: str = "png", **options) -> None:
    for index in range(4):
        make(CLASSES).save(f"ma/p{index}.{suffix}", **options)


def printed(capsys: pytest.CaptureFixture[str]) -> str:
    """What came to stdout, then the warnings."""
    return "".join(capsys.readouterr())


def run(*words: str) -> dict:
    """`prepare custom` on the folders; the config it writes."""
    arguments = ["--images", "im", "--labels", "ma", "--name", "mine", "--workers", "1"]
    prepare.main(["custom", *arguments, *words])
    return yaml.safe_load(Path("config/mine/mine_spnet18.yaml").read_text())


def stored(name: str = "p0") -> np.ndarray:
    """The label that training reads for an image."""
    config = yaml.safe_load(Path("config/mine/mine_spnet18.yaml").read_text())
    for part in ("train", "val"):
        for line in Path(f"dataset/mine/{part}.txt").read_text().splitlines():
            image, label = line.split("\t")
            if Path(image).stem == name:
                return read_label(Path(config["DATA"]["data_root"], label))
    raise AssertionError(name)


def grey(*levels: int):
    return lambda ids: Image.fromarray(np.array(levels, np.uint8)[ids])


def test_jpeg_noise_asks_and_snaps(home: Path) -> None:
    masks(grey(0, 255, 255), "jpg", quality=70)
    with pytest.raises(DataError, match=r"around \d, 255: ma/p0.jpg is a JPEG.*--snap"):
        run()
    assert run("--snap")["DATA"]["classes"] == 2
    assert (stored() == (CLASSES > 0)).mean() > 0.97


def test_smoothed_edges_ask(home: Path) -> None:
    def smooth(ids: np.ndarray) -> Image.Image:
        large = Image.fromarray((ids > 0).astype(np.uint8) * 255).resize((SIZE + 8, SIZE + 8), 0)
        return large.resize((SIZE, SIZE), Image.Resampling.BILINEAR)

    masks(smooth)
    with pytest.raises(DataError, match=r"seem to be smoothed.*--snap"):
        run()
    assert run("--snap")["DATA"]["classes"] == 2


@pytest.mark.parametrize(("value", "words"), [(255, []), (254, ["--ignore", "254"])])
def test_ids_beside_an_ignored_area_are_classes(home: Path, value: int, words: list[str]) -> None:
    """They lie near each other, as the noise of JPEG does around a value; but they fill areas."""
    stripes = np.repeat([0, 1, 2, 3, 4, 5, value], [112, 20, 16, 12, 8, 4, 20])
    masks(lambda _: Image.fromarray(np.tile(stripes.astype(np.uint8), (SIZE, 1))))
    assert run(*words)["DATA"]["classes"] == 6
    assert set(np.unique(stored())) == {0, 1, 2, 3, 4, 5, 255}


@pytest.mark.parametrize("kind", ["webp", "jpeg enlarged", "blur"])
def test_noise_that_fills_areas_asks(home: Path, kind: str) -> None:
    """Saved again as PNG: flat parts of WebP, pixels of JPEG made larger, and 256 grey levels."""
    large = np.array([0, 255, 255], np.uint8)[CLASSES]
    buffer = io.BytesIO()
    if kind == "webp":
        Image.fromarray(large).convert("RGB").save(buffer, "WEBP", quality=20)
    else:
        Image.fromarray(large[::4, ::4]).save(buffer, "JPEG", quality=70)
    noisy = np.array(Image.open(buffer).convert("L"))
    if kind == "jpeg enlarged":
        noisy = noisy.repeat(4, axis=0).repeat(4, axis=1)
    elif kind == "blur":
        noisy = np.array(Image.fromarray(large).filter(ImageFilter.GaussianBlur(10)))
    masks(lambda _: Image.fromarray(noisy))
    with pytest.raises(DataError, match=r"smoothed.*--snap"):
        run()


def test_names_and_colours_that_a_user_has_written_stay(home: Path, capsys) -> None:
    """Where the labels have none; else they are kept beside the new ones."""
    masks(grey(0, 1, 2))
    run()
    assert "have no names yet" in printed(capsys)
    names = Path("dataset/mine/names.txt")
    names.write_text("road\nwater\ntree\n")
    run()
    said = printed(capsys)
    assert names.read_text() == "road\nwater\ntree\n"
    assert f"kept as it was: {names}" in said
    assert "have no names yet" not in said
    run("--values", "0=a,1=b,2=c")
    assert names.read_text() == "a\nb\nc\n"
    assert Path("dataset/mine/names.txt.bak").read_text() == "road\nwater\ntree\n"


def test_colours_of_jpeg_ask(home: Path) -> None:
    colors = np.array([(0, 0, 0), (128, 0, 0), (0, 128, 0)], np.uint8)
    masks(lambda ids: Image.fromarray(colors[ids]), "jpg", quality=90, subsampling=0)
    with pytest.raises(DataError, match=r"colours around .* is a JPEG.*--snap"):
        run()
    assert run("--snap")["DATA"]["classes"] == 3


def test_grey_levels_ask(home: Path) -> None:
    masks(grey(0, 128, 255))
    with pytest.raises(DataError, match=r"--values 0=NAME,128=NAME,255=NAME or --ignore 255"):
        run()
    assert run("--values", "0=road,128=car,255=sky")["DATA"]["classes"] == 3
    assert np.array_equal(stored(), CLASSES)
    assert Path("dataset/mine/names.txt").read_text().split() == ["road", "car", "sky"]
    assert run("--ignore", "255")["DATA"]["classes"] == 2
    assert np.array_equal(np.unique(stored()), [0, 1, 255])


def test_values_must_name_all(home: Path) -> None:
    masks(grey(0, 128, 255))
    with pytest.raises(DataError, match=r"--values names 0, 255, and ma/p0.png has 128"):
        run("--values", "0=a,255=b")
    with pytest.raises(DataError, match="expected VALUE=NAME"):
        run("--values", "road")


def test_ids_from_one(home: Path, capsys) -> None:
    masks(grey(1, 2, 3))
    assert run()["DATA"]["classes"] == 3
    assert "ids seem to count from 1" in printed(capsys)
    assert np.array_equal(stored(), CLASSES)
    assert run("--ids-from", "0")["DATA"]["classes"] == 4


def test_masks_in_two_codes(home: Path, capsys) -> None:
    for index in range(4):
        grey(0, 255 if index % 2 else 1, 0)(CLASSES).save(f"ma/p{index}.png")
    assert run()["DATA"]["classes"] == 2
    assert "some masks are of 0 and 1" in printed(capsys)
    assert np.array_equal(stored("p0"), CLASSES == 1)
    assert np.array_equal(stored("p1"), CLASSES == 1)


def test_a_second_run_with_a_colour_table(home: Path, capsys) -> None:
    colors = np.array([(255, 0, 0), (0, 0, 255), (0, 255, 0)], np.uint8)
    masks(lambda ids: Image.fromarray(colors[ids]))
    run()
    Path("t.txt").write_text("0 0 255 water\n0 255 0 tree\n255 0 0 road\n")
    run("--colors", "t.txt")
    assert "have changed: rewriting" in printed(capsys)
    assert np.array_equal(stored(), np.array([2, 0, 1])[CLASSES])


def test_palettes_that_differ(home: Path, capsys) -> None:
    for index in range(4):
        order = [0, 1, 2] if index % 2 else [2, 0, 1]
        label = Image.fromarray(np.argsort(order).astype(np.uint8)[CLASSES], "P")
        palette = np.array([(9, 9, 9), (255, 0, 0), (0, 255, 0)])[order]
        label.putpalette(palette.astype(np.uint8).flatten().tolist())
        label.save(f"ma/p{index}.png")
    assert run()["DATA"]["classes"] == 3
    assert "the palettes differ: value 0" in printed(capsys)
    assert np.array_equal(stored("p0"), stored("p1"))


def test_a_mask_in_alpha(home: Path) -> None:
    def hidden(ids: np.ndarray) -> Image.Image:
        pixels = np.full((SIZE, SIZE, 4), 255, np.uint8)
        pixels[..., 3] = (ids > 0) * 255
        return Image.fromarray(pixels)

    masks(hidden)
    with pytest.raises(DataError, match="broken pair.*say so with --alpha"):
        run()
    assert run("--alpha")["DATA"]["classes"] == 2
    assert np.array_equal(stored(), CLASSES > 0)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_greys_of_few_bits(home: Path, bits: int) -> None:
    import cv2

    ids = np.minimum(CLASSES, 2**bits - 1)
    flags = {1: [cv2.IMWRITE_PNG_BILEVEL, 1]}.get(bits)
    for index in range(4):
        if flags:
            cv2.imwrite(f"ma/p{index}.png", ids, flags)
        else:
            packed_grey_png(Path(f"ma/p{index}.png"), ids, bits)
    run()
    assert np.array_equal(stored(), ids)


def packed_grey_png(path: Path, ids: np.ndarray, bits: int) -> None:
    import struct
    import zlib

    planes = (ids[:, :, None] >> np.arange(bits - 1, -1, -1)) & 1
    rows = np.packbits(planes.reshape(len(ids), -1).astype(np.uint8), axis=1)
    data = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", ids.shape[1], ids.shape[0], bits, 0, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(data)), (b"IEND", b"")):
        content += struct.pack(">I", len(body)) + kind + body
        content += struct.pack(">I", zlib.crc32(kind + body))
    path.write_bytes(content)


def test_whole_numbers_in_float_files(home: Path) -> None:
    for index in range(4):
        tifffile.imwrite(f"ma/p{index}.tif", CLASSES.astype(np.float32))
    assert run()["DATA"]["classes"] == 3
    assert np.array_equal(stored(), CLASSES)
    tifffile.imwrite("half.tif", CLASSES + np.float32(0.5))
    with pytest.raises(DataError, match="values that are not whole"):
        read_label(Path("half.tif"))


def test_white_is_zero(home: Path) -> None:
    tifffile.imwrite("inverted.tif", CLASSES, photometric="miniswhite")
    assert np.array_equal(read_label(Path("inverted.tif")), CLASSES)


def test_gif_masks_and_doubled_suffixes(home: Path) -> None:
    masks(lambda ids: Image.fromarray(ids, "L"), "gif")
    run()
    assert np.array_equal(stored() > 0, CLASSES > 0)
    for path in Path("ma").iterdir():
        path.unlink()
    masks(grey(0, 1, 2), "png.png")
    run()
    assert np.array_equal(stored(), CLASSES)


def test_prefixes_and_one_folder(home: Path) -> None:
    for index in range(4):
        grey(0, 1, 2)(CLASSES).save(f"ma/mask_{index}.png")
        Path(f"im/p{index}.png").rename(f"im/photo_{index}.png")
    run()
    assert np.array_equal(stored("photo_0"), CLASSES)
    Path("one").mkdir()
    for index in range(4):
        Path(f"im/photo_{index}.png").rename(f"one/{index}_sat.png")
        Path(f"ma/mask_{index}.png").rename(f"one/{index}_mask.png")
    prepare.main(
        ["custom", "--images", "one", "--labels", "one", "--name", "mine", "--workers", "1"]
    )
    assert np.array_equal(stored("0_sat"), CLASSES)


def test_own_train_and_val_folders(home: Path) -> None:
    for index in range(4):
        part = "val" if index == 0 else "train"
        for folder in ("im", "ma"):
            Path(folder, part).mkdir(exist_ok=True)
        Path(f"im/p{index}.png").rename(f"im/{part}/p{index}.png")
        grey(0, 1, 2)(CLASSES).save(f"ma/{part}/p{index}.png")
    run()
    assert "im/val/p0.png" in Path("dataset/mine/val.txt").read_text()
    assert "val" not in Path("dataset/mine/train.txt").read_text()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("lane:51,221,255::", ((51, 221, 255), "lane")),
        ("51 221 255 lane 1", ((51, 221, 255), "lane 1")),
        ("lane 1,51,221,255", ((51, 221, 255), "lane 1")),
        ("name r g b", None),
        ("lane 51 221 256", None),
    ],
)
def test_lines_of_colour_tables(line: str, expected: object) -> None:
    assert custom.table_line(line) == expected


@pytest.mark.parametrize("orientation", range(2, 9))
def test_photos_turned_by_exif(home: Path, orientation: int, capsys) -> None:
    """Labels of the stored pixels follow with --turn-labels; without, a warning names it."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo = np.zeros((SIZE, SIZE, 3), np.uint8)
    photo[CLASSES > 0] = 255
    for index in range(4):
        Path(f"im/p{index}.png").unlink()
        Image.fromarray(photo).save(f"im/p{index}.jpg", exif=exif, quality=95)
    masks(grey(0, 1, 2))
    run()
    assert "--turn-labels" in printed(capsys)
    run("--turn-labels")
    bright = read_image(Path("im/p0.jpg"))[..., 0] > 127
    assert np.array_equal(stored() > 0, bright)


def test_bands_are_never_multiplied(home: Path, capsys) -> None:
    bands = np.random.default_rng(1).integers(0, 256, (SIZE, SIZE, 4), np.uint8)
    for index in range(4):
        Path(f"im/p{index}.png").unlink()
        tifffile.imwrite(f"im/p{index}.tif", bands, photometric="rgb", extrasamples=["unassalpha"])
    masks(grey(0, 1, 2))
    assert run()["DATA"]["in_channels"] == 4
    assert "all 4 bands" in printed(capsys)
    assert np.array_equal(read_image(Path("im/p0.tif")), bands[..., :3])
    assert np.array_equal(read_image(Path("im/p0.tif"), 4), bands)


def test_dark_images_and_pages(home: Path, capsys) -> None:
    masks(grey(0, 1, 2))
    for index in range(4):
        values = np.random.default_rng(2).integers(0, 4096, (SIZE, SIZE), np.uint16)
        Image.fromarray(values).save(f"im/p{index}.png")
    run()
    assert "look black: hardly any value is above 15" in printed(capsys)
    Path("im/p0.png").unlink()
    tifffile.imwrite("im/p0.tif", np.zeros((3, SIZE, SIZE, 3), np.uint8), photometric="rgb")
    with pytest.raises(DataError, match="1 broken pair"):
        run()
    assert "has 3 pages" in printed(capsys)


def test_bytes_after_a_jpeg(home: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(3).integers(0, 256, (90, 90, 3), np.uint8)).save(
        buffer, "JPEG"
    )
    film = np.random.default_rng(4).bytes(200_000)
    Path("motion.jpg").write_bytes(buffer.getvalue() + film + b"\xff\xda")
    assert read_image(Path("motion.jpg")).shape == (90, 90, 3)
    Path("cut.jpg").write_bytes(buffer.getvalue()[:-200])
    with pytest.raises(DataError, match="truncated"):
        read_image(Path("cut.jpg"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["DATA.classes", "1"], "DATA.classes 1 leaves nothing to learn"),
        (["DATA.mean", "[0.485, 0.456, 0.406]", "DATA.std", "[0.2, 0.2, 0.2]"], "multiply both"),
    ],
)
def test_options_that_cannot_be_meant(small_config: Path, words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(small_config, words)


def hand_written(home: Path, label: np.ndarray, suffix: str = "png") -> Path:
    """A config by hand for four pairs."""
    lines = []
    for index in range(4):
        Image.fromarray(label).save(f"ma/p{index}.{suffix}")
        lines.append(f"im/p{index}.png ma/p{index}.{suffix}\n")
    Path("train.txt").write_text("".join(lines))
    content = {
        "DATA": {"data_root": str(home), "train_list": "train.txt", "classes": 2},
        "TRAIN": {
            "layers": 18,
            "train_h": 32,
            "train_w": 32,
            "batch_size": 2,
            "workers": 0,
            "evaluate": False,
            "save_path": str(home / "run"),
        },
        "TEST": {"test_list": "train.txt"},
    }
    path = home / "own.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_training_refuses_masks_that_teach_nothing(home: Path) -> None:
    path = hand_written(home, (CLASSES > 0).astype(np.uint8) * 255)
    with pytest.raises(DataError, match="0 and 255 alone, and 255 is ignored"):
        build_trainer(load_config(path), torch.device("cpu"))
    path = hand_written(home, (CLASSES > 0).astype(np.uint8), "jpg")
    with pytest.raises(DataError, match="is a JPEG, which changes the values"):
        build_trainer(load_config(path), torch.device("cpu"))


def test_labels_of_validation_are_tried_out_before_training(home: Path) -> None:
    """Else they would end the run after its first epoch."""
    path = hand_written(home, (CLASSES > 0).astype(np.uint8))
    Path("ma/p3.png").write_bytes(b"damaged")
    lines = Path("train.txt").read_text().splitlines()
    Path("train.txt").write_text("\n".join(lines[:2]))
    Path("val.txt").write_text("\n".join(lines[2:]))
    content = yaml.safe_load(path.read_text())
    content["DATA"]["val_list"] = "val.txt"
    content["TRAIN"]["evaluate"] = True
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(DataError, match=r"ma/p3.png"):
        build_trainer(load_config(path), torch.device("cpu"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"im\\p0.png ma\\p0.png\n", "paths have / and not"),
        (b"image label\nim/p0.png ma/p0.png\n", "is the first line a heading"),
    ],
)
def test_lists_with_a_reason(home: Path, content: bytes, message: str) -> None:
    Path("list.txt").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_list(Path("list.txt"), home, split="train")


@pytest.mark.parametrize(
    "content",
    [b"im/p0.png,ma/p0.png\n", "im/p0.png ma/p0.png\r\n".encode("utf-16")],
)
def test_lists_as_people_save_them(home: Path, content: bytes) -> None:
    masks(grey(0, 1, 2))
    Path("list.txt").write_bytes(content)
    (pair,) = read_list(Path("list.txt"), home, split="train")
    assert pair.label == home / "ma/p0.png"


def test_a_label_is_opened_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tifffile.imwrite("ma/p0.tif", CLASSES, photometric="minisblack")
    opened: list[str] = []

    def counted(decoder: str, function):
        return lambda *words, **options: (opened.append(decoder), function(*words, **options))[1]

    monkeypatch.setattr(images, "open_picture", counted("Pillow", images.open_picture))
    monkeypatch.setattr(tifffile, "TiffFile", counted("tifffile", tifffile.TiffFile))
    read_label(Path("ma/p0.tif"))
    assert sorted(opened) == ["Pillow", "tifffile"]
    opened.clear()
    label = Path("ma/p0.tif")
    assert inspect(("p0.png", Path("im/p0.png"), label)).problem is None
    assert opened.count("tifffile") == 1


@pytest.mark.parametrize("wrapper", ["net", "ema", "model", "model_ema", "state_dict_ema"])
@pytest.mark.parametrize("prefix", ["_orig_mod.", "module._orig_mod.", "model.", "module.module."])
def test_wrapped_weights(wrapper: str, prefix: str) -> None:
    content = {wrapper: {f"{prefix}a.weight": torch.zeros(1), f"{prefix}b": torch.zeros(1)}}
    assert list(unwrap(content, origin="f.pth")) == ["a.weight", "b"]


def test_a_leftover_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(DeviceError, match="unset RANK WORLD_SIZE LOCAL_RANK"):
        process_group.start(torch.device("cpu"))


def test_an_interactive_shell_of_slurm_is_one_process() -> None:
    assert slurm_step({"SLURM_STEP_NUM_TASKS": "4", "SLURM_JOB_NAME": "bash"}) is None


def test_shared_memory_that_is_too_small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(loader, "SHARED_MEMORY", tmp_path)
    loader.check_shared_memory(1)
    with pytest.raises(DataError, match="docker run --shm-size"):
        loader.check_shared_memory(2**60)
    monkeypatch.setattr(loader, "SHARED_MEMORY", tmp_path / "none")  # as on macOS
    loader.check_shared_memory(2**60)


def test_the_demo_goes_on_and_keeps_apart(small_config: Path, home: Path, capsys) -> None:
    build_trainer(load_config(small_config), torch.device("cpu")).fit(until=3)
    Image.open("im/p0.png").save("im/p0.jpg")
    Path("im/broken.png").write_bytes(Path("im/p1.png").read_bytes()[:300])
    words = ["--config", str(small_config), "--image", "im", "--output", "im"]
    words += ["TEST.test_h", str(SIZE), "TEST.test_w", str(SIZE)]
    assert demo.main(words).exit_code == 1
    assert "broken.png" in capsys.readouterr().err
    assert len(list(Path("im").glob("*_gray.png"))) == 5
    Path("im/broken.png").unlink()
    assert demo.main(words).exit_code == 0
    assert len(list(Path("im").glob("*_gray.png"))) == 5


def test_a_stray_file_does_not_break_all(home: Path, capsys) -> None:
    for index in range(4):
        grey(0, 1, 2)(CLASSES).save(f"ma/p{index}_mask.png")
    grey(0, 1, 2)(CLASSES).save("ma/overview.png")
    Path("ma/.ipynb_checkpoints").mkdir()
    grey(0, 1, 2)(CLASSES).save("ma/.ipynb_checkpoints/p0-checkpoint.png")
    with pytest.raises(DataError, match=r"1 broken pair"):
        run()
    assert "ma/overview.png: belongs to no image" in printed(capsys)
    run("--leave-out-broken")
    assert np.array_equal(stored(), CLASSES)


def test_instance_ids_ask(home: Path) -> None:
    for index in range(4):
        ids = np.array([0, 24001, 26002], np.uint16)[CLASSES]
        Image.fromarray(ids).save(f"ma/p{index}.png")
    with pytest.raises(DataError, match=r"has the value 26002; are these instance ids"):
        run()
    assert run("--values", "0=none,24001=person,26002=car")["DATA"]["classes"] == 3
    assert np.array_equal(stored(), CLASSES)


def test_float_images_and_two_bands(home: Path) -> None:
    tifffile.imwrite("float.tif", np.zeros((9, 9, 3), np.float32), photometric="rgb")
    with pytest.raises(DataError, match="holds numbers of type float32"):
        read_image(Path("float.tif"))
    bands = np.random.default_rng(5).integers(0, 256, (SIZE, SIZE, 2), np.uint8)
    for index in range(4):
        Path(f"im/p{index}.png").unlink()
        tifffile.imwrite(f"im/p{index}.tif", bands, photometric="minisblack", planarconfig="contig")
    masks(grey(0, 1, 2))
    assert run()["DATA"]["in_channels"] == 2
    assert np.array_equal(read_image(Path("im/p0.tif"), 2), bands)


COLOURS = np.array([(0, 0, 0), (200, 0, 0), (0, 0, 200)], np.uint8)
BY_COLOUR = np.array([0, 2, 1], np.uint8)[CLASSES]  # the classes in the order of the colours


def test_the_only_files_of_two_folders_are_a_pair(home: Path, capsys) -> None:
    for index in range(1, 4):
        Path(f"im/p{index}.png").unlink()
    grey(0, 1, 2)(CLASSES).save("ma/mask.png")
    assert run()["DATA"]["classes"] == 3
    printed = capsys.readouterr().out
    assert "im/p0.png and ma/mask.png belong together" in printed
    assert "warning: there is one pair, which serves training and validation" in printed
    assert np.array_equal(stored(), CLASSES)


@pytest.mark.parametrize("kind", ["int64", "uint64", "float64", "float16"])
def test_whole_numbers_that_pillow_has_no_mode_for(home: Path, kind: str) -> None:
    for index in range(4):
        tifffile.imwrite(f"ma/p{index}.tif", CLASSES.astype(kind))
    run()
    assert np.array_equal(stored(), CLASSES)


def test_white_is_zero_in_16_bits(home: Path) -> None:
    tifffile.imwrite("inverted.tif", CLASSES.astype(np.uint16), photometric="miniswhite")
    assert np.array_equal(read_label(Path("inverted.tif")), CLASSES)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0, 1, 65535), "the value 65535 beside the ids 0 to 1; is it a class, or ignored"),
        ((0, 20, 255), "look like classes drawn in grey levels.*--values 0=NAME,20=NAME,255=NAME"),
        ((-1, 0, 1), "a class id is 0 or more. If it means ignored: --ignore -1"),
        ((0, 0, 0), "are of one class, 0, or ignored"),
        ((1, 255, 255), "are of one class, 1, .*--values 1=NAME,255=NAME"),
    ],
)
def test_values_that_may_mean_two_things_ask(home: Path, values: tuple, message: str) -> None:
    for index in range(4):
        tifffile.imwrite(f"ma/p{index}.tif", np.array(values, np.int32)[CLASSES])
    with pytest.raises(DataError, match=message):
        run()


def test_ids_beside_masks_of_another_code_are_named(home: Path, capsys) -> None:
    for index in range(4):
        grey(*((0, 1, 2) if index else (0, 255, 255)))(CLASSES).save(f"ma/p{index}.png")
    run()
    assert "1 label(s), such as ma/p0.png, hold 0 and 255 alone" in printed(capsys)


def test_ids_of_jpeg_cannot_be_snapped_to_one_class(home: Path) -> None:
    masks(grey(0, 1, 2), "jpg", quality=95)
    with pytest.raises(DataError, match="--values VALUE=NAME,... --snap"):
        run()
    with pytest.raises(DataError, match="only 0 stands out"):
        run("--snap")


def test_lossy_webp_asks_and_snaps(home: Path) -> None:
    masks(lambda ids: Image.fromarray(COLOURS[ids]), "webp", quality=60)
    with pytest.raises(DataError, match=r"colours around 3, .*ma/p0.webp is a lossy WebP"):
        run()
    run("--snap")
    assert (stored() == BY_COLOUR).mean() > 0.97


@pytest.mark.parametrize("coloured", [False, True])
def test_smoothed_edges_of_straight_lines_ask(home: Path, coloured: bool) -> None:
    """Their few values have as many pixels as a small class: that they fill no area tells."""
    import cv2

    drawn = COLOURS[CLASSES] if coloured else np.array([0, 255, 255], np.uint8)[CLASSES]
    masks(lambda _: Image.fromarray(cv2.GaussianBlur(drawn, (3, 3), 0)))
    with pytest.raises(DataError, match=r"seem to be smoothed.*--snap"):
        run()
    run("--snap")
    assert (stored() == (BY_COLOUR if coloured else CLASSES > 0)).mean() > 0.98


def test_snap_loses_no_class_that_is_not_named(home: Path) -> None:
    masks(grey(0, 128, 255))
    with pytest.raises(DataError, match="--values names 0, 255, and ma/p0.png has 128"):
        run("--values", "0=a,255=b", "--snap")
    masks(lambda ids: Image.fromarray(COLOURS[ids]))
    Path("t.txt").write_text("0 0 0 none\n200 0 0 road\n")
    with pytest.raises(DataError, match=r"colour \(0, 0, 200\), which is far from all"):
        run("--colors", "t.txt", "--snap")


def with_palette(ids: np.ndarray) -> Image.Image:
    label = Image.fromarray(ids, "P")
    label.putpalette(COLOURS.flatten().tolist())
    return label


def test_palettes_and_tables_go_by_colour(home: Path) -> None:
    masks(with_palette)
    Image.fromarray(COLOURS[CLASSES]).save("ma/p0.png")  # one that is no palette
    Path("t.txt").write_text("200 0 0 road\n0 0 200 water\n0 0 0 ignore\n")
    assert run("--colors", "t.txt")["DATA"]["classes"] == 2
    for name in ("p0", "p1"):
        assert np.array_equal(stored(name), np.array([255, 0, 1])[CLASSES])


@pytest.mark.parametrize("words", [["--values", "0=a,1=b"], ["--ignore", "0"], ["--ids-from", "1"]])
def test_options_of_indices_do_not_fit_colours(home: Path, words: list[str]) -> None:
    masks(lambda ids: Image.fromarray(COLOURS[ids]))
    with pytest.raises(DataError, match="are colours, and --values, --ids-from and --ignore"):
        run(*words)


def test_transparent_pixels_of_a_colour_that_is_a_class(home: Path) -> None:
    pixels = np.zeros((SIZE, SIZE, 4), np.uint8)
    pixels[CLASSES == 1] = 0, 0, 0, 255
    pixels[CLASSES == 2] = 255, 0, 0, 255
    masks(lambda _: Image.fromarray(pixels))
    with pytest.raises(DataError, match="broken pair"):
        run()
    assert run("--alpha")["DATA"]["classes"] == 2


def test_films_are_no_labels(home: Path) -> None:
    masks(grey(0, 1, 2), "gif", save_all=True, append_images=[grey(1, 1, 0)(CLASSES)])
    with pytest.raises(DataError, match=r"4 broken pair\(s\).*: ma/p0.gif: has 2 pages"):
        run()


def test_two_pictures_of_one_stem_have_a_label_each(home: Path) -> None:
    for index in range(4):
        Image.open(f"im/p{index}.png").save(f"im/p{index}.jpg")
        Image.fromarray(COLOURS[CLASSES]).save(f"ma/p{index}.png.png")
        Image.fromarray(COLOURS[CLASSES[::-1]]).save(f"ma/p{index}.jpg.png")
    run()
    found = dict(line.split("\t") for part in ("train", "val")
                 for line in Path(f"dataset/mine/{part}.txt").read_text().splitlines())  # fmt: skip
    assert len(found) == 8
    for image, label in found.items():
        expected = BY_COLOUR[::-1] if image.endswith("jpg") else BY_COLOUR
        assert np.array_equal(read_label(home / label), expected)


def test_a_second_run_notices_files_and_options(home: Path, capsys) -> None:
    masks(lambda ids: Image.fromarray(COLOURS[ids]))
    run()
    run()
    assert "written again" not in printed(capsys)
    for index in range(4):  # replaced by older ones
        Image.fromarray(COLOURS[CLASSES[::-1]]).save(f"ma/p{index}.png")
        os.utime(f"ma/p{index}.png", (1e9, 1e9))
    run()
    assert "4 labels in dataset/mine/labels were written again" in printed(capsys)
    assert np.array_equal(stored(), BY_COLOUR[::-1])
    exif = Image.Exif()
    exif[0x0112] = 3
    for index in range(4):
        Image.open(f"im/p{index}.png").save(f"im/p{index}.png", exif=exif)
    run("--turn-labels")
    assert np.array_equal(stored(), BY_COLOUR[:, ::-1])


@pytest.mark.parametrize(
    ("parts", "val"),
    [
        (("train2017", "val2017"), {"val2017"}),
        (("train_images", "valid_images", "extra"), {"valid_images"}),
        (("train", "test"), {"train"}),
    ],
)
def test_folders_named_like_parts_are_never_mixed(home: Path, parts: tuple, val: set) -> None:
    for part in parts:
        for index in range(4):
            for folder, pixels in (("im", COLOURS[CLASSES]), ("ma", CLASSES)):
                Path(folder, part).mkdir(exist_ok=True)
                Image.fromarray(pixels).save(f"{folder}/{part}/{part}{index}.png")
    run("--leave-out-broken")
    listed = {name: Path(f"dataset/mine/{name}.txt").read_text() for name in ("train", "val")}
    assert {line.split("/")[1] for line in listed["val"].splitlines()} == val
    assert {line.split("/")[1] for line in listed["train"].splitlines()} == {
        part for part in parts if part.startswith(("train", "extra"))
    }


def test_a_label_of_another_folder_is_not_taken(home: Path) -> None:
    """im/a/0 has no label: ma/b/0 belongs to a folder of its own."""
    for image in ("a/0", "a/1", "b/1", "b/2"):
        Path("im", image).parent.mkdir(exist_ok=True)
        Image.fromarray(COLOURS[CLASSES]).save(f"im/{image}.png")
    for label in ("a/1", "b/0", "b/1", "b/2"):
        Path("ma", label).parent.mkdir(exist_ok=True)
        Image.fromarray(CLASSES).save(f"ma/{label}.png")
    pairs, alone, unused = match(Path("im"), Path("ma"))
    assert [str(image) for image, _ in pairs] == ["im/a/1.png", "im/b/1.png", "im/b/2.png"]
    assert Path("im/a/0.png") in alone
    assert unused == [Path("ma/b/0.png")]


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("{}.jpg", "{}.png"),
        ("img_{}.png", "mask_{}.png"),
        ("train/images/{}.jpg", "train/masks/{}.png"),
        ("{}.jpg", "masks/{}.png"),
    ],
)
def test_images_and_labels_below_one_folder(home: Path, image: str, label: str) -> None:
    for index in range(3):
        for name in (image, label):
            path = Path("d", name.format(index))
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (4, 4)).save(path)
    pairs, alone, unused = match(Path("d"), Path("d"))
    assert pairs == [
        (Path("d", image.format(index)), Path("d", label.format(index))) for index in range(3)
    ]
    assert not alone
    assert not unused


def test_one_pair_with_an_ending(home: Path) -> None:
    Path("one").mkdir()
    Image.open("im/p0.png").save("one/a.jpg")
    Image.fromarray(CLASSES).save("ma/a_mask.png")
    assert match(Path("one"), Path("ma"))[0] == [(Path("one/a.jpg"), Path("ma/a_mask.png"))]


@pytest.mark.parametrize("kind", ["tif", "png", "webp"])
def test_turned_pictures_of_other_formats(home: Path, kind: str) -> None:
    """A label of the stored size, which is not square, is turned with its picture."""
    exif = Image.Exif()
    exif[0x0112] = 6
    drawn = np.zeros((20, 32), np.uint8)
    drawn[:8, :12] = 1
    for index in range(4):
        Path(f"im/p{index}.png").unlink()
        picture = Image.fromarray((drawn * 255)[..., None].repeat(3, axis=2))
        picture.save(
            f"im/p{index}.{kind}", exif=exif, **({"lossless": True} if kind == "webp" else {})
        )
        Image.fromarray(drawn).save(f"ma/p{index}.png")
    run()
    assert np.array_equal(stored() > 0, read_image(Path(f"im/p0.{kind}"))[..., 0] > 127)


def test_twelve_bits_with_a_hot_pixel(home: Path, capsys) -> None:
    masks(grey(0, 1, 2))
    values = np.random.default_rng(2).integers(0, 4096, (SIZE, SIZE), np.uint16)
    values[0, 0] = 65535
    for index in range(4):
        Image.fromarray(values).save(f"im/p{index}.png")
    run()
    assert "hardly any value is above 15 of 255" in printed(capsys)


def test_fourteen_bits_in_a_tiff_of_three_bands(home: Path, capsys) -> None:
    masks(grey(0, 1, 2))
    values = np.random.default_rng(2).integers(0, 2**14, (SIZE, SIZE, 3), np.uint16)
    for index in range(4):
        Path(f"im/p{index}.png").unlink()
        tifffile.imwrite(f"im/p{index}.tif", values, photometric="rgb")
    run()
    assert "hardly any value is above 6" in capsys.readouterr().err


def test_colours_of_jpeg_saved_as_png_name_the_option(home: Path) -> None:
    """Even where noise leaves more colours than there may be classes."""
    colors = np.array([(0, 0, 0), (128, 0, 0), (0, 128, 0)], np.uint8)

    def noisy(ids: np.ndarray) -> Image.Image:
        file = io.BytesIO()
        Image.fromarray(colors[ids]).save(file, "JPEG", quality=75)
        return Image.open(file)

    masks(noisy)
    Path("t.txt").write_text("0 0 0 ground\n128 0 0 car\n0 128 0 tree\n")
    for words in ([], ["--colors", "t.txt"]):
        with pytest.raises(DataError, match="--snap"):
            run(*words)
    run("--colors", "t.txt", "--snap")
    assert (stored() == CLASSES).mean() > 0.97


@pytest.mark.parametrize("kind", ["int16", "int32", "uint32", "int8"])
def test_images_of_unknown_range_are_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((9, 9, 3), kind), photometric="rgb")
    with pytest.raises(DataError, match=f"a.tif: holds numbers of type {kind}"):
        read_image(path)


def test_a_compression_that_needs_a_package_names_it(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(np.zeros((9, 9, 4), np.uint8), "RGBA").save(path, compression="tiff_lzw")
    with (
        contextlib.nullcontext()
        if importlib.util.find_spec("imagecodecs")
        else pytest.raises(DataError, match="a.tif: .*pip install imagecodecs")
    ):
        read_image(path, 4)


def test_the_look_before_training_knows_masks_of_many_classes(home: Path) -> None:
    path = hand_written(home, (CLASSES > 0).astype(np.uint8) * 255)
    with pytest.raises(DataError, match="0 and 255 alone, and 255 is ignored"):
        build_trainer(load_config(path, ["DATA.classes", "21"]), torch.device("cpu"))


def test_check_names_turned_photos_bands_and_palettes(home: Path, capsys) -> None:
    path = hand_written(home, (CLASSES > 0).astype(np.uint8))
    for index in range(4):
        with_palette(CLASSES).save(f"ma/p{index}.png")
    label = Image.fromarray(CLASSES, "P")
    label.putpalette(COLOURS[::-1].flatten().tolist())
    label.save("ma/p0.png")
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.open("im/p1.png").save("im/p1.png", exif=exif)
    tifffile.imwrite("im/p2.png", np.full((SIZE, SIZE, 4), 99, np.uint8), photometric="rgb")
    Path("im/p2.png").rename("im/p2.tif")
    Path("train.txt").write_text(Path("train.txt").read_text().replace("im/p2.png", "im/p2.tif"))
    check.main(["--config", str(path), "DATA.classes", "3"])
    told = capsys.readouterr().out
    assert "1 photo(s) are turned upright" in told
    assert "1 image(s) have more bands than DATA.in_channels, and the last 1 are not read" in told
    assert "the palettes of the labels differ: class class 0" in told
