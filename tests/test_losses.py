"""Losses over the labelled pixels of the global batch."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import run_processes
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from stripseg.config.load import load_config
from stripseg.util.distributed import process_group
from stripseg.util.training.losses import (
    MANY_CLASSES,
    SegmentationLoss,
    balanced_class_weights,
    boundary_nearness,
    jaccard_slopes,
    loss_of,
    subsample_label,
)

WEIGHTS = {"class_weights": torch.tensor([0.5, 2.0, 1.0, 3.0])}
OHEM = {"terms": {"ohem": 1}}
OPTIONS = {
    "cross entropy": {},
    "class weights": WEIGHTS,
    "ohem": {**OHEM, "ohem_threshold": 0.3, "ohem_min_kept": 40},
    "ohem, few hard": {**OHEM, "ohem_threshold": 0.01, "ohem_min_kept": 25},
    "ohem, one pixel": {**OHEM, "ohem_threshold": 1e-9, "ohem_min_kept": 1},
    "ohem, threshold alone": {**OHEM, "ohem_threshold": 0.2, "ohem_min_kept": 0},
    "ohem, weights": {**OHEM, **WEIGHTS, "ohem_threshold": 0.2, "ohem_min_kept": 30},
    "focal": {"terms": {"focal": 1}},
    "focal, weights": {"terms": {"focal": 1}, **WEIGHTS, "focal_gamma": 0.5},
    "boundary": {"terms": {"boundary": 1}, "boundary_width": 2},
    "boundary, weights": {
        "terms": {"boundary": 1},
        **WEIGHTS,
        "boundary_width": 3,
        "boundary_weight": 1.5,
    },
    "dice": {"terms": {"dice": 1}},
    "lovasz": {"terms": {"lovasz": 1}},
    "sum": {"terms": {"cross_entropy": 1, "dice": 0.5, "lovasz": 0.25, "focal": 2, "boundary": 1}},
}
PROCESSES = ["cross entropy", "class weights", "ohem, few hard", "boundary, weights", "sum"]


def batch(count: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, auxiliary logits and labels; the images have 7, 5 and 2 labelled rows of 9."""
    generator = torch.Generator().manual_seed(8)
    logits, auxiliary = (torch.randn(count, 4, 9, 8, generator=generator) * 2 for _ in range(2))
    label = torch.randint(4, (count, 9, 8), generator=generator)
    for image, rows in zip(label, (7, 5, 2), strict=False):
        image[rows:] = 255
    return logits, auxiliary, label


def reference(logits: Tensor, label: Tensor, **options) -> Tensor:
    """The weighted sum of the definitions, on the labelled pixels in a row, in double."""
    by_name = {"dice": dice, "lovasz": lovasz, "focal": focal, "boundary": boundary}
    terms = options.get("terms", {"cross_entropy": 1})
    return sum(
        weight * by_name.get(name, entropy)(logits.double(), label, options)
        for name, weight in terms.items()
    )


