"""Writing the packed copy that `reader.py` reads: whole or not at all, by several processes."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from torch.utils.data import DataLoader, Dataset

from ...config.errors import DataError, TrainingError
from ...util.checkpoint import folder_lock
from ...util.files import atomic_write, no_links
from ...util.images import stored_pixels
from ...util.signals import leave_to_parent
from ..labels import LabelEncoding
from ..lists import Pair
from ..loader import untouched
from ..segmentation import read_pair
from .reader import (
    ALIGNMENT,
    STAT_THREADS,
    VERSION,
    Entry,
    as_row,
    digest_of,
    label_place,
    source_states,
)

FLUSHED_TOGETHER = 64  # pairs whose pixels reach the disk before the journal counts on them


@dataclass(frozen=True)
class Plan:
    """What a packed copy will hold: every pair's place is known before a pixel is decoded."""

    entries: list[Entry]
    header: dict[str, int | str]
    folder: Path
    part: str
    bytes: int

    @property
    def digest(self) -> str:
        """Of all that decides about the content; a copy with another digest is another copy."""
        rows = [self.header, *map(as_row, self.entries)]
        return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def index(self) -> Path:
        return self.folder / f"{self.part}.json"

    @property
    def pixels(self) -> Path:
        return self.folder / f"{self.part}-{self.digest}.pixels"


def pack(
    pairs: Sequence[Pair],
    encoding: LabelEncoding,
    folder: Path,
    part: str,
    *,
    channels: int = 3,
    workers: int = 1,
    keep_bad: bool = False,
) -> Iterator[None]:
    """Write the packed copy of `pairs` as `part` ("train", "val") of `folder`; yields once a pair.

    Packing that was stopped continues; a copy that is whole and not older than its sources is left
    as it is. An earlier copy is there to be read until the new one takes its place.

    Args:
        keep_bad: note why a pair cannot be used and continue, for runs with TRAIN.bad_data skip.
    Raises:
        DataError: a pair cannot be used, the disk has no room, or another process packs there.
    """
    plan = make_plan(pairs, encoding, folder, part, channels)
    try:
        with PackWriter(plan) as writer:
            if writer.is_whole():
                yield from (None for _ in pairs)
                return
            with closing(writer.write(pairs, encoding, workers)) as entries:
                for entry in entries:
                    if entry.problem and not keep_bad:
                        raise DataError(
                            f"{entry.problem}; fix it or remove it from the list "
                            "(TRAIN.bad_data skip packs the training list without it)"
                        )
                    yield
            writer.commit()
    except OSError as error:
        where = error.filename or folder
        raise DataError(f"{where}: cannot be written ({error.strerror})") from error


