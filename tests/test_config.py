"""config: what YAML files and the command line may say, and what is said to those who err."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from stripseg.config.errors import ConfigError
from stripseg.config.load import (
    check_files,
    find_config,
    load_config,
    resolve_list,
    save_effective,
)
from stripseg.config.reference import reference
from stripseg.config.schema import SECTIONS

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = sorted(ROOT.glob("config/*/*.yaml"))
LEAST = "DATA:\n  data_root: data\n  classes: 3\n"
Write = Callable[..., Path]

# The keys of the older repositories' YAML files, with typical values; the mixture of True, 1 and
# empty values is theirs.
SEMSEG = """
DATA:
  data_root: /data/ade20k
  train_list: /data/ade20k/list/training.txt
  val_list: /data/ade20k/list/validation.txt
  classes: 150
TRAIN:
  arch: psa
  layers: 50
  sync_bn: True
  train_h: 465
  train_w: 465
  scale_min: 0.5
  scale_max: 2.0
  rotate_min: -10
  rotate_max: 10
  zoom_factor: 8
  ignore_label: 255
  aux_weight: 0.4
  psa_type: 2
  compact: 0
  shrink_factor: 2
  mask_h:
  mask_w:
  normalization_factor: 1.0
  psa_softmax: 1
  train_gpu: [0, 1, 2, 3, 4, 5, 6, 7]
  workers: 16
  batch_size: 16
  batch_size_val: 1
  base_lr: 0.01
  epochs: 100
  start_epoch: 0
  power: 0.9
  momentum: 0.9
  weight_decay: 0.0001
  manual_seed:
  print_freq: 10
  save_freq: 1
  save_path: exp/ade20k/psanet50/model
  weight:
  resume:
  evaluate: False
Distributed:
  dist_url: tcp://127.0.0.1:6789
  dist_backend: 'nccl'
  multiprocessing_distributed: True
  world_size: 1
  rank: 0
  use_apex: True
  opt_level: 'O0'
  keep_batchnorm_fp32:
  loss_scale:
TEST:
  test_list: /data/ade20k/list/validation.txt
  split: val
  base_size: 512
  test_h: 465
  test_w: 465
  scales: [1.0]
  has_prediction: False
  index_start: 0
  index_step: 0
  test_gpu: [0]
  model_path: exp/ade20k/psanet50/model/train_epoch_100.pth
  save_folder: exp/ade20k/psanet50/result/epoch_100/val/ss
  colors_path: dataset/nowhere/ade20k_colors.txt
  names_path: dataset/nowhere/ade20k_names.txt
"""
PSA_LINES = ("psa_type", "compact", "shrink_factor", "mask_", "normalization", "psa_softmax")
APEX_LINES = ("use_apex", "opt_level", "keep_batchnorm", "loss_scale")


def without(text: str, starts: tuple[str, ...]) -> str:
    return "\n".join(line for line in text.splitlines() if not line.strip().startswith(starts))


SPNET = without(SEMSEG, PSA_LINES).replace(
    "  arch: psa\n", "  arch: spnet\n  spm_on: True\n  backbone: resnet50\n  dataset: cityscapes\n"
)
SPNET = SPNET.replace("weight:\n", "weight: ./pretrained/resnet50-25c4b509.pth\n", 1)
PYCONV = without(SEMSEG, PSA_LINES).replace(
    "  arch: psa\n",
    "  arch: pyconvsegnet\n  backbone_net: pyconvresnet\n  pretrained: /w/pyconvresnet50.pth\n"
    "  use_ppm: False\n  backbone_output_stride: 8\n",
)
PYCONV += (
    "\n  best_mIoU_model_path: exp/model/best_mIoU.pth\n  best_mIoU_save_folder: exp/result/best\n"
)


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a file below the current folder, which is an empty one."""
    monkeypatch.chdir(tmp_path)

    def write(text: str = LEAST, name: str = "config/mine/mine_run.yaml") -> Path:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write


def complaint(path: Path | str, *overrides: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value)


# ---- what a config holds


