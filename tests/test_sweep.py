"""Sweeps: files in W&B's format, trials that survive being killed, workers, pruning, reports."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread
from types import ModuleType

import pytest
import yaml

from stripseg.config.errors import ConfigError, StripsegError
from stripseg.config.load import load_config
from stripseg.config.sweep_file import read_sweep
from stripseg.config.sweep_parameters import Alias, parameter_of
from stripseg.tool import sweep as tool_sweep
from stripseg.util.epoch_figures import read_epochs, write_epoch
from stripseg.util.interruption import Stopped
from stripseg.util.sweep_plots import height_of
from stripseg.util.sweep_study import SweepStudy
from stripseg.util.sweep_trial import TrialRun
from stripseg.util.sweep_wandb import run_on_wandb

RATES = [0.001, 0.01]


@pytest.fixture
def sweep_file(small_config: Path, tmp_path: Path, monkeypatch):
    """Writes a sweep over the small shapes network and returns its path."""
    monkeypatch.chdir(tmp_path)

    def write(**changes) -> Path:
        content = {
            "config": str(small_config),
            "method": "grid",
            "metric": {"name": "mIoU", "goal": "maximize"},
            "parameters": {
                "learning_rate": {"values": RATES},
                "epochs": {"value": 1},
                "TRAIN.tensorboard": {"value": False},
            },
            **changes,
        }
        path = tmp_path / "small.yaml"
        kept = {key: value for key, value in content.items() if value is not None}
        path.write_text(yaml.safe_dump(kept, sort_keys=False), encoding="utf-8")
        return path

    return write


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
    assert len(pictures) == 2
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
    assert "trial 1: goes on" in done.stdout
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
        with claim.release:
            study.report(claim, 1, value)
            verdicts.append(claim.trial.should_prune())
            if verdicts[-1]:
                study.finish(claim, "PRUNED", value=None)
            else:
                study.finish(claim, "COMPLETE", value=value)
    assert verdicts[-1]
    assert not verdicts[1]


def test_a_trial_left_behind_is_taken_up_with_its_values(sweep_file, tmp_path: Path) -> None:
    path = sweep_file(
        method="bayes", run_cap=2, parameters={"learning_rate": {"min": 0.001, "max": 0.01}}
    )
    first = SweepStudy(read_sweep(path), tmp_path / "study").claim()
    other = SweepStudy(read_sweep(path), tmp_path / "study")
    second = other.claim()
    assert (first.number, second.number) == (0, 1)
    assert other.claim() is None  # both are running
    first.release.close()  # its process has died
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
    assert (sweep.metric, sweep.maximize, sweep.method) == ("loss", False, "bayes")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metod": "grid"}, "metod is not a key of a sweep file; did you mean method"),
        ({"method": "gird"}, "method"),
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
        ({"parameters": {"x": {"values": [1]}}, "aliases": {"x": "a.b"}}, "a.b is no SECTION"),
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


def test_wandb_is_handed_the_file_and_chooses_the_values(sweep_file, monkeypatch) -> None:
    """A stand-in for the library: what reaches it, and what its choices come to."""
    parameters = {
        "TRAIN": {"parameters": {"momentum": {"values": [0.8, 0.9]}}},
        "lr": {"min": 0.001, "max": 0.01},
    }
    place = {"project": "scenes", "seed": 3}
    path = sweep_file(method="random", run_cap=2, parameters=parameters, **place)
    seen, logged, failures = [], [], []

    class Run:
        id = "abc"
        log = staticmethod(logged.append)

        def __init__(self) -> None:
            self.config = {"TRAIN": {"momentum": 0.8}, "lr": 0.002, "extra": 1}

        def __enter__(self):
            return self

        def __exit__(self, *_) -> None:
            pass

    jobs = iter(range(3))

    def agent(number, function, count, **place):
        """As W&B's: jobs run in threads, whose exceptions it keeps to itself."""
        seen.append((number, count, place))
        for _ in zip(range(count), jobs, strict=False):
            thread = Thread(target=swallowing, args=(function,))
            thread.start()
            thread.join()

    def swallowing(function) -> None:
        try:
            function()
        except Exception as error:
            failures.append(str(error))

    wandb = ModuleType("wandb")
    wandb.init, wandb.agent = Run, agent
    wandb.sweep = lambda content, **place: seen.append((sorted(content), place)) or "number"
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    runs = []

    def run(name, values, log):
        runs.append((name, values))
        log({"mIoU": 0.5})
        return ""

    run_on_wandb(read_sweep(path), run)
    place = {"project": "scenes", "entity": None}
    agents = [("number", 1, place)] * 2
    assert seen == [(["method", "metric", "parameters", "run_cap"], place), *agents]
    assert runs == [("abc", {"TRAIN.momentum": 0.8, "lr": 0.002})] * 2
    assert logged == [{"mIoU": 0.5}] * 2
    run_on_wandb(read_sweep(path), lambda *_: "diverged")  # one job is left
    assert failures == ["diverged"]
    jobs = iter(range(9))
    stops = []

    def stopped(*_) -> str:
        stops.append(1)
        raise Stopped("stopped by SIGTERM")

    with pytest.raises(Stopped, match="SIGTERM"):
        run_on_wandb(read_sweep(path), stopped)
    assert stops == [1]
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(StripsegError, match="pip install wandb"):
        tool_sweep.main([str(path), "--backend", "wandb"])


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


def test_a_config_that_was_edited_is_another_sweep(
    sweep_file, small_config: Path, tmp_path: Path
) -> None:
    SweepStudy(read_sweep(sweep_file()), tmp_path / "study")
    content = yaml.safe_load(small_config.read_text())
    content["TRAIN"]["momentum"] = 0.5
    small_config.write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match="another config"):
        SweepStudy(read_sweep(sweep_file()), tmp_path / "study")


def trial_run(folder: Path, script: str, **changes) -> TrialRun:
    settings = {"split": "val", "metric": "mIoU", "epochs": 2}
    settings |= {"on_epoch": lambda *_: False, "stopping": lambda: False, **changes}
    return TrialRun([sys.executable, "-c", script], folder, **settings)


def test_a_trial_is_no_process_of_the_launcher_around_it(tmp_path: Path, monkeypatch) -> None:
    for name in ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "RANK", "WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.setenv(name, "2")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    script = "import os; print(sorted(k for k in os.environ if 'SLURM' in k or 'R' in k[:2]))"
    trial_run(tmp_path, script).run()
    said = (tmp_path / "output.txt").read_text()
    assert "SLURM_JOB_ID" in said
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
