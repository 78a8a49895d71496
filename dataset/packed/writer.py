"""Writing the packed copy that `packed.py` reads: whole or not at all, by several processes."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from torch.utils.data import DataLoader, Dataset

from ...config.errors import DataError, TrainingError
from ...util.checkpoint import folder_lock
from ...util.files import atomic_write
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

    A stopped packing goes on where it was; one that is whole and no older than its sources is left
    as it is. An earlier copy is there to be read until the new one takes its place.

    Args:
        keep_bad: note why a pair cannot be used and go on, for runs with TRAIN.bad_data skip.
    Raises:
        DataError: a pair cannot be used, the disk has no room, or another process packs there.
    """
    plan = make_plan(pairs, encoding, folder, part, channels)
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(folder_lock(folder))
        except TrainingError as error:
            raise DataError(f"{folder}: another process is packing there; wait for it") from error
        if is_whole(plan):
            yield from (None for _ in pairs)
            return
        unfinished, journal = (plan.pixels.with_suffix(s) for s in (".partial", ".journal"))
        for path in folder.glob(f"{part}-*"):
            if path.suffix in (".partial", ".journal") and path not in (unfinished, journal):
                path.unlink()
        done = read_journal(plan, journal) if unfinished.is_file() else {}
        refuse_full_disk(plan, unfinished)
        try:
            with open(unfinished, "ab") as file:
                file.truncate(plan.bytes)
            for index, entry in write_pairs(
                plan, pairs, encoding, unfinished, journal, done, workers
            ):
                if entry.problem and not keep_bad:
                    raise DataError(
                        f"{entry.problem}; mend it or take it off the list (TRAIN.bad_data skip "
                        "packs the training list without it)"
                    )
                done[index] = entry
                yield
            publish(plan, [done[index] for index in range(len(pairs))], unfinished, journal)
        except OSError as error:
            raise DataError(f"{folder}: cannot be written ({error.strerror})") from error


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


def is_whole(plan: Plan) -> bool:
    """Is the copy there, complete and of this plan?"""
    try:
        file = json.loads(plan.index.read_text(encoding="utf-8"))["file"]
        return file == plan.pixels.name and plan.pixels.stat().st_size == plan.bytes
    except (OSError, ValueError, KeyError, TypeError):
        return False


def refuse_full_disk(plan: Plan, unfinished: Path) -> None:
    """Complain before the work instead of in the middle of it.

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


def write_pairs(
    plan: Plan,
    pairs: Sequence[Pair],
    encoding: LabelEncoding,
    unfinished: Path,
    journal: Path,
    done: dict[int, Entry],
    workers: int,
) -> Iterator[tuple[int, Entry]]:
    """(position, finished entry) of every pair; each process writes to the pairs' own places."""
    yield from list(done.items())
    left = [index for index in range(len(pairs)) if index not in done]
    work = _Work(
        [plan.entries[i] for i in left],
        [pairs[i] for i in left],
        partial(
            pack_pair, encoding=encoding, channels=int(plan.header["channels"]), file=unfinished
        ),
    )
    # its processes, unlike those of a pool, end by themselves when this one is killed
    finished = DataLoader(
        work,
        batch_size=None,
        num_workers=workers if workers > 1 else 0,
        collate_fn=untouched,
        worker_init_fn=leave_to_parent,
    )
    lines: list[str] = []
    with ExitStack() as stack:
        log = stack.enter_context(open(journal, "a", encoding="utf-8"))
        data = stack.enter_context(open(unfinished, "rb+"))

        def flush() -> None:
            os.fsync(data.fileno())  # of what all processes have written
            log.writelines(lines)
            log.flush()
            lines.clear()

        stack.callback(flush)
        for index, entry in zip(left, finished, strict=True):
            if isinstance(entry, OSError):
                raise entry
            if not entry.problem:
                lines.append(json.dumps([index, entry.height, entry.width]) + "\n")
            if len(lines) == FLUSHED_TOGETHER:
                flush()
            yield index, entry


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
                f"{sample.label.size}; store it anew"
            )
    except DataError as error:
        return replace(entry, problem=str(error))
    with open(file, "rb+") as target:
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
            entry = plan.entries[index]
        except (ValueError, TypeError, IndexError):
            continue
        if height * width == entry.pixels:
            done[index] = replace(entry, height=height, width=width)
    return done


def publish(plan: Plan, entries: Sequence[Entry], unfinished: Path, journal: Path) -> None:
    """Put the copy in its place: the pixels, then the index that names them, then tidy up."""
    os.replace(unfinished, plan.pixels)
    content = {
        "header": plan.header,
        "file": plan.pixels.name,
        "bytes": plan.bytes,
        "entries": [as_row(entry) for entry in entries],
    }
    with atomic_write(plan.index, durable=True) as file:
        file.write(json.dumps(content).encode())
    journal.unlink(missing_ok=True)
    for path in plan.folder.glob(f"{plan.part}-*.pixels"):
        if path != plan.pixels:
            path.unlink()
