"""Functions in several gloo processes, and commands in processes of their own.

All are forked from one process that has imported PyTorch and this package and done nothing else:
importing them anew takes each process some seconds. What `python`, `sh` or torchrun start is tried
by tests/test_commands.py, tests/test_processes_lost.py and `.ci/wheel`.
"""

import atexit
import contextlib
import functools
import io
import json
import multiprocessing
import os
import queue
import runpy
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

SECONDS = 120
PYTHON = "STRIPSEG_TESTS_PYTHON"  # the variable that tells a command what `write_python` wrote
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.preloaded"])  # found by the PYTHONPATH of conftest.py


def run_processes(count: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """[function(*arguments) of rank 0, of rank 1, ...]; `function` stands at the top of a module.

    Raises:
        RuntimeError: one of them failed, or they did not finish in time.
    """
    results = CONTEXT.Queue()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "rendezvous").as_uri()
        workers = [
            CONTEXT.Process(target=work, args=(rank, count, place, results, function, arguments))
            for rank in range(count)
        ]
        for worker in workers:
            worker.start()
        try:
            answers = dict(answer for answer in (results.get(timeout=SECONDS) for _ in workers))
        except queue.Empty:
            raise RuntimeError(f"{function.__name__}: not done in {SECONDS} s") from None
        finally:
            for worker in workers:
                worker.join(timeout=5)
                worker.kill()
    errors = [value for failed, value in answers.values() if failed]
    if errors:
        raise RuntimeError("\n".join(errors))
    return [answers[rank][1] for rank in range(count)]


def work(rank: int, count: int, place: str, results, function, arguments) -> None:
    torch.set_num_threads(1)
    multiprocessing.set_start_method(None, force=True)  # the platform's own for what it starts
    try:
        dist.init_process_group("gloo", init_method=place, rank=rank, world_size=count)
        answer = (False, function(*arguments))
        dist.barrier()
        dist.destroy_process_group()
    except Exception:
        answer = (True, traceback.format_exc())
    results.put((rank, plain(answer)))


def plain(value: Any) -> Any:
    """Tensors as arrays, which travel without shared memory."""
    if isinstance(value, torch.Tensor):
        return value.detach().numpy()
    if isinstance(value, (list, tuple)):
        return type(value)(plain(v) for v in value)
    if isinstance(value, dict):
        return {key: plain(v) for key, v in value.items()}
    return value


class Command:
    """`python -u -m MODULE WORDS` in a session of its own, with the names of `subprocess.Popen`.

    Args:
        errors: a file for stderr; it joins stdout without one.
    """

    def __init__(
        self, module: str, *words: str, environment: dict | None = None, errors: str = ""
    ) -> None:
        reader, writer = CONTEXT.Pipe(duplex=False)
        environment = dict(os.environ) if environment is None else environment
        arguments = (module, words, os.getcwd(), environment, writer, errors)
        self.process = CONTEXT.Process(target=become_command, args=arguments)
        self.process.start()
        writer.close()
        self.stdout = os.fdopen(os.dup(reader.fileno()), encoding="utf-8", errors="replace")
        reader.close()
        self.pid = self.process.pid

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self.process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.process.name, timeout)
        return self.returncode

    def communicate(self, timeout: float) -> str:
        """What is left of the output, after the process; it is killed where it takes longer."""
        timer = threading.Timer(timeout, os.killpg, (self.pid, signal.SIGKILL))
        timer.start()
        text = self.stdout.read()
        self.wait(timeout)
        timer.cancel()
        return text

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run_command(
    module: str, *words: str, processes: int = 1, timeout: float = 300
) -> subprocess.CompletedProcess:
    """`subprocess.run` of `python -m MODULE WORDS`, with its output as text.

    Args:
        processes: as many as torchrun would start on one machine; stdout is that of the first one,
            stderr that of all, the exit code the largest.
    """
    shared = {}
    if processes > 1:
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        shared = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(store.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes),
        }
    with tempfile.TemporaryDirectory() as folder:
        errors = [Path(folder, str(rank)) for rank in range(processes)]
        commands = []
        for rank, path in enumerate(errors):
            path.touch()
            place = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} if shared else {}
            environment = {**os.environ, **place}
            commands.append(Command(module, *words, environment=environment, errors=str(path)))
        texts = [command.communicate(timeout) for command in commands]
        code = max((command.returncode for command in commands), key=abs)
        said = "".join(path.read_text(errors="replace") for path in errors)
        return subprocess.CompletedProcess([module, *words], code, texts[0], said)


@functools.cache
def serve_commands() -> str:
    """Run, for as long as this process lives, what tests/forked.py asks for; its ADDRESS."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    address = f"{folder}/socket"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()

    def accept() -> None:
        while True:
            threading.Thread(target=serve, args=listener.accept()[:1], daemon=True).start()

    def serve(client: socket.socket) -> None:
        message, files, *_ = socket.recv_fds(client, 1 << 16, 2)
        while part := client.recv(1 << 16):
            message += part
        output, errors = map(Connection, files)
        process = CONTEXT.Process(
            target=become_command, args=(*json.loads(message), output, errors)
        )
        process.start()
        output.close()
        errors.close()
        with contextlib.suppress(BrokenPipeError):  # gone already: the poll tells
            client.send(f"{process.pid}\n".encode())
        poll = select.poll()
        poll.register(process.sentinel, select.POLLIN)
        poll.register(client, 0)  # tells only that the other end is closed
        if process.sentinel not in dict(poll.poll()):
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:  # it has no group of its own yet
                process.kill()
        process.join()
        with contextlib.suppress(BrokenPipeError):
            client.send(f"{process.exitcode}\n".encode())
        client.close()

    threading.Thread(target=accept, daemon=True).start()
    return address


def write_python(path: Path) -> None:
    """Write a program to take Python's place: it has scripts of tool/ forked, Python runs the rest.

    What these scripts start takes it, too. Signals but SIGSTOP reach the script.
    """
    forked = shlex.join([sys.executable, "-S", str(Path(__file__).with_name("forked.py"))])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"""#!/bin/sh
export {PYTHON}="$0"
script=$1; [ "$1" = -u ] && script=$2
case $script in */tool/*.py) [ "$1" = -u ] && shift; exec {forked} {serve_commands()} "$@";; esac
exec {sys.executable} "$@"
"""
    )
    path.chmod(0o755)


def become_command(
    module: str,
    words: Sequence[str],
    folder: str,
    environment: dict[str, str],
    output: Connection,
    errors: str | Connection,
) -> None:
    """What `python -m MODULE WORDS`, or `python MODULE WORDS` of a file .py, does."""
    multiprocessing.set_start_method(None, force=True)  # the platform's own for what it starts
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    sys.executable = environment.get(PYTHON, sys.executable)
    os.chdir(folder)
    os.dup2(output.fileno(), 1)
    if isinstance(errors, Connection):
        os.dup2(errors.fileno(), 2)
    else:
        os.dup2(os.open(errors, os.O_WRONLY) if errors else 1, 2)
    output.close()
    for number, name in ((1, "stdout"), (2, "stderr")):
        setattr(sys, name, io.TextIOWrapper(os.fdopen(number, "wb", 0), write_through=True))
    sys.argv = [module, *words]
    if module.endswith(".py"):
        runpy.run_path(module, run_name="__main__")
    else:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
