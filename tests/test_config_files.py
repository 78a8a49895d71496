"""Finding configs and the files that they name."""

from pathlib import Path

import pytest
from yamls import ROOT, Write

from stripseg.config.errors import ConfigError
from stripseg.config.load import find_config, load_config
from stripseg.config.validate import check_files, resolve_list


def test_find_config_looks_here_first_and_then_at_the_shipped_ones(write: Write) -> None:
    assert find_config("camvid", "spnet18") == ROOT / "config/camvid/camvid_spnet18.yaml"
    mine = write(name="config/camvid/camvid_spnet18.yaml")
    assert find_config("camvid", "spnet18") == mine


@pytest.mark.parametrize(
    ("dataset", "experiment", "words"),
    [
        ("camvd", "spnet18", ["dataset camvd", "did you mean camvid?", "ade20k"]),
        ("mine", "rnu", ["no experiment rnu", "did you mean run?", "there are other, run"]),
        ("", "", ["no configs for the dataset"]),
        ("a\0", "x" * 5000, ["no configs for the dataset"]),
    ],
)
def test_find_config_names_what_there_is(
    write: Write, dataset: str, experiment: str, words: list[str]
) -> None:
    write()
    write(name="config/mine/mine_other.yaml")
    with pytest.raises(ConfigError) as caught:
        find_config(dataset, experiment)
    assert all(word in str(caught.value) for word in words)


def test_lists_are_looked_for_as_they_stand_then_in_data_root(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(write())
    assert resolve_list(config, "train.txt") == Path("data/train.txt")
    write("", "train.txt")
    assert resolve_list(config, "train.txt") == Path("train.txt")
    assert resolve_list(config, "/abs/train.txt") == Path("/abs/train.txt")
    monkeypatch.setenv("HOME", "/home/someone")
    assert resolve_list(config, "~/train.txt") == Path("/home/someone/train.txt")
    assert resolve_list(config, "~nobody-here/train.txt") == Path("data/~nobody-here/train.txt")


def test_check_files_wants_what_the_purpose_needs(write: Write) -> None:
    lists = "DATA: {data_root: data, classes: 3, train_list: t.txt, val_list: v.txt}\n"
    path = write(lists + "TEST: {test_list: e.txt}\n")
    config = load_config(path)
    with pytest.raises(ConfigError) as caught:
        check_files(config, "train")
    assert str(caught.value) == (
        f"{path}: DATA.data_root data is not a folder (looked for {Path('data').absolute()}); "
        "set DATA.data_root, or link it: ln -s /path/to/the/data data"
    )
    write("", "data/t.txt")
    with pytest.raises(ConfigError) as caught:
        check_files(config, "train")
    assert str(caught.value) == (
        f"{path}: DATA.val_list v.txt does not exist (looked for {Path('data/v.txt').absolute()}); "
        "set DATA.val_list, or DATA.data_root, which is data"
    )
    check_files(load_config(path, ["TRAIN.evaluate", "False"]), "train")
    write("", "data/v.txt")
    check_files(config, "train")
    with pytest.raises(ConfigError, match=r"TEST\.test_list e\.txt does not exist"):
        check_files(config, "test")
    write("", "e.txt")
    check_files(config, "test")


def test_check_files_names_lists_that_are_not_set(write: Write) -> None:
    Path("data").mkdir()
    config = load_config(write())
    with pytest.raises(ConfigError) as caught:
        check_files(config, "train")
    train, val = str(caught.value).splitlines()
    assert train.endswith("DATA.train_list is not set, and training needs it")
    assert val.endswith("and training needs it; or set TRAIN.evaluate False")
    with pytest.raises(ConfigError, match=r"TEST\.test_list is not set, and testing needs it"):
        check_files(config, "test")


def test_check_files_counts_the_names(write: Write) -> None:
    write("", "data/e.txt")
    write("road\nsky\n", "names.txt")
    overrides = ["TEST.test_list", "e.txt", "TEST.names_path", "names.txt"]
    config = load_config(write(), overrides)
    assert config.TEST.names_path == "names.txt"
    with pytest.raises(ConfigError, match=r"names\.txt .* has 2 lines, but DATA\.classes is 3"):
        check_files(config, "test")
    write("road\nsky\ncar", "names.txt")
    check_files(config, "test")
