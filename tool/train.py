"""Train a network: `stripseg train DATASET EXPERIMENT [KEY VALUE ...]`.

stripseg train ade20k spnet50                  config/ade20k/ade20k_spnet50.yaml
stripseg train camvid spnet18 TRAIN.epochs 50 DATA.data_root data/camvid
stripseg train --config my.yaml --fresh        from scratch; the earlier run is kept aside
"""

import os
from collections.abc import Sequence
from contextlib import closing, nullcontext
from pathlib import Path

import torch

from stripseg import command_line
from stripseg.command_line import Result
from stripseg.config.schema import Config
from stripseg.config.validate import check_files
from stripseg.dataset.build import official_splits
from stripseg.training_run import build_trainer, refuse_other_options
from stripseg.util.checkpoint import folder_lock, move_aside
from stripseg.util.distributed import process_group
from stripseg.util.training.epoch_log import NAME as EPOCHS
from stripseg.util.training.epoch_log import read_records
from stripseg.util.training.trainer import Trainer


def main(argv: Sequence[str]) -> Result | int:
    """Parse, decide on processes, train."""
    parser = command_line.config_parser("stripseg train", __doc__)
    parser.add_argument(
        "--fresh",
        action="store_true",
        help="train from scratch; an earlier run's folder is moved aside",
    )
    options, config = command_line.parse_config(parser, argv, classifiers=True, trains=True)
    check_files(config, "train", official_splits=official_splits(config))
    devices = process_group.choose_devices(config.TRAIN.train_gpu, key="TRAIN.train_gpu")
    processes = command_line.process_count(config, devices)
    folder = Path(config.TRAIN.save_path)
    if options.fresh and is_first_process(config):
        with folder_lock(folder):
            aside = move_aside(folder)
        print(f"the earlier run is kept in {aside}" if aside else f"no earlier run in {folder}")
    if command_line.must_launch(config, processes):
        words = [word for word in argv if word != "--fresh"]
        return command_line.launch(__file__, words, config, processes)
    device = command_line.own_device(devices)
    place = config.Distributed
    process_group.start(device, backend=place.dist_backend, timeout_minutes=place.timeout_minutes)
    with folder_lock(folder) if process_group.is_main() else nullcontext():
        return run(config, device)


def is_first_process(config: Config) -> bool:
    """Return whether this is the first process of the first machine, and no restart of it.

    The environment tells under torchrun and with one Slurm task per GPU; otherwise this process
    launches the others of its machine, whose number is `Distributed.rank`.
    """
    first = int(os.environ.get("RANK", config.Distributed.rank)) == 0
    return first and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) == 0


def run(config: Config, device: torch.device) -> Result:
    """Train from where the run's folder says to the end."""
    trainer = build_trainer(config, device)
    log = trainer.run_log.log
    with closing(trainer.run_log):
        if trainer.step >= trainer.total_steps:
            refuse_other_options(trainer, again="train from scratch with --fresh")
            log.info(
                f"{trainer.checkpoints.last} has all {config.TRAIN.epochs} epochs already: nothing "
                "to do. Raise TRAIN.epochs, or train from scratch: --fresh, or another "
                "TRAIN.save_path"
            )
            return figures_of(trainer)
        trainer.fit()
    log.info(f"done: {trainer.checkpoints.last}")
    return figures_of(trainer)


def figures_of(trainer: Trainer) -> Result:
    """What `--json` prints: the checkpoints, and the figures of the last epoch."""
    kept, epochs = trainer.checkpoints, read_records(trainer.checkpoints.folder / EPOCHS)
    return Result(
        {
            "last": kept.last,
            "best": kept.best if kept.best.is_file() else None,
            "steps": trainer.step,
            "epochs": trainer.epoch,
            "figures": epochs[max(epochs)] if epochs else None,
        }
    )


if __name__ == "__main__":
    command_line.run_command(main)