def test_the_least_config_has_every_value_filled_in(write: Write) -> None:
    config = load_config(write())
    assert (config.dataset, config.experiment) == ("mine", "run")
    assert config.source == "config/mine/mine_run.yaml"
    assert config.notices == []
    assert (config.TRAIN.arch, config.TRAIN.layers, config.TRAIN.backbone) == (
        "spnet",
        50,
        "resnet50",
    )
    assert config.TRAIN.stem == "deep"
    assert config.TRAIN.save_path == "exp/mine/run/model"
    assert config.TEST.model_path == "exp/mine/run/model/last.pth"
    assert config.TEST.save_folder == "exp/mine/run/result/val/ss"
    assert (config.TEST.test_h, config.TEST.test_w) == (480, 480)
    assert config.TRAIN.resume == "auto"
    assert config.TRAIN.spm_blocks == ["last", "last", "last", "all"]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ("TRAIN.train_h 321", {"TEST.test_h": 321, "TEST.test_w": 480}),
        ("TRAIN.arch pspnet", {"TRAIN.arch": "psp", "TRAIN.stem": "deep"}),
        ("TRAIN.arch PSANet", {"TRAIN.arch": "psa"}),
        ("TRAIN.arch pyconvsegnet", {"TRAIN.stem": "classic"}),
        ("TRAIN.arch pyconvsegnet TRAIN.stem deep", {"TRAIN.stem": "deep"}),
        ("TRAIN.layers 101", {"TRAIN.backbone": "resnet101"}),
        ("TRAIN.backbone pyconvresnet152", {"TRAIN.layers": 152}),
        ("TRAIN.backbone convnext_tiny", {"TRAIN.backbone": "convnext_tiny"}),
        ("TRAIN.save_path out", {"TRAIN.save_path": "out", "TEST.model_path": "out/last.pth"}),
        ("TEST.scales [0.5,1]", {"TEST.save_folder": "exp/mine/run/result/val/ms"}),
        ("TEST.scales 0.5", {"TEST.scales": [0.5]}),
        ("TEST.split test", {"TEST.save_folder": "exp/mine/run/result/test/ss"}),
        ("TRAIN.train_gpu 2", {"TRAIN.train_gpu": [2]}),
        ("TRAIN.train_gpu []", {"TRAIN.train_gpu": []}),
        ("TEST.test_gpu [1,0]", {"TEST.test_gpu": [1, 0]}),
        ("TRAIN.base_lr 1e-4", {"TRAIN.base_lr": 1e-4}),  # YAML 1.1 takes it for text
        ("TRAIN.epochs 1e2", {"TRAIN.epochs": 100}),
        ("TRAIN.compact 1", {"TRAIN.compact": True}),
        ("TRAIN.resume none", {"TRAIN.resume": "none"}),
        ("TRAIN.resume a.pth", {"TRAIN.resume": "a.pth"}),
        ("TRAIN.resume null", {"TRAIN.resume": "auto"}),
        ("TRAIN.multi_grid [4,8,16]", {"TRAIN.multi_grid": [4, 8, 16]}),
        ("TRAIN.multi_grid false", {"TRAIN.multi_grid": False}),
        (
            "TRAIN.spm_blocks [none,[0,2],all,last]",
            {"TRAIN.spm_blocks": ["none", [0, 2], "all", "last"]},
        ),
        ("TRAIN.class_weights [1,2,0.5]", {"TRAIN.class_weights": [1.0, 2.0, 0.5]}),
        ("TRAIN.save_minutes null", {"TRAIN.save_minutes": None}),
        ("Distributed.loss_scale dynamic", {"Distributed.loss_scale": "dynamic"}),
        ("Distributed.loss_scale 128", {"Distributed.loss_scale": 128.0}),
        (
            "DATA.dataset ADE20K",
            {"DATA.dataset": "ade20k", "TRAIN.save_path": "exp/ade20k/run/model"},
        ),
        ("experiment second", {"TRAIN.save_path": "exp/mine/second/model"}),
        ("epochs 7 rank 0", {"TRAIN.epochs": 7}),  # no section needed where only one has the key
        ("DATA.classes 255", {"DATA.classes": 255}),
    ],
)
def test_a_value_and_what_follows_from_it(
    write: Write, overrides: str, expected: dict[str, Any]
) -> None:
    config = load_config(write(), overrides.split())
    for name, value in expected.items():
        section, key = name.split(".")
        assert getattr(getattr(config, section), key) == value


def test_overrides_may_be_plain_values(write: Write) -> None:
    assert load_config(write(), ["TEST.scales", [0.5, 1], "TRAIN.spm_on", False]).TEST.scales == [
        0.5,
        1.0,
    ]


