"""A run that was stopped and resumed ends as one that was not, bit for bit, with any options."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from yamls import RECIPE

from stripseg.config.load import load_config
from stripseg.training_run import build_trainer

CPU = torch.device("cpu")
SEGMENTATION, CLASSIFICATION = "small_config", "classifier_config"
MIXED = [
    *("TRAIN.mixup", "0.2", "TRAIN.cutmix", "1", "TRAIN.label_smoothing", "0.1"),
    *("TRAIN.average_decay", "0.9"),
]
RUNS = {
    "segmentation": (SEGMENTATION, []),
    "the recipes": (SEGMENTATION, RECIPE),
    "batches in parts": (
        SEGMENTATION,
        ["TRAIN.batch_size", "3", "TRAIN.accumulation_steps", "2", "TRAIN.epochs", "3"],
    ),
    "classification": (CLASSIFICATION, ["TRAIN.dropout", "0.2"]),
    "adam": (CLASSIFICATION, ["TRAIN.dropout", "0.2", "TRAIN.optimizer", "adam"]),
    "mixed pictures and an average": (CLASSIFICATION, MIXED),
}
OF_A_FOLDER = ("config", "card")  # where it is, and when it was trained


def trained(config: Path, *overrides: str, until: int | None = None) -> dict[str, Any]:
    """What the last checkpoint holds after training in this process."""
    trainer = build_trainer(load_config(config, overrides), CPU)
    trainer.fit(until=until)
    return torch.load(trainer.checkpoints.last, weights_only=True)


def differences(first: Any, second: Any, place: str = "") -> Iterator[str]:
    """Where two contents of checkpoints are not the same."""
    if isinstance(first, Tensor):
        same = torch.equal(first, second)
    elif isinstance(first, dict):
        same = first.keys() == second.keys()
        for key in first.keys() & second.keys():
            yield from differences(first[key], second[key], f"{place}/{key}")
    elif isinstance(first, list):
        same = True
        for pair in zip(first, second, strict=True):
            yield from differences(*pair, place)
    else:
        same = first == second
    if not same:
        yield place


@pytest.mark.parametrize("run", RUNS)
def test_a_resumed_run_is_bit_identical(
    run: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Stopped twice, within epochs or after them, and continued with workers in between."""
    name, options = RUNS[run]
    config = request.getfixturevalue(name)
    whole = trained(config, *options, "TRAIN.save_path", str(tmp_path / "whole"))
    assert whole["step"] == 6
    assert ("training_weights" in whole) == ("TRAIN.average_decay" in options)
    if "training_weights" in whole:
        assert [*differences(whole["state_dict"], whole["training_weights"])]
    parts = [*options, "TRAIN.save_path", str(tmp_path / "parts")]
    assert trained(config, *parts, until=2)["step"] == 2
    trained(config, *parts, "TRAIN.workers", "2", until=4)
    resumed = trained(config, *parts)
    for content in (whole, resumed):
        for key in OF_A_FOLDER:
            del content[key]
    assert sorted(differences(whole, resumed)) == []


def test_what_differs_is_found() -> None:
    first = {"a": [torch.zeros(2), {"b": 1}], "c": 2.0}
    assert [*differences(first, {"a": [torch.zeros(2), {"b": 1}], "c": 2.0})] == []
    for second, place in (
        ({"a": [torch.ones(2), {"b": 1}], "c": 2.0}, "/a"),
        ({"a": [torch.zeros(2), {"b": 2}], "c": 2.0}, "/a/b"),
        ({"a": [torch.zeros(2), {"b": 1}], "c": 3.0}, "/c"),
        ({"a": [torch.zeros(2), {"b": 1}], "c": 2.0, "d": 1}, ""),
    ):
        assert [*differences(first, second)] == [place]
