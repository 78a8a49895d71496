"""A few bytes do not take gigabytes, nor for ever; a limit is a message that names it."""

import pickle
import struct
import zipfile
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import tifffile
import torch
from onnx import TensorProto, helper, numpy_helper
from scipy.io import savemat

from stripseg import command_line
from stripseg.config import limits
from stripseg.config.errors import CheckpointError, ConfigError, DataError, DeviceError
from stripseg.config.load import load_config
from stripseg.config.yaml_file import parse_yaml
from stripseg.dataset.classification.cifar import read_archive
from stripseg.dataset.labels import read_matlab_label
from stripseg.dataset.lists import locate, read_list
from stripseg.dataset.preparation.match import PIECE, moments
from stripseg.onnx_network import OnnxNetwork
from stripseg.util import images
from stripseg.util.checkpoint import read_checkpoint
from stripseg.util.experiments.study import read_study
from stripseg.util.experiments.sweep_file import Parameter
from stripseg.util.images import read_image, read_label


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("DATA.in_channels", "2147483647", "from 1 to 1024"),
        ("TRAIN.train_h", "2147483647", "from 1 to 32768"),
        ("TEST.test_w", "2147483647", "from 1 to 32768"),
        ("TEST.base_size", "2147483647", "from 0 to 32768"),
        ("TEST.scales", "[1000000.0]", "up to 16"),
        ("TRAIN.mixed_pooling_modules", "2147483647", "from 0 to 64"),
        ("TRAIN.ppm_bins", "[2147483647]", "from 1 to 1024"),
        ("TRAIN.mixed_pooling_sizes", "[2147483647, 3]", "up to 1024"),
        ("TRAIN.mask_h", "2147483647", "from 1 to 1024"),
        ("TRAIN.crop_padding", "2147483647", "from 0 to 1024"),
        ("TRAIN.workers", "100000", "from 0 to 1024"),
        ("TEST.workers", "100000", "from 0 to 1024"),
    ],
)
def test_an_option_that_takes_all_memory_is_refused(
    small_config: Path, option: str, value: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=rf"{option} .*{message}"):
        load_config(small_config, [option, value])


def test_a_scaled_image_has_a_largest_side(small_config: Path) -> None:
    with pytest.raises(ConfigError, match="TEST.base_size 30000 times 2, .* above 32768"):
        load_config(small_config, ["TEST.base_size", "30000", "TEST.scales", "[0.5, 2.0]"])


def test_no_hundred_thousand_processes(small_config: Path) -> None:
    words = ["Distributed.processes", "100000", "TRAIN.batch_size", "100000"]
    with pytest.raises(DeviceError, match="Distributed.processes is 100000, and .* are the most"):
        command_line.process_count(load_config(small_config, words), [torch.device("cpu")])


def test_numbers_to_base_sixty_are_text() -> None:
    text = "1" + ":1" * 400_000
    assert parse_yaml(f"a: {text}\nb: {text}.0\nc: 12\nd: 1.5", "x") == {
        "a": text,
        "b": f"{text}.0",
        "c": 12,
        "d": 1.5,
    }


