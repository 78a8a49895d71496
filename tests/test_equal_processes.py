"""Several processes equal one: the same steps, the same figures, whatever the options.

Layers and losses alone: tests/test_sync_batch_norm.py, tests/test_losses.py.
"""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import run_command, run_processes
from reference import spnet
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_accumulation import after_steps, assert_close, place
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from yamls import RECIPE

from stripseg.config.load import load_config
from stripseg.training_run import build_trainer
from stripseg.util.distributed import process_group
from stripseg.util.logger import counted
from stripseg.util.training.losses import SegmentationLoss
from stripseg.util.training.optimizer import build_optimizer
from stripseg.util.training.parallelize import place_network

CPU = torch.device("cpu")
# dropout is off, since its mask is drawn for each process; one step: rounding does not grow
STEP = ["TRAIN.dropout", "0", "TRAIN.batch_size", "5", "TRAIN.epochs", "1"]
RUNS = {
    "plain": STEP,
    "the recipes": [*RECIPE, *STEP, "TRAIN.warmup_epochs", "0", "TRAIN.evaluate", "False"],
}


def assert_same_step(start: dict, one: dict, two: dict) -> None:
    """The weights differ by a fiftieth of their change at most."""
    for key, before in start.items():
        change = (one[key].double() - before).norm()
        assert (one[key].double() - two[key].double()).norm() <= 2e-2 * change + 1e-6, key


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
def test_two_processes_take_the_step_of_one(run: str, small_config: Path, tmp_path: Path) -> None:
    """Same global batch, Sync-BN, global loss and clipped gradient, by the commands."""
    overrides = RUNS[run]
    start = build_trainer(load_config(small_config, overrides), CPU).segmenter.state_dict()
    results, losses = {}, {}
    for processes in (1, 2):  # with two, one has three images of the batch and one has two
        folder = tmp_path / f"processes{processes}"
        words = ["--config", str(small_config), *overrides, "TRAIN.save_path", str(folder)]
        done = run_command("stripseg.tool.train", *words, processes=processes)
        assert done.returncode == 0, done.stderr
        assert counted(processes, "process") in done.stdout
        results[processes] = torch.load(folder / "last.pth", weights_only=True)
        losses[processes] = float(re.search(r"loss (\S+) main", done.stdout)[1])
    assert results[1]["step"] == results[2]["step"] == 1
    assert losses[1] == pytest.approx(losses[2], abs=2e-4)  # printed to four digits
    assert_same_step(start, results[1]["state_dict"], results[2]["state_dict"])


@pytest.mark.slow
def test_two_processes_train_and_test_the_classifier_of_one(
    classifier_config: Path, tmp_path: Path
) -> None:
    """With a batch that does not divide by two."""
    start = build_trainer(load_config(classifier_config), CPU).segmenter.state_dict()
    results, figures = {}, {}
    for processes in (1, 2):
        folder = tmp_path / f"processes{processes}"
        words = ["--config", str(classifier_config), "TRAIN.save_path", str(folder)]
        options = ["TRAIN.batch_size", "23", "TRAIN.epochs", "2"]
        done = run_command("stripseg.tool.train", *words, *options, processes=processes)
        assert done.returncode == 0, done.stderr
        results[processes] = torch.load(folder / "last.pth", weights_only=True)["state_dict"]
        events = EventAccumulator(str(folder)).Reload()
        assert [event.step for event in events.Scalars("train_step/loss")] == [1, 2]
        model = ["TEST.model_path", str(tmp_path / "processes1" / "last.pth")]
        done = run_command("stripseg.tool.test", *words, *model, processes=processes)
        assert done.returncode == 0, done.stderr
        figures[processes] = json.loads((tmp_path / "run/result/metrics.json").read_text())
    assert_same_step(start, results[1], results[2])
    assert figures[1].pop("loss") == pytest.approx(figures[2].pop("loss"), rel=1e-6)
    assert figures[1] == figures[2]
    assert np.sum(figures[1]["confusion"]) == 13


