"""Inputs of public bug reports: each ends with the right value, or with a question to answer.

The masks, photos and lists are made here; docs/datasets.md has the table.
"""

import io
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
import yaml
from PIL import Image

from stripseg.config.errors import ConfigError, DataError, DeviceError
from stripseg.config.load import load_config
from stripseg.dataset import build
from stripseg.dataset.lists import read_list
from stripseg.dataset.preparation import custom
from stripseg.model.weights import unwrap
from stripseg.tool import demo, prepare
from stripseg.training_run import build_trainer
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
    assert "ids seem to count from 1" in capsys.readouterr().out
    assert np.array_equal(stored(), CLASSES)
    assert run("--ids-from", "0")["DATA"]["classes"] == 4


def test_masks_in_two_codes(home: Path, capsys) -> None:
    for index in range(4):
        grey(0, 255 if index % 2 else 1, 0)(CLASSES).save(f"ma/p{index}.png")
    assert run()["DATA"]["classes"] == 2
    assert "some masks are of 0 and 1" in capsys.readouterr().out
    assert np.array_equal(stored("p0"), CLASSES == 1)
    assert np.array_equal(stored("p1"), CLASSES == 1)


def test_a_second_run_with_a_colour_table(home: Path, capsys) -> None:
    colors = np.array([(255, 0, 0), (0, 0, 255), (0, 255, 0)], np.uint8)
    masks(lambda ids: Image.fromarray(colors[ids]))
    run()
    Path("t.txt").write_text("0 0 255 water\n0 255 0 tree\n255 0 0 road\n")
    run("--colors", "t.txt")
    assert "are written again" in capsys.readouterr().out
    assert np.array_equal(stored(), np.array([2, 0, 1])[CLASSES])


def test_palettes_that_differ(home: Path, capsys) -> None:
    for index in range(4):
        order = [0, 1, 2] if index % 2 else [2, 0, 1]
        label = Image.fromarray(np.argsort(order).astype(np.uint8)[CLASSES], "P")
        palette = np.array([(9, 9, 9), (255, 0, 0), (0, 255, 0)])[order]
        label.putpalette(palette.astype(np.uint8).flatten().tolist())
        label.save(f"ma/p{index}.png")
    assert run()["DATA"]["classes"] == 3
    assert "the palettes differ: value 0" in capsys.readouterr().out
    assert np.array_equal(stored("p0"), stored("p1"))


def test_a_mask_in_alpha(home: Path) -> None:
    def hidden(ids: np.ndarray) -> Image.Image:
        pixels = np.full((SIZE, SIZE, 4), 255, np.uint8)
        pixels[..., 3] = (ids > 0) * 255
        return Image.fromarray(pixels)

    masks(hidden)
    with pytest.raises(DataError, match="broken pair"):
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
    assert "--turn-labels" in capsys.readouterr().out
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
    assert "all 4 bands" in capsys.readouterr().out
    assert np.array_equal(read_image(Path("im/p0.tif")), bands[..., :3])
    assert np.array_equal(read_image(Path("im/p0.tif"), 4), bands)


def test_dark_images_and_pages(home: Path, capsys) -> None:
    masks(grey(0, 1, 2))
    for index in range(4):
        values = np.random.default_rng(2).integers(0, 4096, (SIZE, SIZE), np.uint16)
        Image.fromarray(values).save(f"im/p{index}.png")
    run()
    assert "look black: their largest value is 15" in capsys.readouterr().out
    Path("im/p0.png").unlink()
    tifffile.imwrite("im/p0.tif", np.zeros((3, SIZE, SIZE, 3), np.uint8), photometric="rgb")
    with pytest.raises(DataError, match="1 broken pair"):
        run()
    assert "has 3 pages" in capsys.readouterr().out


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
        (["DATA.classes", "1"], "DATA.classes 1 has nothing to learn"),
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


@pytest.mark.parametrize("wrapper", ["net", "ema", "model"])
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
    monkeypatch.setattr(build, "SHARED_MEMORY", tmp_path)
    build.check_shared_memory(1)
    with pytest.raises(DataError, match="docker run --shm-size"):
        build.check_shared_memory(2**60)


def test_the_demo_goes_on_and_keeps_apart(small_config: Path, home: Path, capsys) -> None:
    build_trainer(load_config(small_config), torch.device("cpu")).fit(until=3)
    Image.open("im/p0.png").save("im/p0.jpg")
    Path("im/broken.png").write_bytes(Path("im/p1.png").read_bytes()[:300])
    words = ["--config", str(small_config), "--image", "im", "--output", "im"]
    assert demo.main(words) == 1
    assert "broken.png" in capsys.readouterr().err
    assert len(list(Path("im").glob("*_gray.png"))) == 5
    Path("im/broken.png").unlink()
    assert demo.main(words) is None
    assert len(list(Path("im").glob("*_gray.png"))) == 5


def test_a_stray_file_does_not_break_all(home: Path, capsys) -> None:
    for index in range(4):
        grey(0, 1, 2)(CLASSES).save(f"ma/p{index}_mask.png")
    grey(0, 1, 2)(CLASSES).save("ma/overview.png")
    Path("ma/.ipynb_checkpoints").mkdir()
    grey(0, 1, 2)(CLASSES).save("ma/.ipynb_checkpoints/p0-checkpoint.png")
    with pytest.raises(DataError, match=r"1 broken pair"):
        run()
    assert "ma/overview.png: belongs to no image" in capsys.readouterr().out
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
