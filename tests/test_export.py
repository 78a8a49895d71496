"""Exports: the same logits at any size, predicted through the engine, in int8, or not written."""

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from glob import glob
from itertools import chain, product
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import nn

import stripseg
from stripseg import export as exporting
from stripseg.config.errors import CheckpointError, ExportError
from stripseg.config.load import config_from
from stripseg.export import export_network, free_axes
from stripseg.model.build import build_network
from stripseg.onnx_network import KEY, PIXELS, OnnxNetwork, OpenVinoNetwork
from stripseg.quantization import quantize
from stripseg.tool import export as export_tool
from stripseg.tool import main as command
from stripseg.tool import quantize as quantize_tool
from stripseg.tool import test as test_tool
from stripseg.trained_network import TrainedNetwork, from_content

pytestmark = pytest.mark.usefixtures("one_block_per_stage")  # it is traced block by block
CPU = torch.device("cpu")
TRACES_ANY_SIZE = "2.14"  # of PyTorch, the first that was tried and does; 2.10 and 2.11 do not


def untrained(data: Path, arch: str, backbone: str, **options: object) -> TrainedNetwork:
    """A network of random weights and statistics, as if loaded from a checkpoint."""
    content = {
        "DATA": {
            "dataset": "shapes",
            "data_root": str(data),
            "train_list": "train.txt",
            "classes": 9,
            "outside_root": True,
        },
        "TRAIN": {
            "arch": arch,
            "backbone": backbone,
            "train_h": 64,
            "train_w": 72,
            "width": 1 if backbone.startswith("timm/") else 0.125,
            "evaluate": False,
            **options,
        },
        "TEST": {"test_list": "val.txt", "base_size": 0, "workers": 0},
    }
    config = config_from(content, source="test")
    torch.manual_seed(3)
    network = build_network(config)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    stored = {"config": config.model_dump(mode="json"), "state_dict": network.state_dict()}
    return from_content(stored, "test.pth", torch.device("cpu"))


@pytest.fixture(scope="module")
def exported(small_shapes: Path, tmp_path_factory) -> tuple[TrainedNetwork, Path]:
    """A network with FCN's head, which is traced soonest, and its ONNX file."""
    trained = untrained(small_shapes, "fcn", "resnet18")
    path = tmp_path_factory.mktemp("export") / "fcn18.onnx"
    assert_exports(trained, path)
    return trained, path


def is_of_an_old_tracer(error: ExportError, words: str) -> bool:
    """Whether PyTorch's release, not the network, is the cause, and the message says what helps."""
    helps = "one size may work: --window HEIGHT WIDTH" in str(error)
    return helps and words in str(error) and torch.__version__ < TRACES_ANY_SIZE


def assert_exports(trained: TrainedNetwork, path: Path) -> None:
    """At eight sizes and two batch sizes, odd ones and smaller than the grids among them."""
    export = export_network(trained, path)
    assert len(export.comparisons) == 17
    assert all(row.fits for row in export.comparisons)
    assert max(row.largest for row in export.comparisons) > 1e-3
    assert [found.name for found in path.parent.iterdir()] == [path.name]  # weights inside


HEADS = ("spnet", "psp", "psa", "pyconvsegnet", "fcn")
BACKBONES = ("resnet18", "pyconvresnet18", "timm/test_resnet", "timm/test_efficientnet")
# tracing takes up to a minute: each head and each backbone once, all pairs with `make test-long`
EACH_ONCE = {
    ("spnet", "resnet18"),
    ("psp", "resnet18"),
    ("psa", "resnet18"),
    ("pyconvsegnet", "pyconvresnet18"),
    ("fcn", "timm/test_efficientnet"),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "backbone"),
    [
        pytest.param(*pair, marks=() if pair in EACH_ONCE else (pytest.mark.long,))
        for pair in product(HEADS, BACKBONES)
    ],
)
def test_every_head_and_backbone_exports(
    small_shapes: Path, tmp_path: Path, arch: str, backbone: str
) -> None:
    modules = {"mixed_pooling_modules": 1} if arch == "spnet" else {}
    trained, path = untrained(small_shapes, arch, backbone, **modules), tmp_path / "network.onnx"
    try:
        assert_exports(trained, path)
    except ExportError as error:
        if not is_of_an_old_tracer(error, "Could not guard"):
            raise
        assert trained.export(path, window=(65, 72)) == path


