"""Classification is a second task of the same trainer: resume, processes, figures, commands."""

import json
import re
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
import torch
from processes import run_command
from torch.nn import functional as F
from yamls import SHIPPED

from stripseg.config.errors import CheckpointError, ConfigError, DataError
from stripseg.config.load import load_config
from stripseg.config.schema import TrainSection
from stripseg.dataset.classification.build import build_evaluation_images
from stripseg.dataset.generated.shapes10 import CLASSES
from stripseg.dataset.segmentation import Sample
from stripseg.model.build import build_network, build_segmenter
from stripseg.model.segmenter import SegmenterOutput
from stripseg.model.weights import load_weights
from stripseg.tool import browse, summary, test
from stripseg.training_run import build_trainer
from stripseg.util.inference.classification import (
    ClassificationEvaluator,
    ClassificationScores,
    classification_table,
)
from stripseg.util.training.losses import SegmentationLoss
from stripseg.util.training.optimizer import lr_at

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parent.parent
CLASSIFIERS = [p for p in SHIPPED if load_config(p).classifies]


def trained(config: Path, *overrides: str, until: int | None = None) -> dict:
    trainer = build_trainer(load_config(config, overrides), CPU)
    trainer.fit(until=until)
    return torch.load(trainer.checkpoints.last, weights_only=True)


def run_tool(tool: str, config: Path, *overrides: str, processes: int = 1) -> CompletedProcess:
    words = ["--config", str(config), *overrides]
    return run_command(f"stripseg.tool.{tool}", *words, processes=processes)


def test_the_commands_report_everything(classifier_config: Path, tmp_path: Path) -> None:
    done = run_tool("train", classifier_config)
    assert done.returncode == 0, done.stderr
    assert re.search(r"epoch 2 train top1/mAcc 0\.\d+/0\.\d+", done.stdout)
    assert re.search(r"epoch 2 val top1/top5/loss 0\.\d+/0\.\d+/\d", done.stdout)
    done = run_tool("test", classifier_config)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "run/result/metrics.json").read_text())
    assert figures["images"] == np.sum(figures["confusion"]) == 13
    assert [entry["name"] for entry in figures["classes"]] == list(CLASSES)
    assert figures["top1"] == pytest.approx(np.trace(figures["confusion"]) / 13)
    assert f"top1/top5/loss {figures['top1']:.4f}/{figures['top5']:.4f}" in done.stdout
    assert "broken wire" in done.stdout


def test_it_learns(classifier_config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen pictures by heart."""
    overrides = ["TRAIN.epochs", "12", "TRAIN.milestones", "[10]", "TRAIN.optimizer", "adam"]
    overrides += [
        "TRAIN.base_lr",
        "0.001",
        "TRAIN.width",
        "0.25",
        "TRAIN.crop_padding",
        "0",
        "TRAIN.train_h",
        "32",
    ]
    overrides += ["TRAIN.train_w", "32", "TRAIN.evaluate", "False", "TRAIN.flip_probability", "0"]
    trainer = build_trainer(load_config(classifier_config, overrides), CPU)
    said = []
    monkeypatch.setattr(trainer.run_log.log, "info", said.append)
    trainer.fit()
    losses = [float(re.search(r"loss (\S+)", line)[1]) for line in said if " loss " in line]
    assert np.mean(losses[-3:]) < 0.4 * np.mean(losses[:3])


class Fixed(torch.nn.Module):
    """Logits that the image's first pixels hold."""

    def forward(self, image: torch.Tensor):
        return SegmenterOutput(image[:, 0, 0, :7] / 10, None)


@pytest.mark.parametrize("images_per_batch", [1, 4, 50])
def test_figures_against_a_plain_count(images_per_batch: int) -> None:
    rng = np.random.default_rng(1)
    images = rng.permuted(np.tile(np.arange(0, 70, 2, dtype=np.uint8)[:28], (30, 1)), axis=1)
    images = np.repeat(images.reshape(30, 1, 28, 1), 3, axis=3)
    labels = rng.integers(0, 7, 30)
    samples = [Sample(images[i], labels[i, ...], str(i), i) for i in range(30)]
    evaluator = ClassificationEvaluator(
        Fixed(),
        classes=7,
        prepare=torch.Tensor.float,
        device=CPU,
        images_per_batch=images_per_batch,
    )
    evaluator.run(samples)
    scores = evaluator.scores()
    logits = images[:, 0, :7, 0] / 10
    order = np.argsort(-logits, axis=1)
    assert scores.top1 == pytest.approx((order[:, 0] == labels).mean())
    assert scores.top5 == pytest.approx((order[:, :5] == labels[:, None]).any(1).mean())
    loss = F.cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels)).item()
    assert scores.loss == pytest.approx(loss, rel=1e-5)
    confusion = np.zeros((7, 7), int)
    np.add.at(confusion, (labels, order[:, 0]), 1)
    assert np.array_equal(scores.confusion, confusion)
    assert scores.images == tuple(np.bincount(labels, minlength=7))
    present = confusion.sum(1) > 0
    assert np.array(scores.accuracy)[present] == pytest.approx(
        confusion.diagonal()[present] / confusion.sum(1)[present]
    )


