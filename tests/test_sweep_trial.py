"""One trial of a sweep as a process, the figures of its epochs, its parameters."""

import sys
from pathlib import Path

import pytest

from stripseg.util.experiments.sweep import SweepStudy, TrialOutcome, run_trial
from stripseg.util.experiments.sweep_file import Parameter, read_sweep
from stripseg.util.training.epoch_log import read_epochs, write_epoch


@pytest.fixture
def outcome_of(sweep_file, tmp_path: Path):
    """Runs a script in place of the training in a sweep's only trial, whose folder is `trial`."""

    def outcome_of(script: str, *, stopping=lambda: False, **changes) -> TrialOutcome:
        parameters = {"epochs": {"value": 2}}
        sweep = read_sweep(sweep_file(parameters=parameters, **changes))
        study = SweepStudy(sweep, tmp_path / sweep.metric.name)
        with study.claim() as trial:
            return run_trial(study, trial, [sys.executable, "-c", script], stopping=stopping)

    return outcome_of


def test_a_trial_is_no_process_of_the_launcher_around_it(
    outcome_of, tmp_path: Path, monkeypatch
) -> None:
    for name in ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "RANK", "WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.setenv(name, "2")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("LOCAL_SLURM_SCRATCH", "/scratch")  # the user's own
    outcome_of("import os; print(sorted(k for k in os.environ if 'SLURM' in k or 'R' in k[:2]))")
    said = (tmp_path / "mIoU/trial_0000/output.txt").read_text()
    assert "SLURM_JOB_ID" in said
    assert "LOCAL_SLURM_SCRATCH" in said
    assert "STEP" not in said
    assert "RANK" not in said


def test_the_last_epochs_figure_is_the_trials(outcome_of, tmp_path: Path) -> None:
    for epoch, value in ((1, 0.7), (2, 0.6)):
        model = tmp_path / "mIoU/trial_0000/model"
        write_epoch(model, epoch, {"val": {"mIoU": value}}, warn=print)
        outcome = outcome_of("pass")
        if epoch == 1:
            assert outcome == ("FAIL", None, "mIoU of val is None after epoch 2")
    assert outcome == ("COMPLETE", 0.6, "")
    metric = {"name": "loss", "goal": "minimize"}
    assert outcome_of("pass", metric=metric).error == "loss of train is None after epoch 2"


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ("import sys; print('before'); sys.exit('error: no such file')", "no such file"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("import os; os.kill(os.getpid(), 9)", "ended by SIGKILL, which a machine out of memory"),
        ("import sys; print('the end'); sys.exit(3)", "exit code 3: the end"),
    ],
)
def test_what_went_wrong_is_one_line(outcome_of, script: str, error: str) -> None:
    outcome = outcome_of(script)
    assert outcome.state == "FAIL"
    assert outcome.error.startswith(error)


def test_a_trial_asked_to_stop_may_save(outcome_of, tmp_path: Path) -> None:
    """It needs longer than a moment; then its exit code says that it can go on."""
    script = (
        "import signal, sys, time, pathlib\n"
        "def save(*_): time.sleep(1); pathlib.Path('saved').touch(); sys.exit(75)\n"
        "signal.signal(signal.SIGTERM, save); pathlib.Path('ready').touch(); time.sleep(60)"
    )
    outcome = outcome_of(script, stopping=(tmp_path / "ready").exists)
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
