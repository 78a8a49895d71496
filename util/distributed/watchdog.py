"""Processes of a run tell each other where they are, so that one that hangs or dies is named."""

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from ...config.errors import TrainingError
from . import process_group

HUNG = 70  # the exit code of a run that made no progress for `minutes` (EX_SOFTWARE)
BEAT = 1.0  # seconds between two heartbeats
DONE = -1  # the last heartbeat
SILENT = 15.0  # seconds without one, after which a process is said not to answer
READING, COMPUTING, EVALUATING = range(3)  # what a process does about a step, in this order
PHASES = ("reading the images of", "computing", "evaluating after")


class Heartbeat(NamedTuple):
    """Where a process is: what it is doing (`PHASES`) about a step, and which image if one."""

    step: int
    phase: int
    detail: str = ""
    count: int = 0  # grows with every beat; DONE at the end


class Watchdog:
    """Follows, as a context manager, the heartbeats of every process of the run.

    A process that stops responding is named in a warning; without progress for `minutes`, the
    job ends with exit code 70 and the processes that the others wait for are named. Ranks 0
    and 1 do the monitoring, so that each is monitored by another one.

    Args:
        lost: called once when the launcher, which carries the messages, is gone.
    """

    def __init__(
        self, *, minutes: float, warn: Callable[[str], None], lost: Callable[[], None]
    ) -> None:
        self.store = process_group.message_store()
        self.rank = process_group.rank()
        self.processes = process_group.world_size()
        self.limit = 60 * minutes
        self.warn = warn
        self.lost = lost
        self.own = Heartbeat(0, READING)
        self.heartbeats: dict[int, Heartbeat] = {}  # the last one of each process
        self.heard_at: dict[int, float] = {}
        self.reported: set[int] = set()  # processes that were named in a warning
        self.stopped = threading.Event()
        self.thread: threading.Thread | None = None

    def note(self, step: int, phase: int, detail: str = "") -> None:
        """Record that this process has come to `PHASES[phase]` of `step`; costs nothing."""
        self.own = Heartbeat(step, phase, detail)

    def __enter__(self) -> "Watchdog":
        self.stopped.clear()
        self._send(0)
        self.thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self.thread.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        """Name the process whose end made a collective fail.

        Raises:
            TrainingError: some process has stopped responding.
        """
        silent = self._fallen_silent() if isinstance(error, RuntimeError) else []
        self.stopped.set()
        self.thread.join()
        if silent:
            raise TrainingError(f"{self._describe(silent)} has stopped responding") from error
        with suppress(RuntimeError, ValueError):
            self._send(DONE)

    def _fallen_silent(self) -> list[int]:
        """Return the processes that have stopped responding, after a failed collective."""
        try:
            self._listen()
            self.stopped.wait(3 * BEAT)
            self._listen()
        except (RuntimeError, ValueError):
            return []  # the launcher is gone as well
        return self._silent(2 * BEAT)

    def _watch(self) -> None:
        count, progress_at, before = 0, time.monotonic(), None
        while not self.stopped.wait(BEAT):
            count += 1
            try:
                self._send(count)
                if self.rank > 1:
                    continue
                self._listen()
            except (RuntimeError, ValueError):
                if not self.stopped.is_set():
                    self.lost()
                return
            places = {rank: beat._replace(count=0) for rank, beat in self.heartbeats.items()}
            if places != before:
                before, progress_at = places, time.monotonic()
            self._warn_of(self._silent(min(SILENT, self.limit)))
            patience = self.limit + 5 * self.rank  # process 0 reports first if it can
            if time.monotonic() - progress_at > patience:
                self._end()

    def _send(self, count: int) -> None:
        self.store.set(f"alive/{self.rank}", json.dumps(self.own._replace(count=count)))

    def _listen(self) -> None:
        for rank in range(self.processes):
            key = f"alive/{rank}"
            sent = self.store.check([key])
            beat = Heartbeat(*json.loads(self.store.get(key))) if sent else None
            if beat is None or beat.count == DONE:
                self.heartbeats.pop(rank, None)
                self.heard_at.pop(rank, None)
            elif beat != self.heartbeats.get(rank):
                self.heartbeats[rank], self.heard_at[rank] = beat, time.monotonic()

    def _silent(self, seconds: float) -> list[int]:
        now = time.monotonic()
        return [rank for rank, heard in self.heard_at.items() if now - heard > seconds]

    def _warn_of(self, silent: list[int]) -> None:
        new = [rank for rank in silent if rank not in self.reported]
        self.reported = set(silent)
        if new:
            self.warn(f"{self._describe(new)} does not respond")

    def _end(self) -> None:
        """Name the processes that block the others, and end the job: the launcher ends the rest."""
        beats = self.heartbeats
        behind = self._silent(min(SILENT, self.limit))
        if not behind:
            least = min((beat.step, beat.phase) for beat in beats.values())
            behind = [rank for rank in beats if beats[rank][:2] == least]
        message = f"no progress for {self.limit / 60:g} minutes (Distributed.timeout_minutes): "
        message += f"the run is blocked by {self._describe(behind)}"
        rest = [rank for rank in beats if rank not in behind]
        if rest:
            message += f"; {self._describe(rest)}"
        print(
            f"error: {message}. Run the same command to resume from the last checkpoint",
            file=sys.stderr,
        )
        sys.stderr.flush()
        os._exit(HUNG)

    def _describe(self, ranks: list[int]) -> str:
        """Return text such as: rank 1, 3 (computing step 12)."""
        by_place: dict[Heartbeat, list[int]] = {}
        for rank in ranks:
            by_place.setdefault(self.heartbeats[rank]._replace(count=0), []).append(rank)
        parts = []
        for beat, members in by_place.items():
            numbers = ", ".join(map(str, members[:8])) + ", ..." * (len(members) > 8)
            where = f"{PHASES[beat.phase]} step {beat.step}" + f": {beat.detail}" * bool(
                beat.detail
            )
            parts.append(f"rank {numbers} ({where})")
        return "; ".join(parts)
