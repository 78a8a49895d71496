"""Trackers get a run's curves and pictures; none of them can stop it or slow it."""

import json
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from stripseg.config.errors import ConfigError
from stripseg.config.load import load_config
from stripseg.training_run import build_trainer
from stripseg.util.images import shrunk
from stripseg.util.training import trackers as module
from stripseg.util.training.epoch_log import read_epochs, read_records, run_entry, write_epoch
from stripseg.util.training.trackers import Guarded, Trackers, open_trackers, wanted
from stripseg.validation import SAMPLE_SIDE

CPU = torch.device("cpu")


class Recording:
    """A tracker that keeps what it is told."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []

    def start(self, options) -> None:
        self.calls.append(("start", options))

    def scalars(self, figures, step) -> None:
        self.calls.append(("scalars", figures, step))

    def images(self, pictures, step) -> None:
        self.calls.append(("images", pictures, step))

    def finish(self) -> None:
        self.calls.append(("finish",))


class Raising(Recording):
    def scalars(self, figures, step) -> None:
        super().scalars(figures, step)
        raise ConnectionError("no route to host\nsecond line")


class Blocking(Recording):
    """Never answers, until the test ends."""

    def __init__(self) -> None:
        super().__init__()
        self.released = threading.Event()

    def scalars(self, figures, step) -> None:
        self.released.wait()


def test_calls_arrive_in_order_before_the_end() -> None:
    tracker, warnings = Recording(), []
    trackers = Trackers([Guarded(tracker, "mine", warn=warnings.append)])
    trackers.start({"TRAIN.epochs": 2})
    for step in range(50):
        trackers.scalars({"loss": step}, step)
    trackers.finish()
    assert [call[0] for call in tracker.calls] == ["start", *["scalars"] * 50, "finish"]
    assert [call[2] for call in tracker.calls[1:-1]] == list(range(50))
    assert not warnings


def test_a_tracker_that_raises_is_off_after_one_warning() -> None:
    bad, good, warnings = Raising(), Recording(), []
    guarded = [Guarded(t, n, warn=warnings.append) for t, n in ((bad, "bad"), (good, "good"))]
    trackers = Trackers(guarded)
    trackers.scalars({"loss": 1.0}, 1)
    guarded[0].thread.join(10)
    trackers.scalars({"loss": 2.0}, 2)
    trackers.finish()
    assert warnings == [
        "tracker bad failed (ConnectionError: no route to host); it is off from here on, the run "
        "continues"
    ]
    assert len(bad.calls) == 1
    assert [call[0] for call in good.calls] == ["scalars", "scalars", "finish"]


def test_a_tracker_that_hangs_costs_no_time() -> None:
    tracker, warnings, now = Blocking(), [], 0.0
    guarded = Guarded(tracker, "slow", warn=warnings.append, clock=lambda: now, patience=5)
    guarded.call("scalars", {"loss": 1.0}, 1)
    while guarded.busy_since is None:
        time.sleep(0.001)
    now = 6.0
    for step in range(2000):
        guarded.call("scalars", {"loss": 1.0}, step)
    guarded.finish()
    tracker.released.set()
    assert len(warnings) == 1
    assert "tracker slow has not answered for 5 s; it is off" in warnings[0]


def test_a_tracker_that_cannot_keep_up_is_off() -> None:
    tracker, warnings = Blocking(), []
    guarded = Guarded(tracker, "slow", warn=warnings.append, most_waiting=3)
    for step in range(9):
        guarded.call("scalars", {}, step)
    tracker.released.set()
    assert len(warnings) == 1
    assert "is 3 calls behind" in warnings[0]


def test_the_end_of_a_run_does_not_wait_for_ever() -> None:
    tracker, warnings = Blocking(), []
    guarded = Guarded(tracker, "slow", warn=warnings.append, patience=0.05)
    guarded.call("scalars", {}, 1)
    guarded.finish()
    tracker.released.set()
    assert len(warnings) == 1


def test_a_run_outlives_its_trackers(
    small_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One raises, one blocks; log and epochs.jsonl are complete, with one warning for each."""
    blocking = Blocking()
    monkeypatch.setitem(module.KINDS, "wandb", lambda *_: Raising())
    monkeypatch.setitem(module.KINDS, "mlflow", lambda *_: blocking)
    monkeypatch.setattr(
        module.Guarded.__init__,
        "__kwdefaults__",
        {**module.Guarded.__init__.__kwdefaults__, "patience": 0.1},
    )
    words = ["TRAIN.epochs", "1", "TRAIN.evaluate", "False", "TRAIN.trackers", "[wandb, mlflow]"]
    trainer = build_trainer(load_config(small_config, words), CPU)
    trainer.fit()
    trainer.run_log.close()
    blocking.released.set()
    assert list(read_epochs(tmp_path / "run/model")) == [1]
    log = next((tmp_path / "run/model").glob("*.log")).read_text()
    assert log.count("tracker wandb failed (ConnectionError") == 1
    assert log.count("tracker mlflow ") == 1


