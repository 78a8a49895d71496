"""One trial of a sweep as a process, the figures of its epochs, its parameters."""

import sys
from pathlib import Path

import pytest

from stripseg.util.experiments.sweep import Outcome, run_trial
from stripseg.util.experiments.sweep_file import Parameter
from stripseg.util.training.epoch_log import read_epochs, write_epoch


def outcome_of(folder: Path, script: str, **changes) -> Outcome:
    settings = {"split": "val", "metric": "mIoU", "epochs": 2}
    settings |= {"on_epoch": lambda *_: False, "stopping": lambda: False, **changes}
    return run_trial([sys.executable, "-c", script], folder, **settings)


def test_a_trial_is_no_process_of_the_launcher_around_it(tmp_path: Path, monkeypatch) -> None:
    for name in ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "RANK", "WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.setenv(name, "2")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("LOCAL_SLURM_SCRATCH", "/scratch")  # the user's own
    script = "import os; print(sorted(k for k in os.environ if 'SLURM' in k or 'R' in k[:2]))"
    outcome_of(tmp_path, script)
    said = (tmp_path / "output.txt").read_text()
    assert "SLURM_JOB_ID" in said
    assert "LOCAL_SLURM_SCRATCH" in said
    assert "STEP" not in said
    assert "RANK" not in said


def test_the_last_epochs_figure_is_the_trials(tmp_path: Path) -> None:
    for epoch, value in ((1, 0.7), (2, 0.6)):
        write_epoch(tmp_path / "model", epoch, {"val": {"mIoU": value}}, warn=print)
        outcome = outcome_of(tmp_path, "pass")
        if epoch == 1:
            assert (outcome.state, outcome.error) == (
                "FAIL",
                "mIoU of val is missing after epoch 2",
            )
    assert (outcome.state, outcome.value) == ("COMPLETE", 0.6)
    training = outcome_of(tmp_path, "pass", split="train", metric="loss")
    assert training.state == "FAIL"  # no figures of that split


def test_a_trial_asked_to_stop_may_save(tmp_path: Path) -> None:
    """It needs longer than a moment; then its exit code says that it can go on."""
    script = (
        "import signal, sys, time, pathlib\n"
        "def save(*_): time.sleep(1); pathlib.Path('saved').touch(); sys.exit(75)\n"
        "signal.signal(signal.SIGTERM, save); pathlib.Path('ready').touch(); time.sleep(60)"
    )
    script = f"import os; os.chdir({str(tmp_path)!r})\n{script}"
    outcome = outcome_of(tmp_path, script, stopping=(tmp_path / "ready").exists)
    assert outcome.state == "STOPPED"
    assert (tmp_path / "saved").exists()


@pytest.mark.parametrize("line", ["123", "null", "[1]", '{"epoch": "1"}', '{"epoch": 1, "va', "\0"])
def test_damaged_lines_are_passed_over(tmp_path: Path, line: str) -> None:
    write_epoch(tmp_path, 1, {"val": {"mIoU": 0.5}}, warn=print)
    path = tmp_path / "epochs.jsonl"
    path.write_text(f"{line}\n{path.read_text()}")
    complaints = []
    write_epoch(tmp_path, 2, {"val": {"mIoU": 0.6}}, warn=complaints.append)
    assert complaints == []
    assert read_epochs(tmp_path) == {1: {"val": {"mIoU": 0.5}}, 2: {"val": {"mIoU": 0.6}}}


def test_epochs_are_written_once(tmp_path: Path) -> None:
    for epoch, value in ((1, 0.1), (2, 0.2), (3, 0.3), (2, 0.25)):  # stopped after 3, resumed at 1
        write_epoch(tmp_path, epoch, {"val": {"mIoU": value}}, warn=print)
    assert read_epochs(tmp_path) == {1: {"val": {"mIoU": 0.1}}, 2: {"val": {"mIoU": 0.25}}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"min": 2, "max": 1}, "below max"),
        ({"min": 1}, "exactly one of"),
        ({"value": 1, "values": [1, 2]}, "exactly one of"),
        ({}, "exactly one of"),
        ({"values": []}, "at least 1"),
        ({"values": [1, 1]}, "twice"),
        ({"values": [1, 2], "distribution": "uniform"}, "uniform needs min and max"),
        ({"min": 0, "max": 1, "distribution": "log_uniform_values"}, "above 0"),
        ({"min": 0.5, "max": 1, "distribution": "int_uniform"}, "whole numbers"),
        ({"min": "fast", "max": 1}, "must be a number"),
        ({"min": True, "max": 2}, "must be a number"),
        ({"min": float("nan"), "max": 2}, "must be a number"),
    ],
)
def test_impossible_parameters(content: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Parameter(**content)


def test_numbers_that_yaml_takes_for_text() -> None:
    parameter = Parameter(min="1e-4", max="1e-1", distribution="log_uniform_values")
    assert (parameter.min, parameter.max) == (0.0001, 0.1)