def test_home_is_expanded(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert load_config(write(), ["DATA.data_root", "~/data"]).DATA.data_root == "/home/someone/data"


@pytest.mark.parametrize(
    ("name", "dataset", "experiment"),
    [
        ("config/ade20k/ade20k_spnet50.yaml", "ade20k", "spnet50"),
        ("config/my_data/my_data_first_try.yaml", "my_data", "first_try"),
        ("elsewhere/camvid_spnet18.yaml", "camvid", "spnet18"),
        ("Street/plain.yaml", "street", "plain"),
        ("a/odd name (1).yaml", "a", "odd-name-1-"),
    ],
)
def test_the_file_name_tells_dataset_and_experiment(
    write: Write, name: str, dataset: str, experiment: str
) -> None:
    config = load_config(write(name=name))
    assert (config.dataset, config.experiment) == (dataset, experiment)


def test_a_config_is_frozen_and_can_be_copied(write: Write) -> None:
    config = load_config(write())
    with pytest.raises(ValueError, match="frozen"):
        config.TRAIN.epochs = 3
    train = config.TRAIN.model_copy(update={"epochs": 3})
    assert config.model_copy(update={"TRAIN": train}).TRAIN.epochs == 3
    assert config.TRAIN.epochs == 100


# ---- precedence and base


def test_defaults_base_yaml_and_command_line_win_in_this_order(write: Write) -> None:
    write("base: low.yaml\nTRAIN: {epochs: 3, power: 0.3, momentum: 0.3}\n", "c/middle.yaml")
    write(
        LEAST + "TRAIN: {epochs: 2, power: 0.2, momentum: 0.2, scale_max: 1.2}\n"
        "TEST: {scales: [0.5, 1, 2]}\n",
        "c/low.yaml",
    )
    path = write("base: ../../c/middle.yaml\nTRAIN: {epochs: 4, power: 0.4}\nTEST: {scales: [1]}\n")
    train = load_config(path, ["TRAIN.epochs", "5"]).TRAIN
    assert (train.epochs, train.power, train.momentum, train.scale_max, train.scale_min) == (
        5,
        0.4,
        0.3,
        1.2,
        0.5,
    )
    assert load_config(path).TEST.scales == [1.0]  # lists are replaced, not joined


@pytest.mark.parametrize(
    ("low", "high", "backbone"),
    [
        ("{layers: 50, backbone: resnet50}", "{layers: 101}", "resnet101"),
        ("{layers: 50}", "{backbone: pyconvresnet101}", "pyconvresnet101"),
        ("{backbone: pyconvresnet50}", "{layers: 152}", "pyconvresnet152"),
        ("{backbone_net: pyconvresnet, layers: 50}", "{layers: 101}", "pyconvresnet101"),
        ("{layers: 101}", "{backbone_net: pyconvresnet}", "pyconvresnet101"),
        ("{backbone: resnet34}", "{layers: }", "resnet34"),
    ],
)
def test_the_later_word_on_the_backbone_counts(
    write: Write, low: str, high: str, backbone: str
) -> None:
    write(f"{LEAST}TRAIN: {low}\n", "config/mine/low.yaml")
    train = load_config(write(f"base: low.yaml\nTRAIN: {high}\n")).TRAIN
    assert (train.backbone, train.layers) == (backbone, int(backbone.split("net")[1]))


def test_base_cycle(write: Write) -> None:
    write("base: b.yaml\n", "a.yaml")
    write("base: c.yaml\n", "b.yaml")
    write("base: ./a.yaml\n", "c.yaml")
    assert "base leads back to a.yaml" in complaint("a.yaml")
    write("base: d.yaml\n", "d.yaml")
    assert "base leads back to d.yaml" in complaint("d.yaml")


@pytest.mark.parametrize(
    ("base", "words"),
    [
        ("other.yaml", "base other.yaml does not exist (looked for config/mine/other.yaml)"),
        ("[a.yaml, b.yaml]", "base must be the path of a YAML file, not ['a.yaml', 'b.yaml']"),
        ('"\\0"', "does not exist"),
    ],
)
def test_base_that_is_no_file(write: Write, base: str, words: str) -> None:
    assert words in complaint(write(f"base: {base}\n{LEAST}"))


def test_a_mistake_in_the_base_names_the_base(write: Write) -> None:
    write(LEAST + "TRAIN: {epochs: many}\n", "config/mine/low.yaml")
    path = write("base: low.yaml\n")
    assert complaint(path).startswith("config/mine/low.yaml: TRAIN.epochs must be a whole number")
    assert load_config(path, ["TRAIN.epochs", "3"]).TRAIN.epochs == 3  # replaced, so never read


# ---- mistakes in options


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("TRAIN: {base_lrr: 1}", "TRAIN.base_lrr is not an option; did you mean TRAIN.base_lr?"),
        (
            "TRAIN: {scales: [1]}",
            "TRAIN.scales is not an option of TRAIN; it belongs to TEST.scales",
        ),
        (
            "TRAIN: {index_stp: 1}",
            "TRAIN.index_stp is not an option; did you mean TEST.index_step?",
        ),
        ("TRAIN: {qqqqqq: 1}", "TRAIN.qqqqqq is not an option"),
        ("TRAIN: {1: 1}", "TRAIN.1 is not an option"),
        ("TRAINING: {}", "TRAINING is not a section; did you mean TRAIN?"),
        ("train: {}", "train is not a section; did you mean TRAIN?"),
        ("epochs: 3", "epochs is not a section; it is an option, TRAIN.epochs"),
        ("TRAIN: 3", "TRAIN must be a section of options, not 3"),
        ("experiment: a/b", "experiment must be a name made of letters"),
    ],
)
def test_an_unknown_name_gets_the_nearest_one(write: Write, text: str, words: str) -> None:
    message = complaint(write(LEAST + text))
    assert message.startswith(f"config/mine/mine_run.yaml: {words}")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("DATA.data_root", "", "must be a path, not empty"),
        ("DATA.data_root", "3", "must be a path, not 3"),
        ("DATA.classes", "0", "must be a whole number from 1 to 255, not 0"),
        ("DATA.classes", "256", "must be a whole number from 1 to 255, not 256"),
        ("DATA.dataset", "../up", "must be a name"),
        ("DATA.mean", "[1, 2, 256]", "must be a list, each a number from 0 to 255"),
        ("DATA.std", "[1, 0, 2]", "must be a list, each a number above 0, up to 255"),
        ("DATA.labels", "rwa", "must be one of auto, raw, train_id, not 'rwa'; did you mean raw?"),
        ("TRAIN.batch_size", "abc", "must be a whole number, 1 or more, not 'abc'"),
        ("TRAIN.batch_size", "16.5", "must be a whole number, 1 or more, not 16.5"),
        ("TRAIN.batch_size", "true", "must be a whole number, 1 or more, not True"),
        ("TRAIN.batch_size", "0", "must be a whole number, 1 or more, not 0"),
        ("TRAIN.batch_size", "", "must be a whole number, 1 or more, not empty"),
        ("TRAIN.base_lr", "0", "must be a number above 0, not 0"),
        ("TRAIN.base_lr", ".inf", "must be a number above 0, not inf"),
        ("TRAIN.base_lr", ".nan", "must be a number above 0, not nan"),
        ("TRAIN.base_lr", "1e999", "must be a number above 0, not '1e999'"),
        ("TRAIN.base_lr", "[0.1]", "must be a number above 0, not [0.1]"),
        ("TRAIN.base_lr", "2020-01-01", "must be a number above 0"),
        ("TRAIN.manual_seed", "0x" + "f" * 5000, "not a number of thousands of digits"),
        ("TRAIN.spm_on", "maybe", "must be True or False, not 'maybe'"),
        ("TRAIN.spm_on", "2", "must be True or False, not 2"),
        ("TRAIN.layers", "51", "must be one of 18, 34, 50, 101, 152, or empty, not 51"),
        ("TRAIN.output_stride", "4", "must be one of 8, 16, 32, not 4"),
        ("TRAIN.zoom_factor", "3", "must be one of 1, 2, 4, 8, not 3"),
        ("TRAIN.psa_type", "true", "must be one of 0, 1, 2, not True"),
        ("TRAIN.multi_grid", "[0, 1, 2]", "must be True or False, or a list"),
        ("TRAIN.spm_blocks", "[last]", "must be a list of 4"),
        ("TRAIN.spm_blocks", "[last, last, last, some]", "must be a list of 4"),
        ("TRAIN.mixed_pooling_sizes", "[12, 20]", "the larger one first"),
        ("TRAIN.mixed_pooling_sizes", "[20, 12, 6]", "two whole numbers"),
        ("TRAIN.dropout", "1.5", "must be a number from 0 to 1, not 1.5"),
        ("TRAIN.ignore_label", "256", "must be a whole number from 0 to 255"),
        ("TRAIN.class_weights", "[1, -1, 1]", "must be one of none, auto, or a list"),
        ("TRAIN.train_gpu", "[0, 0]", "must be a list of different GPU numbers"),
        ("TRAIN.train_gpu", "[-1]", "must be a list of different GPU numbers"),
        ("TEST.test_gpu", "'0,1'", "must be a list of different GPU numbers"),
        ("Distributed.dist_backend", "mpi", "must be one of nccl, gloo, auto, not 'mpi'"),
        ("Distributed.dist_url", "localhost", "must be a URL such as tcp://127.0.0.1:6789"),
        ("Distributed.opt_level", "O4", "must be one of O0, O1, O2, O3"),
        ("TEST.scales", "[]", "must be a number above 0, or a list"),
        ("TEST.scales", "[1, 0]", "must be a number above 0, or a list"),
        ("TEST.split", "valid", "must be one of train, val, test, not 'valid'; did you mean val?"),
        ("TEST.save_folder", '"a\\nb"', "must be a path"),
    ],
)
def test_a_wrong_value_gets_one_line(write: Write, key: str, value: str, words: str) -> None:
    message = complaint(write(), key, value)
    assert message.startswith(f"command line: {key} ")
    assert words in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ("TRAIN.scale_min 3", "TRAIN.scale_min 3 must not be above TRAIN.scale_max 2"),
        ("TRAIN.rotate_max -20", "TRAIN.rotate_min -10 must not be above TRAIN.rotate_max -20"),
        ("TRAIN.train_h 7", "TRAIN.train_h 7 must not be smaller than TRAIN.output_stride 8"),
        ("TRAIN.output_stride 32 TEST.test_w 31", "TEST.test_w 31 must not be smaller than"),
        ("DATA.mean [1,2]", "DATA.mean must have one number for each of the 3 DATA.in_channels"),
        ("DATA.in_channels 1 DATA.std [1,2,3]", "for each of the 1 DATA.in_channels, not 3"),
        ("TRAIN.ignore_label 2", "TRAIN.ignore_label 2 is the id of a class; with DATA.classes 3"),
        ("TRAIN.class_weights [1,1]", "TRAIN.class_weights must have one entry for each of the 3"),
        ("TRAIN.start_epoch 100", "TRAIN.start_epoch 100 leaves nothing of TRAIN.epochs 100"),
        ("Distributed.rank 1", "Distributed.rank 1 must be below Distributed.world_size 1"),
        ("TRAIN.layers 50 TRAIN.backbone resnet101", "contradicts TRAIN.layers 50"),
        ("TRAIN.backbone resnet51", "TRAIN.backbone resnet51 does not exist"),
        ("TRAIN.multi_grid [4,8]", "TRAIN.multi_grid must have 3 dilations"),
        ("TRAIN.mask_h 59", "TRAIN.mask_h and TRAIN.mask_w must be given together"),
        ("TRAIN.mask_h 58 TRAIN.mask_w 59", "TRAIN.mask_h must be odd, not 58"),
        ("TRAIN.batch_size 2 TRAIN.train_gpu [0,1,2]", "TRAIN.batch_size 2 leaves nothing"),
        ("TRAIN.batch_size 3 Distributed.processes 4", "some of the 4 processes"),
    ],
)
def test_options_that_cannot_work_together(write: Write, overrides: str, words: str) -> None:
    message = complaint(write(), *overrides.split())
    assert message.startswith("command line: ")
    assert words in message
    assert "\n" not in message


