"""Sweeps: files in W&B's format, trials that survive being killed, workers, pruning, reports."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from stripseg.config.errors import ConfigError, StripsegError, TrainingError
from stripseg.config.load import load_config
from stripseg.tool import sweep as tool_sweep
from stripseg.util.checkpoint import folder_lock
from stripseg.util.experiments.sweep import SweepStudy, TrialOutcome
from stripseg.util.experiments.sweep_file import read_sweep
from stripseg.util.experiments.sweep_report import write_sweep_report
from stripseg.util.training.epoch_log import read_epochs

FAKE = (sys.executable, str(Path(__file__).with_name("fake_training.py")))
COMMAND = [
    sys.executable,
    "-uc",
    "from stripseg import command_line\n"
    "from stripseg.tool import sweep\n"
    f"sweep.TRAIN = {FAKE!r}\n"
    "command_line.run_command(sweep.main)",
]


@pytest.fixture
def fake(monkeypatch) -> None:
    """Trials without training."""
    monkeypatch.setattr(tool_sweep, "TRAIN", FAKE)


def rows(tmp_path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((tmp_path / "exp/sweeps/small/results.csv").open()))


@pytest.mark.slow
def test_trials_are_training_runs(
    sweep_file, tmp_path: Path, forked_python: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The figures are those of the real command."""
    monkeypatch.setattr(tool_sweep, "TRAIN", (forked_python, tool_sweep.TRAIN[1]))
    assert tool_sweep.main([str(sweep_file(run_cap=1))]).exit_code == 0
    (row,) = rows(tmp_path)
    epochs = read_epochs(tmp_path / "exp/sweeps/small/trial_0000/model")
    assert float(row["mIoU"]) == epochs[1]["val"]["mIoU"]


def test_a_grid_tries_every_combination_and_reports(sweep_file, tmp_path: Path, fake) -> None:
    path = str(sweep_file())
    assert tool_sweep.main([path]).exit_code == 0
    folder = tmp_path / "exp/sweeps/small"
    found = rows(tmp_path)
    assert [float(row["learning_rate"]) for row in found] == [0.01, 0.001]  # the best first
    config = load_config(folder / "best.yaml")
    assert (config.TRAIN.base_lr, config.TRAIN.epochs) == (0.01, 1)
    pictures = sorted(path.name for path in folder.glob("*.png"))
    assert pictures == ["history.png", "importance.png", "parallel.png"]
    assert "learning_rate" in (folder / "results.md").read_text()
    assert json.loads((folder / "results.json").read_text())[0]["learning_rate"] == 0.01
    before = (folder / "results.csv").read_bytes()
    tool_sweep.main([path])  # nothing is left to do
    tool_sweep.main([path, "--report"])
    assert (folder / "results.csv").read_bytes() == before
    assert len(list(folder.glob("trial_*"))) == 2


@pytest.mark.slow
def test_a_sweep_that_is_killed_goes_on_and_ends_alike(
    sweep_file, tmp_path: Path, fake, capsys
) -> None:
    """Killed in its second trial; the same command ends with the trials of a whole sweep."""
    parameters = {"learning_rate": {"min": 0.001, "max": 0.1}, "epochs": {"value": 4}}
    path = str(sweep_file(method="bayes", run_cap=3, parameters=parameters))
    process = subprocess.Popen(
        [*COMMAND, path],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "EPOCH_SECONDS": "1"},
    )
    for line in process.stdout:
        if line.startswith("trial 1: epoch 1"):
            break
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert tool_sweep.main([path]).exit_code == 0
    printed = capsys.readouterr().out
    assert "trial 1: continues" in printed
    assert "trial 0: starts" not in printed
    said = (tmp_path / "exp/sweeps/small/trial_0001/output.txt").read_text()
    assert "resuming from epoch" in said.replace("resuming from epoch 0", "")
    killed = rows(tmp_path)
    (tmp_path / "exp").rename(tmp_path / "killed")
    tool_sweep.main([path])
    columns = ("trial", "state", "mIoU", "epochs", "learning_rate", "error")
    whole, killed = [[[row[c] for c in columns] for row in r] for r in (rows(tmp_path), killed)]
    assert killed == whole
    assert len(whole) == 3