@pytest.mark.slow
def test_two_processes_test_to_the_same_figures(
    trained_config: Path, tmp_path: Path, forked_python: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three images, two of them together, over two processes: none lost, none counted twice."""
    monkeypatch.setenv("PYTHON_EXEC", forked_python)  # of torchrun
    figures = {}
    for processes in ("1", "2"):
        folder = tmp_path / processes
        words = ["--config", str(trained_config), "TEST.images_together", "2"]
        words += ["Distributed.processes", processes, "TEST.save_folder", str(folder)]
        done = run_command("stripseg.tool.test", *words)
        assert done.returncode == 0, done.stderr
        figures[processes] = json.loads((folder / "metrics.json").read_text())
        assert len(list((folder / "gray").iterdir())) == 3
    assert figures["1"] == figures["2"]


def two_processes(path: str, folder: str) -> dict[str, Tensor]:
    exchanges = []
    forward = DistributedDataParallel.forward

    def counted(self, *inputs):
        exchanges.append(self.require_backward_grad_sync)
        return forward(self, *inputs)

    DistributedDataParallel.forward = counted
    words = ["TRAIN.batch_size", "5", "TRAIN.accumulation_steps", "2", "TRAIN.save_path", folder]
    weights, _ = after_steps(path, *words, steps=1)
    assert exchanges == [False, True]  # gradients travel once a step
    return weights


@pytest.mark.slow
def test_parts_of_two_processes_make_the_step_of_one(small_config: Path, tmp_path: Path) -> None:
    """Three images and two, in two parts each, against five at once."""
    words = ["TRAIN.batch_size", "5", *place(tmp_path, "one")]
    whole, _ = after_steps(str(small_config), *words, steps=1)
    for weights in run_processes(2, two_processes, str(small_config), str(tmp_path / "two")):
        assert_close(whole, weights)


# ---- in every digit: float64, so that nothing hides behind rounding


TERMS = {"cross_entropy": 1, "dice": 0.5, "lovasz": 0.5, "focal": 1, "boundary": 1, "ohem": 1}


def training_steps(config_path: str, shares: list[slice]) -> tuple[dict[str, Tensor], list[float]]:
    """Two SGD steps on this process's share: the weights and the global losses."""
    loss_of = SegmentationLoss(TERMS, ohem_min_kept=1000)
    config = load_config(config_path, ["TRAIN.channels_last", "False"])
    torch.manual_seed(0)
    segmenter = spnet(18, 5, dropout=0.0).double().train()
    network = place_network(config, segmenter, CPU)
    optimizer = build_optimizer(
        segmenter,
        segmenter.new_layers(),
        base_lr=0.01,
        head_lr_factor=10.0,
        momentum=0.9,
        weight_decay=1e-4,
    )
    generator = torch.Generator().manual_seed(1)
    share, losses = shares[process_group.rank()], []
    for _ in range(2):
        image = torch.randn(4, 3, 33, 41, generator=generator, dtype=torch.float64)
        label = torch.randint(5, (4, 33, 41), generator=generator)
        label[0, 5:] = 255  # the processes have different numbers of labelled pixels
        loss, _, _ = loss_of(*network(image[share]), label[share])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        mean = process_group.all_reduce_sum(loss.detach().clone()) / process_group.world_size()
        losses.append(mean.item())
    return segmenter.state_dict(), losses


def test_two_processes_take_the_steps_of_one(small_config: Path) -> None:
    """All terms of the loss in a sum, three images and one: any term's own share would show."""
    shares = [slice(0, 3), slice(3, 4)]
    expected, losses = training_steps(str(small_config), [slice(0, 4)])
    arguments = (str(small_config), shares)
    for weights, global_losses in run_processes(2, training_steps, *arguments):
        assert global_losses == pytest.approx(losses, rel=1e-6)
        assert_close(expected, weights, rtol=1e-6, atol=1e-9)
