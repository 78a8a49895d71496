"""CIFAR's archives: what is in them, and what a pickle may not do here."""

import contextlib
import pickle
import pickletools
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from stripseg.config.errors import DataError, StripsegError
from stripseg.dataset.classification.cifar import BATCHES, read_archive, read_cifar, write_cifar10
from stripseg.dataset.classification.images import PadAndCrop, TrainingImages
from stripseg.dataset.generated.shapes10 import CLASSES, render, write_shapes10
from stripseg.tool import prepare


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    write_shapes10(tmp_path, train=23, val=7)
    return tmp_path


def official(labels: list[int], pixels: np.ndarray) -> bytes:
    """A batch with the keys of the authors', which are bytes, and an old numpy's names."""
    content = {b"batch_label": b"testing batch 1 of 1", b"labels": labels, b"data": pixels}
    return pickle.dumps(content, protocol=3).replace(b"numpy._core.", b"numpy.core.")


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (12, 32, 32, 3), np.uint8)
    labels = rng.integers(0, 10, 12)
    names = [f"class {i}" for i in range(10)]
    write_cifar10(tmp_path, {"train": (images, labels), "val": (images[:3], labels[:3])}, names)
    train, val = (read_cifar(tmp_path, split, classes=10) for split in ("train", "val"))
    assert np.array_equal(train.images, images)
    assert np.array_equal(train.labels, labels)
    assert np.array_equal(val.images, images[:3])
    assert list(train.classes) == names
    assert (len(train), len(val)) == (12, 3)
    assert train.name(3) == "cifar-10-batches-py/data_batch_2 image 1"


def test_planes_are_red_green_and_blue_row_by_row(tmp_path: Path) -> None:
    folder = write_shapes10(tmp_path, train=5, val=1)
    row = np.zeros((1, 3072), np.uint8)
    row[0, 0 * 1024 + 2 * 32 + 5] = 200  # red at row 2, column 5
    row[0, 2 * 1024 + 31] = 100  # blue at row 0, column 31
    (folder / "test_batch").write_bytes(official([3], row))
    images = read_cifar(tmp_path, "val", classes=10)
    assert images.images.shape == (1, 32, 32, 3)
    assert images.images[0, 2, 5].tolist() == [200, 0, 0]
    assert images.images[0, 0, 31].tolist() == [0, 0, 100]
    assert images.images.sum() == 300
    assert images.labels.tolist() == [3]


@pytest.mark.parametrize(("classes", "key"), [(100, "fine"), (20, "coarse")])
def test_cifar100_has_fine_and_coarse_labels(tmp_path: Path, classes: int, key: str) -> None:
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    batch = {
        "data": np.zeros((2, 3072), np.uint8),
        "fine_labels": [99, 1],
        "coarse_labels": [3, 19],
    }
    meta = {
        f"{k}_label_names": [f"{k} {i}" for i in range(n)]
        for k, n in (("fine", 100), ("coarse", 20))
    }
    for name, content in (("train", batch), ("test", batch), ("meta", meta)):
        (folder / name).write_bytes(pickle.dumps(content, protocol=3))
    images = read_cifar(tmp_path, "val", classes=classes)
    assert images.labels.tolist() == batch[f"{key}_labels"]
    assert images.classes[1] == f"{key} 1"