def test_a_run_draws_classes_pictures_costs_and_options(small_config: Path, tmp_path: Path) -> None:
    trainer = build_trainer(load_config(small_config, ["TRAIN.epochs", "1"]), CPU)
    trainer.fit()
    trainer.run_log.close()
    events = EventAccumulator(str(tmp_path / "run/model"))
    events.Reload()
    tags = events.Tags()
    steps = {"gradient_norm", "images_per_second", "peak_memory_gib"}
    assert {f"train_step/{name}" for name in steps} <= set(tags["scalars"])
    assert len([tag for tag in tags["scalars"] if tag.startswith("val_iou/")]) == 9
    assert "val_iou/fence" in tags["scalars"]
    assert {"val/0", "val/1", "val/2"} <= set(tags["images"])
    picture = events.Images("val/0")[0]
    assert (picture.height, picture.width) == (72, 3 * 88)
    assert events.Scalars("train_step/gradient_norm")[0].value > 0
    run = read_records(tmp_path / "run/model/epochs.jsonl")[1]["run"]
    assert (run["version"], run["step"]) == (1, 3)
    assert 0 < run["lr"] < 0.01
    assert run["images_per_second"] == pytest.approx(2 / run["seconds_per_step"])
    assert 0.01 < run["peak_memory_gib"] < 1000
    hparams = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"TRAIN.base_lr" in hparams


@pytest.mark.parametrize("most", [0, 2])
def test_the_config_decides_how_many_predictions_are_shown(
    small_config: Path, tmp_path: Path, most: int
) -> None:
    words = ["TRAIN.epochs", "1", "TRAIN.sample_predictions", str(most)]
    trainer = build_trainer(load_config(small_config, words), CPU)
    trainer.fit()
    trainer.run_log.close()
    events = EventAccumulator(str(tmp_path / "run/model"))
    events.Reload()
    assert set(events.Tags()["images"]) == {f"val/{index}" for index in range(most)}


def test_pictures_are_made_small() -> None:
    assert shrunk(np.zeros((72, 88, 3), np.uint8), SAMPLE_SIDE).shape == (72, 88, 3)
    large = np.zeros((1000, 4000, 3), np.uint8)
    assert shrunk(large, SAMPLE_SIDE).shape == (120, SAMPLE_SIDE, 3)


def test_records_of_earlier_versions_are_read(tmp_path: Path) -> None:
    (tmp_path / "epochs.jsonl").write_text(json.dumps({"epoch": 1, "train": {"loss": 2.0}}) + "\n")
    assert read_records(tmp_path / "epochs.jsonl") == {1: {"train": {"loss": 2.0}}}
    cost = run_entry(step=6, lr=0.1, seconds_per_step=2.0, images_per_second=1.0)
    write_epoch(tmp_path, 2, {"train": {"loss": 1.0}, **cost}, warn=pytest.fail)
    write_epoch(tmp_path, 3, {"train": {"loss": 0.5}}, warn=pytest.fail)
    assert read_records(tmp_path / "epochs.jsonl")[2]["run"]["lr"] == 0.1
    assert read_epochs(tmp_path)[2] == {"train": {"loss": 1.0}}  # figures alone


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ([], ["tensorboard"]),
        (["TRAIN.tensorboard", "False"], []),
        (["TRAIN.trackers", "wandb"], ["wandb"]),
        (["TRAIN.trackers", "[tensorboard, wandb, wandb]"], ["tensorboard", "wandb"]),
        (["TRAIN.trackers", "[tensorboard, mlflow]", "TRAIN.tensorboard", "False"], ["mlflow"]),
    ],
)
def test_options_choose_the_trackers(small_config: Path, words: list[str], names) -> None:
    assert wanted(load_config(small_config, words)) == names