def test_the_table_shows_what_was_taken_for_what() -> None:
    scores = ClassificationScores(0.75, 1.0, 0.5, (0.5, 1.0), ((1, 1), (0, 2)))
    lines = classification_table(scores, ["cat", "dog"]).splitlines()
    assert lines[1].split() == ["0", "cat", "0.5000", "2"]
    assert [line.split() for line in lines[4:7]] == [["0", "1"], ["0", "1", "1"], ["1", "0", "2"]]
    assert lines[-1] == "top1/top5/loss 0.7500/1.0000/0.5000"


def test_labels_of_images_and_of_pixels_have_the_same_loss() -> None:
    torch.manual_seed(0)
    logits, label = torch.randn(6, 5), torch.tensor([0, 1, -1, 4, 2, 3])
    for smoothing, weights in ((0.0, None), (0.1, None), (0.0, torch.rand(5) + 0.5)):
        loss = SegmentationLoss(
            ignore_label=-1, label_smoothing=smoothing, class_weights=weights, auxiliary_weight=0
        )
        total, main, second = loss(logits, None, label)
        kept = label >= 0
        expected = F.cross_entropy(logits[kept], label[kept], weights, label_smoothing=smoothing)
        torch.testing.assert_close(total, expected)
        as_pixels = loss(logits[:, :, None, None], None, label[:, None, None])[0]
        torch.testing.assert_close(total, as_pixels)
        assert (main, second) == (total, 0)


def lrs(epochs: int = 10, steps: int = 4, **options) -> list[float]:
    train = TrainSection.model_construct(epochs=epochs, base_lr=1.0, **options)
    return [lr_at(train, step, steps) for step in range(epochs * steps)]


def test_schedules() -> None:
    step = lrs(schedule="step", milestones=(5, 8))
    assert step == pytest.approx([1.0] * 20 + [0.1] * 12 + [0.01] * 8)
    cosine = lrs(schedule="cosine")
    assert cosine[0] == 1
    assert cosine[20] == pytest.approx(0.5)
    assert 0 < cosine[-1] < 0.01
    assert lrs() == pytest.approx([(1 - i / 40) ** 0.9 for i in range(40)])
    for schedule in ("poly", "cosine"):
        warm = lrs(schedule=schedule, warmup_epochs=2)
        assert warm[:8] == pytest.approx([(i + 1) / 8 for i in range(8)])
        assert warm[8:] == pytest.approx(lrs(epochs=8, schedule=schedule))
    warm = lrs(schedule="step", milestones=(5,), warmup_epochs=1)
    assert warm[:5] == pytest.approx([0.25, 0.5, 0.75, 1, 1])
    assert warm[19:21] == pytest.approx([1, 0.1])


@pytest.mark.parametrize("path", CLASSIFIERS, ids=lambda path: path.stem)
def test_every_shipped_config_takes_a_step(path: Path) -> None:
    config = load_config(path, ["TRAIN.width", "0.125"])
    torch.manual_seed(0)
    network = build_network(config)
    logits, auxiliary = network(torch.randn(2, 3, 32, 32))
    assert logits.shape == (2, config.DATA.classes)
    assert auxiliary is None
    loss, _, _ = SegmentationLoss()(logits, auxiliary, torch.tensor([0, 9]))
    loss.backward()
    assert loss.isfinite()
    assert network.backbone.stem[0].weight.grad.abs().sum() > 0
    assert all(p.grad is not None for p in network.parameters())  # none is without use


def test_the_recipe_is_the_studys() -> None:
    train = load_config(ROOT / "config/cifar10/cifar10_resnet34_strip_pool.yaml").TRAIN
    assert (train.backbone, train.attention, train.stem) == ("resnet34", "strip_pool", "cifar")
    assert (train.optimizer, train.base_lr, train.momentum) == ("sgd", 0.1, 0.9)
    assert (train.weight_decay, train.batch_size, train.epochs) == (5e-4, 128, 200)
    assert (train.schedule, train.milestones, train.rate_decay) == ("step", [100, 150], 0.1)
    assert (train.crop_padding, train.train_h, train.flip_probability) == (4, 32, 0.5)


