"""Sweeps: files in W&B's format, trials that survive being killed, workers, pruning, reports."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from stripseg.config.errors import ConfigError
from stripseg.config.load import load_config
from stripseg.tool import sweep as tool_sweep
from stripseg.util.experiments.report import write_sweep_report
from stripseg.util.experiments.sweep import SweepStudy
from stripseg.util.experiments.sweep_file import read_sweep
from stripseg.util.training.epoch_log import read_epochs

RATES = [0.001, 0.01]


def rows(tmp_path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((tmp_path / "exp/sweeps/small/results.csv").open()))


@pytest.mark.slow
def test_a_grid_tries_every_combination_and_reports(sweep_file, tmp_path: Path) -> None:
    assert tool_sweep.main([str(sweep_file())]) is None
    folder = tmp_path / "exp/sweeps/small"
    found = rows(tmp_path)
    assert sorted(float(row["learning_rate"]) for row in found) == RATES
    for row in found:
        epochs = read_epochs(folder / f"trial_{int(row['trial']):04d}/model")
        assert float(row["mIoU"]) == pytest.approx(epochs[1]["val"]["mIoU"])
    best = max(found, key=lambda row: float(row["mIoU"]))
    assert best is found[0]
    config = load_config(folder / "best.yaml")
    assert config.TRAIN.base_lr == float(best["learning_rate"])
    assert config.TRAIN.epochs == 1
    pictures = sorted(path.name for path in folder.glob("*.png"))
    assert pictures == ["history.png", "importance.png", "parallel.png"]
    assert "learning_rate" in (folder / "results.md").read_text()
    before = (folder / "results.csv").read_bytes()
    tool_sweep.main([str(sweep_file())])  # nothing is left to do
    assert (folder / "results.csv").read_bytes() == before
    assert len(list(folder.glob("trial_*"))) == 2


@pytest.mark.slow
def test_a_sweep_that_is_killed_goes_on_and_ends_alike(sweep_file, tmp_path: Path) -> None:
    """Killed in its second trial; the same command ends with the trials of a whole sweep."""
    parameters = {
        "learning_rate": {"values": [*RATES, 0.002]},
        "epochs": {"value": 2},
        "TRAIN.tensorboard": {"value": False},
        "TRAIN.save_steps": {"value": 1},
    }
    path = sweep_file(parameters=parameters)
    command = [sys.executable, "-u", "-m", "stripseg.tool.sweep", str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    for line in process.stdout:
        if line.startswith("trial 1: starts"):
            break
    deadline = time.monotonic() + 60
    while not (tmp_path / "exp/sweeps/small/trial_0001/model/last.pth").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "trial 1: continues" in done.stdout
    assert "trial 0: starts" not in done.stdout
    assert "resuming from" in (tmp_path / "exp/sweeps/small/trial_0001/output.txt").read_text()
    killed = rows(tmp_path)
    (tmp_path / "exp").rename(tmp_path / "killed")
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    whole = rows(tmp_path)
    assert [row["mIoU"] for row in killed] == [row["mIoU"] for row in whole]
    assert len(whole) == 3


@pytest.mark.slow
def test_workers_share_the_trials(sweep_file, tmp_path: Path) -> None:
    parameters = {"learning_rate": {"min": 0.001, "max": 0.01}, "epochs": {"value": 1}}
    path = sweep_file(method="random", run_cap=3, parameters=parameters)
    command = [sys.executable, "-m", "stripseg.tool.sweep", str(path), "--workers", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = rows(tmp_path)
    assert len(found) == len({row["learning_rate"] for row in found}) == 3
    assert len(list((tmp_path / "exp/sweeps/small").glob("trial_*"))) == 3


@pytest.mark.slow
def test_a_trial_that_fails_fails_alone(sweep_file, tmp_path: Path) -> None:
    """A rate that diverges; the other trial is the best."""
    parameters = {
        "learning_rate": {"values": [1e30, 0.01]},
        "epochs": {"value": 1},
        "TRAIN.skipped_steps": {"value": 0},
    }
    tool_sweep.main([str(sweep_file(parameters=parameters))])
    text = (tmp_path / "exp/sweeps/small/results.md").read_text()
    assert "steps in a row were skipped" in text
    assert load_config(tmp_path / "exp/sweeps/small/best.yaml").TRAIN.base_lr == 0.01


def test_trials_without_hope_are_ended(sweep_file, tmp_path: Path) -> None:
    """The pruner, without training: the third trial is worse than those before it."""
    path = sweep_file(
        method="random",
        run_cap=9,
        parameters={"learning_rate": {"min": 0.001, "max": 0.01}},
        early_terminate={"type": "hyperband", "min_iter": 1, "eta": 2},
    )
    study = SweepStudy(read_sweep(path), tmp_path / "study")
    verdicts = []
    for value in (0.5, 0.6, 0.1):
        claim = study.claim()
        with claim.lock:
            study.report(claim, 1, value)
            verdicts.append(claim.trial.should_prune())
            if verdicts[-1]:
                study.finish(claim, "PRUNED", value=None)
            else:
                study.finish(claim, "COMPLETE", value=value)
    assert verdicts[-1]
    assert not verdicts[1]


def test_a_pruned_trial_is_not_the_best(sweep_file, small_config: Path, tmp_path: Path) -> None:
    """However good its figure was when it ended."""
    study = SweepStudy(read_sweep(sweep_file()), tmp_path / "study")
    for state, value in (("PRUNED", 0.9), ("COMPLETE", 0.5)):
        claim = study.claim()
        with claim.lock:
            study.report(claim, 1, value)
            study.finish(claim, state, value=value if state == "COMPLETE" else None)
    text = write_sweep_report(study, load_config(small_config))
    assert "best: trial 1, mIoU 0.5000" in text
    assert (tmp_path / "study/best.yaml").read_text().startswith("# trial 1 of")
    with open(tmp_path / "study/results.csv") as file:
        assert [row["state"] for row in csv.DictReader(file)] == ["done", "pruned"]


def test_a_loss_is_minimized_unless_the_file_says_otherwise(sweep_file) -> None:
    assert read_sweep(sweep_file(metric={"name": "loss"})).metric.goal == "minimize"


def test_a_study_of_a_former_version_is_told_apart(sweep_file, tmp_path: Path) -> None:
    SweepStudy(read_sweep(sweep_file()), tmp_path / "study").study.set_user_attr(
        "sweep", {"config": "", "maximize": True}
    )
    with pytest.raises(ConfigError, match="study has the trials of a former version"):
        SweepStudy(read_sweep(sweep_file()), tmp_path / "study")


def test_a_trial_left_behind_is_taken_up_with_its_values(sweep_file, tmp_path: Path) -> None:
    path = sweep_file(
        method="bayes", run_cap=2, parameters={"learning_rate": {"min": 0.001, "max": 0.01}}
    )
    first = SweepStudy(read_sweep(path), tmp_path / "study").claim()
    other = SweepStudy(read_sweep(path), tmp_path / "study")
    second = other.claim()
    assert (first.number, second.number) == (0, 1)
    assert other.claim() is None  # both are running
    first.lock.close()  # its process has died
    again = other.claim()
    assert (again.number, again.values, again.continued) == (0, first.values, True)


def test_the_studys_words_mean_our_options(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[1]
    sweep = read_sweep(root / "config/sweeps/cifar10_attention.yaml")
    options = sweep.options({"att": "Strip Pool", "optimizer": "adam", "batch_size": 256})
    assert options == {
        "TRAIN.attention": "strip_pool",
        "TRAIN.optimizer": "adam",
        "TRAIN.batch_size": 256,
        "TRAIN.epochs": 50,
    }
    assert (sweep.metric.name, sweep.metric.goal, sweep.method) == ("loss", "minimize", "bayes")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metod": "grid"}, "metod: is not a key of this file; did you mean method"),
        ({"method": "gird"}, "method"),
        ({"run_cap": True}, "run_cap: True: "),
        ({"metric": {"name": "mIoU"}}, "goal is missing: minimize or maximize mIoU"),
        ({"metric": {"nmae": "loss"}}, "metric.nmae: is not a key of this file; did you mean name"),
        ({"parameters": {"lr": {"vlaues": [1]}}}, "parameters.lr.vlaues: .* did you mean values"),
        ({"early_terminate": {"tpye": "median"}}, "early_terminate.tpye: .* did you mean type"),
        ({"metric": {"name": "mIuO", "goal": "maximize"}}, "mIuO"),
        ({"metric": {"name": "mIoU", "goal": "up"}}, "goal"),
        ({"metric": {"name": "top1", "goal": "maximize"}}, "none of loss, mIoU, mAcc, allAcc"),
        (
            {
                "parameters": {"epochs": {"min": 3.0, "max": 10.0, "distribution": "uniform"}},
                "method": "random",
                "run_cap": 2,
            },
            "epochs",
        ),
        ({"parameters": {"x": {"values": [1]}}, "aliases": {"x": "save_path"}}, "each trial's own"),
        ({"parameters": {"x": {"values": [1]}}, "aliases": {"x": "a.b"}}, "a.b is not a SECTION"),
        ({"config": "~nosuchuser/x.yaml"}, "does not exist"),
        ({"config": "x" * 5000 + ".yaml"}, "does not exist"),
        ({"name": "my sweep"}, "name"),
        ({"parameters": {"TRAIN.base_lrr": {"values": [1]}}}, "base_lrr"),
        ({"parameters": {"learning_rate": {"values": ["fast"]}}}, "learning_rate|base_lr"),
        ({"parameters": {"learning_rate": {"min": 1, "max": 0.1}}, "method": "random"}, "min"),
        ({"method": "random"}, "run_cap is missing"),
        ({"config": "nowhere nothing"}, "nowhere"),
        ({"parameters": {"TRAIN.save_path": {"value": "x"}}}, "save_path"),
    ],
)
def test_mistakes_are_told_before_the_first_trial(
    sweep_file, tmp_path: Path, changes: dict, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        tool_sweep.main([str(sweep_file(**changes))])
    assert not (tmp_path / "exp/sweeps/small").exists()


def test_another_sweep_of_the_same_name_is_refused(sweep_file, tmp_path: Path) -> None:
    SweepStudy(read_sweep(sweep_file()), tmp_path / "study")
    parameters = {"learning_rate": {"values": [0.5]}}
    with pytest.raises(ConfigError, match="another parameters"):
        SweepStudy(read_sweep(sweep_file(parameters=parameters)), tmp_path / "study")


def test_a_config_that_was_edited_is_another_sweep(
    sweep_file, small_config: Path, tmp_path: Path
) -> None:
    SweepStudy(read_sweep(sweep_file()), tmp_path / "study")
    content = yaml.safe_load(small_config.read_text())
    content["TRAIN"]["momentum"] = 0.5
    small_config.write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match="another config"):
        SweepStudy(read_sweep(sweep_file()), tmp_path / "study")