def test_a_tracker_that_does_not_exist_is_refused(small_config: Path) -> None:
    with pytest.raises(ConfigError, match=r"TRAIN.trackers must be .*tensorboard, wandb, mlflow"):
        load_config(small_config, ["TRAIN.trackers", "[comet]"])


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_named(
    small_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    config = load_config(small_config, ["TRAIN.trackers", name])
    with pytest.raises(ConfigError, match=rf"TRAIN.trackers {name}: .* pip install {name}"):
        open_trackers(config, tmp_path, step=None, warn=print)


def tell_everything(config, folder: Path, warnings: list[str], step: int | None = None) -> None:
    trackers = open_trackers(config, folder, step=step, warn=warnings.append)
    trackers.scalars({"val/mIoU": 0.5, "val_iou/traffic light (red)": 0.25}, 3)
    trackers.images({"val/0": np.zeros((4, 6, 3), np.uint8)}, 3)
    trackers.finish()


def test_wandb_is_told(small_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged, started = [], {}
    run = SimpleNamespace(
        log=lambda values, step: logged.append((values, step)), finish=lambda: logged.append("end")
    )
    fake = SimpleNamespace(
        Settings=lambda: SimpleNamespace(project=None),
        init=lambda **options: started.update(options) or run,
        Image=lambda picture: picture.shape,
    )
    monkeypatch.setitem(sys.modules, "wandb", fake)
    warnings: list[str] = []
    config = load_config(small_config, ["TRAIN.trackers", "wandb"])
    tell_everything(config, tmp_path, warnings)
    assert warnings == []
    assert started["project"] == "stripseg"
    assert started["config"]["TRAIN.epochs"] == 2
    assert logged[1:] == [({"val/0": (4, 6, 3)}, 3), "end"]
    first = started["id"]
    tell_everything(config, tmp_path, warnings, step=3)
    assert started["id"] == first  # a resumed run is the same run
    tell_everything(config, tmp_path, warnings)
    assert started["id"] != first  # a fresh one in the same folder is not


class FakeMlflowClient:
    def __init__(self) -> None:
        self.calls: list[tuple] = []

    def search_runs(self, *arguments, **options) -> list:
        return []

    def create_run(self, *arguments):
        return SimpleNamespace(info=SimpleNamespace(run_id="r"))

    def get_experiment_by_name(self, name: str):
        return None

    def create_experiment(self, name: str) -> str:
        return "7"

    def log_batch(self, run: str, *, params=(), metrics=()) -> None:
        self.parameters = {**getattr(self, "parameters", {}), **dict(params)}
        self.calls += [(name, value, step) for name, value, _, step in metrics]

    def log_image(self, run: str, picture, file: str) -> None:
        self.calls.append((picture.shape, file))

    def set_terminated(self, run: str) -> None:
        self.calls.append(("end", run))


def test_mlflow_is_told(small_config: Path, tmp_path: Path, monkeypatch) -> None:
    client, warnings = FakeMlflowClient(), []
    entities = SimpleNamespace(Param=lambda *values: values, Metric=lambda *values: values)
    fake = SimpleNamespace(MlflowClient=lambda: client, entities=entities)
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    config = load_config(small_config, ["TRAIN.trackers", "mlflow"])
    tell_everything(config, tmp_path, warnings)
    assert warnings == []
    assert client.parameters["TRAIN.epochs"] == "2"
    assert client.calls == [
        ("val/mIoU", 0.5, 3),
        ("val_iou/traffic light _red_", 0.25, 3),
        ((4, 6, 3), "val/0_00000003.png"),
        ("end", "r"),
    ]
