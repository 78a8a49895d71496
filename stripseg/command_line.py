"""What the commands share: the command line, clean errors, launching, building from a config."""

import argparse
import io
import json
import math
import os
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlparse

import cv2
import numpy as np
import torch

from .config.errors import DeviceError, StripsegError
from .config.limits import PROCESSES_PER_CPU
from .config.load import find_config, load_config, options_named
from .config.schema import Config
from .model.build import check_arch, check_segments
from .model_card import ModelCard, card_of_checkpoint
from .network_file import is_network, local_path, read_network
from .onnx_network import OnnxNetwork
from .trained_network import inference_config
from .util.distributed import process_group
from .util.distributed.slurm import slurm_step
from .util.logger import QUIET, for_terminal, quiet
from .util.signals import STOPPED, Stopped

INTERRUPTED = 130
CLOSED_PIPE = 141


@dataclass(frozen=True)
class Result:
    """What a command has found.

    Args:
        figures: printed with `--json`; paths, arrays and dataclasses may be in it.
    """

    figures: Any
    exit_code: int = 0


Main = Callable[[Sequence[str]], Result | int | None]


def run_command(main: Main) -> None:
    """Run a command's `main`; a user's mistake becomes one message and its exit code.

    With `--json` stdout has the figures that `main` returns, as one JSON document, and what it
    prints comes to stderr; with `--quiet` what it prints is left out.

    A process of several leaves at once: one that fails would wait for the others, which torchrun
    ends, and threads of gloo may outlive the group and abort an ordinary exit.
    """
    for stream in (sys.stdout, sys.stderr):  # file names need not be UTF-8
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    os.environ["PYTHONSAFEPATH"] = "1"  # what we start takes no modules from the current folder
    cv2.setNumThreads(
        0
    )  # loader workers are the parallelism; OpenCV's own threads compete with them
    try:
        wanted, _ = output_options(figures=True).parse_known_args()
        with prints_to(wanted):
            result = main(sys.argv[1:]) or 0
        code = result.exit_code if isinstance(result, Result) else result
        if wanted.json and isinstance(result, Result) and process_group.is_main():
            print(as_json(result.figures), flush=True)
        process_group.stop()
    except StripsegError as error:
        print(for_terminal(f"error: {error}"), file=sys.stderr)
        code = error.exit_code
    except Stopped as reason:
        if process_group.is_main():
            print(reason, file=sys.stderr)
        code = STOPPED
    except BrokenPipeError:  # the reader of stdout has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = CLOSED_PIPE
    except OSError as error:
        if error.filename is None:
            raise
        print(for_terminal(f"error: {error.filename}: {error.strerror}"), file=sys.stderr)
        code = StripsegError.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = INTERRUPTED
    if process_group.under_torchrun():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


@contextmanager
def prints_to(wanted: argparse.Namespace) -> Iterator[None]:
    """Lead what is printed to where `--json` and `--quiet` want it."""
    if wanted.quiet or quiet():
        os.environ[QUIET] = "1"
        with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
            yield
    elif wanted.json:
        with redirect_stdout(sys.stderr):
            yield
    else:
        yield


def as_json(figures: Any) -> str:
    """The figures as a JSON document; what is not a number (NaN, infinity) is null."""
    return json.dumps(json_value(figures), indent=2, allow_nan=False)


def json_value(value: Any) -> Any:
    """A value in the types that JSON has."""
    if is_dataclass(value) and not isinstance(value, type):
        return json_value(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(item) for item in value]
    if isinstance(value, np.ndarray | np.generic | torch.Tensor):
        return json_value(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | None) else str(value)


def output_options(*, figures: bool) -> argparse.ArgumentParser:
    """The options of what is printed, as a parent of a command's parser.

    Args:
        figures: whether `main` returns a `Result`, which `--json` prints.
    """
    parser = argparse.ArgumentParser(add_help=False)
    if figures:
        parser.add_argument(
            "--json",
            action="store_true",
            help="print the results as one JSON document; everything else comes to stderr",
        )
    parser.add_argument(
        "--quiet", action="store_true", help="warnings and errors alone; files are written as usual"
    )
    return parser


def command_parser(
    command: str, description: str, *, figures: bool = True, usage: str | None = None
) -> argparse.ArgumentParser:
    """The parser of a command, with what all of them know.

    Args:
        figures: as in `output_options`.
    """
    return CommandParser(
        prog=command,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage=usage,
        parents=[output_options(figures=figures)],
    )


class CommandParser(argparse.ArgumentParser):
    """Knows options of the config that were typed like options of the command."""

    def error(self, message: str) -> NoReturn:
        typed = message.partition("unrecognized arguments: --")[2].split(maxsplit=1)
        name = typed[0].partition("=")[0] if typed else ""
        if options_named(name.rpartition(".")[2]):
            message += f"; options of the config have no dashes: {name} VALUE"
        super().error(message)


def config_parser(command: str, description: str) -> argparse.ArgumentParser:
    """A parser with the config (DATASET EXPERIMENT, or --config) and overrides of options."""
    parser = command_parser(
        command,
        description,
        usage=f"{command} DATASET EXPERIMENT [options] [KEY VALUE ...]\n"
        f"       {command} --config FILE [options] [KEY VALUE ...]",
    )
    parser.add_argument(
        "words",
        nargs="*",
        metavar="DATASET EXPERIMENT KEY VALUE",
        help="config/DATASET/DATASET_EXPERIMENT.yaml, then options that override it",
    )
    parser.add_argument("--config", help="path of a YAML file, instead of DATASET EXPERIMENT")
    return parser