def test_all_mistakes_are_told_at_once(write: Write) -> None:
    path = write("DATA: {data_root: data}\nTRAIN: {epochs: x, lyers: 50}\n")
    assert complaint(path, "TEST.flip", "7").splitlines() == [
        f"{path}: DATA.classes is missing: the number of classes, ids from 0",
        f"{path}: TRAIN.epochs must be a whole number, 1 or more, not 'x'",
        f"{path}: TRAIN.lyers is not an option; did you mean TRAIN.layers?",
        "command line: TEST.flip must be True or False, not 7",
    ]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["TRAIN.epochs"], "TRAIN.epochs has no value; give options in pairs"),
        (["TRAIN.epoch", "3"], "TRAIN.epoch is not an option; did you mean TRAIN.epochs?"),
        (["epoch", "3"], "epoch is not an option; did you mean TRAIN.epochs?"),
        (["train.epochs", "3"], "train is not a section; did you mean TRAIN?"),
        (["TRAIN", "{epochs: 3}"], "TRAIN is not an option"),
        (["base", "x.yaml"], "base is not an option"),
        (["TEST.scales", "[1"], "TEST.scales '[1': "),
        (["experiment", "a/b"], "experiment must be a name"),
    ],
)
def test_mistakes_on_the_command_line(write: Write, overrides: list[str], words: str) -> None:
    message = complaint(write(), *overrides)
    assert message.startswith("command line: ")
    assert words in message
    assert "\n" not in message


