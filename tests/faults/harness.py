"""Kill a training run at random moments, damage its newest checkpoint, start it again, and compare
what it ends with to a run that nobody touched."""

import random
import shutil
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
import yaml

from stripseg.dataset.generated.shapes import write_shapes
from stripseg.util.checkpoint import CheckpointFolder, read_checkpoint
from tests.processes import Command


def write_config(folder: Path, *, train: int, height: int, width: int, **options) -> Path:
    """A generated dataset and the YAML of a small network for it; `options` go into TRAIN."""
    write_shapes(folder / "data", train=train, val=1, height=height, width=width)
    content = {
        "DATA": {
            "dataset": "shapes",
            "data_root": str(folder / "data"),
            "train_list": "train.txt",
            "val_list": "val.txt",
            "classes": 9,
        },
        "TRAIN": {
            "arch": "fcn",
            "layers": 18,
            "width": 0.125,
            "batch_size": 2,
            "precision": "fp32",
            **options,
        },
        "TEST": {"base_size": 0},
    }
    path = folder / "shapes_faults.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


@dataclass
class Report:
    """What was done to the runs and what became of them."""

    runs: int = 0
    kills: int = 0
    stops: int = 0
    damaged: int = 0
    steps_redone: int = 0
    differences: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.runs} runs: {self.kills} killed (SIGKILL), {self.stops} stopped (SIGTERM), "
            f"{self.damaged} checkpoints damaged; {self.steps_redone} steps done again; "
            f"{len(self.differences)} runs ended otherwise than an untouched one"
            + "".join(f"\n  {difference}" for difference in self.differences)
        )


def command(config: Path, folder: Path, seed: int, workers: int) -> Command:
    words = ["TRAIN.save_path", str(folder), "TRAIN.manual_seed", str(seed)]
    words += ["TRAIN.save_steps", "1", "TRAIN.keep_last", "3", "TRAIN.workers", str(workers)]
    return Command("stripseg.tool.train", "--config", str(config), "TRAIN.epochs", "4", *words)


def run_under_fire(
    config: Path, folder: Path, seed: int, chance: random.Random, report: Report, *, kills: int
) -> None:
    """One run, interrupted until `report` has `kills` or the run is done, then left to end."""
    done = 0
    while True:
        workers = chance.choice([0, 1, 2])
        process = command(config, folder, seed, workers)
        name = chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
        if report.kills + report.stops < kills:
            end = time.monotonic() + chance.uniform(0.2, 3.0)  # PyTorch is imported already
            while time.monotonic() < end and process.poll() is None:
                time.sleep(0.01)
            if process.poll() is None:
                process.send_signal(name)
                report.kills += name == signal.SIGKILL
                report.stops += name == signal.SIGTERM
        said = process.communicate(timeout=300)
        if process.returncode == 0:
            return
        if process.returncode not in (-signal.SIGKILL, -signal.SIGTERM, 75):
            report.differences.append(f"seed {seed}: exit {process.returncode}: {said[-300:]}")
            return
        done = account(folder, done, report)
        if chance.random() < 0.4:
            report.damaged += damage_newest(folder, chance)


def account(folder: Path, done: int, report: Report) -> int:
    """Steps in the newest good checkpoint; those lost since the last look are to be done again."""
    found = CheckpointFolder(folder).newest_good()
    step = found[1]["step"] if found else 0
    report.steps_redone += max(0, done - step)
    return step


def damage_newest(folder: Path, chance: random.Random) -> bool:
    """Cut, fill or flip the newest checkpoint, if there is an older one to fall back on."""
    files = CheckpointFolder(folder)
    if not files.last.is_file() or len(files.epochs()) < 1:
        return False
    content = bytearray(files.last.read_bytes())
    position = chance.randrange(len(content))
    how = chance.choice(["cut", "fill", "flip"])
    if how == "cut":
        del content[position:]
    elif how == "fill":
        content[position : position + 4096] = bytes(len(content[position : position + 4096]))
    else:
        content[position] ^= 1 << chance.randrange(8)
    files.last.unlink()  # an epoch's file may be a second name of it
    files.last.write_bytes(content)
    return True


def bombard(config: Path, scratch: Path, *, kills: int, seed: int = 0) -> Report:
    """Runs of different seeds until `kills` interruptions have happened."""
    chance, report = random.Random(seed), Report()
    while report.kills + report.stops < kills or report.runs == 0:
        number = report.runs
        whole, fired = scratch / f"whole{number}", scratch / f"fired{number}"
        untouched = command(config, whole, number, 0)
        said = untouched.communicate(timeout=600)
        assert untouched.returncode == 0, said
        run_under_fire(config, fired, number, chance, report, kills=kills)
        report.runs += 1
        difference = differs(whole / "last.pth", fired / "last.pth")
        if difference:
            report.differences.append(f"seed {number}: {difference}")
        shutil.rmtree(whole)
        shutil.rmtree(fired)
    return report


def differs(first: Path, second: Path) -> str | None:
    """The first thing in which two checkpoints are not bit-identical, or None."""
    one, two = read_checkpoint(first), read_checkpoint(second)
    for key in ("step", "best_mean_iou"):
        if one[key] != two[key]:
            return f"{key} {one[key]} and {two[key]}"
    for key, value in one["state_dict"].items():
        if not torch.equal(value, two["state_dict"][key]):
            return key
    for index, state in one["optimizer"]["state"].items():
        for key, value in state.items():
            if not torch.equal(value, two["optimizer"]["state"][index][key]):
                return f"optimizer {index} {key}"
    return None
