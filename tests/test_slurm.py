"""Job steps of Slurm: its variables are read, and two machines are played by two processes."""

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from processes import Command

from stripseg import command_line
from stripseg.config.errors import DeviceError
from stripseg.util.checkpoint import read_checkpoint
from stripseg.util.distributed.slurm import first_host, slurm_step, tasks_on

STEP = {
    "SLURM_STEP_NUM_TASKS": "7",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_TASKS_PER_NODE": "4,3",
    "SLURM_STEP_NODELIST": "gpu[07,09]",
    "SLURM_NODEID": "1",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_ID": "123456",
}


def test_a_task_for_each_gpu_becomes_a_process(monkeypatch) -> None:
    step = slurm_step(STEP)
    assert step.environment() == {
        "RANK": "5",
        "WORLD_SIZE": "7",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "3",
        "MASTER_ADDR": "gpu07",
        "MASTER_PORT": "23456",
    }
    monkeypatch.setattr(os, "environ", dict(STEP))
    assert command_line.slurm_options() == []
    assert os.environ == {**STEP, **step.environment()}


def test_a_task_for_each_machine_becomes_a_machine(monkeypatch) -> None:
    monkeypatch.setattr(os, "environ", {**STEP, "SLURM_STEP_NUM_TASKS": "2"})
    words = command_line.slurm_options()
    assert words[:4] == ["Distributed.world_size", "2", "Distributed.rank", "1"]
    assert words[4:] == ["Distributed.dist_url", "tcp://gpu07:23456"]


def test_outside_of_a_step_slurm_is_left_alone() -> None:
    assert slurm_step({}) is None
    assert slurm_step({**STEP, "SLURM_STEP_NUM_TASKS": "1"}) is None


@pytest.mark.parametrize("gone", ["SLURM_NODEID", "SLURM_PROCID", "SLURM_JOB_ID"])
def test_half_a_step_is_told(gone: str) -> None:
    with pytest.raises(DeviceError, match=f"one of 7 tasks.*{gone}"):
        slurm_step({key: value for key, value in STEP.items() if key != gone})


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu[03-05,9],login1", "gpu03"),
        ("host", "host"),
        ("a-1,b-2", "a-1"),
        ("rack1-n[12]", "rack1-n12"),
        ("10.0.0.1", "10.0.0.1"),
    ],
)
def test_the_first_host_of_a_list(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_tasks_of_a_node() -> None:
    assert [tasks_on(node, "4(x2),3") for node in range(3)] == [4, 4, 3]


def job_of_a_free_port() -> int:
    """The number of a job whose port, which follows from it, nobody has on this machine."""
    for number in range(os.getpid(), os.getpid() + 1000):
        with socket.socket() as trial, contextlib.suppress(OSError):
            trial.bind(("", slurm_step({**STEP, "SLURM_JOB_ID": str(number)}).port))
            return number
    raise AssertionError("a thousand ports are taken")


@pytest.mark.slow
@pytest.mark.parametrize("tasks", [2, 4])
def test_two_machines_train_as_one_run(
    small_config: Path, tmp_path: Path, forked_python: str, tasks: int
) -> None:
    """With a task a machine (each starts torchrun), and with a task a process."""
    words = ["--config", str(small_config), "TRAIN.epochs", "1", "TRAIN.evaluate", "False"]
    words += ["TRAIN.tensorboard", "False", "TRAIN.batch_size", "4"]
    if tasks == 2:
        words += ["Distributed.processes", "2"]
    job, processes = job_of_a_free_port(), []
    for task in range(tasks):
        per_node = tasks // 2
        slurm = {
            **STEP,
            "SLURM_STEP_NUM_TASKS": str(tasks),
            "SLURM_STEP_TASKS_PER_NODE": f"{per_node}(x2)",
            "SLURM_STEP_NODELIST": "127.0.0.1",
            "SLURM_NODEID": str(task // per_node),
            "SLURM_PROCID": str(task),
            "SLURM_LOCALID": str(task % per_node),
            "SLURM_JOB_ID": str(job),
        }
        environment = os.environ | slurm | {"PYTHON_EXEC": forked_python}  # of torchrun
        processes.append(Command("stripseg.tool.train", *words, environment=environment))
    texts = [process.communicate(timeout=100) for process in processes]
    assert [process.returncode for process in processes] == [0] * tasks, "\n".join(texts)
    assert "4 processes" in texts[0]
    assert read_checkpoint(tmp_path / "run/model/last.pth")["step"] == 1


def test_a_task_of_several_leaves_at_once() -> None:
    """Also where the command itself found that it is one: an ordinary exit may abort in gloo."""
    script = (
        "import atexit, os; from stripseg import command_line; atexit.register(print, 'ordinary');"
        "command_line.run_command(lambda _: os.environ.update({0}))"
    )
    for several, said in (("RANK='0', WORLD_SIZE='2'", ""), ("", "ordinary\n")):
        command = [sys.executable, "-c", script.format(several)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout == said