def test_its_weights_start_a_segmenter(classifier_config: Path, small_config: Path) -> None:
    """The checkpoint of a classifier is `TRAIN.pretrained` as it is."""
    classifier = ["TRAIN.stem", "deep", "TRAIN.attention", "none"]
    content = trained(classifier_config, *classifier, until=1)
    last = load_config(classifier_config).TRAIN.save_path + "/last.pth"
    overrides = ["TRAIN.pretrained", last, "TRAIN.resume", "none"]
    segmenter = build_trainer(load_config(small_config, overrides), CPU).segmenter
    for key, value in segmenter.backbone.state_dict().items():
        if ".strip_pooling." not in key:
            assert torch.equal(value, content["state_dict"][f"backbone.{key}"]), key


def test_a_checkpoint_knows_its_network(classifier_config: Path) -> None:
    trained(classifier_config, until=1)
    with pytest.raises(CheckpointError, match="TRAIN.attention .*, and now it is gct"):
        test.main(["--config", str(classifier_config), "TRAIN.attention", "gct"])


def test_another_class_count_leaves_the_classifier_new(classifier_config: Path) -> None:
    content = trained(classifier_config, until=1)
    network = build_network(load_config(classifier_config, ["DATA.classes", "7"]))
    report = load_weights(network, content, origin="ten classes", exact=False)
    assert report.new == ["classifier.weight", "classifier.bias"]
    with pytest.raises(CheckpointError, match="another class count: check DATA.classes"):
        load_weights(network, content, origin="ten classes", exact=True)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["TRAIN.loss", "ohem"], "TRAIN.loss ohem does not go with TRAIN.arch classifier"),
        (["TEST.split", "test"], "TEST.split test does not go with TRAIN.arch classifier"),
        (["DATA.packed", "x"], "DATA.packed x does not go with TRAIN.arch classifier"),
        (["TRAIN.mixup", "0.2", "TRAIN.arch", "fcn"], "TRAIN.mixup 0.2 mixes .* whole images"),
        (["TRAIN.schedule", "poly"], "TRAIN.schedule poly and TRAIN.milestones"),
        (["TRAIN.milestones", "[]"], "`step` needs milestones"),
        (["TRAIN.warmup_epochs", "2"], "TRAIN.warmup_epochs 2 must be fewer than TRAIN.epochs 2"),
        (["TRAIN.crop_area", "[0.5, 0.1]"], "the first share must not be above the second"),
        (["TRAIN.arch", "classifer"], "TRAIN.arch must be one of .*did you mean classifier"),
    ],
)
def test_mistakes_in_options(classifier_config: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_segmenter(load_config(classifier_config, overrides))


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["DATA.classes", "7"], ConfigError, "DATA.classes is 7, and the train images of"),
        (["DATA.in_channels", "1", "DATA.mean", "[1]", "DATA.std", "[1]"], ConfigError, "are RGB"),
        (["TRAIN.train_h", "40"], ConfigError, "must be at most 36, CIFAR's images"),
        (["TRAIN.output_stride", "16"], ConfigError, "'cifar' has output_stride 8, not 16"),
        (["TRAIN.backbone", "pyconvresnet18"], ConfigError, "goes with resnet18"),
        (["TRAIN.batch_size", "25"], DataError, "has 24 images, fewer than one batch of 25"),
    ],
)
def test_mistakes_that_the_data_shows(
    classifier_config: Path, overrides: list[str], error: type, message: str
) -> None:
    with pytest.raises(error, match=message):
        build_trainer(load_config(classifier_config, overrides), CPU)


def test_commands_of_segmentation_say_so(classifier_config: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="names the class of a whole image; this needs a segm"):
        browse.main(["--config", str(classifier_config)])
    with pytest.raises(DataError, match="holds neither cifar-10-batches-py nor .* nor train/CLASS"):
        build_trainer(load_config(classifier_config, ["DATA.data_root", str(tmp_path)]), CPU)


def test_every_image_is_tested_as_it_is(classifier_config: Path) -> None:
    images = build_evaluation_images(load_config(classifier_config), "val")
    assert len(images) == 13
    assert images[4].image.shape == (32, 32, 3)  # whatever the training crop


def test_the_summary_counts_a_classifier(capsys) -> None:
    summary.main(["cifar10", "resnet18_strip_pool"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[6].split() == ["classifier", "10", "32", "all", "5,130", "0.00", "0.0", "MB"]
    assert "16,057,802" in lines[-1]


def test_a_batch_size_is_found(classifier_config: Path) -> None:
    trainer = build_trainer(load_config(classifier_config, ["TRAIN.batch_size", "auto"]), CPU)
    assert 2 <= trainer.loader.batch_size <= 24
