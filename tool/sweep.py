"""Try many options: `stripseg sweep SWEEP.yaml [--workers N] [--report]`.

The file is of the format of Weights & Biases; docs/sweep.md describes it. Trials, tables and
pictures come to exp/sweeps/NAME. The same command resumes after a stop; started several times at
once, all of them work on the same sweep.
"""

import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from stripseg import command_line
from stripseg.command_line import Result
from stripseg.config.errors import ConfigError
from stripseg.config.load import load_config
from stripseg.config.schema import COMMAND_LINE, Config
from stripseg.config.types import shown
from stripseg.config.validate import check_files
from stripseg.dataset.build import official_splits
from stripseg.model.build import check_arch
from stripseg.util.checkpoint import folder_lock
from stripseg.util.distributed import process_group
from stripseg.util.experiments.report import new_figure
from stripseg.util.experiments.run_file import as_arguments
from stripseg.util.experiments.sweep import LOCK_SECONDS, SweepStudy, run_trial, say
from stripseg.util.experiments.sweep_file import Sweep, read_sweep
from stripseg.util.experiments.sweep_report import write_sweep_report
from stripseg.util.signals import Stopped, StopRequest

FOLDER = Path("exp/sweeps")
TRAIN = (sys.executable, str(Path(__file__).with_name("train.py")))
NONE_FINISHED = 1


def main(argv: Sequence[str]) -> Result:
    """Check the file, make the trials, report."""
    parser = command_line.command_parser("stripseg sweep", __doc__)
    parser.add_argument("file", metavar="SWEEP.yaml", help="what to try: see docs/sweep.md")
    parser.add_argument("--workers", type=int, default=1, help="trials at the same time")
    parser.add_argument("--report", action="store_true", help="only write tables and pictures")
    options = parser.parse_args(list(argv))
    if options.workers < 1:
        parser.error("--workers must be 1 or more")
    sweep = read_sweep(options.file)
    new_figure(1, 1)  # matplotlib is missed now, not after the last trial
    if not options.report:
        check_candidates(sweep, options.file)
    study = SweepStudy(sweep, FOLDER / sweep.name, create=not options.report)
    if not options.report:
        run_trials(study, options.workers)
    with folder_lock(study.folder, wait=LOCK_SECONDS):
        print(write_sweep_report(study), flush=True)
    table, best = study.folder / "results.json", study.folder / "best.yaml"
    trials = json.loads(table.read_text(encoding="utf-8")) if table.is_file() else []
    finished = any(trial.state.name == "COMPLETE" for trial in study.runs().values())
    return Result(
        {"folder": study.folder, "best": best if finished else None, "trials": trials},
        0 if finished else NONE_FINISHED,
    )


def check_candidates(sweep: Sweep, file: str) -> None:
    """Check all that can be known of the runs before the first one, with every candidate value.

    Raises:
        ConfigError: one line for each parameter and value that training would refuse.
    """
    candidates = [{name: value} for name, p in sweep.varied.items() for value in p.candidates()]
    problems: dict[str, None] = {}
    for chosen in ({}, *candidates):
        try:
            check_run(load_config(sweep.config, as_arguments(sweep.options(chosen))), sweep)
        except ConfigError as error:
            which = "".join(f" with {name} {shown(value)}" for name, value in chosen.items())
            for line in str(error).splitlines():
                line = line.removeprefix(f"{COMMAND_LINE}: ")
                problems[f"{file}: parameters{which}: {line}"] = None
            if not chosen:  # the constants are every trial's
                break
    if problems:
        raise ConfigError("\n".join(problems))


def check_run(config: Config, sweep: Sweep) -> None:
    check_arch(config)
    check_files(config, "train", official_splits=official_splits(config))
    name = sweep.metric.name
    known = ("loss", "top1", "top5") if config.classifies else ("loss", "mIoU", "mAcc", "allAcc")
    if name not in known:
        raise ConfigError(f"metric.name {name} is none of {', '.join(known)}, which runs report")
    if name != "loss" and not config.TRAIN.evaluate:
        raise ConfigError(
            f"metric.name {name} is the validation's, and TRAIN.evaluate is False; set it True"
        )


def run_trials(study: SweepStudy, workers: int) -> None:
    """Run trials, several at the same time, until all are taken.

    Raises:
        Stopped: a signal asked for it, and the runs have saved.
    """
    with StopRequest() as request:
        with ThreadPoolExecutor(workers) as pool:
            shares = [own_share(index, workers) for index in range(workers)]
            working = [pool.submit(work, study, request, share) for share in shares]
        for worker in working:
            worker.result()
        if request.name is not None:
            raise Stopped(f"stopped by {request.name}; run the same command to resume")


def own_share(index: int, workers: int) -> dict[str, str]:
    """Return the environment that gives a worker its share of GPUs (at least one) and threads."""
    if workers == 1:
        return {}
    threads = str(max(1, process_group.cpus() // workers))
    share = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads)}
    every_gpu = ",".join(map(str, range(torch.cuda.device_count())))
    gpus = [g for g in os.environ.get("CUDA_VISIBLE_DEVICES", every_gpu).split(",") if g]
    if gpus:
        mine = gpus[index::workers] or [gpus[index % len(gpus)]]
        share["CUDA_VISIBLE_DEVICES"] = ",".join(mine)
    return share


def work(study: SweepStudy, request: StopRequest, environment: dict[str, str]) -> None:
    """Run one trial after the other until all are taken or the end is asked for."""
    while request.name is None:
        with study.claim() as trial:
            if trial is None:
                return
            outcome = run_trial(
                study,
                trial,
                TRAIN,
                stopping=lambda: request.name is not None,
                environment=environment,
            )
            if outcome.state == "STOPPED":
                request.ask("a signal to a run")
                return
            study.finish(trial, outcome)
            say(trial, f"{outcome.state.lower()} {outcome.error}".strip())


if __name__ == "__main__":
    command_line.run_command(main)
