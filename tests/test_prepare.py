"""Folders of a user's own become a dataset that trains; official downloads get checked lists."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
import yaml
from PIL import Image

from stripseg.config.errors import DataError
from stripseg.config.load import load_config
from stripseg.dataset.build import build_classes, build_evaluation_set
from stripseg.dataset.preparation.match import match
from stripseg.tool import prepare
from stripseg.training_run import build_trainer

SIZE = (24, 40)
Pair = tuple[np.ndarray, np.ndarray]


def pair(seed: int, classes: int = 3) -> Pair:
    rng = np.random.Generator(np.random.PCG64(seed))
    label = np.repeat(rng.integers(0, classes, SIZE[1], np.uint8)[None], SIZE[0], axis=0)
    image = rng.integers(0, 200, (*SIZE, 3), np.uint8) + label[..., None] * 20
    return image, label


def save(path: Path, array: np.ndarray, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


@pytest.fixture
def home(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def custom(*words: str) -> None:
    prepare.main(
        ["custom", "--images", "in/images", "--labels", "in/labels", "--name", "mine", *words]
    )


def samples(list_name: str = "train") -> list:
    config = load_config("config/mine/mine_spnet18.yaml")
    path = config.DATA.train_list if list_name == "train" else config.DATA.val_list
    return list(build_evaluation_set(config, path, split="val"))


def truth(seed: int) -> np.ndarray:
    return pair(seed)[1]


def write_pairs(count: int, suffix: str = "png", label=lambda label: label, **options) -> None:
    for seed in range(count):
        image, ids = pair(seed)
        save(Path(f"in/images/p{seed}.{suffix}"), image, **options)
        save(Path(f"in/labels/p{seed}.png"), label(ids))


def check_labels(count: int) -> None:
    """Every pair is in one of the lists, with its true label."""
    found = samples() + samples("val")
    assert len(found) == count
    for sample in found:
        seed = int(Path(sample.name).stem.removeprefix("p"))
        assert np.array_equal(sample.label, truth(seed))


def test_two_commands_lead_to_a_training_run(home: Path, capsys) -> None:
    write_pairs(8)
    custom("--workers", "2")
    printed = capsys.readouterr().out
    assert "class 2" in printed
    assert "stripseg train mine spnet18" in printed
    check_labels(8)
    words = ["TRAIN.batch_size", "2", "TRAIN.workers", "0", "TRAIN.evaluate", "False"]
    config = load_config("config/mine/mine_spnet18.yaml", words)
    assert (config.DATA.classes, config.TRAIN.train_h, config.TRAIN.train_w) == (3, 65, 65)
    trainer = build_trainer(config, torch.device("cpu"))
    trainer.fit(until=1)
    assert trainer.step == 1


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp", "bmp"])
def test_any_format(home: Path, suffix: str) -> None:
    write_pairs(3, suffix)
    custom("--workers", "1")
    check_labels(3)


COLOURS = np.array([[128, 64, 0], [0, 0, 0], [255, 255, 255]], np.uint8)
STORED = {
    "16 bit": lambda ids: ids.astype(np.uint16),
    "grey as RGB": lambda ids: np.repeat(ids[..., None], 3, axis=2),
    "sparse": lambda ids: np.array([3, 90, 200], np.uint8)[ids],
    "16 bit, large": lambda ids: np.array([7, 300, 40000], np.uint16)[ids],
}


@pytest.mark.parametrize("how", STORED)
def test_labels_of_any_encoding(home: Path, how: str) -> None:
    write_pairs(4, label=STORED[how])
    custom("--workers", "1")
    check_labels(4)


def test_palette_labels_keep_their_indices(home: Path) -> None:
    write_pairs(4)
    for path in Path("in/labels").iterdir():
        picture = Image.open(path).copy()
        picture.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200])
        picture.save(path)
    custom("--workers", "1")
    check_labels(4)


def test_colour_labels_with_a_table(home: Path) -> None:
    write_pairs(4, label=lambda ids: COLOURS[ids])
    Path("table.csv").write_text("name,r,g,b\nearth,128,64,0\nnight sky,0,0,0\nsnow,255,255,255\n")
    custom("--workers", "1", "--colors", "table.csv")
    check_labels(4)
    classes = build_classes(load_config("config/mine/mine_spnet18.yaml"))
    assert list(classes.names) == ["earth", "night sky", "snow"]
    assert np.array_equal(classes.colors, COLOURS)


def test_colour_labels_without_a_table_are_numbered_in_order(home: Path) -> None:
    write_pairs(4, label=lambda ids: COLOURS[ids])
    custom("--workers", "1")
    classes = build_classes(load_config("config/mine/mine_spnet18.yaml"))
    assert list(classes.names) == ["colour 0 0 0", "colour 128 64 0", "colour 255 255 255"]
    first = samples()[0]
    assert np.array_equal(classes.colors[first.label], COLOURS[truth(int(first.name[-5]))])


def test_a_mask_of_0_and_255_has_two_classes(home: Path) -> None:
    write_pairs(3, label=lambda ids: np.where(ids > 0, 255, 0).astype(np.uint8))
    custom("--workers", "1")
    for sample in samples():
        assert np.array_equal(sample.label, truth(int(sample.name[-5])) > 0)


def test_255_beside_classes_is_ignored(home: Path) -> None:
    write_pairs(3, label=lambda ids: np.where(ids == 2, 255, ids).astype(np.uint8))
    custom("--workers", "1")
    assert load_config("config/mine/mine_spnet18.yaml").DATA.classes == 2
    assert {v for s in samples() for v in np.unique(s.label).tolist()} == {0, 1, 255}


def test_bands_blanks_and_letters_of_the_world(home: Path) -> None:
    for seed in range(4):
        _, ids = pair(seed)
        path = Path(f"in/images/Straße {seed}/größe 図.tif")
        path.parent.mkdir(parents=True)
        bands = np.stack([ids * k for k in range(1, 7)], axis=2)
        tifffile.imwrite(path, bands, photometric="minisblack", planarconfig="contig")
        save(Path(f"in/labels/Straße {seed}/größe 図_mask.png"), ids)
    custom("--workers", "1")
    config = load_config("config/mine/mine_spnet18.yaml")
    assert (config.DATA.in_channels, len(config.DATA.mean)) == (6, 6)
    assert samples()[0].image.shape == (*SIZE, 6)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_label_of_the_stored_photo_is_turned_with_it(home: Path, orientation: int) -> None:
    write_pairs(3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo = Image.open("in/images/p0.png").copy()
    photo.save("in/images/p0.png", exif=exif)
    custom("--workers", "1")
    upright = next(s for s in samples() + samples("val") if s.name.endswith("p0.png"))
    assert upright.image.shape[:2] == upright.label.shape == SIZE[::-1]
    # every column of the stored label is of one class, so a row or a column of the turned one is
    assert (upright.label == upright.label[:, :1]).all()
    expected = truth(0)[0] if orientation in (5, 6) else truth(0)[0][::-1]
    assert np.array_equal(upright.label[:, 0], expected)


def test_broken_pairs_are_named_and_left_out_only_on_request(home: Path, capsys) -> None:
    write_pairs(6)
    Path("in/images/p1.png").write_bytes(Path("in/images/p1.png").read_bytes()[:200])
    save(Path("in/labels/p2.png"), np.zeros((5, 5), np.uint8))
    Path("in/labels/p3.png").unlink()
    save(Path("in/labels/stray.png"), np.zeros(SIZE, np.uint8))
    with pytest.raises(DataError, match="4 broken pair.*--leave-out-broken"):
        custom("--workers", "1")
    assert not Path("config").exists()
    printed = capsys.readouterr().err
    assert "p1.png: image file is truncated" in printed
    assert "p2.png 5x5 pixels" in printed
    assert "p3.png: has no label" in printed
    assert "stray.png: belongs to no image" in printed
    custom("--workers", "1", "--leave-out-broken")
    check_labels(3)


def test_the_split_is_reproducible_and_grows_without_moving(home: Path) -> None:
    write_pairs(12)
    custom("--workers", "1", "--validation", "0.4")
    before = {list_name: {s.name for s in samples(list_name)} for list_name in ("train", "val")}
    write_pairs(20)
    custom("--workers", "1", "--validation", "0.4")
    for list_name, names in before.items():
        assert names <= {s.name for s in samples(list_name)}


def test_a_second_run_keeps_an_edited_config(home: Path) -> None:
    write_pairs(3)
    custom("--workers", "1")
    path = Path("config/mine/mine_spnet18.yaml")
    path.write_text(path.read_text() + "# my note\n")
    custom("--workers", "1")
    assert "# my note" in path.with_name(path.name + ".bak").read_text()


@pytest.mark.parametrize(
    ("label", "words", "message"),
    [
        (lambda ids: np.random.Generator(np.random.PCG64(0)).integers(
            0, 256, (*ids.shape, 3), np.uint8), [], "at most 255 classes are possible"),
        (lambda ids: np.full_like(ids, 255), [], "every label is entirely ignored"),
        (lambda ids: COLOURS[ids], ["--colors", "t.txt"], "colours that the table does not list"),
    ],
)  # fmt: skip
def test_labels_that_cannot_be_classes(home: Path, label, words: list[str], message: str) -> None:
    write_pairs(3, label=label)
    Path("t.txt").write_text("0 0 0 night\n")
    with pytest.raises(DataError, match=message):
        custom("--workers", "1", *words)


def test_labels_of_two_kinds_are_refused(home: Path) -> None:
    write_pairs(3)
    save(Path("in/labels/p1.png"), COLOURS[truth(1)])
    with pytest.raises(DataError, match=r"p1.png is a colour image and .*p\d.png holds indices"):
        custom("--workers", "1")


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (["a.jpg", "b.jpg"], ["a.png", "b.png"]),
        (["x/1.jpg", "y/1.jpg"], ["x/1.png", "y/1.png"]),
        (["bonn_1_leftImg8bit.png", "ulm_1_leftImg8bit.png"],
         ["bonn/bonn_1_gtFine_labelIds.png", "ulm/ulm_1_gtFine_labelIds.png"]),
        (["0016E5_1.png", "0016E5_2.png"], ["0016E5_1_L.png", "0016E5_2_L.png"]),
    ],
)  # fmt: skip
def test_names_are_matched(home: Path, images: list[str], labels: list[str]) -> None:
    for folder, names in (("in/images", images), ("in/labels", labels)):
        for name in names:
            save(Path(folder, name), np.zeros(SIZE, np.uint8))
    pairs, alone, unused = match(Path("in/images"), Path("in/labels"))
    assert pairs == [
        (Path("in/images", image), Path("in/labels", label))
        for image, label in zip(images, labels, strict=True)
    ]
    assert (alone, unused) == ([], [])


def test_ambiguous_names_are_refused(home: Path) -> None:
    for name in ("in/images/x/1.png", "in/images/y/1.png", "in/labels/1.png"):
        save(Path(name), np.zeros(SIZE, np.uint8))
    with pytest.raises(DataError, match="several images or labels are called '1'"):
        match(Path("in/images"), Path("in/labels"))


def test_official_lists_are_checked_against_the_published_counts(home: Path, capsys) -> None:
    for number in (1, 2):
        save(Path(f"ade/images/validation/ADE_val_{number}.jpg"), np.zeros((*SIZE, 3), np.uint8))
        save(Path(f"ade/annotations/validation/ADE_val_{number}.png"), np.zeros(SIZE, np.uint8))
    assert prepare.main(["ade20k", "ade", "--lists", "lists"]).exit_code == prepare.INCOMPLETE
    printed = capsys.readouterr().out
    assert "val: 2 images (INCOMPLETE, 2000 are published)" in printed
    assert "train: not there" in printed
    first = Path("lists/val.txt").read_text().splitlines()[0]
    assert first == "images/validation/ADE_val_1.jpg\tannotations/validation/ADE_val_1.png"
    with pytest.raises(DataError, match="holds no split of lmo"):
        prepare.main(["lmo", "ade"])


def test_the_made_config_says_only_what_exists(home: Path) -> None:
    write_pairs(3)
    custom("--workers", "1")
    content = yaml.safe_load(Path("config/mine/mine_spnet18.yaml").read_text())
    for key in ("train_list", "val_list"):
        assert Path(content["DATA"][key]).is_file()
    for key in ("names_path", "colors_path"):
        assert Path(content["TEST"][key]).is_file()


@pytest.mark.parametrize(
    "words", [["--name", "../up"], ["--name", "ade20k"], ["--validation", "1"]], ids=str
)
def test_impossible_words_are_refused(home: Path, words: list[str], capsys) -> None:
    write_pairs(3)
    with pytest.raises(SystemExit):
        custom(*words)
    assert words[0] in capsys.readouterr().err
    assert not Path("config").exists()


@pytest.mark.parametrize(("rare", "few"), [(True, True), (False, True), (True, False)])
def test_recipe_options_follow_the_data(
    home: Path, monkeypatch: pytest.MonkeyPatch, rare: bool, few: bool
) -> None:
    """With the reason behind the line; what the data do not ask for is not there."""
    monkeypatch.setattr(prepare.custom, "FEW", 200 if few else 2)
    for number in range(4):
        image, label = pair(number, classes=2)
        if rare:
            label[0, number] = 2
        save(home / f"images/{number}.png", image)
        save(home / f"labels/{number}.png", label)
    prepare.main(["custom", "--images", "images", "--labels", "labels", "--name", "mine"])
    path = home / "config/mine/mine_spnet18.yaml"
    train, text = load_config(path).TRAIN, path.read_text()
    assert train.rare_class_crop == (0.5 if rare else 0)
    assert ("  # class 2 has 0.1" in text) == rare
    assert train.color_jitter == ([0.4] * 3 if few else [0] * 3)
    assert ("training images: fewer than 200, so colours are varied" in text) == few


def test_snapped_labels_say_nothing_of_thin_classes(home: Path) -> None:
    """Their stored values vary within a class, so no pixel has neighbours of its value."""
    rng = np.random.default_rng(0)
    for number in range(4):
        label = np.zeros((40, 60), np.uint8)
        label[:, 30:] = 200
        save(home / f"images/{number}.png", label[..., None] * np.uint8([1, 1, 1]))
        noisy = (label + rng.integers(0, 6, label.shape)).astype(np.uint8)
        save(home / f"labels/{number}.png", noisy)
    words = ["--images", "images", "--labels", "labels", "--name", "mine"]
    prepare.main(["custom", *words, "--values", "0=left,200=right", "--snap"])
    assert load_config(home / "config/mine/mine_spnet18.yaml").TRAIN.decoder == "none"


def test_a_lone_pair_in_other_subfolders_is_none(home: Path) -> None:
    image, label = pair(0)
    save(home / "in/images/train/one.png", image)
    save(home / "in/labels/val/two.png", label)
    assert match(Path("in/images"), Path("in/labels"))[0] == []


@pytest.mark.parametrize(("bands", "written"), [(3, True), (4, False)])
def test_few_images_get_a_second_config_with_pretrained_weights(
    home: Path, capsys, bands: int, written: bool
) -> None:
    for number in range(4):
        image, label = pair(number, classes=2)
        image = np.dstack([image, image])[..., :bands]
        (home / "images").mkdir(exist_ok=True)
        tifffile.imwrite(home / f"images/{number}.tif", image, photometric="rgb")
        save(home / f"labels/{number}.png", label)
    prepare.main(["custom", "--images", "images", "--labels", "labels", "--name", "mine"])
    path = home / "config/mine/mine_spnet_lite0.yaml"
    assert path.is_file() == written
    assert ("stripseg train mine spnet_lite0" in capsys.readouterr().out) == written
    if written:
        config = load_config(path)
        assert config.TRAIN.backbone == "timm/tf_efficientnet_lite0"
        assert config.DATA.mean == [127, 127, 127]
        assert config.DATA.train_list == load_config(path.with_stem("mine_spnet18")).DATA.train_list
        options = path.read_text().partition("TRAIN:\n")[2].splitlines()
        assert options
        assert all("  # " in line for line in options)  # the reason


@pytest.mark.parametrize(("width", "decoder"), [(3, "deeplabv3plus"), (8, "none")])
def test_thin_classes_get_a_decoder(home: Path, width: int, decoder: str) -> None:
    for number in range(4):
        label = np.zeros((40, 60), np.uint8)
        label[:, 20:40] = 1
        label[5:-5, 8 : 8 + width] = 2
        save(home / f"images/{number}.png", label[..., None] * np.uint8([50, 60, 70]))
        save(home / f"labels/{number}.png", label)
    prepare.main(["custom", "--images", "images", "--labels", "labels", "--name", "mine"])
    path = home / "config/mine/mine_spnet18.yaml"
    assert load_config(path).TRAIN.decoder == decoder
    reason = "  # 69% of the pixels of class 2 lie at its edges"
    assert (reason in path.read_text()) == (decoder != "none")
