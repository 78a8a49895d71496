"""The results of a test as files: predictions, which of them are done, a server's archive.

The catalog describes what a server accepts (`submission`): the values to store, the path inside the
archive, whether the PNG has the classes' palette, and the size that every prediction must have.
"""

import hashlib
import json
import os
import posixpath
import tarfile
import threading
import zipfile
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ..config.errors import DataError
from ..util.distributed import process_group
from ..util.files import atomic_write, no_links, refuse_linked_folders, write_lines
from ..util.images import read_label, write_png
from .description import DatasetDescription

RECORD = ".predictions"  # beside gray/: what the last whole test wrote there


def stored_values(description: DatasetDescription) -> np.ndarray:
    """(K,) uint8: the value that the server expects for each class."""
    classes = np.arange(description.classes, dtype=np.uint8)
    raw = description.raw_labels
    if description.submission.values == "train" or raw is None:
        return classes
    if raw.kind == "shift":
        return classes - np.array(raw.offset).astype(np.uint8)
    official = {train_id: value for value, train_id in sorted(raw.map.items(), reverse=True)}
    return np.array([official[train_id] for train_id in classes], np.uint8)


class SubmissionWriter:
    """Writes predictions below `folder`, as the server's archive holds them, and packs them.

    Args:
        description: of a dataset with a `submission`.
        folder: where the files go; the archive is put beside it.
    """

    def __init__(self, description: DatasetDescription, folder: Path) -> None:
        self.description = description
        self.wanted = description.submission
        self.folder = folder
        self.values = stored_values(description)

    def path(self, name: str) -> Path:
        """The file of the image that the list calls `name`."""
        stem = PurePosixPath(name.replace(os.sep, "/")).stem
        return self.folder / self.wanted.file.replace("{stem}", stem)

    def save(self, name: str, prediction: np.ndarray) -> None:
        """Write the (H, W) classes of one image.

        Raises:
            DataError: the server expects another size.
        """
        size = prediction.shape[1], prediction.shape[0]
        if self.wanted.size is not None and size != self.wanted.size:
            raise DataError(
                f"{name}: {self.description.name}'s server takes predictions of "
                f"{self.wanted.size[0]}x{self.wanted.size[1]} pixels (width x height), and this "
                f"image is {size[0]}x{size[1]}; test the original images"
            )
        colors = self.description.colors if self.wanted.palette else None
        write_png(self.path(name), self.values[prediction], colors)

    def pack(self, names: list[str]) -> Path:
        """The archive of all these images' files, in a fixed order."""
        archive = self.folder.with_suffix(f".{self.wanted.archive}")
        files = sorted(self.path(name).relative_to(self.folder).as_posix() for name in names)
        with atomic_write(archive) as file:
            if self.wanted.archive == "tgz":
                with tarfile.open(fileobj=file, mode="w:gz") as tar:
                    for name in files:
                        tar.add(self.folder / name, arcname=name)
            else:
                with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as packed:  # PNGs are packed
                    for name in files:
                        packed.write(self.folder / name, arcname=name)
        return archive


class PredictionFiles:
    """The predictions of a test: `gray/` (class indices) and `color/` below the result folder, and
    with a `submission` the files for a benchmark's server.

    Raises:
        DataError: two images would have the same file, or one of these folders, or a folder in
            them, is a link.
    """

    def __init__(
        self,
        folder: Path,
        names: Sequence[str],
        colors: np.ndarray,
        submission: SubmissionWriter | None = None,
    ) -> None:
        refuse_linked_folders(folder, ("gray", "color"))
        if submission is not None:
            refuse_linked_folders(submission.folder.parent, [submission.folder.name])
        self.gray, self.color = folder / "gray", folder / "color"
        self.colors = colors
        self.submission = submission
        self.relative = prediction_names(names)

    def save(self, name: str, prediction: np.ndarray) -> None:
        """Write the (H, W) uint8 prediction of an image."""
        write_png(self.gray / self.relative[name], prediction)
        write_png(self.color / self.relative[name], prediction, self.colors)
        if self.submission is not None:
            self.submission.save(name, prediction)

    def left_over(self) -> list[Path]:
        """Predictions in `gray/` of images that are not of this test, sorted."""
        wanted = {self.gray / file for file in self.relative.values()}
        return sorted(path for path in self.gray.rglob("*.png") if path not in wanted)

    def replace_earlier(self) -> int:
        """Remove what the last test in this folder wrote of images that are not of this one.

        Returns:
            How many predictions went. Files that no test has recorded stay, and those that were
            changed after that, such as predictions corrected by hand.
        """
        record = self.gray.parent / RECORD
        try:
            written = set(record.read_text(encoding="utf-8").splitlines())
            recorded = record.stat().st_mtime_ns
        except (OSError, UnicodeDecodeError):
            written, recorded = set(), 0
        gone = [
            path.relative_to(self.gray)
            for path in self.left_over()
            if path.relative_to(self.gray).as_posix() in written
            and path.stat().st_mtime_ns <= recorded
        ]
        for file in gone:
            (self.gray / file).unlink()
            (self.color / file).unlink(missing_ok=True)
        write_lines(record, sorted(self.relative.values()))
        return len(gone)

    def read(self, name: str) -> np.ndarray:
        return read_label(self.gray / self.relative[name])


