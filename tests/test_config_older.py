"""YAML files of semseg, SPNet and PyConvSegNet load as they are."""

import pytest
from yamls import APEX_LINES, LEAST, PYCONV, SEMSEG, SPNET, Write, without

from stripseg.config.load import load_config


def test_semsegs_yaml_loads_unchanged(write: Write) -> None:
    config = load_config(write(SEMSEG, "config/ade20k/ade20k_psanet50.yaml"))
    assert (config.DATA.dataset, config.experiment) == ("ade20k", "psanet50")
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
    assert (config.TRAIN.output_stride, config.DATA.dataset) == (16, "voc2012")


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
