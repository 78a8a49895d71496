"""What a run survives: signals, steps that are not finite, full disks, bad files, a second run."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from processes import Command

from stripseg.config.compatibility import check_same_network
from stripseg.config.errors import CheckpointError, DataError, TrainingError
from stripseg.config.load import load_config
from stripseg.tool import test as tool_test
from stripseg.tool import train
from stripseg.training_run import build_trainer
from stripseg.util.checkpoint import CheckpointFolder, folder_lock, read_checkpoint
from stripseg.util.signals import STOPPED, Stopped

CPU = torch.device("cpu")
LONG = ["TRAIN.epochs", "200", "TRAIN.evaluate", "False", "TRAIN.tensorboard", "False"]


def started(config: Path, *words: str) -> Command:
    """A training process of its own, past its first step."""
    process = Command("stripseg.tool.train", "--config", str(config), *words)
    for line in process.stdout:
        if " step 2/" in line:
            return process
    raise AssertionError(f"the run ended: {process.wait()}")


def ended(process: Command) -> tuple[int, str]:
    text = process.communicate(timeout=60)
    return process.returncode, text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "processes", "workers"),
    [
        ("SIGTERM", 1, 2),
        ("SIGINT", 1, 2),
        ("SIGUSR1", 2, 2),
        pytest.param("SIGUSR1", 1, 2, marks=pytest.mark.long),
        pytest.param("SIGTERM", 2, 2, marks=pytest.mark.long),
    ],
)
def test_a_signal_saves_and_ends_with_its_code(
    small_config: Path,
    tmp_path: Path,
    forked_python: str,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    processes: int,
    workers: int,
) -> None:
    monkeypatch.setenv("PYTHON_EXEC", forked_python)  # of torchrun
    words = [*LONG, "Distributed.processes", str(processes), "TRAIN.workers", str(workers)]
    process = started(small_config, *words)
    if processes == 1:  # terminals and schedulers send it to the workers as well
        os.killpg(process.pid, getattr(signal, name))
    else:
        process.send_signal(getattr(signal, name))
    code, text = ended(process)
    assert code == STOPPED, text
    assert "Traceback" not in text
    step = read_checkpoint(tmp_path / "run/model/last.pth")["step"]
    assert f"stopped by {name} after step {step} of 600" in text
    assert step >= 2
    trainer = build_trainer(load_config(small_config, LONG), CPU)
    assert trainer.step == step


def test_a_second_interrupt_ends_at_once() -> None:
    program = (
        "import os, signal, time\n"
        "from stripseg.util.signals import StopRequest\n"
        "with StopRequest() as request:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print(request.name, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print('still there')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (128 + signal.SIGINT, "SIGINT\n")


def test_a_stop_in_process_leaves_what_a_whole_run_goes_through(
    small_config: Path, tmp_path: Path
) -> None:
    """Stopped by a signal in the middle of an epoch and resumed: bit for bit the same weights."""
    whole = build_trainer(load_config(small_config, ["TRAIN.save_path", str(tmp_path / "w")]), CPU)
    whole.fit()
    place = ["TRAIN.save_path", str(tmp_path / "p")]
    trainer = build_trainer(load_config(small_config, place), CPU)
    add = trainer.run_log.add

    def interrupted(batch, figures) -> None:
        add(batch, figures)
        if trainer.step == 2:
            os.kill(os.getpid(), signal.SIGUSR1)

    trainer.run_log.add = interrupted
    with pytest.raises(Stopped, match="stopped by SIGUSR1 after step 2 of 6"):
        trainer.fit()
    resumed = build_trainer(load_config(small_config, place), CPU)
    resumed.fit()
    for key, value in whole.segmenter.state_dict().items():
        assert torch.equal(value, resumed.segmenter.state_dict()[key]), key


# ---- numbers


def spoil(trainer, steps: set[int], how: str) -> None:
    """Make loss, or gradients only, not finite in these steps."""
    loss = trainer.train_step.loss

    def bad_loss(logits, auxiliary, label):
        total, main, second = loss(logits, auxiliary, label)
        if trainer.step in steps:
            if how == "loss":
                total = total * float("nan")
            else:
                total.register_hook(lambda gradient: gradient * float("inf"))
        return total, main, second

    trainer.train_step.loss = bad_loss


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("how", ["loss", "gradient"])
@pytest.mark.parametrize("first", [True, False])
def test_a_step_that_is_not_finite_changes_nothing(
    small_config: Path, tmp_path: Path, how: str, optimizer: str, first: bool
) -> None:
    config = load_config(small_config, ["TRAIN.optimizer", optimizer, "TRAIN.base_lr", "0.001"])
    trainer = build_trainer(config, CPU)
    bad = 0 if first else 2
    spoil(trainer, {bad}, how)
    trainer.fit(until=bad)
    before = {k: v.clone() for k, v in trainer.segmenter.state_dict().items()}
    trainer.fit(until=bad + 1)
    for key, value in trainer.segmenter.state_dict().items():
        if "num_batches_tracked" not in key:
            assert torch.equal(value, before[key]), key
    trainer.fit(until=bad + 2)
    after = trainer.segmenter.state_dict()
    assert all(value.isfinite().all() for value in after.values())
    assert not torch.equal(after["head.classifier.weight"], before["head.classifier.weight"])
    log = next((tmp_path / "run/model").glob("*.log")).read_text()
    assert f"step {bad + 1} skipped: its loss or gradient is not finite" in log
    assert "images/train/shapes_train_" in log.split("skipped", 1)[1]


def test_too_many_in_a_row_stop_the_run_with_good_weights(
    small_config: Path, tmp_path: Path
) -> None:
    trainer = build_trainer(load_config(small_config, ["TRAIN.skipped_steps", "1"]), CPU)
    spoil(trainer, {1, 3, 4}, "loss")  # the first is alone
    with pytest.raises(TrainingError, match="2 steps in a row were skipped up to step 5"):
        trainer.fit()
    content = read_checkpoint(tmp_path / "run/model/last.pth")
    assert content["step"] == 5
    assert all(value.isfinite().all() for value in content["state_dict"].values())


# ---- disk and folder


def test_a_full_disk_leaves_the_files_before_and_the_training(
    small_config: Path, tmp_path: Path, monkeypatch
) -> None:
    trainer = build_trainer(load_config(small_config), CPU)
    trainer.fit(until=2)
    before = (tmp_path / "run/model/last.pth").read_bytes()
    real = torch.save

    def full(content, file) -> None:
        file.write(b"half")
        time.sleep(0.2)  # whoever does not wait for the writer does not know
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(TrainingError, match=r"step 4 of 6 .*\[Errno.*are of earlier steps"):
        trainer.fit(until=4)
    add, trainer.checkpoints.failure = trainer.run_log.add, None
    trainer.run_log.add = lambda *of_step: (add(*of_step), os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Stopped, match=r"stopped by SIGTERM: the state after step 5 of 6 could not"):
        trainer.fit()
    trainer.run_log.add = add
    assert (tmp_path / "run/model/last.pth").read_bytes() == before
    log = next((tmp_path / "run/model").glob("*.log")).read_text()
    assert "THE CHECKPOINT COULD NOT BE WRITTEN ([Errno 28] No space left" in log
    assert not list((tmp_path / "run/model").glob("*.tmp"))
    shutil.rmtree(tmp_path / "run/model")
    assert "run/model holds no checkpoint" in trainer._unsaved()
    monkeypatch.setattr(torch, "save", real)
    trainer.fit()
    assert read_checkpoint(tmp_path / "run/model/last.pth")["step"] == 6
    assert read_checkpoint(tmp_path / "run/model/best.pth")["step"] == 6  # epoch 1's was lost


def test_a_new_run_starts_at_start_epoch(small_config: Path) -> None:
    words = ["TRAIN.start_epoch", "1", "TRAIN.epochs", "2", "TRAIN.evaluate", "False"]
    trainer = build_trainer(load_config(small_config, words), CPU)
    per_epoch = trainer.loader.steps_per_epoch
    assert (trainer.step, trainer.epoch) == (per_epoch, 1)
    trainer.fit(until=per_epoch + 1)
    resumed = build_trainer(load_config(small_config, words), CPU)
    assert resumed.step == per_epoch + 1


def test_a_second_run_in_the_folder_is_refused(small_config: Path, tmp_path: Path) -> None:
    with (
        folder_lock(tmp_path / "run/model"),
        pytest.raises(TrainingError, match=rf"in use by another run \(process {os.getpid()} on"),
    ):
        train.main(["--config", str(small_config)])
    with folder_lock(tmp_path / "run/model"):  # free again
        pass


def test_fresh_starts_from_scratch_and_keeps_the_earlier_run(
    small_config: Path, tmp_path: Path
) -> None:
    words = ["--config", str(small_config), "TRAIN.epochs", "1"]
    train.main(words)
    before = (tmp_path / "run/model/last.pth").read_bytes()
    train.main([*words, "--fresh", "TRAIN.manual_seed", "5"])
    aside = [path for path in (tmp_path / "run").iterdir() if path.name.startswith("model-until")]
    assert len(aside) == 1
    assert (aside[0] / "last.pth").read_bytes() == before
    assert (tmp_path / "run/model/last.pth").read_bytes() != before


def test_fresh_without_an_earlier_run(small_config: Path, tmp_path: Path, capsys) -> None:
    words = ["--config", str(small_config), "--fresh", "TRAIN.epochs", "1"]
    train.main([*words, "TRAIN.evaluate", "False"])
    text = capsys.readouterr().out
    assert f"no earlier run in {tmp_path / 'run/model'}" in text
    assert "is kept in" not in text
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("machine", "environment", "first"),
    [
        (0, {}, True),  # starts the processes of its machine, the first one
        (1, {}, False),
        (0, {"RANK": "0"}, True),  # torchrun, or one Slurm task per GPU
        (0, {"RANK": "3"}, False),
        (1, {"RANK": "0"}, True),
        (0, {"RANK": "0", "TORCHELASTIC_RESTART_COUNT": "1"}, False),
    ],
)
def test_one_machine_moves_the_earlier_run(
    small_config: Path, monkeypatch, machine: int, environment: dict, first: bool
) -> None:
    options = ["Distributed.world_size", "2", "Distributed.rank", str(machine)]
    config = load_config(small_config, options)
    monkeypatch.setattr(os, "environ", environment)
    assert train.is_first_process(config) == first


def test_an_altered_checkpoint_is_recognised(tmp_path: Path) -> None:
    """One flipped bit among the weights; PyTorch itself would load it."""
    folder = CheckpointFolder(tmp_path)
    folder.save({"step": 1, "state_dict": {"w": torch.arange(1000.0)}}, epoch=1)
    folder.save({"step": 2, "state_dict": {"w": torch.arange(1000.0) + 1}})
    folder.finish()
    content = bytearray(folder.last.read_bytes())
    position = content.index(torch.arange(500.0, 501.0).numpy().tobytes())
    content[position] ^= 1
    folder.last.write_bytes(content)
    assert torch.load(folder.last, weights_only=True)["step"] == 2
    with pytest.raises(CheckpointError, match="last.pth: is damaged"):
        read_checkpoint(folder.last)
    path, good, warnings = folder.newest_good()
    assert (path, good["step"], len(warnings)) == (folder.epoch(1), 1, 1)


def test_what_is_saved_is_what_was_when_it_was_saved(tmp_path: Path, monkeypatch) -> None:
    """Training goes on while the file is written."""
    folder = CheckpointFolder(tmp_path)
    changed = threading.Event()
    write = folder.save_last

    def late(content) -> None:
        assert changed.wait(30)
        write(content)

    monkeypatch.setattr(folder, "save_last", late)
    weights = {"w": torch.zeros(10), "nested": [{"m": torch.ones(3)}]}
    folder.save({"state_dict": weights})
    weights["w"] += 7
    weights["nested"][0]["m"] += 7
    changed.set()
    folder.finish()
    read = read_checkpoint(folder.last)["state_dict"]
    assert read["w"].tolist() == [0] * 10
    assert read["nested"][0]["m"].tolist() == [1] * 3


def test_checkpoints_every_few_steps(small_config: Path, tmp_path: Path) -> None:
    words = ["TRAIN.save_steps", "1", "TRAIN.epochs", "1"]
    trainer = build_trainer(load_config(small_config, words), CPU)
    steps = []
    trainer.checkpoints.save = lambda content, **kind: steps.append(content["step"])
    trainer.fit()
    assert steps == [1, 2, 3]


# ---- bad files


def test_bad_files_stop_the_run_or_are_left_out(
    small_config: Path, small_shapes: Path, tmp_path: Path
) -> None:
    root = tmp_path / "data"
    shutil.copytree(small_shapes, root)
    content = yaml.safe_load(small_config.read_text())
    content["DATA"]["data_root"] = str(root)
    small_config.write_text(yaml.safe_dump(content))
    configs = {
        how: load_config(
            small_config,
            ["TRAIN.bad_data", how, "TRAIN.save_path", str(tmp_path / how), *LONG[:4]],
        )
        for how in ("stop", "skip")
    }
    started = build_trainer(configs["stop"], CPU)
    first = root / (root / "train.txt").read_text().split()[0]
    first.write_bytes(first.read_bytes()[:200])
    with pytest.raises(DataError, match="image file is truncated"):
        started.fit(until=3)  # a file that was damaged after the run began
    with pytest.raises(DataError, match="image file is truncated.*stripseg check"):
        build_trainer(configs["stop"], CPU)
    skipping = build_trainer(configs["skip"], CPU)
    skipping.fit(until=3)
    log = next((tmp_path / "skip").glob("*.log")).read_text()
    assert log.count(f"left out: {first}: image file is truncated") == 1
    assert all(p.isfinite().all() for p in skipping.segmenter.parameters())


def test_skipping_is_not_for_labels_that_would_be_misread(
    small_config: Path, small_shapes: Path, tmp_path: Path
) -> None:
    """A label saved as JPEG can be read, perhaps with other classes; all bad is nothing."""
    root = tmp_path / "data"
    shutil.copytree(small_shapes, root)
    words = ["DATA.data_root", str(root), "TRAIN.bad_data", "skip"]
    config = load_config(small_config, words)
    pairs = [line.split() for line in (root / "train.txt").read_text().splitlines()]
    label = root / pairs[0][1]
    Image.new("L", Image.open(label).size, 3).save(label, format="JPEG")
    with pytest.raises(DataError, match="is a JPEG"):
        build_trainer(config, CPU)
    for image, _ in pairs:
        (root / image).write_bytes(b"no image")
    with pytest.raises(DataError, match="cannot be|not an image|no image"):
        build_trainer(config, CPU)


# ---- processes


FORK_SERVER = """
import multiprocessing
multiprocessing.set_start_method("forkserver")
from stripseg import command_line
from stripseg.tool.train import main
command_line.run_command(main)
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_workers_die_with_their_parent(small_config: Path, method: str) -> None:
    """Also where they are forked by a server, as Python 3.14 does: that is not their parent."""
    words = ["--config", str(small_config), *LONG, "TRAIN.workers", "2"]
    if method == "fork":
        process = started(small_config, *words[2:])
    else:
        command = [sys.executable, "-uc", FORK_SERVER, *words]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert any(" step 2/" in line for line in process.stdout)
    group = process.pid
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    end = time.monotonic() + 30
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.3)
    os.killpg(group, signal.SIGKILL)
    raise AssertionError("workers outlived their parent")


