"""Processes that die or hang: the run names them in bounded time, torchrun restarts it."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from processes import Command, run_command

from stripseg.config.errors import TrainingError
from stripseg.util.checkpoint import read_checkpoint
from stripseg.util.distributed import process_group
from stripseg.util.distributed import watchdog as watchdog_module
from stripseg.util.distributed.watchdog import COMPUTING, HUNG, READING, Watchdog
from stripseg.util.signals import STOPPED

QUIET = ["TRAIN.evaluate", "False", "TRAIN.tensorboard", "False"]
LONG = ["TRAIN.epochs", "2000", *QUIET]


class Run:
    """A command of its own whose output is gathered while it runs."""

    def __init__(self, process: Command | subprocess.Popen) -> None:
        self.process = process
        self.text = ""
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.text += line

    def wait_for(self, words: str, seconds: float = 90) -> None:
        end = time.monotonic() + seconds
        while words not in self.text:
            assert time.monotonic() < end, self.text
            assert self.process.poll() is None or words in self.text, self.text
            time.sleep(0.05)

    def end(self, seconds: float = 90) -> int:
        try:
            code = self.process.wait(timeout=seconds)
        finally:
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)
        self.reader.join(timeout=10)
        return code


def training(config: Path, *words: str) -> Command:
    return Command("stripseg.tool.train", "--config", str(config), *words)


def worker(run: Run, rank: int) -> int:
    """The process number of a rank, from Linux's table of processes."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            content = (folder / "environ").read_bytes().split(b"\0")
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue
        if parent == run.process.pid and f"RANK={rank}".encode() in content:
            return int(folder.name)
    raise AssertionError(f"no process of rank {rank}")


needs_proc = pytest.mark.skipif(not Path("/proc/self/environ").is_file(), reason="Linux's /proc")


