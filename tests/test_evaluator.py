"""The evaluator: what it copies, and when."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stripseg.dataset.segmentation import Sample
from stripseg.util.images import upload
from stripseg.util.inference import evaluator as module
from stripseg.util.inference.evaluator import Evaluator
from stripseg.util.metrics import ConfusionMatrix

CPU = torch.device("cpu")


class Engine:
    """Predicts class 1 everywhere, and records when."""

    def __init__(self, calls: list[str]) -> None:
        self.network, self.calls = nn.Identity(), calls

    def predict_group(self, images: Sequence[np.ndarray]) -> list[Tensor]:
        self.calls.append("predict")
        return [torch.ones(image.shape[:2], dtype=torch.int64) for image in images]


def samples(count: int) -> list[Sample]:
    image, label = np.zeros((4, 5, 3), np.uint8), np.ones((4, 5), np.uint8)
    return [Sample(image, label, f"{index}.png", index) for index in range(count)]


@pytest.fixture
def calls(monkeypatch) -> list[str]:
    """What is uploaded, predicted, copied to the host and delivered, in order."""
    calls: list[str] = []

    class HostCopy(module.HostCopy):
        def __init__(self, tensor: Tensor) -> None:
            calls.append("copy")
            super().__init__(tensor)

    def recorded(array: np.ndarray, device: torch.device) -> Tensor:
        calls.append("upload")
        return upload(array, device)

    monkeypatch.setattr(module, "HostCopy", HostCopy)
    monkeypatch.setattr(module, "upload", recorded)
    return calls


def test_labels_go_first_and_predictions_are_delivered_behind_the_next_group(calls) -> None:
    evaluator = Evaluator(
        Engine(calls),
        ConfusionMatrix(2),
        group_size=2,
        on_predictions=lambda group, _: calls.append(f"deliver {[s.index for s in group]}"),
    )
    evaluator.run(samples(3))
    first = ["upload", "upload", "predict", "copy", "copy"]
    last = ["upload", "predict", "copy"]
    assert calls == [*first, *last, "deliver [0, 1]", "deliver [2]"]
    assert evaluator.scores().pixel_accuracy == pytest.approx(1)


def test_only_wanted_predictions_come_to_the_host(calls) -> None:
    delivered: list[int] = []

    def deliver(group: Sequence[Sample], predictions: Sequence[np.ndarray]) -> None:
        assert len(group) == len(predictions)
        delivered.extend(sample.index for sample in group)

    evaluator = Evaluator(
        Engine(calls),
        ConfusionMatrix(2),
        group_size=2,
        on_predictions=deliver,
        wanted=lambda sample: sample.index in (1, 4),
    )
    evaluator.run(samples(6))
    assert delivered == [1, 4]
    assert calls.count("copy") == 2
    calls.clear()
    Evaluator(Engine(calls), ConfusionMatrix(2)).run(samples(3))
    assert "copy" not in calls


class Recorded:
    """In the place of a tensor: writes down what is asked of it."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def pin_memory(self) -> "Recorded":
        self.calls.append("pin")
        return self

    def to(self, device: torch.device, *, non_blocking: bool) -> "Recorded":
        self.calls.append(f"to {device} {non_blocking}")
        return self


def test_an_upload_to_a_gpu_does_not_wait(monkeypatch) -> None:
    recorded = Recorded()
    monkeypatch.setattr(torch, "from_numpy", lambda array: recorded)
    upload(np.zeros((2, 2), np.uint8), torch.device("cuda", 0))
    assert recorded.calls == ["pin", "to cuda:0 True"]
    recorded.calls.clear()
    upload(np.zeros((2, 2), np.uint8), CPU)
    assert recorded.calls == ["to cpu True"]


def test_results_have_classes_confidence_and_counts_behind_the_next_group(calls) -> None:
    class Sure(Engine):
        def predict_with_confidence(self, images: Sequence[np.ndarray]) -> list:
            classes = self.predict_group(images)
            return [(c, torch.full(c.shape, 200, dtype=torch.uint8)) for c in classes]

    found: list[module.ImageResult] = []

    def keep(results: Sequence[module.ImageResult]) -> None:
        calls.append("results")
        found.extend(results)

    engine = Sure(calls)
    engine.network.train()
    unlabelled = Sample(np.zeros((4, 5, 3), np.uint8), None, "3.png", 3)
    Evaluator(engine, ConfusionMatrix(2), group_size=2, on_results=keep).run(
        [*samples(3), unlabelled]
    )
    assert engine.network.training  # as it was
    assert [result.sample.index for result in found] == [0, 1, 2, 3]
    assert [call for call in calls if call in ("predict", "results")] == [
        "predict",
        "predict",
        "results",
        "results",
    ]
    for result in found:
        assert (result.prediction.dtype, result.confidence.dtype) == (np.uint8, np.uint8)
        assert (result.prediction == 1).all()
        assert (result.confidence == 200).all()
    assert found[0].counts.tolist() == [[0, 0], [0, 20]]
    assert found[3].counts is None
