"""A record of the images that a test has done, so that a stopped test continues with the others."""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..distributed import process_group
from ..files import atomic_write, no_links


class ProgressJournal:
    """The names of the images that are done, in a hidden folder beside their predictions.

    It holds for one set of settings: where anything that decides a prediction has changed, the
    journal starts again. It is removed when the test has ended, so that the same command then tests
    everything again. Each process writes its own file; all are read.

    Args:
        folder: of the results.
        settings: what decides the predictions (checkpoint, scales, list, ...), as plain values.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder = folder / ".journal"
        text = json.dumps(settings, sort_keys=True, default=str)
        self.digest = hashlib.sha256(text.encode()).hexdigest()
        if process_group.is_main() and self._read_digest() != self.digest:
            self.remove()
            with atomic_write(self.folder / "settings") as file:
                file.write(self.digest.encode())
        process_group.barrier()
        self.done = self._read_done()
        process_group.barrier()
        self._file = open(  # noqa: SIM115 - open for the test
            self._own(), "a", encoding="utf-8", opener=no_links
        )

    def _own(self) -> Path:
        return self.folder / f"done-{process_group.rank()}.txt"

    def _read_digest(self) -> str | None:
        path = self.folder / "settings"
        return path.read_text(encoding="ascii") if path.is_file() else None

    def _read_done(self) -> set[str]:
        names: set[str] = set()
        for path in self.folder.glob("done-*.txt"):
            text = path.read_text(encoding="utf-8", errors="replace")
            lines = text.split("\n")[:-1]  # a line without its end was cut
            names.update(name for name in map(name_of, lines) if name is not None)
        return names

    def add(self, names: Iterable[str]) -> None:
        """These images, tested together, are done and their predictions are written."""
        self._file.write("".join(json.dumps(name) + "\n" for name in names))
        self._file.flush()

    def finish(self) -> None:
        """The test has ended: forget it. Every process must call it."""
        self._file.close()
        process_group.barrier()
        if process_group.is_main():
            self.remove()

    def remove(self) -> None:
        for path in self.folder.glob("*"):
            path.unlink(missing_ok=True)
        if self.folder.is_dir():
            os.rmdir(self.folder)


def name_of(line: str) -> str | None:
    """Return the name of a line, or None where a power cut left something else."""
    try:
        name = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return name if isinstance(name, str) else None
