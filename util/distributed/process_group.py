"""Processes, devices and the few collectives we need. With one process every call is local."""

import os
import re
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from ...config.errors import DeviceError, first_line

LEFT_OVER = "left over from another program? Then: unset RANK WORLD_SIZE LOCAL_RANK"
SILENT_SECONDS = 10

_alone = False
_control: dist.ProcessGroup | None = None  # a group of CPU processes, for small messages
_store: dist.Store | None = None  # the launcher's: messages that need no collective


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() and not _alone else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() and not _alone else 1


@contextmanager
def alone() -> Iterator[None]:
    """Inside, this process acts as the only one: no collective waits for the others."""
    global _alone
    _alone = True
    try:
        yield
    finally:
        _alone = False


def is_main() -> bool:
    return rank() == 0


def under_torchrun() -> bool:
    """Return whether a launcher (torchrun, or Slurm through it) started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def share_of_workers(wanted: int) -> int:
    """Loader processes of this process: its share of those `wanted` on this machine.

    More than one a CPU would only be in each other's way; results do not depend on the number.
    """
    processes = max(1, number_of("LOCAL_WORLD_SIZE", 1))
    return max(1, min(wanted, cpus()) // processes) if wanted else 0


def cpus() -> int:
    """The CPUs that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux knows which ones are really ours
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum over all processes, in place; the tensor itself with one process."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def all_reduce_max(tensor: Tensor) -> Tensor:
    """The largest values over all processes, in place; the tensor itself with one process."""
    if world_size() > 1:
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return tensor


def all_gather(tensor: Tensor) -> Tensor:
    """The tensors of all processes, all of one shape (...): (P, ...), in the order of the ranks."""
    if world_size() == 1:
        return tensor.unsqueeze(0)
    gathered = tensor.new_empty(world_size(), *tensor.shape)
    # PyTorch 2.14 gave it another name
    name = "all_gather_single" if hasattr(dist, "all_gather_single") else "all_gather_into_tensor"
    getattr(dist, name)(gathered.view(-1), tensor.contiguous().view(-1))
    return gathered


def smallest(number: int) -> int:
    """The smallest of all processes' numbers; nothing waits for the GPUs."""
    if world_size() == 1:
        return number
    least = torch.tensor(number)
    dist.all_reduce(least, dist.ReduceOp.MIN, group=_control)
    return int(least)


def barrier() -> None:
    if world_size() > 1:
        dist.barrier()


def any_process(flag: bool) -> bool:
    """Return whether any process has the flag. Every process must call it; no GPU is waited for."""
    if world_size() == 1:
        return flag
    up = torch.tensor(int(flag))
    dist.all_reduce(up, group=_control)
    return bool(up)


def choose_devices(wanted: Sequence[int] | None, *, key: str) -> list[torch.device]:
    """The GPUs that `train_gpu` or `test_gpu` asks for; `[cpu]` for an empty list.

    None means every visible GPU, or the CPU where there is none.

    Raises:
        DeviceError: a GPU was asked for by number and this machine does not have it.
    """
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted is None:
        wanted = range(available)
    absent = [index for index in wanted if index >= available]
    if absent:
        have = f"{available} GPU{'s' * (available != 1)}" if available else "no usable GPU"
        raise DeviceError(
            f"{key} asks for GPU {', '.join(map(str, absent))}, and this machine has {have}; "
            f'set {key} "[]" to run on the CPU, or leave it empty to take what there is'
        )
    return [torch.device("cuda", index) for index in wanted] or [torch.device("cpu")]


def named_device(name: str | torch.device | None) -> torch.device:
    """The device of a name such as "cpu" or "cuda:1"; of None the first GPU, or the CPU.

    Raises:
        DeviceError: this machine has no such device.
    """
    if name is None:
        return choose_devices(None, key="device")[0]
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(f"device {name!r} does not exist; give cpu, cuda or cuda:1") from error
    if device.type == "cuda":
        return choose_devices([device.index or 0], key="device")[0]
    if device.type != "cpu":
        raise DeviceError(f"device {name!r} is not supported; give cpu, cuda or cuda:1")
    return device


def start(device: torch.device, *, backend: str = "auto", timeout_minutes: float = 30) -> None:
    """Join the process group that torchrun described in the environment; nothing without one.

    Raises:
        DeviceError: the environment makes no sense, or the others do not come.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not under_torchrun() or number_of("WORLD_SIZE") == 1 or dist.is_initialized():
        return
    absent = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if absent:
        raise DeviceError(
            f"RANK and WORLD_SIZE are set in the environment and {' and '.join(absent)} not: "
            f"{LEFT_OVER}. To run several processes, start them with torchrun or srun"
        )
    place = f"{os.environ['MASTER_ADDR']}:{number_of('MASTER_PORT')}"
    if number_of("RANK") >= number_of("WORLD_SIZE"):
        raise DeviceError(
            f"RANK is {number_of('RANK')} and WORLD_SIZE {number_of('WORLD_SIZE')}: {LEFT_OVER}"
        )
    if backend == "auto" or (backend == "nccl" and device.type == "cpu"):
        backend = "nccl" if device.type == "cuda" else "gloo"
    timeout = timedelta(minutes=timeout_minutes + 1)  # the watchdog's is shorter
    said = threading.Timer(SILENT_SECONDS, say_waiting, [place, timeout])
    said.daemon = True
    said.start()
    try:
        join(device, backend, timeout)
    except (RuntimeError, ValueError) as error:
        raise DeviceError(
            f"{number_of('WORLD_SIZE')} processes could not meet at {place} "
            f"({first_line(error)}); do all of them run? If this is the only one: "
            f"{LEFT_OVER}"
        ) from error
    finally:
        said.cancel()


def say_waiting(place: str, timeout: timedelta) -> None:
    """Say whom a process waits for that waits long."""
    print(
        f"process {number_of('RANK')} waits at {place} for the others of "
        f"{number_of('WORLD_SIZE')}, {timeout.total_seconds() / 60:.0f} minutes at most; "
        f"if there are none: {LEFT_OVER}",
        file=sys.stderr,
        flush=True,
    )


def number_of(name: str, usual: int = 0) -> int:
    """A whole number of the environment.

    Raises:
        DeviceError: it is none.
    """
    text = os.environ.get(name, str(usual)).strip()
    if not re.fullmatch("[0-9]{1,9}", text):
        raise DeviceError(f"{name} is {text!r} in the environment, not a number: {LEFT_OVER}")
    return int(text)


def join(device: torch.device, backend: str, timeout: timedelta) -> None:
    """Meet the other processes."""
    global _control, _store
    _store, number, count = next(dist.rendezvous("env://", timeout=timeout))
    # after a restart torchrun's store may still have the addresses of the processes before
    _store = dist.PrefixStore(f"start{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", _store)
    _store.set_timeout(timeout)
    dist.init_process_group(
        backend,
        store=_store,
        rank=number,
        world_size=count,
        timeout=timeout,
        device_id=device if device.type == "cuda" else None,  # else NCCL guesses at a barrier
    )
    _control = dist.group.WORLD if backend == "gloo" else dist.new_group(None, timeout, "gloo")


def message_store() -> dist.Store:
    """Where the processes of the run leave each other messages; a local one with one process."""
    return dist.PrefixStore("messages", _store if _store is not None else dist.HashStore())


def stop() -> None:
    """Leave the process group, after all processes have reached this point."""
    global _control, _store
    if dist.is_initialized():
        barrier()
        _control = _store = None
        dist.destroy_process_group()


def free_port() -> int:
    """A TCP port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def port_is_free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