def flat(logits: Tensor, label: Tensor, options: dict) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities (P,K), labels (P,) and class weights (P,) of the labelled pixels."""
    valid = label != 255
    probability, truth = logits.permute(0, 2, 3, 1)[valid].softmax(1), label[valid]
    return probability, truth, options.get("class_weights", torch.ones(4)).double()[truth]


def dice(logits: Tensor, label: Tensor, options: dict) -> Tensor:
    probability, truth, _ = flat(logits, label, options)
    found = []
    for index in truth.unique().tolist():
        p, y = probability[:, index], (truth == index).double()
        found.append(1 - 2 * (p * y).sum() / (p.sum() + y.sum()))
    return torch.stack(found).mean()


def lovasz(logits: Tensor, label: Tensor, options: dict) -> Tensor:
    """The Jaccard loss as a function of the set of wrong pixels, extended pixel by pixel."""
    images = []
    for one, truth in zip(logits, label, strict=True):
        probability, truth, _ = flat(one[None], truth[None], options)
        classes = []
        for index in truth.unique().tolist():
            positives = set((truth == index).nonzero().flatten().tolist())
            errors = ((truth == index).double() - probability[:, index]).abs().tolist()
            wrong, before, total = set(), 0.0, 0.0
            for pixel in sorted(range(len(errors)), key=lambda pixel: -errors[pixel]):
                wrong.add(pixel)
                jaccard = len(wrong) / len(wrong | positives)
                total += errors[pixel] * (jaccard - before)
                before = jaccard
            classes.append(total)
        images.append(sum(classes) / len(classes))
    return torch.tensor(sum(images) / len(images))


def focal(logits: Tensor, label: Tensor, options: dict) -> Tensor:
    probability, truth, weights = flat(logits, label, options)
    true = probability[torch.arange(len(truth)), truth]
    each = -((1 - true) ** options.get("focal_gamma", 2)) * true.log()
    return (weights * each).sum() / weights.sum()


def boundary(logits: Tensor, label: Tensor, options: dict) -> Tensor:
    width, gain = options.get("boundary_width", 5), options.get("boundary_weight", 4)
    probability, truth, weights = flat(logits, label, options)
    near = []
    for n, y, x in (label != 255).nonzero().tolist():  # in the order of `flat`
        others = ((label[n] != 255) & (label[n] != label[n, y, x])).nonzero()
        distance = (others - torch.tensor([y, x])).abs().amax(1).min().item()
        near.append(1 + gain * max(0, 1 - (distance - 1) / width))
    weights = weights * torch.tensor(near)
    return -(weights * probability[torch.arange(len(truth)), truth].log()).sum() / weights.sum()


def entropy(logits: Tensor, label: Tensor, options: dict) -> Tensor:
    """Cross entropy, or OHEM."""
    valid = label != 255
    pixels, truth = logits.permute(0, 2, 3, 1)[valid], label[valid]
    if "ohem_threshold" in options:
        probability = pixels.softmax(1)[torch.arange(len(truth)), truth]
        kept = options["ohem_min_kept"]
        limit = float("inf")
        if len(probability) > kept:
            limit = options["ohem_threshold"]
            if kept:
                limit = max(limit, probability.sort().values[kept - 1].item())
        pixels, truth = pixels[probability <= limit], truth[probability <= limit]
    weights = options.get("class_weights", torch.ones(4))[truth]
    each = -pixels.log_softmax(1)[torch.arange(len(truth)), truth]
    return (each * weights).sum() / weights.sum()


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_loss_is_its_definition(options: dict):
    logits, auxiliary, label = batch()
    total, main, second = SegmentationLoss(auxiliary_weight=0.4, **options)(
        logits, auxiliary, label
    )
    assert main.item() == pytest.approx(reference(logits, label, **options).item(), rel=1e-5)
    assert second.item() == pytest.approx(reference(auxiliary, label, **options).item(), rel=1e-5)
    assert total.item() == pytest.approx(main.item() + 0.4 * second.item(), rel=1e-6)


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format], ids=str)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_many_classes_are_no_other_loss(options: dict, memory_format: torch.memory_format):
    """They are computed pixel by pixel; classes that no pixel can have change nothing."""
    logits, _, label = batch()
    many = F.pad(logits, (0, 0, 0, 0, 0, MANY_CLASSES), value=-1e4)
    many = many.contiguous(memory_format=memory_format).requires_grad_()
    padded = dict(options)
    if "class_weights" in options:
        padded["class_weights"] = F.pad(options["class_weights"], (0, MANY_CLASSES), value=7.0)
    few = logits.requires_grad_()
    losses = [
        SegmentationLoss(**options)(few, None, label)[0],
        SegmentationLoss(**padded)(many, None, label)[0],
    ]
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=1e-6)
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(many.grad[:, :4], few.grad)
    assert not many.grad[:, 4:].any()


def test_cross_entropy_is_pytorchs():
    logits, _, label = batch()
    total, _, second = SegmentationLoss()(logits, None, label)
    assert total.item() == pytest.approx(F.cross_entropy(logits, label, ignore_index=255).item())
    assert second == 0


def test_fewer_pixels_than_must_be_kept_are_all_kept():
    logits, _, label = batch()
    ohem = SegmentationLoss({"ohem": 1}, ohem_threshold=0.1, ohem_min_kept=10_000)
    ohem = ohem(logits, None, label)[0]
    assert ohem.item() == pytest.approx(SegmentationLoss()(logits, None, label)[0].item(), rel=1e-6)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_batch_without_labels_gives_zero_and_zero_gradients(options: dict):
    logits, auxiliary, label = batch()
    logits.requires_grad_()
    total, _, _ = SegmentationLoss(**options)(logits, auxiliary, torch.full_like(label, 255))
    total.backward()
    assert total == 0
    assert not logits.grad.any()


def share(options: dict) -> tuple[Tensor, Tensor]:
    """This process's gradient and loss; two images and one, with uneven labels."""
    logits, auxiliary, label = batch()
    mine = slice(0, 2) if process_group.rank() == 0 else slice(2, 3)
    logits = logits[mine].clone().requires_grad_()
    total, _, _ = SegmentationLoss(**options)(logits, auxiliary[mine], label[mine])
    total.backward()
    return logits.grad, total


