"""A run is a function of its config: stopping, workers and processes change no number."""

from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch
import yaml
from processes import run_command
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from stripseg.config.errors import CheckpointError, TrainingError
from stripseg.config.load import load_config
from stripseg.training_run import build_trainer
from stripseg.util.checkpoint import read_checkpoint

CPU = torch.device("cpu")


def trained(config: Path, *overrides: str, until: int | None = None) -> dict:
    """Train in this process and return what the last checkpoint holds."""
    trainer = build_trainer(load_config(config, overrides), CPU)
    trainer.fit(until=until)
    return torch.load(trainer.checkpoints.last, weights_only=True)


def test_seed_decides_the_run(small_config: Path, tmp_path: Path) -> None:
    first = trained(small_config, "TRAIN.save_path", str(tmp_path / "a"), until=1)
    again = trained(small_config, "TRAIN.save_path", str(tmp_path / "b"), until=1)
    other = trained(
        small_config, "TRAIN.save_path", str(tmp_path / "c"), "TRAIN.manual_seed", "7", until=1
    )
    for key, value in first["state_dict"].items():
        assert torch.equal(value, again["state_dict"][key]), key
    key = "head.classifier.weight"
    assert not torch.equal(first["state_dict"][key], other["state_dict"][key])


def run_train(config: Path, *overrides: str, processes: int = 1) -> CompletedProcess:
    words = ["--config", str(config), *overrides]
    return run_command("stripseg.tool.train", *words, processes=processes)