# ---- the right network


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("TRAIN.output_stride", "16"),
        ("TRAIN.multi_grid", "False"),
        ("TRAIN.mixed_pooling_sizes", "[10, 6]"),
        ("TRAIN.strip_pooling", "max"),
        ("DATA.mean", "[1, 2, 3]"),
    ],
)
def test_a_checkpoint_knows_the_options_that_its_tensors_do_not_show(
    small_config: Path, key: str, value: str
) -> None:
    build_trainer(load_config(small_config), CPU).fit(until=1)
    for command in (train.main, tool_test.main):
        with pytest.raises(CheckpointError, match=f"was trained with {key} .*, and now it is"):
            command(["--config", str(small_config), key, value])


@pytest.mark.parametrize(
    ("key", "before", "now"),
    [("strip_pooling", "average", "max"), ("align_corners", "True", "False")],
)
def test_a_checkpoint_from_before_an_option_had_its_default(
    small_config: Path, key: str, before: str, now: str
) -> None:
    """Strips that average and those that take the maximum have the same tensors."""
    config = load_config(small_config, [f"TRAIN.{key}", now])
    content = {"config": config.model_dump(mode="json")}
    del content["config"]["TRAIN"][key]
    with pytest.raises(CheckpointError, match=f"with TRAIN.{key} {before}, and now it is {now}"):
        check_same_network(content, config, origin="old.pth")
    check_same_network(content, load_config(small_config), origin="old.pth")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["TRAIN.aux_weight", "0"], "was trained with an auxiliary head; set TRAIN.aux_weight abo"),
        (["TRAIN.optimizer", "adamw"], "its optimizer does not fit|TRAIN.optimizer"),
    ],
)
def test_resuming_with_other_parts_is_refused(small_config: Path, words, message: str) -> None:
    build_trainer(load_config(small_config), CPU).fit(until=1)
    with pytest.raises(CheckpointError, match=message):
        build_trainer(load_config(small_config, words), CPU)
