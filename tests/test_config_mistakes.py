"""Mistakes in options and files: one line each, with the name and the cure."""

import pytest
from yamls import LEAST, Write, complaint

from stripseg.config.yaml_file import read_yaml

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
        ("DATA.classes", "0", "must be a whole number from 1 to 65535, not 0"),
        ("DATA.classes", "256", "must be a whole number from 1 to 255, not 256"),
        ("DATA.dataset", "../up", "must be a name"),
        ("DATA.mean", "[1, 2, 256]", "must be a list, each a number from 0 to 255"),
        ("DATA.std", "[1, 0, 2]", "must be a list, each a number above 0, up to 255"),
        ("DATA.labels", "rwa", "must be one of auto, raw, train_id, not 'rwa'; did you mean raw?"),
        ("TRAIN.batch_size", "abc", "must be a whole number, 1 or more, or auto, not 'abc'"),
        ("TRAIN.batch_size", "16.5", "must be a whole number, 1 or more, or auto, not 16.5"),
        ("TRAIN.batch_size", "true", "must be a whole number, 1 or more, or auto, not True"),
        ("TRAIN.batch_size", "0", "must be a whole number, 1 or more, or auto, not 0"),
        ("TRAIN.batch_size", "", "must be a whole number, 1 or more, or auto, not empty"),
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
        ("TRAIN.loss", "dise", "must be one of cross_entropy, dice, lovasz, focal, boundary, ohem"),
        ("TRAIN.loss", "dise", "did you mean dice?"),
        ("TRAIN.loss", "{lovas: 1}", "did you mean lovasz?"),
        ("TRAIN.loss", "{dice: 0}", "to weights above 0 such as {cross_entropy: 1, dice: 0.5}"),
        ("TRAIN.loss", "{dice: 1, Dice: 2}", "or a mapping of some of these to weights"),
        ("TRAIN.loss", "{}", "or a mapping of some of these to weights above 0"),
        ("TRAIN.color_jitter", "0.4", "must be a list of 3, each a number from 0 to 1"),
        ("TRAIN.ignore_label", "256", "must be a whole number from 0 to 255"),
        ("TRAIN.class_weights", "[1, -1, 1]", "must be one of none, auto, or a list"),
        ("TRAIN.train_gpu", "[0, 0]", "must be a list of different GPU numbers"),
        ("TRAIN.train_gpu", "[-1]", "must be a list of different GPU numbers"),
        ("TEST.test_gpu", "'0,1'", "must be a list of different GPU numbers"),
        ("Distributed.dist_backend", "mpi", "must be one of nccl, gloo, auto, not 'mpi'"),
        ("Distributed.dist_url", "localhost", "must be a URL such as tcp://127.0.0.1:6789"),
        ("Distributed.opt_level", "O4", "must be one of O0, O1, O2, O3"),
        ("TEST.scales", "[]", "must be a number above 0, up to 16, or a list"),
        ("TEST.scales", "[1, 0]", "must be a number above 0, up to 16, or a list"),
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
        (
            "TRAIN.loss lovasz TRAIN.label_smoothing 0.1",
            "TRAIN.label_smoothing 0.1 has no effect with TRAIN.loss lovasz: it is for cross_entr",
        ),
        (
            "TRAIN.loss dice TRAIN.class_weights auto",
            "TRAIN.class_weights auto has no effect with TRAIN.loss dice",
        ),
        (
            "DATA.in_channels 1 TRAIN.color_jitter [0.1,0,0]",
            "is for RGB images, and DATA.in_channels is 1",
        ),
        ("TRAIN.start_epoch 100", "TRAIN.start_epoch 100 leaves nothing of TRAIN.epochs 100"),
        ("Distributed.rank 1", "Distributed.rank 1 must be below Distributed.world_size 1"),
        ("TRAIN.layers 50 TRAIN.backbone resnet101", "contradicts TRAIN.layers 50"),
        ("TRAIN.backbone resnet51", "TRAIN.backbone resnet51 does not exist"),
        (
            "TRAIN.attention strip_pool TRAIN.strip_pooling max",
            "TRAIN.attention strip_pool averages, so leave one of them out",
        ),
        ("TRAIN.multi_grid [4,8]", "TRAIN.multi_grid must have 3 dilations"),
        ("TRAIN.mask_h 59", "TRAIN.mask_h and TRAIN.mask_w must be given together"),
        ("TRAIN.mask_h 58 TRAIN.mask_w 59", "TRAIN.mask_h must be odd, not 58"),
        ("TRAIN.batch_size 2 TRAIN.train_gpu [0,1,2]", "TRAIN.batch_size 2 leaves nothing"),
        ("TRAIN.batch_size 3 Distributed.processes 4", "some of the 4 processes"),
        (
            "TRAIN.batch_size auto TRAIN.accumulation_steps 2",
            "TRAIN.accumulation_steps 2 divides a batch that is too large for the memory",
        ),
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
        (["TRAIN.lr=3"], "TRAIN.lr is not an option"),
        (["epochs=3", "classes"], "classes has no value; give options in pairs, such as: epochs"),
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
        ("a: 2020-13-45\n", ":1: not valid YAML: month must be in 1..12"),
        ("a: " + "1" * 5000, ":1: not valid YAML: "),
        ('a: 1\nb: !!int ""\n', ":2: not valid YAML: a value that its type does not have"),
        ("a: !!bool x\n", ":1: not valid YAML: a value that its type does not have"),
        ("a: !!set [1]\n", ":1: expected a mapping node, but found sequence"),
        ('a: 1\nb: "\\UFFFFFFFF"\n', ":2: not valid YAML: a value that its type does not have"),
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
    path.write_text("DATA: {}\n#".ljust(1_000_001, "x"))
    assert "larger than 1 MB" in complaint(path)
    path.write_text("DATA: {}\n#".ljust(1_000_000, "x"))
    assert read_yaml(path) == {"DATA": {}}
    path.write_text("- DATA\n")
    assert "must hold sections such as TRAIN:, not list" in complaint(path)
