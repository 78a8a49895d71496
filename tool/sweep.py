"""Try many options: `python tool/sweep.py SWEEP.yaml [--workers N] [--report]`.

The file is of the format of Weights & Biases; docs/sweep.md describes it. Trials, table and
pictures come to exp/sweeps/NAME. The same command goes on after a stop; started several times at
once, all of them work on the same sweep.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from stripseg import command_line
from stripseg.config.errors import ConfigError, StripsegError, TrainingError
from stripseg.config.load import check_files, load_config
from stripseg.config.schema import Config
from stripseg.dataset.build import official_splits
from stripseg.model.build import check_arch
from stripseg.util.distributed import process_group
from stripseg.util.experiments.child_process import end_with_parent
from stripseg.util.experiments.plots import new_figure
from stripseg.util.experiments.sweep_file import (
    OF_CLASSIFIERS,
    OF_SEGMENTERS,
    Sweep,
    check_candidates,
    read_sweep,
)
from stripseg.util.experiments.sweep_report import write_report
from stripseg.util.experiments.sweep_study import PATIENCE, Claim, SweepStudy, patient_lock
from stripseg.util.experiments.sweep_trial import Outcome, TrialRun, write_trial_yaml
from stripseg.util.signals import STOPPED, Stopped, StopRequest

FOLDER = Path("exp/sweeps")
NONE_FINISHED = 1


def main(argv: Sequence[str]) -> int | None:
    """Check the file, make the trials, report."""
    options = parser().parse_args(list(argv))
    sweep = read_sweep(options.file)
    base = load_config(sweep.config)
    folder = FOLDER / sweep.name
    if options.report:
        return report(SweepStudy(sweep, folder, create=False), base)
    if not options.worker:
        check_candidates(sweep, check_run)
        check_metric(sweep, base)
        new_figure(1, 1)  # matplotlib is missed now, not after the last trial
    if options.backend == "wandb":
        from stripseg.util.experiments.sweep_wandb import run_on_wandb

        with StopRequest() as request:
            return run_on_wandb(sweep, lambda *words: wandb_run(sweep, base, request, *words))
    study = SweepStudy(sweep, folder)
    if options.workers > 1:
        start_workers(options.file, options.workers)
    else:
        work(study, base, shares_devices=options.worker)
    return None if options.worker else report(study, base)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sweep.py", description=__doc__)
    parser.add_argument("file", metavar="SWEEP.yaml", help="what to try: see docs/sweep.md")
    parser.add_argument("--workers", type=positive, default=1, help="trials at the same time")
    parser.add_argument("--report", action="store_true", help="only write table and pictures")
    parser.add_argument(
        "--backend",
        choices=["optuna", "wandb"],
        default="optuna",
        help="wandb hands the file to Weights & Biases; optuna (the default) needs no network",
    )
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def check_run(config: Config) -> None:
    """All that can be known of a training run before it starts."""
    check_arch(config)
    check_files(config, "train", official_splits=official_splits(config))


def check_metric(sweep: Sweep, base: Config) -> None:
    """Does every run report the metric?

    Raises:
        ConfigError: it does not.
    """
    known = OF_CLASSIFIERS if base.classifies else OF_SEGMENTERS
    if sweep.metric not in known:
        raise ConfigError(
            f"{sweep.path}: metric.name {sweep.metric} is none of {', '.join(known)}, which "
            f"{sweep.config.name} reports"
        )
    if sweep.metric != "loss" and not evaluates(sweep, base):
        raise ConfigError(
            f"{sweep.path}: metric.name {sweep.metric} is the validation's, and TRAIN.evaluate is "
            "False; set it True, or take loss"
        )


def evaluates(sweep: Sweep, base: Config) -> bool:
    return bool(sweep.options({}).get("TRAIN.evaluate", base.TRAIN.evaluate))


def work(study: SweepStudy, base: Config, *, shares_devices: bool = False) -> None:
    """Run trials until all are taken.

    Args:
        shares_devices: the environment shows only the GPUs that are for this worker.
    Raises:
        Stopped: a signal asked for it.
    """
    with StopRequest() as request:
        while request.name is None and (claim := study.claim()):
            with claim.release:
                outcome = run_trial(study, base, claim, request, shares_devices)
                if outcome.state != "STOPPED":
                    study.finish(claim, outcome.state, value=outcome.value, error=outcome.error)
                    say(claim.number, f"{outcome.state.lower()} {outcome.error}".strip())
                    continue
            raise Stopped(
                f"stopped by {request.name or 'a signal to the run'} in trial {claim.number}; the "
                "same command goes on from there"
            )
        if request.name is not None:
            raise Stopped(f"stopped by {request.name}; the same command goes on from there")


def run_trial(
    study: SweepStudy, base: Config, claim: Claim, request: StopRequest, shares_devices: bool
) -> Outcome:
    """One trial, from where its folder says to its end."""
    sweep = study.sweep
    options = sweep.options(claim.values)
    if shares_devices and base.TRAIN.train_gpu:
        options = {"TRAIN.train_gpu": None, **options}
    chosen = ", ".join(f"{name} {value}" for name, value in claim.values.items())
    say(claim.number, f"{'goes on' if claim.continued else 'starts'}: {chosen or 'no choices'}")

    def on_epoch(epoch: int, value: float) -> bool:
        say(claim.number, f"epoch {epoch} {sweep.metric} {value:.4f}")
        study.report(claim, epoch, value)
        return claim.trial.should_prune()

    return training_run(sweep, base, claim.folder, options, on_epoch, request)


def training_run(
    sweep: Sweep, base: Config, folder: Path, options: dict[str, Any], on_epoch, request
) -> Outcome:
    """`tool/train.py` with a trial's options, in the trial's folder."""
    path = folder / "trial.yaml"
    write_trial_yaml(path, base, options, f"{sweep.name}_{folder.name}")
    try:
        epochs = load_config(path).TRAIN.epochs
    except StripsegError as error:  # values that do not go together
        return Outcome("FAIL", error=str(error).splitlines()[0])
    reports_loss = sweep.metric != "loss" or base.classifies
    return TrialRun(
        train_command(path),
        folder,
        split="val" if evaluates(sweep, base) and reports_loss else "train",
        metric=sweep.metric,
        epochs=epochs,
        on_epoch=on_epoch,
        stopping=lambda: request.name is not None,
    ).run()


def train_command(path: Path) -> list[str]:
    return [sys.executable, "-m", "stripseg.tool.train", "--config", str(path)]


def say(number: int, text: str) -> None:
    print(f"trial {number}: {text}", flush=True)


def report(study: SweepStudy, base: Config) -> int | None:
    """Table, pictures, best.yaml; one process at a time."""
    with patient_lock(study.folder, seconds=PATIENCE):
        print(write_report(study, base), flush=True)
    return None if study.trials("COMPLETE") else NONE_FINISHED


def wandb_run(
    sweep: Sweep, base: Config, request: StopRequest, run_id: str, values: dict, log
) -> str:
    """A run that W&B asked for; what went wrong, or nothing."""

    def on_epoch(epoch: int, value: float) -> bool:
        log({"epoch": epoch, sweep.metric: value})
        return False

    folder = FOLDER / sweep.name / f"wandb_{run_id}"
    outcome = training_run(sweep, base, folder, sweep.options(values), on_epoch, request)
    if outcome.state == "STOPPED":
        raise Stopped(f"stopped by {request.name or 'a signal'}")
    return outcome.error


def start_workers(file: str, count: int) -> None:
    """This command `count` times at once, until all of them are done.

    Raises:
        Stopped: a signal asked for it, and they have stopped.
        TrainingError: one of them failed, not only its trial.
    """
    command = [sys.executable, "-m", "stripseg.tool.sweep", file, "--worker"]
    workers = []
    with StopRequest() as request:
        for index in range(count):
            threads = str(max(1, process_group.cpus() // count))
            environment = {"OMP_NUM_THREADS": threads, **os.environ, **own_devices(index, count)}
            workers.append(
                subprocess.Popen(
                    command,
                    env=environment,
                    start_new_session=True,
                    preexec_fn=end_with_parent(os.getpid()),
                )
            )
        told = False
        while any(worker.poll() is None for worker in workers):
            if request.name is not None and not told:
                told = True
                for worker in workers:
                    worker.terminate()
            for worker in workers:
                try:
                    worker.wait(0.2)
                except subprocess.TimeoutExpired:
                    break
    codes = [worker.returncode for worker in workers]
    if request.name is not None or STOPPED in codes:
        raise Stopped(f"stopped by {request.name or 'a signal'}; the same command goes on")
    if any(codes):
        raise TrainingError(
            f"a worker ended with exit code {next(filter(None, codes))}; the same command goes on"
        )


def own_devices(index: int, count: int) -> dict[str, str]:
    """The environment that gives a worker its share of the GPUs: one or more, as far as they go."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = (
        [name for name in named.split(",") if name]
        if named is not None
        else [str(number) for number in range(torch.cuda.device_count())]
    )
    if not visible:
        return {}
    return {
        "CUDA_VISIBLE_DEVICES": ",".join(visible[index::count] or [visible[index % len(visible)]])
    }


if __name__ == "__main__":
    command_line.run_command(main)