# ---- mistakes in files


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (LEAST + "TRAIN: [\n", ":5: "),
        ("DATA:\n  data_root: a\n classes: 3\n", ":3: "),
        ("DATA: {classes: 3}\nTRAIN: {}\nDATA: {classes: 4}\n", ":3: DATA is given twice"),
        (LEAST + "TRAIN:\n  epochs: 3\n  epochs: 4\n", ":6: epochs is given twice"),
        (LEAST + "TRAIN: &a {}\nTEST: *a\n", ":5: aliases (*name) are not allowed"),
        ("DATA: !!python/object/apply:os.getcwd []\n", ":1: could not determine a constructor"),
        ("? [a, b]\n: 3\n", ":1: found unhashable key"),
        ("- DATA\n", ": must hold sections such as TRAIN:, not list"),
        ("DATA\n", ": must hold sections such as TRAIN:, not str"),
        ("a: 2020-13-45\n", ": not valid YAML: month must be in 1..12"),
        ("a: " + "1" * 5000, ": not valid YAML: "),
        ("a: " + "[" * 5000, ": too many brackets inside each other"),
        ("a: \x00\n", ": not valid YAML: unacceptable character"),
        ("", ": DATA.data_root is missing"),
        ("DATA:\nTRAIN:\n", ": DATA.data_root is missing"),
    ],
)
def test_a_malformed_file_is_named_with_its_line(write: Write, text: str, words: str) -> None:
    assert complaint(write(text)).startswith(f"config/mine/mine_run.yaml{words}")


