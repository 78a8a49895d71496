"""A packed copy of a list's pairs: decoded pixels and train ids in one memory-mapped file.

A crop then costs the pages of its own rows instead of two decoded files. A folder holds, for each
list ("train", "val"), `LIST.json`, the index, and `LIST-DIGEST.pixels`, which the index names: for
each pair the (H, W, C) uint8 image and the (H, W) uint8 train ids. Both appear whole or not at all;
while they are written there are `.partial` and `.journal` files, from which a stopped packing goes
on. `writer.py` writes all this.
"""

import hashlib
import json
import mmap
import os
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...config.errors import DataError
from ..labels import LabelEncoding
from ..lists import Pair

VERSION = 1
ALIGNMENT = 64  # bytes
STAT_THREADS = 16  # stat waits for a network's file system, not for this CPU


@dataclass(frozen=True)
class Entry:
    """One pair: where its pixels are, and the files they were read from.

    Args:
        name, label: the image as the list names it, and the label's path from the image's folder,
            so that a data set may be moved.
        sources: size in bytes and modification time in ns of the image, then of the label.
        offset, pixels: the image begins at this byte and has height times width pixels.
        height, width: of the decoded image; 0 before it is decoded.
        problem: why the pair cannot be used, if it cannot.
    """

    name: str
    label: str
    sources: tuple[int, int, int, int]
    offset: int
    pixels: int
    height: int = 0
    width: int = 0
    problem: str | None = None

    def size(self, channels: int) -> int:
        """Bytes of image and label."""
        return self.pixels * (channels + 1)


