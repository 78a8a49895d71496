"""List files in the shapes that users' editors and older tools leave them in."""

from pathlib import Path

import pytest

from stripseg.config.errors import DataError
from stripseg.dataset.lists import Pair, read_list


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("a.jpg", "a.png", "b.jpg", "b.png", "my photo.jpg", "my label.png"):
        (tmp_path / name).touch()
    return tmp_path


def read(root: Path, content: str | bytes, **options) -> list[Pair]:
    path = root / "list.txt"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_list(path, root, **{"split": "train", **options})


def names(pairs: list[Pair]) -> list[tuple[str, str | None]]:
    return [(pair.image.name, pair.label and pair.label.name) for pair in pairs]


BOTH = [("a.jpg", "a.png"), ("b.jpg", "b.png")]


@pytest.mark.parametrize(
    "content",
    [
        "a.jpg a.png\nb.jpg b.png\n",
        "a.jpg a.png\nb.jpg b.png",
        "a.jpg\ta.png\nb.jpg\tb.png\n",
        "a.jpg   a.png  \n  b.jpg b.png\n",
        "a.jpg \t a.png\nb.jpg\t\tb.png\n",
        "a.jpg a.png\r\nb.jpg b.png\r\n",
        "\ufeffa.jpg a.png\nb.jpg b.png\n",
        "a.jpg a.png\nb.jpg b.png\n\n  \n",
    ],
    ids=["plain", "no end", "tabs", "blanks", "mixed", "CRLF", "BOM", "empty at the end"],
)
def test_the_usual_ways_to_write_a_list(root: Path, content: str) -> None:
    pairs = read(root, content)
    assert names(pairs) == BOTH
    assert pairs[0].name == "a.jpg"


def test_names_keep_their_folders(root: Path) -> None:
    pairs = read(root, "x/y.v2.jpg z.png\n", check_files=False)
    assert pairs[0].name == "x/y.v2.jpg"
    assert pairs[0].image == root / "x" / "y.v2.jpg"


def test_absolute_paths_stay(root: Path) -> None:
    pairs = read(root, f"{root / 'a.jpg'} {root / 'a.png'}\n")
    assert names(pairs) == BOTH[:1]


def test_absolute_paths_of_another_machine_are_found_below_the_root(root: Path) -> None:
    (root / "train").mkdir()
    for name in ("x.png", "y.png"):
        (root / "train" / name).touch()
    pairs = read(root, "/SegNet/CamVid/train/x.png /SegNet/CamVid/train/y.png\n")
    assert pairs[0].image == root / "train" / "x.png"
    assert pairs[0].label == root / "train" / "y.png"


@pytest.mark.parametrize(
    "line", ["../a.jpg a.png", "a.jpg /etc/hostname", "x/../../a.jpg a.png", "/etc/passwd a.png"]
)
def test_files_outside_of_the_root_are_refused_unless_allowed(root: Path, line: str) -> None:
    with pytest.raises(DataError, match=r"line 1: .* lies outside of .*DATA.outside_root True"):
        read(root, line)
    assert len(read(root, line, outside=True, check_files=False)) == 1


def test_a_link_below_the_root_is_its_owners(root: Path) -> None:
    """It may lead anywhere, as it does where data lie on another disk."""
    (root / "data").mkdir()
    (root / "data/link.jpg").symlink_to(root / "a.jpg")
    (root / "data/label.png").touch()
    (pair,) = read(root / "data", "link.jpg label.png\n")
    assert pair.image == root / "data/link.jpg"


def test_lists_of_json_objects(root: Path) -> None:
    path = root / "train.odgt"
    record = '{"fpath_img": "a.jpg", "fpath_segm": "a.png", "width": 3, "height": 2}'
    path.write_text(record + "\n")
    assert names(read_list(path, root, split="train")) == BOTH[:1]
    assert names(read_list(path, root, split="test")) == [("a.jpg", None)]
    path.write_text(record + "\n{a.jpg}\n")
    with pytest.raises(DataError, match="train.odgt, line 2: expected a JSON object with fpath_im"):
        read_list(path, root, split="train")
    path.write_text('{"fpath_img": "a.jpg"}\n')
    with pytest.raises(DataError, match="line 1: has no fpath_segm"):
        read_list(path, root, split="train")


@pytest.mark.parametrize(
    "line",
    [
        "my photo.jpg\tmy label.png",
        "my photo.jpg my label.png",
        "my photo.jpg,my label.png",
        "my photo.jpg; my label.png",
    ],
)
def test_blanks_in_paths(root: Path, line: str) -> None:
    assert names(read(root, line)) == [("my photo.jpg", "my label.png")]
    assert names(read(root, line, split="test")) == [("my photo.jpg", None)]
    assert names(read(root, "my photo.jpg", split="test")) == [("my photo.jpg", None)]


@pytest.mark.parametrize("line", ["a.jpg, a.png", "a.jpg ,a.png", "a.jpg; a.png", "a.jpg,a.png"])
def test_a_comma_with_a_blank_beside_it(root: Path, line: str) -> None:
    assert names(read(root, line)) == BOTH[:1]


@pytest.mark.parametrize(
    "content", ["a.jpg\nb.jpg\n", "a.jpg a.png\nb.jpg\n", "a.jpg absent.png\nb.jpg"]
)
def test_a_test_split_needs_no_labels(root: Path, content: str) -> None:
    assert names(read(root, content, split="test")) == [("a.jpg", None), ("b.jpg", None)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "list.txt: the list is empty"),
        ("\n \n", "list.txt: the list is empty"),
        ("a.jpg a.png\n\nb.jpg b.png\n", "list.txt, line 2: the line is empty"),
        ("a.jpg a.png\nb.jpg\n", "line 2: expected 'image label' .* got 'b.jpg'; .*TEST.split"),
        ("a.jpg a.png b.jpg\n", "line 1: expected 'image label'"),
        ("a.jpg a.png\nb.jpg c.png\n", "line 2: .*c.png does not exist; check DATA.data_root"),
        ("c.jpg a.png\n", "line 1: .*c.jpg does not exist; check DATA.data_root"),
        ("image label\na.jpg a.png\n", "line 1: .*is the first line a heading"),
        (b"\xfa\x00a", "list.txt: the list cannot be read"),
    ],
)
def test_a_mistake_is_told_with_its_line(root: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(root, content)


def test_a_missing_list_is_named(root: Path) -> None:
    with pytest.raises(DataError, match=r"absent.txt: the list cannot be read"):
        read_list(root / "absent.txt", root, split="val")