@pytest.mark.slow
def test_a_sweep_that_is_stopped_stops_its_trials(sweep_file, tmp_path: Path) -> None:
    """Both workers' runs save and end; the exit code says that the sweep can be resumed."""
    process = subprocess.Popen(
        [*COMMAND, str(sweep_file()), "--workers", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "EPOCH_SECONDS": "60"},
    )
    started = set()
    while len(started) < 2:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        started |= {line} if "epoch 1" in line else set()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 75
    assert "stopped by SIGINT; run the same command to resume" in said
    study = SweepStudy(read_sweep("small.yaml"), tmp_path / "exp/sweeps/small")
    assert [trial.state.name for trial in study.runs().values()] == ["RUNNING"] * 2


def test_workers_share_the_trials_and_the_machine(
    sweep_file, tmp_path: Path, fake, monkeypatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    monkeypatch.setenv("EPOCH_SECONDS", "0.5")
    parameters = {"learning_rate": {"min": 0.001, "max": 0.01}, "epochs": {"value": 1}}
    path = sweep_file(method="random", run_cap=4, parameters=parameters)
    assert tool_sweep.main([str(path), "--workers", "2"]).exit_code == 0
    found = rows(tmp_path)
    assert len(found) == len({row["learning_rate"] for row in found}) == 4
    said = [file.read_text() for file in tmp_path.glob("exp/sweeps/small/trial_*/output.txt")]
    assert {text.split()[1] for text in said} == {"3", "5"}


def test_a_trial_that_fails_fails_alone(sweep_file, tmp_path: Path, fake) -> None:
    """A rate that diverges; the other trial is the best."""
    parameters = {"learning_rate": {"values": [1e30, 0.01]}, "epochs": {"value": 1}}
    assert tool_sweep.main([str(sweep_file(parameters=parameters))]).exit_code == 0
    assert [row["error"] for row in rows(tmp_path)] == ["", "1 steps in a row were skipped"]
    assert load_config(tmp_path / "exp/sweeps/small/best.yaml").TRAIN.base_lr == 0.01


def test_a_sweep_whose_trials_all_fail_fails(sweep_file, tmp_path: Path, fake) -> None:
    parameters = {"learning_rate": {"values": [1e30]}, "epochs": {"value": 1}}
    assert tool_sweep.main([str(sweep_file(parameters=parameters))]).exit_code == 1
    assert not (tmp_path / "exp/sweeps/small/best.yaml").exists()


def test_trials_without_hope_are_ended(sweep_file, tmp_path: Path, fake, capsys) -> None:
    """The best half after the first epoch goes on."""
    path = sweep_file(
        parameters={"lr": {"values": [0.1, 0.01, 0.5]}, "epochs": {"value": 3}},
        early_terminate={"type": "hyperband", "min_iter": 1, "eta": 2},
    )
    tool_sweep.main([str(path)])
    found = {row["lr"]: row["state"] for row in rows(tmp_path)}
    assert found == {"0.01": "done", "0.1": "done", "0.5": "pruned"}


def test_a_pruned_trial_is_not_the_best(sweep_file, tmp_path: Path) -> None:
    """However good its figure was when it ended."""
    study = SweepStudy(read_sweep(sweep_file()), tmp_path / "study")
    for state, value in (("PRUNED", 0.9), ("COMPLETE", 0.5)):
        with study.claim() as trial:
            trial.report(value, 1)
            study.finish(trial, TrialOutcome(state, value if state == "COMPLETE" else None))
    assert "best: trial 1, mIoU 0.5000" in write_sweep_report(study)
    assert (tmp_path / "study/best.yaml").read_text().startswith("# trial 1 of")
    with open(tmp_path / "study/results.csv") as file:
        assert [row["state"] for row in csv.DictReader(file)] == ["done", "pruned"]


def test_a_study_of_a_former_version_is_told_apart(sweep_file, tmp_path: Path) -> None:
    study = SweepStudy(read_sweep(sweep_file()), tmp_path / "study").study
    study.set_user_attr("identity", {})
    with pytest.raises(ConfigError, match="study has the trials of .* or of a former version"):
        SweepStudy(read_sweep(sweep_file()), tmp_path / "study")


def test_a_trial_left_behind_is_taken_up_with_its_values(sweep_file, tmp_path: Path) -> None:
    path = sweep_file(
        method="bayes", run_cap=2, parameters={"learning_rate": {"min": 0.001, "max": 0.01}}
    )
    other = SweepStudy(read_sweep(path), tmp_path / "study")
    one = SweepStudy(read_sweep(path), tmp_path / "study")
    with one.claim() as first, other.claim() as second, other.claim() as none:
        assert [trial.user_attrs["run"] for trial in (first, second)] == [0, 1]
        assert none is None  # both are running
        with pytest.raises(TrainingError, match="in use"), folder_lock(other.folder_of(1)):
            pass
        other.finish(second, TrialOutcome("COMPLETE", 0.5))
    with other.claim() as again:  # the process of the first has died
        assert (again.user_attrs["run"], again.params) == (0, first.params)
        other.finish(again, TrialOutcome("COMPLETE", 0.6))
    with other.claim() as none:
        assert none is None
    assert [trial.value for trial in other.runs().values()] == [0.6, 0.5]


@pytest.mark.parametrize("step", ["tell", "ask"])
def test_a_worker_killed_while_it_takes_a_trial_loses_none(
    sweep_file, tmp_path: Path, monkeypatch, step: str
) -> None:
    """Between Optuna's steps."""
    study = SweepStudy(read_sweep(sweep_file()), tmp_path / "study")
    with study.claim() as first:
        pass
    with monkeypatch.context() as patch:
        patch.delattr(type(study.study), step)
        with pytest.raises(AttributeError), study.claim():
            pass
    with study.claim() as again:
        assert (again.user_attrs["run"], again.params) == (0, first.params)


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
        ({"metod": "grid"}, "small.yaml: 'metod' is not a key here; did you mean method"),
        ({"method": "gird"}, "method"),
        ({"run_cap": True}, "run_cap: True: "),
        ({"metric": {"name": "mIoU"}}, "small.yaml: metric.goal: is missing"),
        ({"metric": {"nmae": "loss"}}, "metric: 'nmae' is not a key here; did you mean name"),
        ({"parameters": {"lr": {"vlaues": [1]}}}, "parameters.lr: 'vlaues' .* did you mean values"),
        ({"early_terminate": {"tpye": "median"}}, "early_terminate: 'tpye' .* did you mean type"),
        ({"early_terminate": {"type": "median", "min_iter": 1}}, "type: 'median': .*'hyperband'"),
        ({"early_terminate": {"max_iter": 9}}, "'max_iter' is not a key here; write min_iter"),
        ({"xyzzy": 1}, "'xyzzy' is not a key here; there are name, config, method"),
        ({"count": 3}, "'count' is not a key here; write run_cap"),
        ({"aliases": {}}, "'aliases' is not a key here; name the option itself"),
        ({"parameters": {"TRAIN": {"parameters": {}}}}, "nested parameter as SECTION.option"),
        ({"parameters": {"lr": {"min": 1, "max": 2, "q": 1}}}, "'q' .*; list the values"),
        ({"parameters": {"lr": {"min": 1, "max": 2}}}, "method grid needs value or values"),
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
        ({"parameters": {"save_path": {"values": ["x"]}}}, "TRAIN.save_path is each trial's own"),
        ({"parameters": {"a.b": {"values": [1]}}}, "a.b: a is not a section"),
        ({"parameters": {"lr": {"value": 1}, "base_lr": {"value": 1}}}, "already given in .*.lr"),
        ({"config": "~nosuchuser/x.yaml"}, "does not exist"),
        ({"config": "x" * 5000 + ".yaml"}, "does not exist"),
        ({"name": "my sweep"}, "name"),
        ({"parameters": {"TRAIN.base_lrr": {"values": [1]}}}, "base_lrr"),
        ({"parameters": {"learning_rate": {"values": ["fast"]}}}, "learning_rate|base_lr"),
        (
            {"parameters": {"lr": {"min": 1, "max": 0.1}}, "method": "random"},
            "min must be below max",
        ),
        ({"method": "random"}, "run_cap is missing"),
        ({"config": "nowhere nothing"}, "nowhere"),
        (
            {"parameters": {k: {"values": [*range(1, 999)]} for k in ("lr", "power")}},
            "makes 996004 trials; at most",
        ),
        (
            {"parameters": {"evaluate": {"value": False}}},
            "metric.name mIoU is the validation's, and TRAIN.evaluate is False",
        ),
        ({"parameters": {"TRAIN.save_path": {"value": "x"}}}, "save_path"),
    ],
)
def test_mistakes_are_told_before_the_first_trial(
    sweep_file, tmp_path: Path, changes: dict, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        tool_sweep.main([str(sweep_file(**changes))])
    assert not (tmp_path / "exp/sweeps/small").exists()


def test_a_sweep_needs_optuna_and_a_report_needs_trials(
    sweep_file, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="does not exist: this sweep has no trials yet"):
        SweepStudy(read_sweep(sweep_file()), tmp_path / "study", create=False)
    monkeypatch.setattr("stripseg.util.experiments.sweep_file.distributions", None)
    with pytest.raises(StripsegError, match="needs Optuna.*pip install optuna"):
        read_sweep(sweep_file())


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