def test_files_that_cannot_be_read(write: Write) -> None:
    path = write()
    assert complaint("config/none.yaml") == "config/none.yaml: no such file"
    assert "cannot be read" in complaint("config/mine")
    assert "cannot be read" in complaint("a\0b.yaml")
    path.write_bytes(b"DATA: \xff\xfe")
    assert "not a text file in UTF-8" in complaint(path)
    path.write_text("# " + "x" * 1_000_000)
    assert "larger than 1 MB" in complaint(path)


# ---- older YAML files


def test_semsegs_yaml_loads_unchanged(write: Write) -> None:
    config = load_config(write(SEMSEG, "config/ade20k/ade20k_psanet50.yaml"))
    assert (config.dataset, config.experiment) == ("ade20k", "psanet50")
    assert (config.TRAIN.arch, config.TRAIN.backbone, config.TRAIN.stem) == (
        "psa",
        "resnet50",
        "deep",
    )
    assert config.TRAIN.compact is False
    assert config.TRAIN.psa_softmax is True
    assert config.TRAIN.resume == "auto"
    assert config.TRAIN.precision == "fp32"
    assert config.TEST.names_path is None
    assert config.notices == [
        "TEST.colors_path dataset/nowhere/ade20k_colors.txt does not exist; "
        "the catalog's colours are used",
        "TEST.names_path dataset/nowhere/ade20k_names.txt does not exist; "
        "the catalog's names are used",
    ]


def test_the_first_semseg_yaml_without_apex_loads(write: Write) -> None:
    text = without(SEMSEG, (*APEX_LINES, "colors_path", "names_path")).replace("psa", "psp")
    config = load_config(write(without(text, ("psp_",))))
    assert config.TRAIN.arch == "psp"
    assert config.notices == []


