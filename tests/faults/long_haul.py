"""Many steps of one training process: python -m tests.faults.long_haul --steps 10000.

Prints memory, open files and threads along the way; exits with 1 where any of them grew.
"""

import argparse
import gc
import os
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from stripseg.config.load import load_config
from stripseg.training_run import build_trainer

from .harness import write_config

ALLOWED_MIB = 32  # caches of allocators; a leak of 4 KiB a step passes it in 10,000 steps


@dataclass(frozen=True)
class Usage:
    """Of this process and its children, at one step."""

    step: int
    mebibytes: float
    files: int
    threads: int
    children: int

    def __str__(self) -> str:
        return (
            f"step {self.step}: {self.mebibytes:.0f} MiB, {self.files} open files, "
            f"{self.threads} threads, {self.children} child processes"
        )


def usage(step: int) -> Usage:
    gc.collect()
    own = Path("/proc/self")
    children = (own / f"task/{os.getpid()}/children").read_text().split()
    pages = sum(
        int(Path(f"/proc/{name}/statm").read_text().split()[1]) for name in ["self", *children]
    )
    return Usage(
        step,
        pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
        len(list((own / "fd").iterdir())),
        threading.active_count(),
        len(children),
    )


def haul(folder: Path, *, steps: int, workers: int = 1, looks: int = 50) -> list[Usage]:
    """Train for `steps` steps with validation, curves and checkpoints; usage along the way."""
    path = write_config(
        folder,
        train=40,
        height=48,
        width=48,
        train_h=32,
        train_w=32,
        epochs=-(-steps // 20),
        workers=workers,
        save_path=str(folder / "run"),
        print_freq=5,
        save_steps=max(1, min(50, steps // 20)),
        base_lr=1e-4,
    )
    trainer = build_trainer(load_config(path), torch.device("cpu"))
    seen: list[Usage] = []
    add = trainer.run_log.add

    def watched(batch, figures) -> None:
        add(batch, figures)
        if trainer.step % (steps // looks) == 0:
            trainer.checkpoints.finish()
            seen.append(usage(trainer.step))
            print(seen[-1], flush=True)

    trainer.run_log.add = watched
    trainer.run_log.log.setLevel("WARNING")
    trainer.fit(until=steps)
    return seen


def growth(seen: list[Usage]) -> list[str]:
    """What is larger in the last fifth than in the second one: medians, single looks are noisy."""
    fifth = max(1, len(seen) // 5)
    found = []
    for name, unit, allowed in (
        ("mebibytes", " MiB", ALLOWED_MIB),
        ("files", " open files", 0),
        ("threads", " threads", 0),
        ("children", " child processes", 0),
    ):
        first = median(getattr(look, name) for look in seen[fifth : 2 * fifth])
        last = median(getattr(look, name) for look in seen[-fifth:])
        if last > first + allowed:
            found.append(f"grew from {first:.0f} to {last:.0f}{unit}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.long_haul", description=__doc__)
    parser.add_argument("--steps", type=int, default=10_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = growth(haul(Path(folder), steps=options.steps))
    print("\n".join(found) or "nothing grew")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
