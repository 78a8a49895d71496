"""One trial of a sweep as a process, the figures of its epochs, the steps of its parameters."""

import sys
from pathlib import Path

import pytest

from stripseg.util.experiments.sweep_parameters import Alias, parameter_of
from stripseg.util.experiments.sweep_plots import height_of
from stripseg.util.experiments.sweep_trial import TrialRun
from stripseg.util.training.epoch_log import read_epochs, write_epoch


def trial_run(folder: Path, script: str, **changes) -> TrialRun:
    settings = {"split": "val", "metric": "mIoU", "epochs": 2}
    settings |= {"on_epoch": lambda *_: False, "stopping": lambda: False, **changes}
    return TrialRun([sys.executable, "-c", script], folder, **settings)


def test_a_trial_is_no_process_of_the_launcher_around_it(tmp_path: Path, monkeypatch) -> None:
    for name in ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "RANK", "WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.setenv(name, "2")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("LOCAL_SLURM_SCRATCH", "/scratch")  # the user's own
    script = "import os; print(sorted(k for k in os.environ if 'SLURM' in k or 'R' in k[:2]))"
    trial_run(tmp_path, script).run()
    said = (tmp_path / "output.txt").read_text()
    assert "SLURM_JOB_ID" in said
    assert "LOCAL_SLURM_SCRATCH" in said
    assert "STEP" not in said
    assert "RANK" not in said


def test_the_last_epochs_figure_is_the_trials(tmp_path: Path) -> None:
    for epoch, value in ((1, 0.7), (2, 0.6)):
        write_epoch(tmp_path / "model", epoch, {"val": {"mIoU": value}}, complain=print)
        outcome = trial_run(tmp_path, "pass").run()
        if epoch == 1:
            assert (outcome.state, outcome.error) == ("FAIL", "no mIoU of the last epoch, 2")
    assert (outcome.state, outcome.value) == ("COMPLETE", 0.6)
    training = trial_run(tmp_path, "pass", split="train", metric="loss").run()
    assert training.state == "FAIL"  # no figures of that split


def test_a_trial_asked_to_stop_may_save(tmp_path: Path) -> None:
    """It needs longer than a moment; then its exit code says that it can go on."""
    script = (
        "import signal, sys, time, pathlib\n"
        "def save(*_): time.sleep(1); pathlib.Path('saved').touch(); sys.exit(75)\n"
        "signal.signal(signal.SIGTERM, save); pathlib.Path('ready').touch(); time.sleep(60)"
    )
    run = trial_run(tmp_path, f"import os; os.chdir({str(tmp_path)!r})\n{script}")
    run.stopping = (tmp_path / "ready").exists
    assert run.run().state == "STOPPED"
    assert (tmp_path / "saved").exists()


@pytest.mark.parametrize("line", ["123", "null", "[1]", '{"epoch": "1"}', '{"epoch": 1, "va', "\0"])
def test_damaged_lines_are_passed_over(tmp_path: Path, line: str) -> None:
    write_epoch(tmp_path, 1, {"val": {"mIoU": 0.5}}, complain=print)
    path = tmp_path / "epochs.jsonl"
    path.write_text(f"{line}\n{path.read_text()}")
    complaints = []
    write_epoch(tmp_path, 2, {"val": {"mIoU": 0.6}}, complain=complaints.append)
    assert complaints == []
    assert read_epochs(tmp_path) == {1: {"val": {"mIoU": 0.5}}, 2: {"val": {"mIoU": 0.6}}}


def test_epochs_are_written_once(tmp_path: Path) -> None:
    for epoch, value in ((1, 0.1), (2, 0.2), (3, 0.3), (2, 0.25)):  # stopped after 3, resumed at 1
        write_epoch(tmp_path, epoch, {"val": {"mIoU": value}}, complain=print)
    assert read_epochs(tmp_path) == {1: {"val": {"mIoU": 0.1}}, 2: {"val": {"mIoU": 0.25}}}


def test_a_grid_of_steps_begins_at_min() -> None:
    def grid(**content) -> tuple:
        return parameter_of("x", Alias("TRAIN.x"), content).grid()

    assert grid(min=5, max=25, q=10) == (5, 15, 25)
    assert grid(min=33, max=97, q=32) == (33, 65, 97)
    assert grid(min=0.1, max=0.3, q=0.1) == (0.1, 0.2, 0.3)
    assert grid(min=2, max=4) == (2, 3, 4)
    drawn = parameter_of(
        "x",
        Alias("TRAIN.x"),
        {"min": 0.4, "max": 9, "q": 1, "distribution": "q_log_uniform_values"},
    )
    assert drawn.rounded(0.41) == 1
    assert height_of(drawn, drawn.rounded(0.41)) >= 0
    with pytest.raises(ValueError, match="no multiple of q 10"):
        parameter_of("x", Alias("TRAIN.x"), {"min": 1, "max": 9, "q": 10})