class ProgressJournal:
    """What is known of the images that are done, in a hidden folder beside their predictions.

    It holds for one set of settings: where anything that decides a prediction has changed, the
    journal starts again. It is removed when the test has ended, so that the same command then tests
    everything again. Each process writes its own file; all are read.

    Args:
        folder: of the results.
        settings: what decides the predictions (checkpoint, scales, list, ...), as plain values.
    Attributes:
        done: {name: entry} of the images that an earlier, stopped test has finished.
    Raises:
        DataError: the hidden folder is a link.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        refuse_linked_folders(folder, [".journal"])
        self.folder = folder / ".journal"
        text = json.dumps({"journal": 2, **settings}, sort_keys=True, default=str)
        self.digest = hashlib.sha256(text.encode()).hexdigest()
        if process_group.is_main() and self._read_digest() != self.digest:
            self.remove()
            with atomic_write(self.folder / "settings") as file:
                file.write(self.digest.encode())
        process_group.barrier()
        self.done = self._read()
        process_group.barrier()
        self._file = open(  # noqa: SIM115 - open for the test
            self._own(), "a", encoding="utf-8", opener=no_links
        )
        self._lock = threading.Lock()

    def _own(self) -> Path:
        return self.folder / f"done-{process_group.rank()}.txt"

    def _read_digest(self) -> str | None:
        path = self.folder / "settings"
        return path.read_text(encoding="ascii", errors="replace") if path.is_file() else None

    def _read(self) -> dict[str, dict[str, Any]]:
        entries: dict[str, dict[str, Any]] = {}
        for path in self.folder.glob("done-*.txt"):
            text = path.read_text(encoding="utf-8", errors="replace")
            lines = text.split("\n")[:-1]  # a line without its end was cut
            entries.update({e["name"]: e for e in map(entry_of, lines) if e is not None})
        return entries

    def add(self, entries: Iterable[dict[str, Any]]) -> None:
        """These images, tested together, are done and their predictions are written.

        Args:
            entries: plain values, with the image's `name`.
        """
        text = "".join(json.dumps(entry) + "\n" for entry in entries)
        with self._lock:  # several threads save predictions
            self._file.write(text)
            self._file.flush()

    def finish(self) -> dict[str, dict[str, Any]]:
        """The test has ended: return what all processes have added. `remove` then forgets it.

        Every process must call it; what it returns is complete on the main one alone.
        """
        self._file.close()
        process_group.barrier()
        return self._read() if process_group.is_main() else {}

    def remove(self) -> None:
        for path in self.folder.glob("*"):
            path.unlink(missing_ok=True)
        if self.folder.is_dir():
            os.rmdir(self.folder)


def entry_of(line: str) -> dict[str, Any] | None:
    """Return the entry of a line, or None where a power cut left something else."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) and isinstance(entry.get("name"), str) else None


class BoundedThreadPool:
    """Runs calls in `threads` threads until it is left; at most `waiting` of them are unfinished.

    An error of a call is raised by a later `submit` or at the end.
    """

    def __init__(self, threads: int = 2, waiting: int = 8) -> None:
        self._pool = ThreadPoolExecutor(threads)
        self._waiting = waiting
        self._calls: deque[Future] = deque()

    def submit(self, function: Callable[..., Any], *arguments: Any) -> None:
        while len(self._calls) >= self._waiting:
            self._calls.popleft().result()
        self._calls.append(self._pool.submit(function, *arguments))

    def __enter__(self) -> "BoundedThreadPool":
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for everything, also where the main thread has failed."""
        try:
            while self._calls:
                self._calls.popleft().result()
        finally:
            self._pool.shutdown()


def prediction_names(names: Sequence[str]) -> dict[str, str]:
    """{image: its prediction's path}, below a folder whatever the image is called.

    Files are named like the images. Where two images share a name, the folders are kept, and the
    suffixes too where two images of one folder differ in nothing else.

    Raises:
        DataError: two images would have the same file.
    """
    paths = {name: PurePosixPath(posixpath.normpath(name.replace(os.sep, "/"))) for name in names}
    inner = {
        name: [p for p in path.parts if p.strip("/") not in ("", "..")]
        for name, path in paths.items()
    }
    for name_of in (
        lambda parts: PurePosixPath(parts[-1]).stem,
        lambda parts: str(PurePosixPath(*parts).with_suffix("")),
        "/".join,
    ):
        files = {name: f"{name_of(parts)}.png" for name, parts in inner.items()}
        if len(set(files.values())) == len(files):
            return files
    seen: dict[str, str] = {}
    first, second = next(
        (seen[file], name) for name, file in files.items() if seen.setdefault(file, name) != name
    )
    raise DataError(
        f"{first} and {second}: their predictions would be the same file; set DATA.data_root to a "
        "folder that holds both, and name them relative to it"
    )
