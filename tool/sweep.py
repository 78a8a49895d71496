"""Try many options: `stripseg sweep SWEEP.yaml [--workers N] [--report]`.

The file is of the format of Weights & Biases; docs/sweep.md describes it. Trials, table and
pictures come to exp/sweeps/NAME. The same command resumes after a stop; started several times at
once, all of them work on the same sweep.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from stripseg import command_line
from stripseg.config.errors import ConfigError, StripsegError, TrainingError
from stripseg.config.load import load_config
from stripseg.config.schema import Config
from stripseg.config.validate import check_files
from stripseg.dataset.build import official_splits
from stripseg.model.build import check_arch
from stripseg.util.distributed import process_group
from stripseg.util.experiments.child_process import end_with_parent
from stripseg.util.experiments.report import new_figure, write_sweep_report
from stripseg.util.experiments.sweep import (
    Claim,
    Outcome,
    SweepStudy,
    run_trial,
    waiting_lock,
    write_yaml,
)
from stripseg.util.experiments.sweep_file import (
    CLASSIFICATION_METRICS,
    SEGMENTATION_METRICS,
    Sweep,
    check_candidates,
    read_sweep,
)
from stripseg.util.signals import STOPPED, Stopped, StopRequest

FOLDER = Path("exp/sweeps")
NONE_FINISHED = 1


def main(argv: Sequence[str]) -> int | None:
    """Check the file, make the trials, report."""
    options = parser().parse_args(list(argv))
    sweep = read_sweep(options.file)
    base = load_config(sweep.config_path)
    folder = FOLDER / sweep.name
    if options.report:
        return report(SweepStudy(sweep, folder, create=False), base)
    if not options.worker:
        check_candidates(sweep, check_run)
        check_metric(sweep, base)
        new_figure(1, 1)  # matplotlib is missed now, not after the last trial
    study = SweepStudy(sweep, folder)
    if options.workers > 1:
        start_workers(options.file, options.workers)
    else:
        work(study, base, shares_devices=options.worker)
    return None if options.worker else report(study, base)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="stripseg sweep", description=__doc__)
    parser.add_argument("file", metavar="SWEEP.yaml", help="what to try: see docs/sweep.md")
    parser.add_argument("--workers", type=positive, default=1, help="trials at the same time")
    parser.add_argument("--report", action="store_true", help="only write table and pictures")
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
    """Check that every run reports the metric.

    Raises:
        ConfigError: it does not.
    """
    known = CLASSIFICATION_METRICS if base.classifies else SEGMENTATION_METRICS
    if sweep.metric.name not in known:
        raise ConfigError(
            f"{sweep.path}: metric.name {sweep.metric.name} is none of {', '.join(known)}, which "
            f"{sweep.config_path.name} reports"
        )
    if sweep.metric.name != "loss" and not evaluates(sweep, base):
        raise ConfigError(
            f"{sweep.path}: metric.name {sweep.metric.name} is the validation's, and "
            "TRAIN.evaluate is False; set it True, or take loss"
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
            with claim.lock:
                outcome = run(study, base, claim, request, shares_devices)
                if outcome.state != "STOPPED":
                    study.finish(claim, outcome.state, value=outcome.value, error=outcome.error)
                    say(claim.number, f"{outcome.state.lower()} {outcome.error}".strip())
                    continue
            raise Stopped(
                f"stopped by {request.name or 'a signal to the run'} in trial {claim.number}; the "
                "same command resumes from there"
            )
        if request.name is not None:
            raise Stopped(f"stopped by {request.name}; run the same command to resume")


def run(
    study: SweepStudy, base: Config, claim: Claim, request: StopRequest, shares_devices: bool
) -> Outcome:
    """Run one trial, `tool/train.py` with its options, from where its folder says to its end."""
    sweep = study.sweep
    metric = sweep.metric.name
    options = sweep.options(claim.values)
    if shares_devices and base.TRAIN.train_gpu:
        options = {"TRAIN.train_gpu": None, **options}
    chosen = ", ".join(f"{name} {value}" for name, value in claim.values.items())
    say(claim.number, f"{'continues' if claim.continued else 'starts'}: {chosen or 'no choices'}")
    path = claim.folder / "trial.yaml"
    options |= {"TRAIN.save_path": str(claim.folder / "model"), "TRAIN.resume": "auto"}
    options |= {"TEST.save_folder": str(claim.folder / "result"), "TEST.model_path": None}
    write_yaml(path, base, options, experiment=f"{sweep.name}_{claim.folder.name}")
    try:
        epochs = load_config(path).TRAIN.epochs
    except StripsegError as error:  # values that do not go together
        return Outcome("FAIL", error=str(error).splitlines()[0])

    def on_epoch(epoch: int, value: float) -> bool:
        say(claim.number, f"epoch {epoch} {metric} {value:.4f}")
        study.report(claim, epoch, value)
        return claim.trial.should_prune()

    validated = evaluates(sweep, base) and (metric != "loss" or base.classifies)
    return run_trial(
        [sys.executable, str(Path(__file__).with_name("train.py")), "--config", str(path)],
        claim.folder,
        split="val" if validated else "train",
        metric=metric,
        epochs=epochs,
        on_epoch=on_epoch,
        stopping=lambda: request.name is not None,
    )


def say(number: int, text: str) -> None:
    print(f"trial {number}: {text}", flush=True)


def report(study: SweepStudy, base: Config) -> int | None:
    """Table, pictures, best.yaml; one process at a time."""
    with waiting_lock(study.folder):
        print(write_sweep_report(study, base), flush=True)
    return None if study.trials("COMPLETE") else NONE_FINISHED


def start_workers(file: str, count: int) -> None:
    """This command `count` times at once, until all of them are done.

    Raises:
        Stopped: a signal asked for it, and they have stopped.
        TrainingError: one of them failed, not only its trial.
    """
    command = [sys.executable, __file__, file, "--worker"]
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
        raise Stopped(f"stopped by {request.name or 'a signal'}; run the same command to resume")
    if any(codes):
        raise TrainingError(
            f"a worker ended with exit code {next(filter(None, codes))}; "
            "run the same command to resume"
        )


def own_devices(index: int, count: int) -> dict[str, str]:
    """Return the environment that gives a worker its share of the GPUs, at least one."""
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
