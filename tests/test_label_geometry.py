"""What the doctor concludes from the geometry of labels, its page, and the lists it mends."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from stripseg.dataset.preparation import label_geometry as geometry
from stripseg.dataset.preparation.check import names_of_one_thing
from stripseg.tool import check
from stripseg.util.images import write_png


def scene(seed: int, height: int = 120, width: int = 160) -> np.ndarray:
    """(H, W) classes 0, 2 and 5 in smooth regions."""
    noise = np.random.default_rng(seed).random((4, 5, 3)).astype(np.float32)
    grown = cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.array([0, 2, 5], np.uint8)[grown.argmax(2)]


def photo(label: np.ndarray, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    grey = label.astype(np.float32) * 40 + rng.normal(0, 4, label.shape)
    return np.repeat(grey.clip(0, 255).astype(np.uint8)[..., None], 3, 2)


def measured(change=lambda label: label, count: int = 6) -> list[tuple[str, geometry.Geometry]]:
    """Of images whose labels were drawn and then changed."""
    found = []
    for seed in range(count):
        label = scene(seed)
        found.append((f"{seed}.png", geometry.measure(photo(label, seed), change(label), 255)))
    return found


def kinds(found) -> list[str]:
    return [kind for kind, _, _ in geometry.judgements(found)]


def test_labels_as_drawn_raise_no_suspicion() -> None:
    assert kinds(measured()) == []
    assert kinds([]) == []


def test_blended_values_are_seen() -> None:
    def resized(label: np.ndarray) -> np.ndarray:
        half = label[::2, ::2]
        return cv2.resize(half, label.shape[::-1], interpolation=cv2.INTER_LINEAR)

    assert "blended" in kinds(measured(resized))

    def nearest(label: np.ndarray) -> np.ndarray:
        return np.repeat(np.repeat(label[::2, ::2], 2, 0), 2, 1)

    assert "blended" not in kinds(measured(nearest))


@pytest.mark.parametrize(
    ("rows", "columns", "told"),
    [(0, 1, "1 px right"), (0, -2, "2 px left"), (2, 0, "2 px down"), (-1, 1, "right and 1 px up")],
)
def test_a_shift_of_all_labels_is_told(rows: int, columns: int, told: str) -> None:
    found = measured(lambda label: np.roll(label, (rows, columns), (0, 1)))
    ((kind, message, _),) = geometry.judgements(found)
    assert kind == "shifted"
    assert told in message


def test_specks_within_one_class_are_counted() -> None:
    def noisy(label: np.ndarray) -> np.ndarray:
        label = np.zeros_like(label)
        label[60:] = 2
        label[10, 10] = label[20:22, 30:32] = 5
        label[59:61, 50] = 5  # between two classes: may be a thing
        return label

    found = measured(noisy)
    assert [part.specks for _, part in found] == [2] * 6
    ((kind, message, files),) = [j for j in geometry.judgements(found) if j[0] == "specks"]
    assert "6 of 6 labels" in message
    assert "12 in all" in message
    assert len(files) == 6
    assert kind == "specks"


def test_places_are_where_the_class_is() -> None:
    label = np.zeros((120, 120), np.uint8)
    label[:60, 60:] = 1
    places = geometry.places_of(label, 255)
    assert places[1][:6, 6:].min() == 255
    assert places[1][6:].max() == places[1][:, :6].max() == 0


def test_two_names_of_one_thing() -> None:
    told = [f.message for f in names_of_one_thing(["car", "Cars", "road", "traffic-light"])]
    assert told == ["the classes 'car' and 'Cars' may be one thing under two names"]
    assert not list(names_of_one_thing(["class 1", "class 2", "道路", "車"]))


@pytest.fixture
def dataset(tmp_path: Path) -> list[str]:
    """Eight training and three validation pairs, some of them wrong."""
    root = tmp_path / "data"
    lines: dict[str, list[str]] = {"train": [], "val": []}
    for index in range(11):
        split = "train" if index < 8 else "val"
        label = np.clip(scene(index), 0, 2)
        image = photo(scene(5 if index in (6, 8) else index), 5 if index in (6, 8) else index)
        if index == 1:
            label = np.full_like(label, 255)  # ignored
        if index == 2:
            label = label[:-1]  # another size
        write_png(root / f"{index}.png", image)
        write_png(root / f"{index}_label.png", label)
        lines[split].append(f"{index}.png {index}_label.png")
    for split, own in lines.items():
        (root / f"{split}.txt").write_text("\n".join(own))
    yaml = tmp_path / "mine_run.yaml"
    yaml.write_text(
        f"DATA:\n  data_root: {root}\n  classes: 3\n  train_list: train.txt\n  val_list: val.txt\n"
    )
    return ["--config", str(yaml), "--workers", "1"]


def test_the_doctor_writes_a_page_and_lists_without_what_is_wrong(
    dataset, tmp_path: Path, capsys
) -> None:
    page, clean = tmp_path / "page.html", tmp_path / "clean"
    assert check.main([*dataset, "--html", str(page), "--fix", str(clean)]).exit_code == 1
    told = capsys.readouterr().out
    assert "1 of 3 figures would tell of known pictures" in told
    assert "without: 1 entirely ignored, 1 cannot be used" in told
    assert "2 also tested" in told  # 5 and 6 are one picture, which 8 is as well
    content = page.read_text()
    for part in ("Findings", "Classes", "Together", "Places", "Sizes"):
        assert f"<h2>{part}</h2>" in content
    assert content.count("data:image/png") == 2  # class 1 never occurs
    lists = ["DATA.train_list", str(clean / "train.txt"), "DATA.val_list", str(clean / "val.txt")]
    assert len((clean / "train.txt").read_text().splitlines()) == 4
    assert check.main([*dataset, *lists]).exit_code == 0