@pytest.mark.parametrize("name", PROCESSES)
def test_two_processes_make_the_step_of_one(name: str):
    """DistributedDataParallel averages: half the sum of both gradients is the global one."""
    logits, auxiliary, label = batch()
    logits.requires_grad_()
    total, _, _ = SegmentationLoss(**OPTIONS[name])(logits, auxiliary, label)
    total.backward()
    (first, loss_1), (second, loss_2) = run_processes(2, share, OPTIONS[name])
    both = torch.cat([torch.as_tensor(first), torch.as_tensor(second)]) / 2
    torch.testing.assert_close(both, logits.grad, rtol=1e-5, atol=1e-8)
    assert (loss_1 + loss_2) / 2 == pytest.approx(total.item(), rel=1e-6)


def test_labels_are_subsampled_at_aligned_corners():
    label = torch.arange(17 * 9).view(1, 17, 9)
    assert torch.equal(subsample_label(label, (9, 5)), label[:, ::2, ::2])
    assert torch.equal(subsample_label(label, (17, 9)), label)


def test_labels_are_subsampled_between_pixels():
    """Each in the middle of the pixels that a logit stands for, or beside it."""
    label = torch.arange(16 * 12).view(1, 16, 12)
    half = subsample_label(label, (8, 6), align_corners=False)
    assert torch.equal(half, label[:, 1::2, 1::2])
    third = subsample_label(label, (16, 4), align_corners=False)
    assert torch.equal(third, label[:, :, 1::3])


def test_subsampling_invents_no_label():
    label = torch.tensor([[[0, 0, 3, 3, 255, 255]]])
    assert set(subsample_label(label, (1, 4)).flatten().tolist()) <= {0, 3, 255}


def test_rare_classes_weigh_more_and_absent_ones_one():
    weights = balanced_class_weights(torch.tensor([900, 90, 10, 0]))
    assert weights[0] < weights[1] < weights[2]
    assert weights[3] == 1
    assert weights[:3].mean() == pytest.approx(1)


def test_class_weights_are_enets():
    pixels = torch.tensor([750, 250])
    enet = 1 / torch.log(1.02 + torch.tensor([0.75, 0.25]))
    torch.testing.assert_close(balanced_class_weights(pixels), enet / enet.mean())


def test_no_pixel_at_all_gives_even_weights():
    assert balanced_class_weights(torch.zeros(3)).tolist() == [1, 1, 1]


