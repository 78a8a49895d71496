"""Sliding window, figures, losses, schedules and label maps against the authors'."""

import numpy as np
import torch
from torch import Tensor, nn

from stripseg.dataset.description import describe, raw_to_train_table
from stripseg.util.inference.sliding_window import InferenceSettings, SlidingWindow
from stripseg.util.metrics import ConfusionMatrix
from stripseg.util.training.losses import SegmentationLoss
from stripseg.util.training.optimizer import poly, step_decay

from .fixture import Errors, Fixture, UnknownFixtureError, apart, classes_differ, relative, sliced

# class weights of SPNet's OHEM loss, which it uses unless told not to
CITYSCAPES_WEIGHTS = (
    "0.8373 0.918 0.866 1.0345 1.0166 0.9969 0.9754 1.0489 0.8786 1.0023 "
    "0.9539 0.9843 1.1116 0.9037 1.0865 1.0955 1.0865 1.1529 1.0507"
)


class Strided(nn.Module):
    """A network of the given output stride: every `stride`-th pixel of a convolution."""

    def __init__(self, convolution: nn.Conv2d, stride: int) -> None:
        super().__init__()
        self.convolution, self.stride = convolution, stride

    def forward(self, x: Tensor) -> Tensor:
        return self.convolution(x)[:, :, :: self.stride, :: self.stride]


def check_tester(fixture: Fixture) -> Errors:
    facts, stored = fixture.facts, fixture.arrays
    image = fixture.recipe.make_image(*facts["image"]["shape"][:2])
    weights = {k.removeprefix("fake."): v for k, v in fixture.weights().items()}
    classes, channels, kernel, _ = weights["weight"].shape
    convolution = nn.Conv2d(channels, classes, kernel, padding=kernel // 2)
    convolution.load_state_dict(weights)
    settings = InferenceSettings(
        classes=facts["classes"],
        window=tuple(facts["crop"]),
        base_size=facts["base_size"],
        scales=facts["scales"],
        flip=facts["flip"],
        mean=facts["mean"],
        std=facts["std"],
    )
    network = Strided(convolution, facts.get("fake_stride", 1)).eval()
    tester = SlidingWindow(network, settings)
    probabilities = tester.probabilities(image)
    part = sliced(probabilities.permute(1, 2, 0), facts["slicing"])
    yield "probabilities", apart(part, stored["prob"])
    yield "classes", classes_differ(probabilities, 0, stored["argmax"], 1e-5)


def check_figures(fixture: Fixture) -> Errors:
    """Intersection and union of each image, the figures over all, and over some alone."""
    stored, classes = fixture.arrays, fixture.facts["K"]
    ignore = fixture.facts["ignore_index"]
    images = sorted(key.removeprefix("pred_") for key in stored if key.startswith("pred_"))
    total = ConfusionMatrix(classes, ignore_label=ignore)
    for image in images:
        pair = [torch.from_numpy(stored[f"{kind}_{image}"]) for kind in ("pred", "target")]
        single = ConfusionMatrix(classes, ignore_label=ignore)
        for matrix in (single, total):
            matrix.update(*pair)
        hits, labelled, predicted = (
            single.counts.diag(),
            single.counts.sum(1),
            single.counts.sum(0),
        )
        for what, ours in (
            ("intersection", hits),
            ("target_area", labelled),
            ("union", labelled + predicted - hits),
        ):
            wrong = (ours.numpy() != stored[f"{what}_{image}"]).any()
            yield f"{what} of {image}", float("inf") if wrong else 0.0
        if f"mIoU_{image}_only" in stored:
            yield (
                f"mIoU of {image}",
                relative(single.scores().mean_iou, float(stored[f"mIoU_{image}_only"]), 1e-9),
            )
    scores = total.scores()
    for what, ours in (
        ("iou_class", scores.iou),
        ("accuracy_class", scores.accuracy),
        ("mIoU", scores.mean_iou),
        ("mAcc", scores.mean_accuracy),
        ("allAcc", scores.pixel_accuracy),
    ):
        difference = np.abs(np.asarray(ours) - stored[what]).max()
        yield what, float(difference / 1e-9)


def check_loss(fixture: Fixture) -> Errors:
    """Cross entropy or OHEM of stored logits, which may be every n-th pixel of a larger label."""
    stored = fixture.arrays
    facts = {**fixture.facts, **fixture.facts.get("constructor", {})}
    logits = torch.from_numpy(stored["logits"])
    label = torch.from_numpy(stored["target"]).long()
    step = -(-label.shape[-1] // logits.shape[-1])
    ohem = facts.get("thresh")
    weights = facts.get("weight")
    if ohem is not None and weights is None and facts.get("use_weight", True):
        weights = [float(weight) for weight in CITYSCAPES_WEIGHTS.split()]
    loss = SegmentationLoss(
        {"cross_entropy" if ohem is None else "ohem": 1},
        ignore_label=facts.get("ignore_index", facts.get("ignore_label", 255)),
        class_weights=None if weights is None else torch.tensor(weights),
        ohem_threshold=ohem or 0,
        ohem_min_kept=facts.get("min_kept", 100_000),
    )(logits, None, label[:, ::step, ::step])[0]
    expected = stored["loss_strided" if "loss_strided" in stored else "loss"]
    yield "loss", relative(loss.item(), float(expected), 1e-6)


def check_schedule(fixture: Fixture) -> Errors:
    for base_rate, step, total, power, rate in fixture.arrays.get("cases", ()):
        yield "poly", relative(poly(base_rate, int(step), int(total), power), rate, 1e-9)
    for base_rate, epoch, step_epochs, factor, rate in fixture.arrays.get("step_cases", ()):
        ours = step_decay(base_rate, int(epoch) // int(step_epochs), factor)
        yield "step", relative(ours, rate, 1e-9)


def check_label_maps(fixture: Fixture) -> Errors:
    """Where the authors' tables make sense: 8-bit values that the dataset has."""
    known = {"city": "cityscapes", "ade": "ade20k"}
    for key in (key for key in fixture.arrays if key.endswith("_ids")):
        prefix = key.removesuffix("_ids")
        if prefix not in known:
            raise UnknownFixtureError(f"label map {prefix}")
        table = raw_to_train_table(describe(known[prefix]))
        values, expected = fixture.arrays[key], fixture.arrays[f"{prefix}_train"]
        possible = (values >= 0) & (values <= 150)
        wrong = (table[values[possible]] != expected[possible]).any()
        yield known[prefix], float("inf") if wrong else 0.0
