"""The Python API: `import stripseg` and what a user of timm or Ultralytics would try with it."""

import doctest
import io
import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import stripseg
from stripseg import models, trained_network
from stripseg.config.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    DeviceError,
    TrainingError,
)
from stripseg.tool import predict as predict_tool
from stripseg.tool import test as test_tool
from stripseg.util.images import read_image, read_label


@pytest.fixture(scope="module")
def run(small_shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> stripseg.TrainingResult:
    """Two epochs of SPNet-18, trained through the API from a mapping."""
    folder = tmp_path_factory.mktemp("api")
    return stripseg.train(options(small_shapes, folder), device="cpu", epochs=2)


def options(data: Path, folder: Path) -> dict:
    return {
        "DATA": {
            "dataset": "shapes",
            "data_root": str(data),
            "train_list": "train.txt",
            "val_list": "val.txt",
            "classes": 9,
            "outside_root": True,
        },
        "TRAIN": {
            "layers": 18,
            "width": 0.125,
            "train_h": 48,
            "train_w": 40,
            "batch_size": 2,
            "workers": 0,
            "save_path": str(folder / "model"),
        },
        "TEST": {
            "test_list": "val.txt",
            "base_size": 0,
            "workers": 0,
            "save_folder": str(folder / "result"),
        },
    }


@pytest.fixture(scope="module")
def segmenter(run: stripseg.TrainingResult) -> stripseg.TrainedNetwork:
    return stripseg.load(run.best, device="cpu")


@pytest.fixture(scope="module")
def photo(small_shapes: Path) -> Path:
    return small_shapes / (small_shapes / "val.txt").read_text().split()[0]


def test_importing_loads_nothing() -> None:
    code = "import sys, stripseg; assert 'torch' not in sys.modules; print(stripseg.__version__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == stripseg.__version__


def test_every_public_name_is_there() -> None:
    assert set(stripseg.__all__) == {"__version__", *stripseg._HOMES}
    for name in stripseg.__all__:
        assert getattr(stripseg, name)
    assert set(stripseg.__all__) <= set(dir(stripseg))
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = stripseg.trian


@pytest.mark.parametrize("module", [models, trained_network])
def test_doctests(module) -> None:
    found = doctest.testmod(module)
    assert found.failed == 0
    assert found.attempted > 0


@pytest.mark.parametrize("name", ["fcn", "psa", "psp", "pyconvsegnet", "spnet"])
def test_models_are_plain_modules(name: str) -> None:
    model = stripseg.create_model(
        name, backbone="resnet18", classes=5, width=0.125, train_h=65, train_w=65
    )
    out = model.train()(torch.randn(2, 3, 65, 73))
    assert out.shape == (2, 5, 65, 73)
    out.mean().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_models_take_options_and_weights(run: stripseg.TrainingResult) -> None:
    model = stripseg.create_model(
        "spnet",
        backbone="resnet18",
        classes=9,
        width=0.125,
        mixed_pooling_modules=2,
        pretrained=str(run.best),
    )
    trained = stripseg.load(run.best, device="cpu").network.state_dict()
    for key, value in model.state_dict().items():
        assert torch.equal(value, trained[key])
    with pytest.raises(ConfigError, match=r"did you mean TRAIN\.output_stride"):
        stripseg.create_model("spnet", classes=2, output_strid=8)
    with pytest.raises(ConfigError, match="must be one of .*did you mean spnet"):
        stripseg.create_model("spnett", classes=2)
    with pytest.raises(ConfigError, match="there are no weights to fetch"):
        stripseg.create_model("spnet", classes=2, pretrained=True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({}, "name the number of classes, such as classes=11"),
        ({"num_classes": 11}, "num_classes is called classes here"),
        ({"classes": 3, "in_chans": 1}, "in_chans is called in_channels here"),
        ({"classes": 3, "encoder_name": "resnet18"}, "encoder_name is called backbone here"),
        ({"classes": 3, "encoder_weights": "imagenet"}, "encoder_weights is called pretrained"),
    ],
)
def test_words_of_other_libraries_are_translated(words: dict, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        stripseg.create_model("spnet", **words)


def test_a_network_of_ones_own_loop(photo: Path, tmp_path: Path) -> None:
    """Predicts, is exported and shared as one from a file."""
    torch.manual_seed(3)
    model = stripseg.create_model("fcn", backbone="resnet18", classes=3, width=0.125)
    names = ["road", "sky", "other"]
    segmenter = stripseg.wrap(
        model, names=names, mean=[127] * 3, std=[128] * 3, test_h=72, test_w=88, flip=False
    )
    pixels = read_image(photo, 3)  # 72 x 88, one window
    image = (torch.from_numpy(pixels).permute(2, 0, 1)[None].float() - 127) / 128
    with torch.no_grad():
        expected = model.eval()(image)[0].argmax(0)
    prediction = segmenter.predict(photo)
    assert (prediction.mask == expected.numpy()).mean() > 0.999
    assert prediction.names == names
    again = stripseg.load(segmenter.save_pretrained(tmp_path / "shared"), device="cpu")
    assert again.names == names
    assert (again.predict(photo, flip=False).mask == prediction.mask).all()
    assert segmenter.network.head is model.head  # no copy
    assert model.train().head.training


def test_what_cannot_be_wrapped() -> None:
    with pytest.raises(TypeError, match=r"Conv2d is not a network of .*SlidingWindow\(model"):
        stripseg.wrap(torch.nn.Conv2d(3, 4, 1))
    model = stripseg.create_model("fcn", backbone="resnet18", classes=3, width=0.125)
    with pytest.raises(ConfigError, match="2 names and colours of shape"):
        stripseg.wrap(model, names=["a", "b"])
    with pytest.raises(ConfigError, match="did you mean TEST.scales"):
        stripseg.wrap(model, scale=[1.0])


def test_the_normalisation_of_the_weights_to_start_from() -> None:
    known = models.network_config(
        "spnet", 3, "timm/tf_efficientnet_lite0", 3, {}, pretrained="auto"
    )
    assert (known.DATA.mean, known.DATA.std) == ([127.0] * 3, [128.0] * 3)


def test_an_experiment_beside_a_config_is_refused(small_shapes: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the mapping is a whole config already"):
        stripseg.train(options(small_shapes, tmp_path), "spnet18")
    with pytest.raises(ConfigError, match=r"my\.yaml is a whole config already"):
        stripseg.train(tmp_path / "my.yaml", experiment="spnet18")


def test_modules_work_in_other_networks() -> None:
    x = torch.randn(2, 16, 13, 17)
    assert stripseg.StripPoolingModule(16)(x).shape == x.shape
    assert stripseg.MixedPoolingModule(16)(x).shape == x.shape
    assert stripseg.TripletAttention()(x).shape == x.shape
    assert stripseg.EfficientChannelAttention(3)(x).shape == x.shape
    assert stripseg.GatedChannelTransformation(16)(x).shape == x.shape


def test_the_engine_and_the_metric_take_any_network() -> None:
    network = torch.nn.Conv2d(3, 4, 1).eval()
    engine = stripseg.SlidingWindow(network, stripseg.InferenceSettings(classes=4, window=(32, 32)))
    prediction = engine.predict(np.zeros((50, 70, 3), np.uint8))
    matrix = stripseg.ConfusionMatrix(4)
    matrix.update(prediction, prediction)
    assert matrix.scores().mean_iou_present == pytest.approx(1)
    with pytest.raises(ConfigError, match=r"window 32: expected \(height, width\)"):
        stripseg.InferenceSettings(classes=4, window=32)


def test_training_returns_its_figures(run: stripseg.TrainingResult) -> None:
    assert sorted(run.epochs) == [1, 2]
    assert run.figures == run.epochs[2]
    mean_iou = run.figures["val"]["mIoU"]
    assert 0 <= mean_iou <= 1
    assert run.best.is_file()
    assert run.last.is_file()
    assert run.config.TRAIN.epochs == 2
    again = yaml.safe_load((run.folder / "config.yaml").read_text())
    assert again["TRAIN"]["epochs"] == 2
    assert repr(run).endswith(f"model: 2 epochs, val mIoU {mean_iou:.4f})")


def test_training_leaves_the_callers_settings(small_shapes: Path, tmp_path: Path) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    handler, threads = signal.getsignal(signal.SIGINT), torch.get_num_threads()
    tf32 = torch.backends.cudnn.allow_tf32
    seen = []
    stripseg.train(
        options(small_shapes, tmp_path),
        device="cpu",
        epochs=1,
        on_epoch=lambda epoch, figures: seen.append((epoch, sorted(figures))),
    )
    assert torch.equal(torch.rand(3), expected)
    assert signal.getsignal(signal.SIGINT) is handler
    assert torch.get_num_threads() == threads
    assert torch.backends.cudnn.allow_tf32 == tf32
    assert seen == [(1, ["train", "val"])]


def test_training_has_the_commands_errors(small_shapes: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"did you mean TRAIN\.epochs"):
        stripseg.train(options(small_shapes, tmp_path), epoch=1)
    with pytest.raises(ConfigError, match="train: lr is not an option; it is called TRAIN.base_lr"):
        stripseg.train(options(small_shapes, tmp_path), lr=0.1)
    with pytest.raises(ConfigError, match="no configs for the dataset.*stripseg prepare custom"):
        stripseg.train("nothing", "spnet18")
    with pytest.raises(ConfigError, match=r"name an experiment[^.]*$"):
        stripseg.train("camvid")
    with pytest.raises(ConfigError, match="name an experiment.*stripseg prepare custom"):
        stripseg.train(tmp_path)
    with pytest.raises(DeviceError, match="device 'tpu' does not exist"):
        stripseg.train(options(small_shapes, tmp_path), device="tpu")


def test_one_image_in_every_form(segmenter: stripseg.TrainedNetwork, photo: Path) -> None:
    pixels = read_image(photo)
    expected = segmenter.predict(photo)
    assert expected.mask.shape == pixels.shape[:2]
    assert expected.mask.dtype == np.uint8
    assert expected.path == photo
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "PNG")
    for source in (str(photo), pixels, Image.fromarray(pixels), tensor, png.getvalue()):
        np.testing.assert_array_equal(segmenter.predict(source).mask, expected.mask)
    probabilities = expected.probabilities
    assert probabilities.shape == (9, *pixels.shape[:2])
    np.testing.assert_allclose(probabilities.sum(0), 1, atol=1e-5)
    np.testing.assert_array_equal(probabilities.argmax(0), expected.mask)


def test_many_images_lazily(
    segmenter: stripseg.TrainedNetwork, photo: Path, tmp_path: Path
) -> None:
    pixels = read_image(photo)
    asked = []

    def images():
        for index in range(3):
            asked.append(index)
            yield pixels

    stream = segmenter.predict(images())
    next(stream)
    assert asked == [0]
    assert len(list(stream)) == 2
    found = list(segmenter.predict(str(photo.parent / "*.jpg")))
    assert [p.path for p in found] == sorted(photo.parent.glob("*.jpg"))
    assert len(list(segmenter.predict(photo.parent, together=2))) == len(found)
    with pytest.raises(DataError, match="no image there"):
        segmenter.predict(tmp_path)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((4, 4, 3)), r"must be \(H, W, 3\) uint8, not \(4, 4, 3\) float64"),
        (np.zeros((4, 4, 5), np.uint8), r"not \(4, 4, 5\) uint8"),
        (torch.zeros(1, 3, 4, 4), r"a tensor must be \(3, H, W\).* list\(batch\)"),
        (torch.rand(3, 4, 4), "multiply by 255"),
        (3.5, "a float is not an image"),
        ("missing.jpg", "missing.jpg: image file does not exist"),
        (b"nothing", "bytes: cannot be decoded"),
    ],
)
def test_what_is_not_an_image(
    segmenter: stripseg.TrainedNetwork, source: object, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        segmenter.predict(source)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scales": "1"}, "scales '1': expected numbers above 0"),
        ({"scales": []}, r"scales \[\]: expected numbers"),
        ({"scales": (0.0, 1)}, r"scales \(0.0, 1\): expected numbers"),
        ({"flip": "yes"}, "flip 'yes': expected True or False"),
        ({"base_size": -1}, "base_size -1: expected the longer side"),
        ({"window": 480}, r"window 480: expected \(height, width\)"),
        ({"window": (480, 4)}, r"window \(480, 4\)"),
        ({"together": 0}, "together 0: expected how many images"),
    ],
)
def test_settings_that_no_image_can_be_predicted_with(
    segmenter: stripseg.TrainedNetwork, photo: Path, settings: dict, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        segmenter.predict(photo, **settings)


def test_pictures_of_a_prediction(
    segmenter: stripseg.TrainedNetwork, photo: Path, tmp_path: Path
) -> None:
    prediction = segmenter.predict(photo, scales=(0.75, 1), flip=False)
    path = prediction.save(tmp_path / "mask.png")
    np.testing.assert_array_equal(read_label(path), prediction.mask)
    assert prediction.overlay().size == (prediction.mask.shape[1], prediction.mask.shape[0])
    assert prediction.names[0] == "sky"
    assert prediction.present[0] in prediction.names
    with pytest.raises(DataError, match=r"written as \.png"):
        prediction.save(tmp_path / "mask.jpg")


def test_figures_equal_the_commands(
    run: stripseg.TrainingResult, segmenter: stripseg.TrainedNetwork, tmp_path: Path
) -> None:
    result = segmenter.test()
    test_tool.main([str(run.best), "TEST.save_folder", str(tmp_path)])
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["mIoU"] == result.mean_iou
    assert metrics["allAcc"] == result.pixel_accuracy
    assert metrics["mIoU"] == pytest.approx(run.figures["val"]["mIoU"])
    assert result.classes["sky"]["iou"] == metrics["classes"][0]["iou"]
    assert len(result.per_image) == 3
    name = Path(result.per_image[0]["name"]).stem
    saved = read_label(tmp_path / "gray" / f"{name}.png")
    source = run.config.DATA.data_root
    again = segmenter.predict(Path(source) / result.per_image[0]["name"])
    np.testing.assert_array_equal(again.mask, saved)
    interval = result.interval()
    assert interval.low <= interval.value <= interval.high
    assert interval.value == pytest.approx(result.mean_iou, abs=1e-9)
    written = segmenter.test(save_folder=tmp_path / "again")
    assert written.mean_iou == result.mean_iou
    assert written.report == tmp_path / "again/report.html"
    assert (tmp_path / "again/per_image.jsonl").read_text().count("\n") == 4


def test_the_command_predicts_past_a_bad_image(
    run: stripseg.TrainingResult, photo: Path, tmp_path: Path, capsys
) -> None:
    bad = tmp_path / "in" / "bad.jpg"
    bad.parent.mkdir()
    bad.write_bytes(b"no image")
    (bad.parent / "good.jpg").write_bytes(photo.read_bytes())
    out = tmp_path / "in" / "out"
    words = [str(run.best), str(bad.parent), "--output", str(out), "--device", "cpu"]
    assert predict_tool.main(words).exit_code == 1
    assert "bad.jpg" in capsys.readouterr().err
    assert sorted(p.name for p in out.iterdir()) == [
        f"good_{kind}.png" for kind in ("color", "gray", "overlay")
    ]
    bad.unlink()
    assert predict_tool.main(words).exit_code == 0  # its own results are not predicted
    assert len(list(out.rglob("*.png"))) == 3


def test_the_card_tells_what_the_network_is(segmenter: stripseg.TrainedNetwork) -> None:
    card = segmenter.card
    assert card.names[:2] == ["sky", "ground"]
    assert card.figures["epoch"] in (1, 2)
    assert card.figures["protocol"]["scales"] == [1.0]
    assert card.versions["stripseg"] == stripseg.__version__
    assert card.data["images"] == 6
    assert any(line.startswith("validation after epoch") for line in card.lines())


def test_a_checkpoint_without_a_card_loads(run: stripseg.TrainingResult, tmp_path: Path) -> None:
    content = torch.load(run.best, weights_only=True)
    del content["card"]
    torch.save(content, tmp_path / "older.pth")
    older = stripseg.load(tmp_path / "older.pth", device="cpu")
    assert older.names[0] == "sky"  # from the catalog
    assert older.test().mean_iou == stripseg.load(run.best, device="cpu").test().mean_iou


def test_files_that_are_no_network(run: stripseg.TrainingResult, tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "bare.pth")
    with pytest.raises(CheckpointError, match=r"bare\.pth: has no config"):
        stripseg.load(tmp_path / "bare.pth")
    with pytest.raises(CheckpointError, match="does not exist"):
        stripseg.load(tmp_path / "none.pth")
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        stripseg.load(tmp_path)
    content = torch.load(run.best, weights_only=True)
    content["card"]["names"] = ["one"]
    torch.save(content, tmp_path / "damaged.pth")
    with pytest.raises(CheckpointError, match="model card is damaged"):
        stripseg.load(tmp_path / "damaged.pth")
    content["card"]["version"] = 99
    torch.save(content, tmp_path / "later.pth")
    with pytest.raises(CheckpointError, match="update stripseg"):
        stripseg.load(tmp_path / "later.pth")


def test_a_folder_to_share(segmenter: stripseg.TrainedNetwork, tmp_path: Path) -> None:
    folder = segmenter.save_pretrained(tmp_path / "shared")
    assert sorted(p.name for p in folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    again = stripseg.load(folder, device="cpu")
    assert again.card.as_dict() == segmenter.card.as_dict()
    data_root = segmenter.config.DATA.data_root
    assert again.test(data_root=data_root).mean_iou == segmenter.test().mean_iou
    told = (folder / "config.json").read_text()
    assert data_root not in told  # nor any other folder of the machine that trained
    assert str(tmp_path.parent) not in told
    by_weights = stripseg.load(folder / "model.safetensors", device="cpu")
    assert by_weights.names == segmenter.names
    (folder / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is not a config of stripseg"):
        stripseg.load(folder)


def test_the_hub_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network here")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(CheckpointError, match="hf://a/b: cannot be fetched .no network here"):
        stripseg.load("hf://a/b")


def test_a_network_of_the_hub_is_tested_and_loaded(
    segmenter: stripseg.TrainedNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the revision that its name asks for; the hub is a folder here."""
    folder = segmenter.save_pretrained(tmp_path / "shared")
    asked = []

    def fetched(repository: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((repository, revision))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetched)
    assert stripseg.load("hf://owner/name@v2", device="cpu").names == segmenter.names
    data_root = ["DATA.data_root", segmenter.config.DATA.data_root]
    test_tool.main(["hf://owner/name", *data_root, "TEST.save_folder", str(tmp_path / "out")])
    assert (tmp_path / "out/metrics.json").is_file()
    assert asked == [("owner/name", "v2"), ("owner/name", None)]


def test_an_export_for_other_programs_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.pt2").write_bytes(b"PK")
    with pytest.raises(CheckpointError, match="for programs without stripseg"):
        stripseg.load(tmp_path / "a.pt2")


def test_an_image_that_cannot_be_read_need_not_end_the_others(
    segmenter: stripseg.TrainedNetwork, photo: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.jpg").write_bytes(b"no image")
    (tmp_path / "b.jpg").write_bytes(photo.read_bytes())
    told: list[DataError] = []
    found = list(segmenter.predict(tmp_path, together=2, on_error=told.append))
    assert [prediction.path.name for prediction in found] == ["b.jpg"]
    assert "a.jpg" in str(told[0])
    with pytest.raises(DataError, match=r"a\.jpg"):
        list(segmenter.predict(tmp_path))


def test_numeric_settings_of_the_caller_are_kept(segmenter, photo: Path) -> None:
    """TF32 and cuDNN's search are ours inside a prediction alone."""
    torch.backends.cudnn.allow_tf32, before = True, torch.backends.cudnn.allow_tf32
    try:
        segmenter.predict(photo)
        assert torch.backends.cudnn.allow_tf32
    finally:
        torch.backends.cudnn.allow_tf32 = before


def test_a_card_of_others_may_lack_figures(segmenter: stripseg.TrainedNetwork) -> None:
    card = replace(segmenter.card, figures={"val": {"mIoU": "high"}}, data={"images": 3})
    assert any("mIoU high" in line for line in card.lines())


def test_a_finished_run_of_other_options_is_not_returned(
    small_shapes: Path, tmp_path: Path
) -> None:
    given = options(small_shapes, tmp_path)
    first = stripseg.train(given, device="cpu", epochs=1)
    assert stripseg.train(given, device="cpu", epochs=1).figures == first.figures
    with pytest.raises(TrainingError, match=r"finished, with another TRAIN\.base_lr .*fresh=True"):
        stripseg.train(given, device="cpu", epochs=1, base_lr=0.5)
    assert yaml.safe_load((first.folder / "config.yaml").read_text())["TRAIN"]["base_lr"] != 0.5
    again = stripseg.train(given, device="cpu", epochs=1, base_lr=0.5, fresh=True)
    assert again.config.TRAIN.base_lr == 0.5
    assert len(list(first.folder.parent.glob("model-until-*"))) == 1


def test_options_of_a_test_are_those_of_testing(segmenter: stripseg.TrainedNetwork) -> None:
    assert segmenter.test(batch_size=1, test__precision="fp32").mean_iou >= 0
    for wrong in ("classes", "epochs", "arch"):
        with pytest.raises(ConfigError, match=f"{wrong}: is not an option of a test"):
            segmenter.test(**{wrong: 5})


def test_options_of_runs_are_not_the_networks() -> None:
    for name in ("zoom_factor", "epochs", "aux_weight"):
        with pytest.raises(ConfigError, match=f"{name}: is not an option of create_model"):
            stripseg.create_model("fcn", classes=2, **{name: 4})


def test_pil_images_are_read_like_their_files(
    segmenter: stripseg.TrainedNetwork, photo: Path, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = tmp_path / "turned.jpg"
    Image.open(photo).crop((0, 0, 60, 40)).save(turned, exif=exif, quality=95)
    expected = segmenter.predict(turned)
    assert expected.mask.shape == (60, 40)
    np.testing.assert_array_equal(segmenter.predict(Image.open(turned)).image, expected.image)


def test_results_may_lie_beside_the_images(
    run: stripseg.TrainingResult, photo: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.jpg").write_bytes(photo.read_bytes())
    words = [str(run.best), str(tmp_path), "--output", str(tmp_path), "--device", "cpu"]
    assert predict_tool.main(words).exit_code == 0
    assert predict_tool.main(words).exit_code == 0
    assert len(list(tmp_path.iterdir())) == 4
