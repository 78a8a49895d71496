"""What a config holds, which of its sources wins, and what is shipped and documented."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from yamls import LEAST, PYCONV, ROOT, SEMSEG, SHIPPED, SPNET, Write, complaint

from stripseg.config.errors import ConfigError
from stripseg.config.load import load_config
from stripseg.config.schema import SECTIONS, reference
from stripseg.util.training.run_log import save_effective

# ---- what a config holds


def test_the_least_config_has_every_value_filled_in(write: Write) -> None:
    config = load_config(write())
    assert (config.DATA.dataset, config.experiment) == ("mine", "run")
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
        ("epochs=7 TEST.scales=[0.5,1] TRAIN.base_lr 1e-4", {"TRAIN.epochs": 7}),
        ("TRAIN.save_path=a=b", {"TRAIN.save_path": "a=b"}),
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


def test_a_process_needs_an_image(write: Write) -> None:
    """Processes are counted by semseg's keys, too: `train_gpu`, where several are wanted."""
    words = ["TRAIN.batch_size", "1", "TRAIN.train_gpu", "[0, 1]"]
    several = "Distributed.multiprocessing_distributed"
    assert load_config(write(), [*words, several, "False"]).TRAIN.batch_size == 1
    with pytest.raises(ConfigError, match="nothing for some of the 2 processes"):
        load_config(write(), [*words, several, "True"])


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
    assert (config.DATA.dataset, config.experiment) == (dataset, experiment)


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
    assert path.name == f"{config.DATA.dataset}_{config.experiment}.yaml"
    assert path.parent.name == config.DATA.dataset
    assert config.notices == []
    assert config.DATA.data_root == f"dataset/{config.DATA.dataset}/data"
    # the demo, which downloads nothing, and what classifies
    from_scratch = path.stem == "shapes_spnet18" or config.classifies
    pretrained = None if from_scratch else f"pretrained/{config.TRAIN.backbone}.pth"
    pretrained = "auto" if config.TRAIN.backbone.startswith("timm/") else pretrained
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
