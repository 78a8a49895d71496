"""The confusion matrix against counting in loops; the figures; several processes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from processes import run_processes
from torch import Tensor

from stripseg.config.errors import DataError
from stripseg.util.distributed import process_group
from stripseg.util.metrics import (
    ConfusionMatrix,
    check_prediction,
    counts_by_addition,
    counts_by_bins,
    score_table,
)

MAPS = arrays.arrays(np.uint8, (2, 6, 7), elements=st.sampled_from([0, 1, 2, 3, 255]))


def counted(prediction: np.ndarray, label: np.ndarray, classes: int = 4) -> list[tuple]:
    """(intersection, union, labelled) of each class, pixel by pixel."""
    result = []
    for k in range(classes):
        pixels = [
            (p == k, t == k) for p, t in zip(prediction.flat, label.flat, strict=True) if t != 255
        ]
        both = sum(p and t for p, t in pixels)
        result.append((both, sum(p or t for p, t in pixels), sum(t for _, t in pixels)))
    return result


@settings(max_examples=60, deadline=None)
@given(MAPS, MAPS)
def test_figures_are_counted_pixel_by_pixel(prediction: np.ndarray, label: np.ndarray) -> None:
    prediction = prediction % 4
    matrix = ConfusionMatrix(4)
    for p, t in zip(prediction, label, strict=True):
        matrix.update(torch.from_numpy(p), torch.from_numpy(t))
    scores, expected = matrix.scores(), counted(prediction, label)
    iou = [i / (u + 1e-10) for i, u, _ in expected]
    assert scores.iou == pytest.approx(iou)
    assert scores.mean_iou == pytest.approx(np.mean(iou))
    assert scores.accuracy == pytest.approx([i / (n + 1e-10) for i, _, n in expected])
    assert scores.pixels == tuple(n for _, _, n in expected)
    total = sum(n for _, _, n in expected)
    assert scores.pixel_accuracy == pytest.approx(sum(i for i, _, _ in expected) / (total + 1e-10))
    present = [value for value, (_, u, _) in zip(iou, expected, strict=True) if u]
    assert scores.mean_iou_present == pytest.approx(np.mean(present) if present else 0)


def test_a_perfect_prediction_scores_one() -> None:
    label = torch.tensor([[0, 1, 2], [2, 255, 255]])
    matrix = ConfusionMatrix(3)
    matrix.update(label.clamp(max=2), label)
    scores = matrix.scores()
    assert (scores.mean_iou, scores.mean_accuracy, scores.pixel_accuracy) == pytest.approx(
        (1, 1, 1)
    )


def test_the_prediction_is_not_changed() -> None:
    """The family's own function overwrites it at ignored pixels."""
    prediction = torch.tensor([[0, 1]])
    ConfusionMatrix(2).update(prediction, torch.tensor([[255, 1]]))
    assert prediction.tolist() == [[0, 1]]


