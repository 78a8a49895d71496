"""A run as a process of its own: it ends with its parent, and may save before it does."""

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ..files import no_links
from ..signals import STOPPED

POLL = 0.2  # seconds
PATIENCE = 300.0  # seconds that a run that is to end may take to save
PR_SET_PDEATHSIG = 1
# what a launcher tells its processes: a run that we start is none of them
OF_LAUNCHERS = re.compile(
    r"(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|ROLE_NAME|MASTER_(ADDR|PORT)|TORCHELASTIC_.*"
    r"|SLURM_(STEP_.*|PROCID|LOCALID|NODEID)"
)


def follow(
    command: Sequence[str],
    output: Path,
    *,
    end: Callable[[], bool],
    environment: Mapping[str, str] | None = None,
) -> int:
    """Run a command, what it says added to the file `output`; its exit code.

    Args:
        end: asked again and again; True sends SIGTERM, and the run has `PATIENCE` to save.
        environment: variables that it has beside those of this process.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    with open(output, "ab", opener=no_links) as file:
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**own_environment(os.environ), **(environment or {})},
            start_new_session=True,  # a terminal's Ctrl-C is for us, who end the run
            preexec_fn=end_with_parent(os.getpid()),
        )
    try:
        while process.poll() is None and not end():
            time.sleep(POLL)
    finally:
        process.terminate()  # does nothing to one that has ended
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    return process.returncode


def own_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Without what makes a process one of several, under torchrun and under Slurm."""
    return {key: value for key, value in environment.items() if not OF_LAUNCHERS.fullmatch(key)}


def end_with_parent(parent: int) -> Callable[[], None] | None:
    """For a process to call before it starts: on Linux it gets SIGTERM when its parent dies."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None).prctl

    def call() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(STOPPED)

    return call