def test_spnets_yaml_loads_unchanged(write: Write) -> None:
    path = write(SPNET, "config/cityscapes/cityscapes_spnet50.yaml")
    config = load_config(path)
    assert config.DATA.dataset == "cityscapes"
    assert (config.TRAIN.backbone, config.TRAIN.spm_on) == ("resnet50", True)
    assert config.TRAIN.weight == "./pretrained/resnet50-25c4b509.pth"
    assert f"{path}: TRAIN.dataset is now DATA.dataset" in config.notices
    assert load_config(path, ["TRAIN.layers", "101"]).TRAIN.backbone == "resnet101"


def test_pyconvsegnets_yaml_loads_unchanged(write: Write) -> None:
    path = write(PYCONV, "config/ade20k/ade20k_pyconvresnet50_pyconvsegnet.yaml")
    config = load_config(path)
    assert config.experiment == "pyconvresnet50_pyconvsegnet"
    assert (config.TRAIN.backbone, config.TRAIN.layers) == ("pyconvresnet50", 50)
    assert (config.TRAIN.stem, config.TRAIN.output_stride) == ("classic", 8)
    assert config.TRAIN.use_ppm is False
    for words in (
        "TRAIN.backbone_output_stride is now TRAIN.output_stride",
        "TRAIN.backbone_net is now TRAIN.backbone pyconvresnet50",
        "TEST.best_mIoU_model_path has no effect: TEST.model_path is what counts",
        "TEST.best_mIoU_save_folder has no effect: TEST.save_folder is what counts",
    ):
        assert any(notice.endswith(words) for notice in config.notices)


@pytest.mark.parametrize("text", [SEMSEG, SPNET, PYCONV], ids=["semseg", "spnet", "pyconv"])
def test_older_keys_work_on_the_command_line_as_well(write: Write, text: str) -> None:
    overrides = ["backbone_output_stride", "16", "TRAIN.dataset", "voc2012"]
    config = load_config(write(text), overrides)
    assert (config.TRAIN.output_stride, config.dataset) == (16, "voc2012")


@pytest.mark.parametrize(
    ("options", "precision", "told"),
    [
        ("{use_apex: True, opt_level: O0}", "fp32", False),
        ("{use_apex: True, opt_level: O1}", "fp16", True),
        ("{use_apex: 1, opt_level: o2}", "fp16", True),
        ("{use_apex: False, opt_level: O2}", "fp32", False),
        ("{opt_level: O2}", "fp32", False),
        ("{use_apex: True}", "fp32", False),
    ],
)
def test_apex_levels_become_a_precision(
    write: Write, options: str, precision: str, told: bool
) -> None:
    path = write(f"{LEAST}Distributed: {options}\n")
    config = load_config(path)
    assert config.TRAIN.precision == precision
    assert any("opt_level" in notice for notice in config.notices) == told
    given = load_config(path, ["TRAIN.precision", "bf16"])
    assert (given.TRAIN.precision, given.notices) == ("bf16", [])


def test_keep_batchnorm_fp32_is_explained_only_when_set(write: Write) -> None:
    notices = load_config(write(), ["keep_batchnorm_fp32", "True"]).notices
    assert [notice.split()[0] for notice in notices] == ["Distributed.keep_batchnorm_fp32"]
    assert load_config(write(), ["keep_batchnorm_fp32", "null"]).notices == []