def test_error_of_one_process_ends_all_of_them(
    small_config: Path, small_shapes: Path, forked_python: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHON_EXEC", forked_python)  # of torchrun
    broken = Path(small_config).with_name("broken.txt")
    lines = (small_shapes / "train.txt").read_text().splitlines()
    image = small_config.with_name("cut.jpg")
    image.write_bytes((small_shapes / lines[0].split()[0]).read_bytes()[:700])
    lines[0] = f"{image} {lines[0].split()[1]}"
    broken.write_text("\n".join(lines))
    done = run_train(small_config, "DATA.train_list", str(broken), "Distributed.processes", "2")
    assert done.returncode == 2
    assert f"error: {image}: image file is truncated" in done.stderr


def test_ignored_crop_is_harmless(
    small_config: Path, small_shapes: Path, tmp_path: Path, monkeypatch
) -> None:
    """All labels ignored: the loss is zero and the weights move by weight decay alone."""
    import numpy as np

    from stripseg import training_run
    from stripseg.util.images import write_png

    monkeypatch.setattr(training_run, "refuse_bad_data", lambda *given: None)
    lines = []
    for line in (small_shapes / "train.txt").read_text().splitlines():
        image, label = line.split()
        write_png(tmp_path / label, np.full((72, 88), 255, np.uint8))
        lines.append(f"{image} {tmp_path / label}")
    (tmp_path / "ignored.txt").write_text("\n".join(lines))
    result = trained(
        small_config,
        *("DATA.train_list", str(tmp_path / "ignored.txt"), "TRAIN.weight_decay", "0"),
        until=2,
    )
    fresh = build_trainer(load_config(small_config, ["TRAIN.resume", "none"]), CPU)
    for name, parameter in fresh.segmenter.named_parameters():
        assert torch.equal(result["state_dict"][name], parameter), name


def test_checkpoints_best_last_and_epochs(small_config: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run" / "model"
    trained(small_config, "TRAIN.epochs", "4", "TRAIN.keep_last", "2")
    names = {path.name for path in folder.glob("*.pth")}
    assert names == {"last.pth", "best.pth", "train_epoch_3.pth", "train_epoch_4.pth"}
    assert yaml.safe_load((folder / "config.yaml").read_text())["TRAIN"]["epochs"] == 4
    config = torch.load(folder / "last.pth", weights_only=True)["config"]
    assert config["TRAIN"]["epochs"] == 4


def test_tensorboard_has_losses_rates_and_figures(small_config: Path, tmp_path: Path) -> None:
    trainer = build_trainer(load_config(small_config), CPU)
    trainer.fit()
    trainer.run_log.close()
    events = EventAccumulator(str(tmp_path / "run" / "model"))
    events.Reload()
    assert {"train_step/loss", "train_step/lr", "train/mIoU", "val/mIoU"} <= set(
        events.Tags()["scalars"]
    )
    assert [event.step for event in events.Scalars("train_step/loss")] == [1, 2, 3, 4, 5, 6]
    assert "val/0" in events.Tags()["images"]


def test_tensorboard_has_each_step_once_after_a_stop(small_config: Path, tmp_path: Path) -> None:
    """The run dies two steps after its last checkpoint; these steps are done and drawn again."""
    trainer = build_trainer(load_config(small_config), CPU)
    trainer.fit(until=2)
    trainer.save = lambda **_: None
    trainer.fit(until=4)
    trainer.run_log.close()
    resumed = build_trainer(load_config(small_config), CPU)
    assert resumed.step == 2
    resumed.fit()
    resumed.run_log.close()
    events = EventAccumulator(str(tmp_path / "run" / "model"))
    events.Reload()
    assert [event.step for event in events.Scalars("train_step/loss")] == [1, 2, 3, 4, 5, 6]
    assert [event.step for event in events.Scalars("train/mIoU")] == [3, 6]


def test_first_step_runs_at_the_base_rate(small_config: Path) -> None:
    trainer = build_trainer(load_config(small_config), CPU)
    trainer.fit(until=1)
    assert [group["lr"] for group in trainer.optimizer.param_groups] == pytest.approx([0.01, 0.1])


def test_damaged_newest_checkpoint_falls_back(small_config: Path, tmp_path: Path) -> None:
    trained(small_config)
    last = tmp_path / "run" / "model" / "last.pth"
    content = last.read_bytes()
    last.unlink()  # the epoch's file is a hard link to it
    last.write_bytes(content[: len(content) // 2])
    trainer = build_trainer(load_config(small_config, ["TRAIN.epochs", "3"]), CPU)
    assert trainer.step == 6
    assert read_checkpoint(last)["step"] == 6


def test_checkpoint_of_a_newer_program_is_refused(small_config: Path, tmp_path: Path) -> None:
    trained(small_config, until=1)
    last = tmp_path / "run" / "model" / "last.pth"
    torch.save(torch.load(last, weights_only=True) | {"version": 2}, last)
    with pytest.raises(CheckpointError, match="is of version 2 of stripseg's checkpoints and this"):
        build_trainer(load_config(small_config), CPU)


def test_epoch_of_another_length_is_refused(small_config: Path) -> None:
    trained(small_config, until=3)
    with pytest.raises(CheckpointError, match="its epochs have 3 steps and this run's 2"):
        build_trainer(load_config(small_config, ["TRAIN.batch_size", "3"]), CPU)


def test_single_value_batch_norm_is_found_before_training(small_config: Path) -> None:
    overrides = ["TRAIN.batch_size", "1", "TRAIN.train_h", "8", "TRAIN.train_w", "8"]
    overrides += ["TRAIN.width", "1"]  # group norm, too, needs more than one value in a group
    with pytest.raises(TrainingError, match=r"batch_size 1 with crop 8x8 .* TRAIN.norm group"):
        build_trainer(load_config(small_config, overrides), CPU)
    trainer = build_trainer(load_config(small_config, [*overrides, "TRAIN.norm", "group"]), CPU)
    trainer.fit(until=1)
    assert trainer.step == 1


def test_diverging_loss_stops_the_run(small_config: Path) -> None:
    config = load_config(small_config, ["TRAIN.base_lr", "1e30", "TRAIN.skipped_steps", "2"])
    with pytest.raises(TrainingError, match="3 steps in a row were skipped.*lower TRAIN.base_lr"):
        build_trainer(config, CPU).fit()


@pytest.mark.parametrize("weights", ["auto", "[1,1,1,1,1,1,1,1,2]"])
@pytest.mark.parametrize("loss", ["cross_entropy", "ohem"])
def test_losses_of_the_config_train(small_config: Path, loss: str, weights: str) -> None:
    overrides = ["TRAIN.loss", loss, "TRAIN.class_weights", weights, "TRAIN.ohem_min_kept", "50"]
    overrides += ["TRAIN.zoom_factor", "4", "TRAIN.precision", "bf16", "TRAIN.evaluate", "False"]
    assert trained(small_config, *overrides, until=1)["step"] == 1


def test_the_averaged_weights_are_validated_and_kept(small_config: Path) -> None:
    """Running statistics of batch norm are averaged like weights; counters are the newest."""
    trainer = build_trainer(load_config(small_config, ["TRAIN.average_decay", "0.9"]), CPU)
    validated, validate = [], trainer.validate

    def watched(*arguments):
        validated.append({k: v.clone() for k, v in trainer.segmenter.state_dict().items()})
        return validate(*arguments)

    trainer.validate = watched
    history, update = [], trainer.ema.update

    def recorded(step: int) -> None:
        history.append({k: v.clone() for k, v in trainer.segmenter.state_dict().items()})
        update(step)

    start = {k: v.clone() for k, v in trainer.ema.tensors.items()}
    trainer.ema.update = recorded
    trainer.fit()
    assert len(history) == trainer.step == 6
    best = torch.load(trainer.checkpoints.best, weights_only=True)
    last = torch.load(trainer.checkpoints.last, weights_only=True)
    for key, expected in start.items():
        for step, live in enumerate(history, start=1):
            keep = min(0.9, (1 + step) / (10 + step))
            if expected.is_floating_point():
                expected = keep * expected + (1 - keep) * live[key]
            else:
                expected = live[key]
        torch.testing.assert_close(last["state_dict"][key], expected, rtol=1e-4, atol=1e-6)
        assert torch.equal(validated[-1][key], last["state_dict"][key]), key
        assert torch.equal(last["training_weights"][key], history[-1][key]), key
    assert any(
        all(torch.equal(best["state_dict"][key], seen[key]) for key in start) for seen in validated
    )