class Waits(TorchDispatchMode):
    """Collects the operations for which a GPU would make the host wait."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        by_mask = name in ("index", "index_put_") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        # the last one stands for a tensor that is made from a Python number
        if by_mask or name in ("nonzero", "_local_scalar_dense", "masked_select", "lift_fresh"):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"class_weights": torch.tensor([1.0, 2.0, 0.5])},
        {**OHEM, "ohem_threshold": 0.6, "ohem_min_kept": 5},
        {**OHEM, "ohem_threshold": 0.6, "ohem_min_kept": 0},
        {**OHEM, "ohem_threshold": 0.6, "class_weights": torch.tensor([1.0, 2.0, 0.5])},
        {**OPTIONS["sum"], "class_weights": torch.tensor([1.0, 2.0, 0.5])},
    ],
    ids=["plain", "weights", "ohem", "ohem, threshold alone", "ohem, weights", "sum"],
)
def test_no_loss_waits_for_the_device(options: dict) -> None:
    """In any step but the first, which moves the class weights."""
    loss = SegmentationLoss(**options)
    logits = torch.randn(2, 3, 6, 6, requires_grad=True)
    label = torch.randint(0, 3, (2, 6, 6))
    label[:, 0] = 255
    loss(logits, logits, label)
    with Waits() as waits:
        loss(logits, logits, label)[0].backward()
    assert waits.found == []


def test_a_wait_is_found() -> None:
    x = torch.randn(3)
    with Waits() as waits:
        x[x > 0].sum().item()
        x.new_tensor(0.5)
    assert waits.found == ["index", "_local_scalar_dense", "lift_fresh"]


def test_ohem_and_class_weights_by_their_definition() -> None:
    """Pixel by pixel, in double."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 4, 5, 7, generator=generator, dtype=torch.float64)
    label = torch.randint(0, 4, (2, 5, 7), generator=generator)
    label[0, :2] = 255
    weights = torch.tensor([1.0, 0.25, 3.0, 2.0], dtype=torch.float64)
    for threshold, least in ((0.2, 0), (0.2, 30), (0.9, 3), (0.01, 1000)):
        pixels = []
        for n, y, x in np.ndindex(2, 5, 7):
            if (k := int(label[n, y, x])) != 255:
                probability = logits[n, :, y, x].softmax(0)[k].item()
                pixels.append((probability, weights[k].item()))
        pixels.sort()
        kth = pixels[least - 1][0] if 0 < least < len(pixels) else (0 if least == 0 else 1)
        hard = [(p, w) for p, w in pixels if p <= max(threshold, kth)]
        expected = -sum(w * math.log(p) for p, w in hard) / sum(w for _, w in hard)
        loss = SegmentationLoss(
            {"ohem": 1}, class_weights=weights, ohem_threshold=threshold, ohem_min_kept=least
        )
        assert loss(logits, None, label)[0].item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", ["focal, weights", "boundary, weights", "dice", "lovasz"])
def test_gradients_are_those_of_the_values(name: str) -> None:
    """By finite differences, in double; between two pixels that change places Lovász has a kink."""
    logits, _, label = batch(2)
    logits, label = logits[..., :6, :5].double().requires_grad_(), label[:, 2:8, :5]
    options = dict(OPTIONS[name])
    if "class_weights" in options:
        options["class_weights"] = options["class_weights"].double()
    loss = SegmentationLoss(**options)
    assert torch.autograd.gradcheck(lambda x: loss(x, None, label)[0], logits, eps=1e-7, atol=1e-5)


def test_perfect_and_worst_predictions() -> None:
    label = batch()[2]
    right = F.one_hot(label.clamp(max=3), 4).movedim(-1, 1) * 200.0
    for terms in ({"dice": 1}, {"lovasz": 1}, {"focal": 1}, {"boundary": 1}):
        loss = SegmentationLoss(terms)
        assert loss(right, None, label)[0] == pytest.approx(0, abs=1e-6)
        logits = right.roll(1, dims=1).requires_grad_()
        value = loss(logits, None, label)[0]
        value.backward()
        assert logits.grad.isfinite().all()
        assert value > 0.99


def test_a_focal_exponent_of_zero_is_cross_entropy() -> None:
    logits, _, label = batch()
    focal_loss = SegmentationLoss({"focal": 1}, focal_gamma=0.0)(logits, None, label)[0]
    assert focal_loss.item() == pytest.approx(SegmentationLoss()(logits, None, label)[0].item())