def listening(family: str, processes: list[int]) -> set[str]:
    """Addresses, as Linux writes them in hex, on which the processes wait for connections."""
    sockets = set()
    for number in processes:
        for descriptor in Path(f"/proc/{number}/fd").iterdir():
            try:
                sockets.add(os.readlink(descriptor))
            except OSError:
                continue
    rows = [line.split() for line in Path(f"/proc/net/{family}").read_text().splitlines()[1:]]
    return {
        row[1].split(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in sockets
    }


HOOKED = """
import sys
sys.addaudithook(lambda event, given: event == "pickle.find_class" and print("UNPICKLED", given))
from stripseg import command_line
from stripseg.tool.train import main
command_line.run_command(main)
"""


@pytest.mark.slow
@needs_proc
def test_processes_of_one_machine_are_out_of_reach_and_a_killed_one_is_named(
    small_config: Path,
) -> None:
    """They listen on the loopback interface alone, their launcher unpickles nothing; the message
    has the last step of the one that was killed."""
    words = ["--config", str(small_config), *LONG, "Distributed.processes", "2"]
    command = [sys.executable, "-u", "-c", HOOKED, *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    run = Run(subprocess.Popen(command, **pipes, start_new_session=True))
    run.wait_for("epoch 2/")
    family = [run.process.pid, worker(run, 0), worker(run, 1)]
    assert listening("tcp", family) == {"0100007F"}  # 127.0.0.1
    assert listening("tcp6", family) <= {"00000000000000000000000001000000"}  # ::1
    time.sleep(2 * watchdog_module.BEAT)
    os.kill(worker(run, 1), signal.SIGKILL)
    assert run.end(60) != 0
    named = re.search(r"error: rank 1 \(computing step (\d+)\) has stopped responding", run.text)
    assert named, run.text
    assert int(named[1]) >= 2
    assert "Traceback" not in run.text.split("error: rank 1")[0]
    assert "UNPICKLED" not in run.text


@pytest.mark.slow
@needs_proc
def test_a_hung_process_ends_the_run_and_is_named(small_config: Path) -> None:
    limit = ["Distributed.timeout_minutes", "0.1"]
    run = Run(training(small_config, *LONG, "Distributed.processes", "2", *limit))
    run.wait_for(" step 2/")
    hung = worker(run, 1)
    os.kill(hung, signal.SIGSTOP)
    run.wait_for("the run is blocked by", 60)
    os.kill(hung, signal.SIGCONT)  # spares torchrun its half minute of patience
    assert run.end(60) == HUNG, run.text
    assert re.search(
        r"error: no progress for 0.1 minutes \(Distributed.timeout_minutes\): the run is blocked "
        r"by rank 1 \((computing|reading the images of) step \d+\); rank 0 \(computing step",
        run.text,
    ), run.text


@pytest.mark.slow
@needs_proc
def test_the_end_of_the_launcher_saves_and_stops(small_config: Path, tmp_path: Path) -> None:
    run = Run(training(small_config, *LONG, "Distributed.processes", "2"))
    run.wait_for(" step 2/")
    pair = [worker(run, 0), worker(run, 1)]
    run.process.kill()
    end = time.monotonic() + 60
    while any(Path(f"/proc/{number}").exists() for number in pair):
        assert time.monotonic() < end, run.text
        time.sleep(0.1)
    run.reader.join(timeout=10)
    assert "stopped by the end of its launcher after step" in run.text
    assert read_checkpoint(tmp_path / "run/model/last.pth")["step"] >= 2
    assert STOPPED == 75


@pytest.mark.long  # stripseg's own launcher, which is torchrun, does it below
@needs_proc
def test_torchrun_restarts_a_run_that_lost_a_process(small_config: Path, tmp_path: Path) -> None:
    folders = {name: tmp_path / name for name in ("whole", "struck")}
    words = ["--config", str(small_config), "TRAIN.epochs", "4", "TRAIN.save_steps", "1", *QUIET]
    module = "stripseg.tool.train"
    whole = [*words, "TRAIN.save_path", str(folders["whole"])]
    assert run_command(module, *whole, processes=2).returncode == 0
    torchrun = ["--standalone", "--nproc-per-node", "2", "--max-restarts", "2", "-m", module]
    struck = [*words, "TRAIN.save_path", str(folders["struck"])]
    run = Run(Command("torch.distributed.run", *torchrun, *struck))
    run.wait_for(" step 2/")
    os.kill(worker(run, 1), signal.SIGKILL)
    assert run.end(180) == 0, run.text
    assert "resuming from" in run.text
    ends = {name: read_checkpoint(folder / "last.pth") for name, folder in folders.items()}
    assert ends["whole"]["step"] == ends["struck"]["step"] == 12
    for key, value in ends["whole"]["state_dict"].items():
        assert torch.allclose(value, ends["struck"]["state_dict"][key], atol=1e-6), key


@pytest.mark.slow
@needs_proc
def test_max_restarts_starts_a_run_again_that_lost_a_process(
    small_config: Path, tmp_path: Path, forked_python: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By stripseg's own launcher, from the newest checkpoint."""
    monkeypatch.setenv("PYTHON_EXEC", forked_python)  # of torchrun
    words = ["Distributed.processes", "2", "Distributed.max_restarts", "1", *QUIET]
    run = Run(training(small_config, "TRAIN.epochs", "4", "TRAIN.save_steps", "1", *words))
    run.wait_for(" step 2/")
    os.kill(worker(run, 1), signal.SIGKILL)
    assert run.end(180) == 0, run.text
    assert run.text.count("resuming from") == 1, run.text
    assert read_checkpoint(tmp_path / "run/model/last.pth")["step"] == 12


# ---- the watchdog alone


class Gone(Exception):
    """Instead of the end of the process."""


def watchdogs(monkeypatch, count: int) -> list[Watchdog]:
    """Several in one process, around one store; only their thread-less parts are used."""
    store = process_group.message_store()
    monkeypatch.setattr(process_group, "message_store", lambda: store)
    dogs = []
    for rank in range(count):
        monkeypatch.setattr(process_group, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(process_group, "world_size", lambda: count)
        dogs.append(Watchdog(minutes=0.01, warn=print, lost=lambda: None))
    return dogs


def test_those_behind_are_named_and_the_others_told(monkeypatch, capsys) -> None:
    def leave(code: int) -> None:
        raise Gone(code)

    monkeypatch.setattr(watchdog_module.os, "_exit", leave)
    dogs = watchdogs(monkeypatch, 4)
    for rank in range(4):
        dogs[rank].note(8, READING if rank % 2 else COMPUTING)
        dogs[rank]._send(1)
    dogs[0]._listen()
    with pytest.raises(Gone, match=str(HUNG)):
        dogs[0]._end()
    assert (
        "the run is blocked by rank 1, 3 (reading the images of step 8); rank 0, 2 (computing step "
        "8)" in capsys.readouterr().err
    )


def test_a_process_that_is_done_is_not_missed(monkeypatch) -> None:
    first, second = watchdogs(monkeypatch, 2)
    second._send(4)
    first._listen()
    assert list(first.heartbeats) == [1]
    second._send(watchdog_module.DONE)
    first._listen()
    assert first.heartbeats == {}


def test_one_that_fell_silent_explains_a_failed_collective(monkeypatch) -> None:
    first, second = watchdogs(monkeypatch, 2)
    monkeypatch.setattr(watchdog_module, "BEAT", 0.05)
    second.note(7, COMPUTING)
    second._send(1)
    with (
        pytest.raises(TrainingError, match=r"rank 1 \(computing step 7\) has stopped responding"),
        first,
    ):
        raise RuntimeError("connection closed by peer")
    with pytest.raises(ValueError, match="mine"), first:
        raise ValueError("mine")