class PackedPairs:
    """The packed pairs of a list, in the order of `pairs`.

    Every source file is looked at once here (its size and time, by threads) rather than with each
    sample: a run learns before its first step that a copy is out of date, and no step waits for it.

    Args:
        folder: what `stripseg prepare pack` has written.
        part: "train" or "val".
        command: the command that would make the copy again.
    Raises:
        DataError: the copy is missing, damaged, of other labels, channels or files than these,
            or a source has changed since.
    """

    def __init__(
        self,
        folder: Path,
        part: str,
        pairs: Sequence[Pair],
        encoding: LabelEncoding,
        *,
        channels: int,
        command: str,
    ) -> None:
        self.index_file = folder / f"{part}.json"
        self.cure = f"pack again: {command}"
        if not self.index_file.is_file():
            raise DataError(
                f"{self.index_file}: does not exist; DATA.packed is what this makes: {command}"
            )
        try:
            index = json.loads(self.index_file.read_text(encoding="utf-8"))
            header, entries = index["header"], [entry_of(row) for row in index["entries"]]
            found = (header["version"], header["labels"], header["channels"])
            self.file, self.bytes = folder / own_file(part, index["file"]), int(index["bytes"])
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise DataError(
                f"{self.index_file}: this index of a packed copy is damaged ({error!r}); "
                f"{self.cure}"
            ) from error
        wanted = (VERSION, digest_of(encoding), channels)
        whats = ("format version", "label encoding (DATA.labels, DATA.classes)", "DATA.in_channels")
        for what, one, other in zip(whats, found, wanted, strict=True):
            if one != other:
                raise DataError(
                    f"{self.index_file}: was packed with another {what} ({one}, and this run needs "
                    f"{other}); {self.cure}"
                )
        self.channels = channels
        self._check_file()
        self.entries = self._match(entries, pairs)
        self._pixels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.entries)

    def __getstate__(self) -> dict[str, Any]:
        """Without the mapping: a newly started process maps the file itself."""
        return self.__dict__ | {"_pixels": None}

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """(H, W, C) uint8 image and (H, W) uint8 train ids: read-only views of the mapped file.

        Raises:
            DataError: the pair could not be packed, or the file went away.
        """
        entry = self.entries[index]
        if entry.problem:
            raise DataError(entry.problem)
        pixels = self._map()
        middle = entry.offset + entry.pixels * self.channels
        image = pixels[entry.offset : middle].reshape(entry.height, entry.width, self.channels)
        label = pixels[middle : middle + entry.pixels].reshape(entry.height, entry.width)
        return image, label

    def _map(self) -> np.ndarray:
        if self._pixels is None:
            self._check_file()
            with open(self.file, "rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._pixels = np.frombuffer(mapped, np.uint8)
        return self._pixels

    def _check_file(self) -> None:
        size = self.file.stat().st_size if self.file.is_file() else None
        if size != self.bytes:
            found = "does not exist" if size is None else f"is truncated ({size} bytes)"
            raise DataError(
                f"{self.file}: the packed copy {found}; expected {self.bytes} bytes; {self.cure}"
            )

    def _match(self, entries: Sequence[Entry], pairs: Sequence[Pair]) -> list[Entry]:
        """The entry of every pair, all of them inside the file and no older than their sources."""
        known = {(entry.name, entry.label): entry for entry in entries}
        matched = []
        for pair, sources in zip(pairs, source_states(pairs), strict=True):
            entry = known.get((pair.name, label_place(pair)))
            if entry is None:
                raise DataError(
                    f"{self.index_file}: has no {pair.name} with the label {pair.label}; the list "
                    f"has changed since it was packed; {self.cure}"
                )
            for path, old, new in (
                (pair.image, entry.sources[:2], sources[:2]),
                (pair.label, entry.sources[2:], sources[2:]),
            ):
                if old != new:
                    raise DataError(
                        f"{path}: has changed since it was packed in {self.index_file.parent} "
                        f"(size and time are {new}, and were {old}); {self.cure}"
                    )
            inside = 0 <= entry.offset <= self.bytes - entry.size(self.channels)
            if not entry.problem and not (
                inside
                and min(entry.height, entry.width) > 0
                and entry.pixels == entry.height * entry.width
            ):
                raise DataError(
                    f"{self.index_file}: this index of a packed copy is damaged (place or size "
                    f"of {pair.name}); {self.cure}"
                )
            matched.append(entry)
        return matched


def entry_of(row: dict[str, Any]) -> Entry:
    """An entry as JSON holds it; a ValueError where something else stands there."""
    entry = Entry(**row | {"sources": tuple(row["sources"])})
    numbers = (*entry.sources, entry.offset, entry.pixels, entry.height, entry.width)
    if len(entry.sources) != 4 or not all(type(number) is int for number in numbers):
        raise ValueError(f"{row['name']}: expected whole numbers")
    if not all(isinstance(text, str) for text in (entry.name, entry.label, entry.problem or "")):
        raise ValueError(f"{row['name']}: expected text")
    return entry


def own_file(part: str, name: str) -> str:
    """The name of a list's pixels as the writer gives it; a ValueError where another stands."""
    if not re.fullmatch(rf"{part}-[0-9a-f]+\.pixels", name):
        raise ValueError(f"{name!r} is not a file of this copy")
    return name


def as_row(entry: Entry) -> dict[str, Any]:
    """What `entry_of` reads."""
    return asdict(entry)


def label_place(pair: Pair) -> str:
    return os.path.relpath(pair.label, pair.image.parent)


def source_states(pairs: Sequence[Pair]) -> Iterable[tuple[int, int, int, int]]:
    """Size and modification time of the image and the label of each pair, in order.

    Raises:
        DataError: a file is missing.
    """
    with ThreadPoolExecutor(STAT_THREADS) as pool:
        return list(pool.map(source_state, pairs, chunksize=64))


def source_state(pair: Pair) -> tuple[int, int, int, int]:
    try:
        image, label = os.stat(pair.image), os.stat(pair.label)
    except OSError as error:
        raise DataError(
            f"{error.filename}: cannot be looked at ({error.strerror}); check DATA.data_root and "
            "the list"
        ) from error
    return image.st_size, image.st_mtime_ns, label.st_size, label.st_mtime_ns


def digest_of(encoding: LabelEncoding) -> str:
    """What the encoding makes of stored labels, as a short hash."""
    values = encoding.table.astype("<i4").tobytes() + bytes([encoding.ignore_label])
    return hashlib.sha256(values).hexdigest()[:16]
