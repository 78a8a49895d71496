"""Signals that ask a run to end: it saves after the step at hand, and its exit code says so."""

import multiprocessing
import os
import signal
import threading
from multiprocessing.connection import wait
from types import FrameType
from typing import Any

STOPPED = 75  # the exit code of a run that was asked to stop: it can be resumed (EX_TEMPFAIL)
SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1")  # of schedulers, of a terminal, of Slurm before the end


class Stopped(Exception):
    """The run was asked to stop and has saved where it is."""


class StopRequest:
    """Listens while it is entered; `name` is the signal that came, or None.

    A second SIGINT ends the process at once.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self._before: dict[int, Any] = {}  # what signal.signal returns

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for name in SIGNALS:
                number = getattr(signal, name, None)  # Windows lacks SIGUSR1
                if number is not None:
                    self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def ask(self, reason: str) -> None:
        """Ask for the end from within the program."""
        self.name = self.name or reason

    def _receive(self, number: int, _: FrameType | None) -> None:
        if self.name is not None and number == signal.SIGINT:
            os._exit(128 + number)
        self.name = signal.Signals(number).name


def leave_to_parent(_worker: int) -> None:
    """For a loader's worker: signals to a terminal's or launcher's group reach it too, and its
    parent decides. It ends when its parent does; a second SIGTERM ends it at once."""

    def once(number: int, _: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, once)
    for name in ("SIGINT", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid != os.getppid():  # forked by a server, which stays
        threading.Thread(target=_end_after, args=(parent.sentinel,), daemon=True).start()


def _end_after(sentinel: int) -> None:
    """End this process when the other end of `sentinel` does."""
    wait([sentinel])
    os._exit(1)
