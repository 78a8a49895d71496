"""Processes of a run tell each other where they are, so that one that hangs or dies is named."""

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from ...config.errors import TrainingError
from . import process_group

HUNG = 70  # the exit code of a run that made no progress for `minutes` (EX_SOFTWARE)
BEAT = 1.0  # seconds between two signs of life
DONE = -1  # the last sign of life
SILENT = 15.0  # seconds without one, after which a process is said not to answer
READING, COMPUTING, EVALUATING = range(3)  # what a process does about a step, in this order
PHASES = ("reading the images of", "computing", "evaluating after")


class Watchdog:
    """Listens, while it is entered, to the signs of life that every process of the run gives.

    A process that stops responding is named in a warning; without progress for `minutes`, the
    job ends with exit code 70 and the processes that the others wait for are named. The processes
    0 and 1 look, so that each is seen by another one.

    Args:
        lost: called once when the launcher, which carries the messages, is gone.
    """

    def __init__(
        self, *, minutes: float, complain: Callable[[str], None], lost: Callable[[], None]
    ) -> None:
        self.store = process_group.message_store()
        self.rank = process_group.rank()
        self.processes = process_group.world_size()
        self.limit = 60 * minutes
        self.complain = complain
        self.lost = lost
        self.place: tuple[int, int, str] = (0, 0, "")
        self.heard: dict[int, str] = {}  # the last sign of life of each process
        self.heard_at: dict[int, float] = {}
        self.complained: set[int] = set()
        self.stopped = threading.Event()
        self.thread: threading.Thread | None = None

    def note(self, step: int, phase: int, detail: str = "") -> None:
        """This process has come to `PHASES[phase]` of `step`; costs nothing."""
        self.place = (step, phase, detail)

    def __enter__(self) -> "Watchdog":
        self.stopped.clear()
        self._say(0)
        self.thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self.thread.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        """Name the process whose end made a collective fail.

        Raises:
            TrainingError: some process has fallen silent.
        """
        silent = self._fallen_silent() if isinstance(error, RuntimeError) else []
        self.stopped.set()
        self.thread.join()
        if silent:
            raise TrainingError(f"{self._describe(silent)} no longer answers") from error
        with suppress(RuntimeError, ValueError):
            self._say(DONE)

    def _fallen_silent(self) -> list[int]:
        """After a failed collective: the processes that give no sign of life any more."""
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
                self._say(count)
                if self.rank > 1:
                    continue
                self._listen()
            except (RuntimeError, ValueError):
                if not self.stopped.is_set():
                    self.lost()
                return
            places = {rank: self._place(rank) for rank in self.heard}
            if places != before:
                before, progress_at = places, time.monotonic()
            self._complain_of(self._silent(min(SILENT, self.limit)))
            patience = self.limit + 5 * self.rank  # process 0 speaks first if it can
            if time.monotonic() - progress_at > patience:
                self._end(places)

    def _say(self, count: int) -> None:
        self.store.set(f"alive/{self.rank}", json.dumps([count, *self.place]))

    def _listen(self) -> None:
        for rank in range(self.processes):
            key = f"alive/{rank}"
            said = self.store.get(key).decode() if self.store.check([key]) else None
            if said is None or json.loads(said)[0] == DONE:
                self.heard.pop(rank, None)
                self.heard_at.pop(rank, None)
            elif said != self.heard.get(rank):
                self.heard[rank], self.heard_at[rank] = said, time.monotonic()

    def _silent(self, seconds: float) -> list[int]:
        now = time.monotonic()
        return [rank for rank, heard in self.heard_at.items() if now - heard > seconds]

    def _complain_of(self, silent: list[int]) -> None:
        new = [rank for rank in silent if rank not in self.complained]
        self.complained = set(silent)
        if new:
            self.complain(f"{self._describe(new)} does not answer")

    def _end(self, places: dict[int, tuple[int, int, str]]) -> None:
        """Say who keeps the others waiting, and end the job: the launcher ends the rest."""
        behind = self._silent(min(SILENT, self.limit))
        if not behind:
            behind = [rank for rank in places if places[rank][:2] == min(places.values())[:2]]
        message = f"no progress for {self.limit / 60:g} minutes (Distributed.timeout_minutes): "
        message += f"{self._describe(behind)} keeps the run waiting"
        rest = [rank for rank in places if rank not in behind]
        if rest:
            message += f"; {self._describe(rest)}"
        print(
            f"error: {message}. Run the same command to resume from the last checkpoint",
            file=sys.stderr,
        )
        sys.stderr.flush()
        os._exit(HUNG)

    def _place(self, rank: int) -> tuple[int, int, str]:
        return tuple(json.loads(self.heard[rank])[1:])

    def _describe(self, ranks: list[int]) -> str:
        """Like: rank 1, 3 (computing step 12)."""
        by_place: dict[tuple[int, int, str], list[int]] = {}
        for rank in ranks:
            by_place.setdefault(self._place(rank), []).append(rank)
        parts = []
        for (step, phase, detail), members in by_place.items():
            numbers = ", ".join(map(str, members[:8])) + ", ..." * (len(members) > 8)
            where = f"{PHASES[phase]} step {step}" + f": {detail}" * bool(detail)
            parts.append(f"rank {numbers} ({where})")
        return "; ".join(parts)