# ---- finding and checking files


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
        "set DATA.data_root or link dataset/mine/data"
    )
    write("", "data/t.txt")
    with pytest.raises(ConfigError) as caught:
        check_files(config, "train")
    assert str(caught.value) == (
        f"{path}: DATA.val_list v.txt does not exist (looked for {Path('data/v.txt').absolute()}); "
        "set DATA.val_list, or set DATA.data_root or link dataset/mine/data"
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


# ---- the effective config


@pytest.mark.parametrize("text", [LEAST, SEMSEG, SPNET, PYCONV])
def test_the_effective_config_loads_again_as_an_equal_one(write: Write, text: str) -> None:
    overrides = ["TRAIN.weight_decay", "1e-7", "TRAIN.resume", "none", "experiment", "7"]
    config = load_config(write(text, "config/ade20k/ade20k_x.yaml"), overrides)
    target = Path("exp/new/folder/effective.yaml")
    save_effective(config, target)
    assert load_config(target) == config
    assert [path.name for path in target.parent.iterdir()] == ["effective.yaml"]
    content = yaml.safe_load(target.read_text())
    assert content["experiment"] == "7"
    assert list(content["TRAIN"]) == list(SECTIONS["TRAIN"].model_fields)
    assert "source" not in content


def test_configs_with_different_options_differ(write: Write) -> None:
    assert load_config(write()) != load_config(write(), ["TRAIN.epochs", "3"])
    assert load_config(write()) != "config"


def test_an_interrupted_write_leaves_the_old_file(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = write("old", "run/effective.yaml")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(ConfigError, match=r"effective\.yaml: cannot be written: No space left"):
        save_effective(load_config(write()), target)
    assert target.read_text() == "old"
    assert [path.name for path in target.parent.iterdir()] == ["effective.yaml"]


# ---- what is shipped, and its documentation


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_yaml_loads(path: Path) -> None:
    config = load_config(path)
    assert path.name == f"{config.dataset}_{config.experiment}.yaml"
    assert path.parent.name == config.dataset
    assert config.notices == []
    assert config.DATA.data_root == f"dataset/{config.dataset}/data"
    from_scratch = path.stem == "shapes_spnet18"  # the demo, which downloads nothing
    pretrained = None if from_scratch else f"pretrained/{config.TRAIN.backbone}.pth"
    assert config.TRAIN.pretrained == pretrained
    assert config.TRAIN.train_gpu is None


def test_there_are_shipped_yamls() -> None:
    names = {path.stem for path in SHIPPED}
    assert {"ade20k_spnet50", "cityscapes_spnet101", "camvid_spnet18", "shapes_spnet18"} <= names


def test_the_documentation_has_the_current_options() -> None:
    page = (ROOT / "docs/config.md").read_text(encoding="utf-8")
    assert reference() in page, "docs/config.md: paste what python -m stripseg.config.schema prints"


def test_every_option_says_what_it_means() -> None:
    for section in SECTIONS.values():
        assert section.__doc__
        assert all(field.description for field in section.model_fields.values())


def test_the_reference_prints_and_config_does_not_need_torch() -> None:
    code = "import sys, stripseg.config.load; assert 'torch' not in sys.modules"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    command = [sys.executable, "-m", "stripseg.config.schema"]
    printed = subprocess.run(command, check=True, env=environment, capture_output=True, text=True)
    assert printed.stdout == reference()


# ---- no input whatsoever brings anything but a config or a ConfigError

FUZZ = settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates()
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=2)
    ),
    max_leaves=6,
)
KEYS = st.sampled_from(
    [(name, key) for name, section in SECTIONS.items() for key in section.model_fields]
    + [("TRAIN", "backbone_net"), ("TRAIN", "dataset"), ("TRAIN", "nonsense"), ("BAD", "key")]
)


def loads_or_complains(path: Path, overrides: list[Any]) -> None:
    try:
        config = load_config(path, overrides)
    except ConfigError:
        return
    save_effective(config, "effective.yaml")
    assert load_config("effective.yaml") == config


@FUZZ
@given(text=st.text(max_size=200))
@example(text="<<: {DATA: 3}")
@example(text="=: 3")
@example(text="DATA: {? {a: b} : c}")
@example(text="TRAIN: {<<: [1]}")
def test_any_text_as_a_file(write: Write, text: str) -> None:
    path = write()
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    loads_or_complains(path, [])


@FUZZ
@given(start=st.integers(0, len(SPNET)), length=st.integers(0, 40), text=st.text(max_size=20))
def test_any_damage_to_a_good_file(write: Write, start: int, length: int, text: str) -> None:
    path = write()
    path.write_bytes((SPNET[:start] + text + SPNET[start + length :]).encode("utf-8", "replace"))
    loads_or_complains(path, [])


@FUZZ
@given(changes=st.lists(st.tuples(KEYS, VALUES), max_size=4))
def test_any_values_in_a_good_file(write: Write, changes: list[tuple[Any, Any]]) -> None:
    tree = yaml.safe_load(PYCONV)
    for (section, key), value in changes:
        tree.setdefault(section, {})[key] = value
    loads_or_complains(write(yaml.safe_dump(tree)), [])


@FUZZ
@given(overrides=st.lists(st.text(max_size=12) | KEYS.map(".".join) | VALUES, max_size=4))
def test_any_overrides(write: Write, overrides: list[Any]) -> None:
    loads_or_complains(write(), overrides)