def parse_config(
    parser: argparse.ArgumentParser,
    argv: Sequence[str],
    *,
    classifiers: bool = False,
    trains: bool = False,
):
    """(parsed options, the config with its overrides).

    Args:
        trains: the command needs the GPUs that the config trains on; the others do not care.
    Raises:
        ConfigError: a mistake in it; or it describes a classifier, and the command takes none.
    """
    options = parser.parse_intermixed_args(list(argv))
    words = options.words
    if words and not options.config and is_network(words[0]):
        config = config_of_network(words[0], words[1:])
        if not classifiers:
            check_segments(config)
        return options, config
    if options.config:
        path = options.config
    elif len(words) < 2:
        parser.error("name a dataset and an experiment, such as: ade20k spnet50")
    else:
        path, words = find_config(words[0], words[1]), words[2:]
    gpus = [] if trains else ["TRAIN.train_gpu", "[]"]
    config = load_config(path, [*slurm_options(), *gpus, *words])
    check_arch(config)
    if not classifiers:
        check_segments(config)
    return options, config


def config_of_network(path: str, words: Sequence[str]) -> Config:
    """The config that a trained network's file carries, with overrides.

    Raises:
        CheckpointError: it cannot be read, or does not say what network it is.
    """
    path = local_path(path)
    return inference_config(card_of(path).config, path, words)


def card_of(path: str) -> ModelCard:
    """The model card in a trained network's file or folder.

    Raises:
        CheckpointError: it cannot be read, or does not say what network it is.
    """
    content = read_network(path, torch.device("cpu"))
    return (
        content.card
        if isinstance(content, OnnxNetwork)
        else card_of_checkpoint(content, origin=path)
    )


def process_count(config: Config, devices: Sequence[torch.device]) -> int:
    """Processes on this machine: one per GPU, one on the CPU, or as `Distributed.processes` says.

    Raises:
        DeviceError: more processes than GPUs, or many more than CPUs.
    """
    if not config.Distributed.multiprocessing_distributed and config.Distributed.world_size == 1:
        return 1
    count = config.Distributed.processes or len(devices)
    if devices[0].type == "cuda" and count > len(devices):
        raise DeviceError(
            f"Distributed.processes is {count} and only {len(devices)} GPUs are in use; each "
            "process needs a GPU of its own"
        )
    most = PROCESSES_PER_CPU * process_group.cpus()
    if devices[0].type == "cpu" and count > most:
        raise DeviceError(
            f"Distributed.processes is {count}, and {most} are the most on the "
            f"{process_group.cpus()} CPUs of this machine; lower it"
        )
    return count


def slurm_options() -> list[str]:
    """Under srun: options that put this machine among those of the job step.

    With one task per machine, each starts the processes of its machine. With more, every task is a
    process of its own, and the environment gets what torchrun would set.
    """
    step = None if process_group.under_torchrun() else slurm_step(os.environ)
    if step is None:
        return []
    if step.tasks > step.nodes:
        os.environ.update(step.environment())
        return []
    options = {"world_size": step.nodes, "rank": step.node}
    options["dist_url"] = f"tcp://{step.first_host}:{step.port}"
    return [word for key, value in options.items() for word in (f"Distributed.{key}", str(value))]


def must_launch(config: Config, processes: int) -> bool:
    """Return whether several processes are wanted and have not been started yet."""
    return not process_group.under_torchrun() and (
        processes > 1 or config.Distributed.world_size > 1
    )


def launch(file: str, argv: Sequence[str], config: Config, processes: int) -> int:
    """Start the program `file` in several processes through torchrun, and return their exit code.

    On one machine they meet on its loopback interface; several machines meet at
    `Distributed.dist_url`.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import get_args_parser, run

    from .util.distributed import loopback

    place = config.Distributed
    arguments = ["--nproc-per-node", str(processes), "--max-restarts", str(place.max_restarts)]
    if place.world_size == 1:
        loopback.register()
        arguments += ["--rdzv-backend", loopback.BACKEND, "--rdzv-id", secrets.token_hex(8)]
    else:
        url = urlparse(place.dist_url)
        if place.rank == 0 and not process_group.port_is_free("", url.port):
            raise DeviceError(
                f"Distributed.dist_url: port {url.port} of this machine is in use; port "
                f"{process_group.free_port()} is free, set it on every machine"
            )
        arguments += ["--nnodes", str(place.world_size), "--node-rank", str(place.rank)]
        arguments += ["--master-addr", url.hostname, "--master-port", str(url.port)]
    checkout = str(Path(__file__).resolve().parent.parent)
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [checkout, *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    threads = max(1, (os.cpu_count() or 1) // processes)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    parser = get_args_parser()
    if "--signals-to-handle" in parser.format_help():  # it passes these on, and waits for the end
        arguments += ["--signals-to-handle", "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"]
    try:
        run(parser.parse_args([*arguments, file, *argv]))
    except ChildFailedError as error:
        codes = [failure.exitcode for failure in error.failures.values()]
        return next((code for code in codes if code > 0), 1)
    except SignalException:
        return STOPPED
    return 0


def own_device(devices: Sequence[torch.device]) -> torch.device:
    """The device of this process."""
    return devices[process_group.number_of("LOCAL_RANK") % len(devices)]
