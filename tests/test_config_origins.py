"""Messages blame who gave an option: a file, or the command line."""

from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from stripseg.config.compatibility import check_same_network, compared_options
from stripseg.config.errors import CheckpointError, ConfigError
from stripseg.config.load import load_config, stored_config
from stripseg.config.schema import SECTIONS, NetworkOptions, option
from stripseg.config.validate import check_files

Write = Callable[..., Path]


@pytest.mark.parametrize(
    ("text", "overrides", "words"),
    [
        # the depth of the file's backbone comes from the command line
        ("TRAIN: {backbone: resnet50, multi_grid: [1, 2, 4]}", "TRAIN.layers 18", "multi_grid"),
        # the windows follow the crop
        (
            "TRAIN: {arch: psa, compact: True, train_h: 49, train_w: 49}\n"
            "TEST: {test_h: 49, test_w: 49}",
            "TRAIN.train_h 57",
            "TEST.test_h and TEST.test_w",
        ),
        ("TRAIN: {mask_h: 4, mask_w: 5, compact: True}", "TRAIN.compact False", "must be odd"),
        ("TRAIN: {batch_size: 2}", "Distributed.world_size 4", "leaves nothing for some"),
        ("TEST: {split: test}", "TRAIN.arch classifier TEST.has_prediction False", "TEST.split"),
    ],
)
def test_the_command_line_is_blamed_for_what_it_brings(
    write: Write, text: str, overrides: str, words: str
) -> None:
    path = write(f"DATA:\n  data_root: data\n  classes: 3\n{text}\n")
    load_config(path) if "split" not in text else None  # fine by itself
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides.split())
    lines = [line for line in str(caught.value).splitlines() if words in line]
    assert lines
    assert all(line.startswith("command line: ") for line in lines)


def test_a_later_depth_makes_the_backbone_its_own(write: Write) -> None:
    path = write("DATA:\n  data_root: data\n  classes: 3\nTRAIN: {backbone: resnet50}\n")
    assert load_config(path).origin("TRAIN.backbone") == str(path)
    config = load_config(path, ["TRAIN.layers", "18"])
    assert (config.TRAIN.backbone, config.origin("TRAIN.backbone")) == ("resnet18", "command line")


def test_missing_files_are_those_of_who_named_them(write: Write) -> None:
    path = write("DATA:\n  data_root: data\n  classes: 3\n  train_list: a.txt\n")
    with pytest.raises(ConfigError, match=f"^{path}: DATA.data_root data is not a folder"):
        check_files(load_config(path), "train")
    with pytest.raises(ConfigError, match="^command line: DATA.data_root absent is not a folder"):
        check_files(load_config(path, ["DATA.data_root", "absent"]), "train")
    Path("data").mkdir()
    with pytest.raises(ConfigError, match="^command line: DATA.train_list b.txt does not exist"):
        check_files(load_config(path, ["train_list", "b.txt", "evaluate", "False"]), "train")


def test_a_hint_repeats_the_command_line(write: Write) -> None:
    config = load_config(write(), ["DATA.data_root", "my data", "TRAIN.epochs", "3"])
    words = f"--config {config.source} DATA.data_root 'my data' TRAIN.epochs 3"
    assert config.command_arguments() == words


def test_stored_configs_of_earlier_versions_load(write: Write) -> None:
    content = load_config(write()).model_dump(mode="json")
    content["Distributed"] |= {"opt_level": "O0", "keep_batchnorm_fp32": None}
    content["TEST"] |= {"best_mIoU_model_path": None, "best_mIoU_save_folder": "x"}
    assert stored_config(content, "last.pth") == load_config(write())
    content["TRAIN"]["from_the_future"] = 1
    with pytest.raises(ConfigError, match="from_the_future"):
        stored_config(content, "last.pth")
    for damaged in ([content], {**content, "TRAIN": [1]}):
        with pytest.raises(ConfigError, match=r"last.pth: its config is not a mapping"):
            stored_config(damaged, "last.pth")


def test_every_network_option_is_compared_unless_it_says_otherwise() -> None:
    class Later(NetworkOptions):
        new_option: int = option(1, "what the next version adds", ge=0)

    known = {key for _, key in compared_options("spnet")}
    assert {"output_stride", "attention", "spm_blocks", "multi_grid"} <= known
    assert not known & {"psa_type", "ppm_bins", "dropout", "sync_bn", "layers"}
    assert "psa_type" in {key for _, key in compared_options("psa")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stripseg.config.compatibility.NetworkOptions", Later)
        assert "new_option" in {key for _, key in compared_options("fcn")}


@pytest.mark.parametrize(
    ("overrides", "differs"),
    [
        (["TRAIN.output_stride", "16"], True),
        (["TRAIN.norm", "group"], True),
        (["DATA.mean", "[1, 2, 3]"], True),
        (["TRAIN.dropout", "0.5"], False),
        (["TRAIN.sync_bn", "False"], False),
        (["TRAIN.psa_type", "1"], False),  # of another head
        (["TRAIN.epochs", "7"], False),
    ],
)
def test_a_checkpoints_network(write: Write, overrides: list[str], differs: bool) -> None:
    content = {"config": load_config(write()).model_dump(mode="json")}
    del content["config"]["TRAIN"]["attention"]  # of a version that did not have it
    config = load_config(write(), overrides)
    if differs:
        with pytest.raises(CheckpointError, match=overrides[0]):
            check_same_network(content, config, origin="last.pth")
    else:
        check_same_network(content, config, origin="last.pth")


def test_bounds_are_what_the_declaration_says() -> None:
    """Through pydantic alone, without the loader."""
    train = SECTIONS["TRAIN"]
    assert train(epochs="12", scale_min="1e-1", spm_on=1).scale_min == 0.1
    for wrong in ({"epochs": 0}, {"dropout": 1.5}, {"base_lr": 0}, {"spm_on": 2}, {"layers": 51}):
        with pytest.raises(ValidationError, match="must be"):
            train(**wrong)