@pytest.mark.long
def test_a_full_spnet50_exports(
    small_shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the width that the paper trains, at smaller sizes, for the time's sake."""
    sizes = ((48, 64), (49, 65), (80, 60), (66, 45), (38, 100), (112, 32), (33, 41), (57, 83))
    monkeypatch.setattr(exporting, "SIZES", sizes)
    monkeypatch.setattr(exporting, "BATCHES", (1, 2))
    monkeypatch.setattr(exporting, "SCENE", (56, 80))
    path = tmp_path / "spnet50.onnx"
    assert_exports(untrained(small_shapes, "spnet", "resnet50", width=1), path)
    assert path.stat().st_size > 150e6


@pytest.mark.long
def test_padding_that_follows_the_size_exports(small_shapes: Path, tmp_path: Path) -> None:
    """TensorFlow's, as in EfficientNet-Lite; with the decoder and logits of half a size."""
    options = {"decoder": "deeplabv3plus", "output_stride": 16, "zoom_factor": 4}
    trained = untrained(small_shapes, "spnet", "timm/tf_efficientnet_lite0", **options)
    assert_exports(trained, tmp_path / "lite0.onnx")


@pytest.mark.parametrize("aligned", [True, False])
def test_logits_smaller_than_the_image_are_enlarged(
    small_shapes: Path, tmp_path: Path, aligned: bool
) -> None:
    """As the engine enlarges them, with the decoder: their size is of training alone."""
    options = {"decoder": "deeplabv3plus", "zoom_factor": 4, "align_corners": aligned}
    trained = untrained(small_shapes, "fcn", "resnet18", **options)
    path = tmp_path / "fcn18.onnx"
    if not aligned:
        with pytest.raises(ExportError, match=r"window \(60, 64\): .* must be multiples of 8"):
            export_network(trained, path, window=(60, 64))
    assert_exports(trained, path)
    expected, got = trained.test(), stripseg.load(path, device="cpu").test()
    assert got.mean_iou == pytest.approx(expected.mean_iou, abs=5e-4)


def test_weights_too_large_for_one_file(
    exported: tuple[TrainedNetwork, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They lie beside it under its name, and nothing is left of a failed attempt."""
    export, programs = torch.onnx.export, []

    def traced_once(*arguments: object, **words: object) -> torch.onnx.ONNXProgram:
        if not programs:  # the network stays the same
            programs.append(export(*arguments, **words))
        return programs[0]

    monkeypatch.setattr(torch.onnx, "export", traced_once)
    limit = exporting.LARGEST_FILE
    monkeypatch.setattr(exporting, "LARGEST_FILE", 0)
    monkeypatch.chdir(tmp_path)
    trained = exported[0]
    for _ in range(2):  # again in place of the first one
        written = export_network(trained, Path("fcn18.onnx"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fcn18.onnx", "fcn18.onnx.data"]
    assert [path.name for path in written.files] == ["fcn18.onnx", "fcn18.onnx.data"]
    assert written.files[1].stat().st_size > written.path.stat().st_size > 0
    image = np.zeros((70, 50, 3), np.uint8)
    assert (stripseg.load("fcn18.onnx").predict(image).mask == trained.predict(image).mask).all()
    tolerance = exporting.TOLERANCE
    monkeypatch.setattr(exporting, "TOLERANCE", -1.0)
    with pytest.raises(ExportError, match="not written"):
        trained.export("wrong.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fcn18.onnx", "fcn18.onnx.data"]
    monkeypatch.setattr(exporting, "TOLERANCE", tolerance)
    monkeypatch.setattr(exporting, "LARGEST_FILE", limit)
    trained.export("fcn18.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["fcn18.onnx"]


def test_the_file_says_what_it_is(exported: tuple[TrainedNetwork, Path]) -> None:
    trained, path = exported
    model = onnx.load(str(path))
    assert {entry.domain: entry.version for entry in model.opset_import}[""] == 18
    assert not any(node.op_type == "BatchNormalization" for node in model.graph.node)
    facts = facts_of(model)
    assert facts["card"]["names"] == trained.names
    assert facts["config"]["DATA"]["mean"] == trained.config.DATA.mean
    loaded = stripseg.load(path, device="cpu")
    assert loaded.names == trained.names
    assert (loaded.colors == trained.colors).all()


def test_onnxruntime_alone_runs_it(exported: tuple[TrainedNetwork, Path]) -> None:
    """With free batch, height and width."""
    trained, path = exported
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for shape in ((1, 3, 71, 50), (4, 3, 32, 200)):
        image = torch.randn(shape)
        with torch.no_grad():
            expected = trained.network(image).logits
        (got,) = session.run(["logits"], {"image": image.numpy()})
        np.testing.assert_allclose(got, expected.numpy(), atol=1e-4)


def test_the_engine_runs_it_like_the_checkpoint(
    exported: tuple[TrainedNetwork, Path], small_shapes: Path
) -> None:
    trained, path = exported
    again = stripseg.load(path, device="cpu")
    expected, got = trained.test(scales=[0.75, 1.0]), again.test(scales=[0.75, 1.0])
    assert got.mean_iou == pytest.approx(expected.mean_iou, abs=5e-4)
    photo = next((small_shapes / "images").rglob("*.jpg"))
    assert (again.predict(photo).mask == trained.predict(photo).mask).mean() > 0.999


def test_pixels_in_class_map_out(exported: tuple[TrainedNetwork, Path], tmp_path: Path) -> None:
    trained = exported[0]
    path = export_network(trained, tmp_path / "map.onnx", pixels=True, class_map=True).path
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    pixels = np.random.default_rng(0).integers(0, 256, (2, 65, 91, 3), np.uint8)
    (got,) = session.run(None, {"image": pixels})
    assert got.dtype == np.uint8
    assert got.shape == (2, 65, 91)
    assert facts_of(onnx.load(str(path)))["input"] == PIXELS
    with pytest.raises(CheckpointError, match="was exported with --class-map"):
        stripseg.load(path)


def test_a_fixed_window(exported: tuple[TrainedNetwork, Path], tmp_path: Path, capsys) -> None:
    """By the command."""
    trained = exported[0]
    with pytest.raises(ExportError, match="expected .height, width., both above 0"):
        trained.export(tmp_path / "window.onnx", window=(0, 0))
    folder, path = trained.save_pretrained(tmp_path / "fcn18"), tmp_path / "window.onnx"
    export_tool.main([str(folder), str(path), "--window", "48", "64"])
    said = capsys.readouterr().out
    assert "batch x height x width" in said
    assert "3 x 48 x 64" in said
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape[1:] == [3, 48, 64]
    fixed = stripseg.load(path, device="cpu")
    expected = trained.predict(np.zeros((90, 90, 3), np.uint8), window=(48, 64)).mask
    assert (fixed.predict(np.zeros((90, 90, 3), np.uint8)).mask == expected).mean() > 0.999
    root = trained.config.DATA.data_root  # which a folder to share does not tell
    words = ["TEST.save_folder", str(tmp_path / "result"), "DATA.data_root", root]
    test_tool.main([str(path), *words])
    figures = json.loads((tmp_path / "result/metrics.json").read_text())
    assert figures["mIoU"] == pytest.approx(fixed.test(data_root=root).mean_iou)
    with pytest.raises(stripseg.StripsegError, match="for windows of 48x64 alone, not 32x32"):
        fixed.predict(np.zeros((90, 90, 3), np.uint8), window=(32, 32))
    words = ["DATA.data_root", root, "TEST.test_list", "train.txt"]
    int8, _ = quantize(path, tmp_path / "int8.onnx", words=words, windows=2)
    assert stripseg.load(int8, device="cpu").network.window == (48, 64)


def facts_of(model: onnx.ModelProto) -> dict:
    return json.loads({entry.key: entry.value for entry in model.metadata_props}[KEY])


def test_pixels_in_logits_out_is_for_others(
    exported: tuple[TrainedNetwork, Path], tmp_path: Path
) -> None:
    model = onnx.load(str(exported[1]))
    onnx.helper.set_model_props(model, {KEY: json.dumps(facts_of(model) | {"input": PIXELS})})
    onnx.save(model, str(tmp_path / "pixels.onnx"))
    with pytest.raises(CheckpointError, match="was exported with --pixels"):
        stripseg.load(tmp_path / "pixels.onnx")


def test_torch_export(exported: tuple[TrainedNetwork, Path], tmp_path: Path) -> None:
    """Older releases tie what they trace to the example's size being even, and are found out."""
    path, sizes = tmp_path / "fcn18.pt2", [(50, 60), (49, 63)]
    try:
        exported[0].export(path)
    except ExportError as error:
        if not is_of_an_old_tracer(error, "does not run at"):
            raise
        del sizes[1]
        exported[0].export(path, window=sizes[0])
    run = torch.export.load(path).module()
    for size in sizes:
        assert run(torch.randn(1, 3, *size)).shape == (1, 9, *size)


@pytest.mark.parametrize(
    ("options", "output", "message"),
    [
        ({"arch": "psp", "ppm_pooling": "max"}, "a.onnx", "ppm_pooling max cannot be exported"),
        ({"arch": "fcn"}, "a.tflite", r"written as \.onnx or \.pt2"),
    ],
)
def test_what_cannot_be_exported(
    small_shapes: Path, tmp_path: Path, options: dict, output: str, message: str
) -> None:
    trained = untrained(small_shapes, backbone="resnet18", **options)
    with pytest.raises(ExportError, match=message):
        trained.export(tmp_path / output)
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_differs_is_not_written(
    exported: tuple[TrainedNetwork, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One whose grid is right at the example's size alone, as exporters silently make them."""
    trained, written = exported
    runner = exporting.onnx_runner

    def write(module: nn.Module, example: torch.Tensor, path: Path, **_: object) -> None:
        shutil.copyfile(written, path)

    def wrong(path: Path):
        run = runner(path)
        return lambda batch: run(batch) * (1 if batch.shape[-1] == 129 else 1.01)

    monkeypatch.setattr(exporting, "write_onnx", write)
    monkeypatch.setattr(exporting, "onnx_runner", wrong)
    with pytest.raises(ExportError, match=r"not written; .* differs from the network at 1 x 96"):
        trained.export(tmp_path / "wrong.onnx")
    assert list(tmp_path.iterdir()) == []
    assert free_axes(type("Module", (), {"pixels": True})) == (0, 1, 2)


def test_files_that_are_no_export(exported: tuple[TrainedNetwork, Path], tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("not ONNX")
    with pytest.raises(CheckpointError, match="is damaged or no ONNX file"):
        stripseg.load(tmp_path / "text.onnx")
    model = onnx.load(str(exported[1]))
    del model.metadata_props[:]
    onnx.save(model, str(tmp_path / "foreign.onnx"))
    with pytest.raises(CheckpointError, match="has no metadata of stripseg"):
        stripseg.load(tmp_path / "foreign.onnx")
    with pytest.raises(CheckpointError, match="export does not exist"):
        stripseg.load(tmp_path / "none.onnx")
    with pytest.raises(ExportError, match="is an export already"):
        stripseg.load(exported[1]).export(tmp_path / "again.onnx")


def test_int8(exported: tuple[TrainedNetwork, Path], tmp_path: Path, capsys) -> None:
    _, path = exported
    target = tmp_path / "int8.onnx"
    words = [str(path), "--calibrate", "train.txt", "--validate", "val.txt", "--windows", "4"]
    quantize_tool.main([*words, "--output", str(target), "--allow-drop", "1"])
    said = capsys.readouterr().out
    assert "ONNX Runtime fp32" in said
    assert "ONNX Runtime int8" in said
    assert target.stat().st_size < 0.6 * path.stat().st_size
    assert stripseg.load(target, device="cpu").names[0] == "sky"
    graph = onnx.load(target).graph
    int8 = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    late = [n for n in graph.node if n.op_type in ("Relu", "Clip") and n.input[0] in int8]
    assert late == []  # the range of a convolution is that of its activation
    weights = [onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer]
    largest = [abs(w.astype(int)).max() for w in weights if w.dtype == np.int8 and w.ndim == 4]
    assert max(largest) == 64  # seven bits: eight saturate on processors without VNNI
    with pytest.raises(ExportError, match=r"not written; int8 lowers mIoU by .* --allow-drop -2"):
        quantize_tool.main([*words, "--output", str(tmp_path / "no.onnx"), "--allow-drop", "-2"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["int8.onnx"]


@pytest.mark.long  # a process that has loaded OpenVINO aborted in a later training
def test_openvino_computes_the_same(
    exported: tuple[TrainedNetwork, Path], tmp_path: Path, capsys
) -> None:
    """The same class maps of the fp32 file, int8 as close as ONNX Runtime's, rows in the table."""
    if importlib.util.find_spec("openvino") is None:
        pytest.skip("needs openvino")
    _, path = exported
    int8 = tmp_path / "int8.onnx"
    words = ["--calibrate", "train.txt", "--windows", "4", "--allow-drop", "1"]
    loaded = "openvino" in sys.modules
    quantize_tool.main([str(path), *words, "--output", str(int8)])
    said = capsys.readouterr().out
    assert "OpenVINO fp32" in said
    assert "OpenVINO int8" in said
    assert ("openvino" in sys.modules) == loaded  # it was measured in a process of its own
    exact = OnnxNetwork(path, CPU)
    theirs, ours8, theirs8 = OpenVinoNetwork(path), OnnxNetwork(int8, CPU), OpenVinoNetwork(int8)
    for size in ((96, 128), (97, 129), (33, 41), (113, 307), (75, 200)):
        image = torch.randn(2, 3, *size)
        expected, got = exact(image), theirs(image)
        assert (expected.argmax(1) == got.argmax(1)).float().mean() >= 0.9999, size
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
        # runtimes round int8 differently; both must be about as close to fp32
        errors = [(network(image) - expected).abs().mean() for network in (ours8, theirs8)]
        assert 0 < errors[1] <= 2 * errors[0] < 0.5 * expected.std(), size


@pytest.mark.long
def test_the_example_in_cpp(small_shapes: Path, tmp_path: Path) -> None:
    """docs/deploy.md's, compiled as it says: the class map of Python."""
    openvino = pytest.importorskip("openvino")
    if not shutil.which("g++"):
        pytest.skip("needs a C++ compiler")
    page = (Path(__file__).parent.parent / "docs/deploy.md").read_text()
    (tmp_path / "segment.cpp").write_text(re.search(r"```cpp\n(.*?)```", page, re.DOTALL)[1])
    command = next(line for line in page.splitlines() if line.startswith("g++ "))
    folder = str(Path(openvino.__file__).parent)
    words = shlex.split(command.replace("$OPENVINO", folder))
    found = [glob(word) or [word] for word in words]  # the version in a library's name
    subprocess.run([*chain(*found)], cwd=tmp_path, check=True)
    trained = untrained(small_shapes, "fcn", "resnet18")
    trained.export(tmp_path / "map.onnx", pixels=True, class_map=True)
    pixels = np.random.default_rng(0).integers(0, 256, (65, 91, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.ppm")
    run = ["./segment", "map.onnx", "photo.ppm", "classes.pgm"]
    subprocess.run(run, cwd=tmp_path, check=True)
    session = onnxruntime.InferenceSession(str(tmp_path / "map.onnx"))
    (expected,) = session.run(None, {"image": pixels[None]})
    got = np.asarray(Image.open(tmp_path / "classes.pgm"))
    assert got.shape == (65, 91)
    assert (got == expected[0]).mean() >= 0.9999


def test_the_one_command(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def run(*words: str) -> int | None:
        monkeypatch.setattr("sys.argv", ["stripseg", *words])
        try:
            command.main()
        except SystemExit as end:
            return end.code
        return None

    monkeypatch.setenv("STRIPSEG_ENVIRONMENT", "read")
    assert run("--help") == 0
    said = capsys.readouterr().out
    assert all(name in said for name in command.MODULES)
    assert run("trian") == 2
    assert "did you mean train?" in capsys.readouterr().err
    assert run("--version") is None
    assert "torch" in capsys.readouterr().out
    assert run("--commands") is None
    assert capsys.readouterr().out.split() == list(command.MODULES)
    for name in command.MODULES:
        assert run(name, "--help") == 0
        assert f"usage: stripseg {name}" in capsys.readouterr().out
    assert run("train", "camvid", "spnet") == 2
    assert "did you mean spnet50" in capsys.readouterr().err