class PackWriter:
    """Writes one plan's copy: lock the folder, write the pairs, commit the whole.

    >>> with PackWriter(plan) as writer:  # doctest: +SKIP
    ...     for entry in writer.write(pairs, encoding, workers=2):
    ...         print(entry.name)
    ...     writer.commit()

    Without `commit` the finished pairs stay in the `.partial` file, with their `.journal`, and the
    next writer of the same plan continues from there.

    Raises:
        DataError: another process is packing in the folder (on entering).
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.partial = plan.pixels.with_suffix(".partial")
        self.journal = plan.pixels.with_suffix(".journal")
        self.finished: dict[int, Entry] = {}
        self._lock = ExitStack()

    def __enter__(self) -> "PackWriter":
        folder = self.plan.folder
        folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.enter_context(folder_lock(folder))
        except TrainingError as error:
            if not isinstance(error.__cause__, BlockingIOError):
                raise
            raise DataError(f"{folder}: another process is packing there; wait for it") from error
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    def is_whole(self) -> bool:
        """Return whether the committed copy is complete and of this plan."""
        plan = self.plan
        try:
            file = json.loads(plan.index.read_text(encoding="utf-8"))["file"]
            return file == plan.pixels.name and plan.pixels.stat().st_size == plan.bytes
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def write(
        self, pairs: Sequence[Pair], encoding: LabelEncoding, workers: int
    ) -> Iterator[Entry]:
        """Decode and write every pair; yields each finished entry, those of a stopped run first.

        Each process writes to the pairs' own places in the file.

        Raises:
            DataError: the disk is too small for what is still to be written.
        """
        plan = self.plan
        for path in plan.folder.glob(f"{plan.part}-*"):  # of another, unfinished plan
            if path.suffix in (".partial", ".journal") and path not in (self.partial, self.journal):
                path.unlink()
        self.finished = read_journal(plan, self.journal) if self.partial.is_file() else {}
        refuse_full_disk(plan, self.partial)
        with open(self.partial, "ab", opener=no_links) as file:
            file.truncate(plan.bytes)
        yield from list(self.finished.values())
        left = [index for index in range(len(pairs)) if index not in self.finished]
        work = _Work(
            [plan.entries[i] for i in left],
            [pairs[i] for i in left],
            partial(
                pack_pair,
                encoding=encoding,
                channels=int(plan.header["channels"]),
                file=self.partial,
            ),
        )
        # its processes, unlike those of a pool, end by themselves when this one is killed
        decoded = DataLoader(
            work,
            batch_size=None,
            num_workers=workers if workers > 1 else 0,
            collate_fn=untouched,
            worker_init_fn=leave_to_parent,
        )
        with Journal(self.journal, self.partial) as journal:
            for index, entry in zip(left, decoded, strict=True):
                if isinstance(entry, OSError):
                    raise entry
                if not entry.problem:
                    journal.add(index, entry)
                self.finished[index] = entry
                yield entry

    def commit(self) -> None:
        """Put the copy in its place: the pixels, then the index that names them, then tidy up."""
        plan = self.plan
        os.replace(self.partial, plan.pixels)
        content = {
            "header": plan.header,
            "file": plan.pixels.name,
            "bytes": plan.bytes,
            "entries": [as_row(self.finished[index]) for index in range(len(plan.entries))],
        }
        with atomic_write(plan.index, durable=True) as file:
            file.write(json.dumps(content).encode())
        self.journal.unlink(missing_ok=True)
        for path in plan.folder.glob(f"{plan.part}-*.pixels"):
            if path != plan.pixels:
                path.unlink()


class Journal:
    """Which pairs are finished: lines are written after their pixels have reached the disk."""

    def __init__(self, path: Path, pixels: Path) -> None:
        self.path, self.pixels = path, pixels
        self._lines: list[str] = []
        self._files = ExitStack()

    def __enter__(self) -> "Journal":
        self._log = self._files.enter_context(
            open(self.path, "a", encoding="utf-8", opener=no_links)
        )
        self._data = self._files.enter_context(open(self.pixels, "rb+", opener=no_links))
        self._files.callback(self.flush)
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def add(self, index: int, entry: Entry) -> None:
        self._lines.append(json.dumps([index, entry.height, entry.width]) + "\n")
        if len(self._lines) == FLUSHED_TOGETHER:
            self.flush()

    def flush(self) -> None:
        os.fsync(self._data.fileno())  # of what all processes have written
        self._log.writelines(self._lines)
        self._log.flush()
        self._lines.clear()


def make_plan(
    pairs: Sequence[Pair], encoding: LabelEncoding, folder: Path, part: str, channels: int
) -> Plan:
    """Where every pair will be, from the sizes that the image files claim."""
    states = source_states(pairs)
    with ThreadPoolExecutor(STAT_THREADS) as pool:
        counts = list(pool.map(claimed_pixels, pairs, chunksize=64))
    entries, offset = [], 0
    for pair, state, pixels in zip(pairs, states, counts, strict=True):
        entry = Entry(pair.name, label_place(pair), state, offset, pixels)
        entries.append(entry)
        offset += -(-entry.size(channels) // ALIGNMENT) * ALIGNMENT
    header = {"version": VERSION, "labels": digest_of(encoding), "channels": channels}
    return Plan(entries, header, folder, part, max(offset, 1))


def claimed_pixels(pair: Pair) -> int:
    """Pixels of the image by its header; 0 where that cannot be read, which decoding will say."""
    try:
        return stored_pixels(pair.image)
    except DataError:
        return 0


def refuse_full_disk(plan: Plan, unfinished: Path) -> None:
    """Refuse before the work instead of in the middle of it.

    Raises:
        DataError: the disk has less room than what is still to be written.
    """
    written = unfinished.stat().st_blocks * 512 if unfinished.is_file() else 0
    needed, free = plan.bytes - written, shutil.disk_usage(plan.folder).free
    if needed > free:
        raise DataError(
            f"{plan.folder}: the packed {plan.part} list takes {needed / 1e9:.2f} GB, and its disk "
            f"has {free / 1e9:.2f} GB left; make room, or name a folder on another disk with --out"
        )


class _Work(Dataset):
    """Packs a pair when it is asked for it; errors of the disk come back as values."""

    def __init__(
        self,
        entries: Sequence[Entry],
        pairs: Sequence[Pair],
        one: Callable[[Entry, Pair], Entry],
    ) -> None:
        self.entries, self.pairs, self.one = entries, pairs, one

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Entry | OSError:
        try:
            return self.one(self.entries[index], self.pairs[index])
        except OSError as error:
            return error


def pack_pair(
    entry: Entry, pair: Pair, *, encoding: LabelEncoding, channels: int, file: Path
) -> Entry:
    """Decode one pair and write it to its place; the entry with its size, or with its problem."""
    try:
        sample = read_pair(pair, encoding, 0, channels=channels)
        if sample.label.size != entry.pixels:
            raise DataError(
                f"{pair.image}: its header claims {entry.pixels} pixels, and it has "
                f"{sample.label.size}; store it again"
            )
    except DataError as error:
        return replace(entry, problem=str(error))
    with open(file, "rb+", opener=no_links) as target:
        target.seek(entry.offset)
        target.write(np.ascontiguousarray(sample.image))
        target.write(np.ascontiguousarray(sample.label))
    height, width = sample.label.shape
    return replace(entry, height=height, width=width)


def read_journal(plan: Plan, journal: Path) -> dict[int, Entry]:
    """The entries that an earlier process finished; a last line that was cut is passed over."""
    done = {}
    for line in journal.read_text(encoding="utf-8").splitlines() if journal.is_file() else ():
        try:
            index, height, width = json.loads(line)
            entry, whole = plan.entries[index], min(height, width) > 0
        except (ValueError, TypeError, IndexError, RecursionError):
            continue
        if whole and height * width == entry.pixels:
            done[index] = replace(entry, height=height, width=width)
    return done