def test_boundaries_are_found_across_ignored_pixels() -> None:
    label = torch.tensor([[[0, 0, 0, 255, 1, 1, 1, 1]]])
    near = boundary_nearness(label, label != 255, 4)
    expected = [0.25, 0.5, 0.75, 0, 0.75, 0.5, 0.25, 0]  # distances 4, 3, 2 and 2, 3, 4, 5
    torch.testing.assert_close(near, torch.tensor([[expected]]))


def test_dice_is_segmentation_models_pytorchs() -> None:
    """Which averages over all classes, present or not; here all are."""
    losses = pytest.importorskip("segmentation_models_pytorch.losses")
    logits, _, label = batch()
    theirs = losses.DiceLoss("multiclass", ignore_index=255)(logits, label)
    ours = SegmentationLoss({"dice": 1})(logits, None, label)[0]
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)


def test_lovasz_is_segmentation_models_pytorchs() -> None:
    """Value and gradient, of each image over the classes in it: the last one is nowhere."""
    losses = pytest.importorskip("segmentation_models_pytorch.losses")
    logits, _, label = batch()
    label[label == logits.shape[1] - 1] = 0
    theirs = logits.clone().requires_grad_()
    expected = losses.LovaszLoss("multiclass", per_image=True, ignore_index=255)(theirs, label)
    expected.backward()
    ours = logits.clone().requires_grad_()
    found = SegmentationLoss({"lovasz": 1})(ours, None, label)[0]
    found.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-6)


def test_lovasz_slopes_of_many_pixels_keep_their_digits() -> None:
    """As in float64, of a class of half of 200,000 pixels."""
    truth = torch.rand(1, 200_000, generator=torch.Generator().manual_seed(1)) < 0.5
    slopes = [jaccard_slopes(truth, dtype).double() for dtype in (torch.float32, torch.float64)]
    torch.testing.assert_close(*slopes, rtol=1e-6, atol=0)
    assert slopes[1].sum().item() == pytest.approx(1)  # all wrong: the whole loss


@pytest.mark.parametrize("name", ["cross_entropy", "ohem"])
def test_smoothed_labels_with_class_weights_are_pytorchs(name: str) -> None:
    """OHEM takes all pixels here."""
    logits, _, label = batch()
    weights = torch.linspace(0.5, 2, logits.shape[1])
    loss = SegmentationLoss(
        {name: 1}, class_weights=weights, label_smoothing=0.1, ohem_min_kept=label.numel()
    )
    options = {"ignore_index": 255, "label_smoothing": 0.1}
    expected = F.cross_entropy(logits, label, weights, **options)
    assert loss(logits, None, label)[0].item() == pytest.approx(expected.item(), rel=1e-5)


def test_lovasz_keeps_little_for_the_backward_pass() -> None:
    """Not a sorted copy of every class: twice the probabilities, as they and their slopes take."""
    logits = torch.randn(1, 12, 40, 40, requires_grad=True)
    label = torch.randint(12, (1, 40, 40))
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        SegmentationLoss({"lovasz": 1})(logits, None, label)
    assert sum(kept.values()) < 2.1 * logits.numel() * 4


def test_labels_lie_as_the_networks_logits_do(small_config: Path) -> None:
    """Labels of one class a row; logits of half the size that know the second of two rows."""
    label = torch.arange(4).repeat_interleave(2).flip(0).view(1, 8, 1).expand(1, 8, 8).clone()
    label[:, ::2] = 3
    logits = 50 * F.one_hot(label[:, 1::2, 1::2], 4).permute(0, 3, 1, 2).float()
    losses = [
        loss_of(load_config(small_config, ["TRAIN.align_corners", word]))(logits, None, label)[0]
        for word in ("False", "True")
    ]
    assert losses[0] < 1e-3 < losses[1]


def test_what_is_not_said_is_the_configs_default(small_config: Path) -> None:
    plain, configured = vars(SegmentationLoss()), vars(loss_of(load_config(small_config)))
    assert {k: v for k, v in plain.items() if k != "terms"} == {
        k: v for k, v in configured.items() if k != "terms"
    }
    assert [weight for _, weight in plain["terms"]] == [1.0]