class Hostile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_a_hostile_pickle_is_refused_and_runs_nothing(archive: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    target = archive / "cifar-10-batches-py" / "data_batch_3"
    for protocol in range(2, 6):
        target.write_bytes(pickle.dumps({"labels": [1], "x": Hostile(trace)}, protocol=protocol))
        with pytest.raises(DataError, match=r"data_batch_3: .* do not trust this file"):
            read_cifar(archive, "train", classes=10)
    assert not trace.exists()


@pytest.mark.parametrize(
    "program",
    [
        b"cos\nsystem\n(S'true'\ntR.",
        b"c__builtin__\neval\n(S'1'\ntR.",
        b"cnumpy\nload\n(S'x'\ntR.",
        b"cnumpy.core.multiarray\nfromfile\n(S'x'\ntR.",
        b"\x80\x04\x8c\x05numpy\x8c\x09ndarray.x\x93.",  # a dotted name
        b"(ipathlib\nPath\n.",
        b"Px\n.",  # a persistent id
        b"cnumpy\nndarray\n(I1\ntRI3\nb.",  # state that is no array's
        b"cnumpy\ndtype\n(S'O8'\ntR.",  # not a dictionary
    ],
)
def test_programs_in_pickles_are_refused(tmp_path: Path, program: bytes) -> None:
    path = tmp_path / "data_batch_1"
    path.write_bytes(program)
    with pytest.raises(DataError, match=f"{path}: not a file of CIFAR's archives"):
        read_archive(path)


def test_arrays_of_objects_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "batch"
    path.write_bytes(pickle.dumps({"data": np.array([{}, []], object)}, protocol=3))
    with pytest.raises(DataError, match="an array of other values than bytes"):
        read_archive(path)


def test_any_damage_is_one_error(archive: Path) -> None:
    path = archive / "cifar-10-batches-py" / "test_batch"
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for cut in rng.integers(0, len(whole) - 1, 20):
        path.write_bytes(whole[:cut])
        with pytest.raises(DataError, match="test_batch"):
            read_cifar(archive, "val", classes=10)
    for place in rng.integers(0, 400, 60):
        damaged = bytearray(whole)
        damaged[place] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        with contextlib.suppress(DataError):  # a changed name or title does no harm
            read_cifar(archive, "val", classes=10)


def test_missing_and_wrong_files_are_named(archive: Path, tmp_path: Path) -> None:
    folder = archive / "cifar-10-batches-py"
    with pytest.raises(DataError, match="holds neither cifar-10-batches-py nor cifar-100-python"):
        read_cifar(folder / "nothing", "train", classes=10)
    assert len(read_cifar(folder, "val", classes=10)) == 7  # the folder itself will do
    pixels = np.zeros((2, 3072), np.uint8)
    for content, message in (
        (official([1, 10], pixels), "label 10 is none of the 10 classes"),
        (official([1], pixels), r"data of shape \(2, 3072\) for 1 labels"),
        (official([1, 2], pixels[:, :3000]), r"data of shape \(2, 3000\)"),
        (official([], pixels), "has no labels"),
    ):
        (folder / "test_batch").write_bytes(content)
        with pytest.raises(DataError, match=f"test_batch: {message}"):
            read_cifar(archive, "val", classes=10)
    (folder / BATCHES[3]).unlink()
    with pytest.raises(DataError, match="data_batch_4: cannot be read"):
        read_cifar(archive, "train", classes=10)


def test_the_set_is_a_function_of_its_seed(tmp_path: Path) -> None:
    first, again, other = (
        write_shapes10(tmp_path / name, train=6, val=4, seed=seed)
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    for file in (*BATCHES, "test_batch", "batches.meta"):
        assert (first / file).read_bytes() == (again / file).read_bytes()
    assert (first / "test_batch").read_bytes() != (other / "test_batch").read_bytes()
    names = {arg for _, arg, _ in pickletools.genops((first / "test_batch").read_bytes())}
    assert "dtype" in str(names)


def test_the_set_has_all_classes_and_no_cheap_clue() -> None:
    """The mean colour of a picture says nothing about its class."""
    pictures = [render(0, 0, index) for index in range(400)]
    labels = np.array([label for _, label in pictures])
    assert set(labels) == set(range(len(CLASSES)))
    means = np.array([image.mean((0, 1)) for image, _ in pictures])
    between = np.array([means[labels == k].mean(0) for k in range(len(CLASSES))])
    assert between.std(0).max() < 0.35 * means.std(0).min()


def test_augmentation_is_a_function_of_seed_epoch_and_index(archive: Path) -> None:
    images = read_cifar(archive, "train", classes=10)
    crops = TrainingImages(images, PadAndCrop((32, 32)), seed=3, crop=(32, 32))
    again = TrainingImages(images, PadAndCrop((32, 32)), seed=3, crop=(32, 32))
    others = [again[1, 4].image]
    for key in ((1, 5), (0, 5), (2, 5)):
        assert np.array_equal(crops[key].image, again[key].image)
        others.append(again[key].image)
    assert len({image.tobytes() for image in others}) == 4
    assert crops[1, 5].label == images.labels[5]


def test_crops_are_shifts_of_the_padded_picture() -> None:
    image = np.arange(1, 1 + 32 * 32 * 3, dtype=np.int64).reshape(32, 32, 3) % 251 + 1
    image = image.astype(np.uint8)
    padded = np.pad(image, ((4, 4), (4, 4), (0, 0)))
    seen = set()
    for seed in range(300):
        crop = PadAndCrop((32, 32))(image, np.random.default_rng(seed))
        places = [
            (top, left, mirrored)
            for mirrored in (False, True)
            for top in range(9)
            for left in range(9)
            if np.array_equal(
                crop[:, ::-1] if mirrored else crop, padded[top : top + 32, left : left + 32]
            )
        ]
        assert len(places) == 1
        seen.add(places[0])
    assert {top for top, _, _ in seen} == {left for _, left, _ in seen} == set(range(9))
    assert {mirrored for _, _, mirrored in seen} == {False, True}
    whole = PadAndCrop((32, 32), padding=0, flip_probability=0)
    assert np.array_equal(whole(image, np.random.default_rng(0)), image)


def test_pixels_that_are_one_number_are_refused(archive: Path) -> None:
    path = archive / "cifar-10-batches-py" / "test_batch"
    path.write_bytes(official([1], np.array(3, np.uint8)))
    with pytest.raises(DataError, match="has no data"):
        read_cifar(archive, "val", classes=10)


def test_handwritten_digits_as_cifars_archives(tmp_path: Path) -> None:
    """Each picture is one of scikit-learn's, enlarged; every one of them is in one split."""
    assert prepare.main(["digits", str(tmp_path)]).exit_code == 0
    digits = load_digits()
    splits = [read_cifar(tmp_path, split, classes=10) for split in ("train", "val")]
    assert [len(images) for images in splits] == [1347, 450]
    labels = np.concatenate([images.labels for images in splits])
    assert np.array_equal(labels, digits.target)
    for index in (0, 700, 1346, 1347, 1796):
        images = splits[index >= 1347]
        picture = images.read(index - 1347 * (index >= 1347))
        assert picture.shape == (32, 32, 3)
        shrunk = picture[2::4, 1::4, 0].astype(float) * 16 / 255
        assert np.abs(shrunk - digits.images[index]).max() < 0.04


def test_digits_need_scikit_learn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(StripsegError, match="pip install scikit-learn"):
        prepare.main(["digits", str(tmp_path)])


def test_an_archive_is_fetched_where_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """By torchvision; one that cannot be reached is one message."""

    def fetch(root: str, *, download: bool) -> None:
        assert download
        write_shapes10(Path(root), train=20, val=5)

    def offline(root: str, *, download: bool) -> None:
        raise OSError("no route to the host")

    root = tmp_path / "new"
    monkeypatch.setattr("torchvision.datasets.CIFAR10", fetch)
    assert prepare.main(["cifar10", str(root), "--download"]).exit_code == 1  # not all images
    assert "train: 20 images of" in capsys.readouterr().out
    monkeypatch.setattr("torchvision.datasets.CIFAR100", offline)
    with pytest.raises(DataError, match="the download of cifar100 failed: no route to the host"):
        prepare.main(["cifar100", str(root), "--download"])


def test_prepare_writes_the_set_and_looks_through_archives(tmp_path: Path, capsys) -> None:
    assert prepare.main(["shapes10", str(tmp_path), "--train", "20", "--val", "5"]).exit_code == 0
    assert "20 training and 5 validation images" in capsys.readouterr().out
    assert prepare.main(["cifar10", str(tmp_path)]).exit_code == 1
    said = capsys.readouterr().out
    assert "train: 20 images of" in said
    assert "val: 5 images of" in said
    assert "INCOMPLETE, 50000 are published" in said
    with pytest.raises(DataError, match=r"holds no cifar-100-python; .* --download"):
        prepare.main(["cifar100", str(tmp_path)])
    with pytest.raises(SystemExit):
        prepare.main(["shapes10", str(tmp_path), "--train", "4"])