def test_a_base_sixty_learning_rate_is_refused(small_config: Path) -> None:
    with pytest.raises(ConfigError, match=r"TRAIN.base_lr must be a number above 0, not '1:1"):
        load_config(small_config, ["TRAIN.base_lr", "1" + ":1" * 400 + ".0"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"min": -1e308, "max": 1e308}, "must be a number from"),
        ({"min": 0, "max": 10**400}, "must be a number from"),
        ({"values": list(range(limits.SWEEP_VALUES + 1))}, "at most 1000"),
    ],
)
def test_ranges_of_a_sweep_have_an_end(given: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Parameter(**given)


def test_a_study_is_counted_before_it_is_made(tmp_path: Path) -> None:
    names = ("base_lr", "momentum", "power", "weight_decay", "dropout", "aux_weight", "mixup")
    vary = "".join(f"  TRAIN.{name}: [{', '.join(f'0.{i}' for i in range(9))}]\n" for name in names)
    path = tmp_path / "large.yaml"
    path.write_text(f"name: large\nconfigs: [shapes10 resnet18]\nvary:\n{vary}")
    with pytest.raises(ConfigError, match=f"make {9**7} runs; at most 10000 are possible"):
        read_study(path)


def test_a_line_of_a_list_has_a_longest(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a " * 100_000)
    with pytest.raises(DataError, match="list.txt, line 1: has 200000 characters"):
        read_list(tmp_path / "list.txt", tmp_path, split="train")


def test_an_onnx_file_is_known_before_it_computes(tmp_path: Path, monkeypatch) -> None:
    """The sum of ones, of which a few bytes may say how many, is left for `forward`."""
    graph = helper.make_graph(
        [
            helper.make_node("ConstantOfShape", ["size"], ["constant"]),
            helper.make_node("ReduceSum", ["constant"], ["sum"]),
            helper.make_node("Add", ["x", "sum"], ["logits"]),
        ],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1])],
        [numpy_helper.from_array(np.array([8]), "size")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (tmp_path / "x.onnx").write_bytes(model.SerializeToString())
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    monkeypatch.setattr("onnxruntime.SessionOptions", lambda: options)
    with pytest.raises(CheckpointError, match="x.onnx: has no metadata of stripseg"):
        OnnxNetwork(tmp_path / "x.onnx", torch.device("cpu"))
    nodes = onnx.load(tmp_path / "optimised.onnx").graph.node
    assert "ConstantOfShape" in [node.op_type for node in nodes]


def test_a_path_of_a_list_is_looked_for_in_few_places(tmp_path: Path, monkeypatch) -> None:
    looked = []
    monkeypatch.setattr("os.path.isfile", lambda path: looked.append(path))
    assert locate(tmp_path, "/a" * 2400) == tmp_path / ("/a" * 2400)
    assert len(looked) == 1 + limits.PATH_PARTS


def test_a_checkpoint_takes_no_more_memory_than_bytes(tmp_path: Path) -> None:
    plain, packed = tmp_path / "plain.pth", tmp_path / "packed.pth"
    torch.save({"w": torch.zeros(10**6)}, plain)
    assert len(read_checkpoint(plain)["w"]) == 10**6
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(packed, "w", 8) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    assert packed.stat().st_size < 10_000
    with pytest.raises(CheckpointError, match="packed.pth: is damaged or no PyTorch checkpoint"):
        read_checkpoint(packed)


def test_a_mat_file_is_measured_before_it_is_read(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "label.mat"
    savemat(path, {"S": np.zeros((1000, 2000), np.uint8)}, do_compression=True)
    assert read_matlab_label(path).shape == (1000, 2000)
    monkeypatch.setattr("stripseg.dataset.matlab_file.MATLAB_BYTES", 1_500_000)
    with pytest.raises(DataError, match="label.mat: .*holds more than 1500000 bytes"):
        read_matlab_label(path)


def matlab_array(kind: int, dims: tuple[int, int], parts: bytes = b"") -> bytes:
    """A variable S of a .mat file: kind 1 is a cell, 2 a struct, 4 a text."""
    content = struct.pack("<IIII", 6, 8, kind, 0) + struct.pack("<IIII", 5, 8, *dims)
    content += struct.pack("<II", 1 | 1 << 16, ord("S")) + parts
    return struct.pack("<II", 14, len(content)) + content


FIELD = struct.pack("<IIII", 5 | 4 << 16, 1, 1 | 1 << 16, ord("f"))  # of a struct: length, names


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "array",
    [
        matlab_array(1, (12_000, 12_000)),
        matlab_array(2, (12_000, 12_000), FIELD),
        matlab_array(4, (12_000, 12_000), struct.pack("<II", 1, 0)),
        matlab_array(1, (1, 2), matlab_array(2, (12_000, 12_000), FIELD) * 2),
        matlab_array(1, (1, 1)) * 60_000,  # each one inside the one before it
    ],
    ids=["cell", "struct", "text", "inside a cell", "deep"],
)
def test_a_mat_file_claims_no_more_than_it_holds(
    array: bytes, packed: bool, tmp_path: Path
) -> None:
    """Gigabytes that scipy would take, or calls in calls until the process crashes."""
    if packed:
        content = zlib.compress(array)
        array = struct.pack("<II", 15, len(content)) + content
    path = tmp_path / "label.mat"
    path.write_bytes(b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM" + array)
    with pytest.raises(DataError, match=r"label.mat: .*\(claims to hold"):
        read_matlab_label(path)


def test_a_mat_file_with_cells_and_structs_is_read(tmp_path: Path) -> None:
    label = np.arange(6, dtype=np.uint16).reshape(2, 3)
    names = np.array([["road", "an odd é", ""]], object)
    others = {"names": names, "GTinst": {"a": {"b": 1.5 + 2j}, "c": names, "d": np.zeros((0, 0))}}
    for packed in (False, True):
        savemat(tmp_path / "s.mat", {**others, "LabelMap": label}, do_compression=packed)
        assert np.array_equal(read_matlab_label(tmp_path / "s.mat"), label)


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02}r\x00\x00\x00\x7f.",  # a memo of two thousand million entries
        # tuples of twice the one before, as a key
        b"\x80\x02}(N\x85q\x00"
        + b"".join(b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(40))
        + b"Nu.",
    ],
)
def test_a_pickle_of_a_few_bytes_is_looked_through_first(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "data_batch_1"
    path.write_bytes(content)
    with pytest.raises(
        DataError, match=r"data_batch_1: not a file of CIFAR's archives: (more|a memo)"
    ):
        read_archive(path)


def test_an_honest_pickle_has_few_tuples(tmp_path: Path) -> None:
    path = tmp_path / "batch"
    path.write_bytes(
        pickle.dumps({"data": np.zeros((2, 3), np.uint8), "labels": [1, 2]}, protocol=3)
    )
    assert read_archive(path)["data"].shape == (2, 3)


def test_a_tiff_of_many_values_is_refused(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "bomb.tif"
    tifffile.imwrite(path, np.zeros((50, 40, 5), np.uint8), photometric="minisblack")
    assert read_image(path, 5).shape == (50, 40, 5)
    monkeypatch.setattr("stripseg.util.images.PIXELS", 9_999)
    with pytest.raises(DataError, match="bomb.tif: .*claims to hold 10000 values"):
        read_image(path, 5)


def test_statistics_in_pieces_are_those_of_the_whole() -> None:
    image = np.random.default_rng(0).integers(0, 256, (PIECE // 300 + 50, 301, 3), np.uint8)
    pixels = image.reshape(-1, 3).astype(np.float64)
    assert np.allclose(moments(image), [pixels.mean(0), np.square(pixels).mean(0)], rtol=1e-12)


def bomb(strips: int, inflated: int, *, step: int = 0, bands: int = 1) -> bytes:
    """A deflate TIFF whose rows of 64 pixels are each `inflated` bytes; `step` 0: the same ones."""
    blob = zlib.compress(bytes(inflated), 9)
    facts = [(256, 64), (257, strips), (258, 8), (259, 8), (262, 1), (277, bands), (278, 1)]
    places = 8 + 2 + 12 * 9 + 4
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in facts]
    entries.insert(5, struct.pack("<HHII", 273, 4, strips, places))
    entries.append(struct.pack("<HHII", 279, 4, strips, places + 4 * strips))
    first, size = places + 8 * strips, len(blob)
    starts = [first + row * step * size for row in range(strips)]
    head = b"II*\0" + struct.pack("<IH", 8, 9) + b"".join(entries) + bytes(4)
    numbers = struct.pack(f"<{2 * strips}I", *starts, *[size] * strips)
    return head + numbers + blob * (1 + step * (strips - 1))


@pytest.mark.parametrize(
    ("step", "message"), [(0, "share bytes of the file"), (1, "hold more than its pixels")]
)
@pytest.mark.parametrize("channels", [0, 1, 5], ids=["label", "grey", "bands"])
def test_a_tiff_inflates_to_its_pixels_and_no_more(
    channels: int, step: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for the megabytes that a last strip may be filled up to."""
    monkeypatch.setattr(images, "FILLED_UP", 100_000)
    path = tmp_path / "x.tif"
    reader = partial(read_image, channels=channels) if channels else read_label
    path.write_bytes(bomb(4, 1_000_000, step=step, bands=max(1, channels)))
    with pytest.raises(DataError, match=f"x.tif: cannot be decoded.*{message}"):
        reader(path)
    for rows in (1, 100):
        path.write_bytes(bomb(4, rows * 64 * max(1, channels), step=1, bands=max(1, channels)))
        assert reader(path).shape[:2] == (4, 64)
