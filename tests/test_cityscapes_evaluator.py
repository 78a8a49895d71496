"""Cityscapes' own evaluator gives the figures that we give, for the files that we submit."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stripseg.dataset.description import describe
from stripseg.dataset.labels import choose_encoding
from stripseg.dataset.lists import Pair
from stripseg.dataset.results import stored_values
from stripseg.util.metrics import ConfusionMatrix

official = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
CITYSCAPES = describe("cityscapes")


def blocks(values: np.ndarray, seed: int) -> np.ndarray:
    """(64, 128) uint8: blocks of random values."""
    rng = np.random.Generator(np.random.PCG64(seed))
    return np.kron(rng.choice(values, (16, 32)), np.ones((4, 4))).astype(np.uint8)


def test_figures_agree_with_the_official_evaluator(tmp_path: Path) -> None:
    confusion = ConfusionMatrix(19)
    truths, predictions = [], []
    for seed in range(3):
        name = f"bonn_00000{seed}_000019"
        truth = tmp_path / f"{name}_gtFine_labelIds.png"
        Image.fromarray(blocks(np.arange(34), seed)).save(truth)
        pair = Pair(name, truth, truth)
        label = choose_encoding([pair], CITYSCAPES, classes=19).read(truth)
        right = blocks(np.arange(2), seed + 10) == 1
        prediction = np.where(right & (label != 255), label, blocks(np.arange(19), seed + 20))
        confusion.update(torch.from_numpy(prediction), torch.from_numpy(label))
        submitted = tmp_path / f"{name}_leftImg8bit.png"
        Image.fromarray(stored_values(CITYSCAPES)[prediction]).save(submitted)
        truths.append(str(truth))
        predictions.append(str(submitted))
    official.args.evalInstLevelScore = False
    official.args.evalPixelAccuracy = False
    official.args.JSONOutput = False
    official.args.quiet = True
    theirs = official.evaluateImgLists(predictions, truths, official.args)
    ours = confusion.scores()
    assert ours.mean_iou == pytest.approx(theirs["averageScoreClasses"], abs=1e-9)
    for name, iou in zip(CITYSCAPES.names, ours.iou, strict=True):
        assert iou == pytest.approx(theirs["classScores"][name], abs=1e-9)