def maps(image: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(image)
    return tuple(torch.randint(3, (5, 4 + image), generator=generator) for _ in range(2))


def own_images(count: int) -> Tensor:
    matrix = ConfusionMatrix(3)
    for image in range(process_group.rank(), count, process_group.world_size()):
        matrix.update(*maps(image))
    matrix.reduce()
    return matrix.counts


def test_processes_count_every_image_once() -> None:
    matrix = ConfusionMatrix(3)
    for image in range(5):
        matrix.update(*maps(image))
    for counts in run_processes(2, own_images, 5):
        assert np.array_equal(counts, matrix.counts)


def test_a_saved_prediction_outside_the_classes_is_refused() -> None:
    check_prediction(torch.tensor([[0, 2]]), 3, origin="a.png")
    with pytest.raises(DataError, match="a.png: prediction value 3 is outside the 3 classes"):
        check_prediction(torch.tensor([[0, 3]]), 3, origin="a.png")


def test_table_and_dictionary_name_the_classes() -> None:
    matrix = ConfusionMatrix(2)
    matrix.update(torch.tensor([[0, 1, 1, 1]]), torch.tensor([[0, 0, 1, 1]]))
    scores = matrix.scores()
    rows = score_table(scores, ["road", "sky"]).splitlines()
    assert rows[1].split() == ["0", "road", "0.5000", "0.5000", "2"]
    assert rows[-1].startswith("mIoU/mAcc/allAcc 0.5833/0.7500/0.7500")
    content = scores.as_dict(["road", "sky"])
    assert content["classes"][1] == {
        "index": 1,
        "name": "sky",
        "iou": pytest.approx(2 / 3),
        "accuracy": pytest.approx(1),
        "pixels": 2,
    }


@pytest.mark.parametrize(
    ("prediction", "label", "message"),
    [
        (torch.tensor([0, 3]), torch.tensor([0, 1]), "prediction value 3 is outside the 3 classes"),
        (torch.tensor([0, 1]), torch.tensor([0, 7]), "label value 7 is outside the 3 classes"),
        (torch.tensor([0, -1]), torch.tensor([0, 1]), "prediction value -1"),
        (torch.tensor([0.0, 1.0]), torch.tensor([0, 1]), "expected integers, class indices"),
        (torch.tensor([0, 1]), torch.tensor([[0, 1]]), "their shapes must be equal"),
    ],
)
def test_values_that_are_no_classes_are_refused(prediction, label, message: str) -> None:
    """Counted, they would spill into another class's row."""
    with pytest.raises(DataError, match=message):
        ConfusionMatrix(3).update(prediction, label)


def test_ignored_labels_and_narrow_types_are_counted() -> None:
    label = torch.tensor([0, 255, 2], dtype=torch.uint8)
    counts = ConfusionMatrix(3).update(torch.tensor([0, 1, 1], dtype=torch.uint8), label)
    assert counts.tolist() == [[1, 0, 0], [0, 0, 0], [0, 1, 0]]


@pytest.mark.parametrize(("classes", "narrow"), [(4, torch.int16), (255, torch.int32)])
def test_pairs_are_counted_on_gpus_as_on_the_cpu(classes: int, narrow: torch.dtype) -> None:
    bins = (classes + 1) * classes
    pairs = torch.randint(bins, (5000,), dtype=narrow)
    assert torch.equal(counts_by_addition(pairs, bins), counts_by_bins(pairs, bins))
    assert torch.equal(counts_by_addition(pairs[:0], bins), torch.zeros(bins, dtype=torch.int64))


def test_nothing_counted_scores_nothing() -> None:
    scores = ConfusionMatrix(3).scores()
    assert (scores.mean_iou, scores.pixel_accuracy, scores.mean_iou_present) == (0, 0, 0)
    assert scores.pixels == (0, 0, 0)


@pytest.mark.parametrize("classes", [180, 181, 182, 255])
def test_pairs_of_many_classes_fit_their_type(classes: int) -> None:
    """The type of the pairs changes between 180 and 181 classes."""
    matrix, last = ConfusionMatrix(classes, ignore_label=255), classes - 1
    label = torch.tensor([last, last, 0, 255], dtype=torch.uint8)
    matrix.update(torch.tensor([last, 0, last, last], dtype=torch.uint8), label)
    assert matrix.counts.sum() == 3
    assert (matrix.counts[last, last], matrix.counts[last, 0], matrix.counts[0, last]) == (1, 1, 1)


def test_figures_of_a_perfect_class_are_one_and_of_a_missed_one_zero() -> None:
    matrix = ConfusionMatrix(3)
    matrix.update(torch.tensor([0, 0, 1]), torch.tensor([0, 0, 2]))
    scores = matrix.scores()
    assert scores.iou == pytest.approx((1, 0, 0))
    assert scores.accuracy == pytest.approx((1, 0, 0))
    assert scores.figures() == pytest.approx({"mIoU": 1 / 3, "mAcc": 1 / 3, "allAcc": 2 / 3})
    assert scores.score == scores.mean_iou
    assert "mIoU_present" in scores.as_dict(["a", "b", "c"])
