"""Files that appear whole or not at all, whenever the process is stopped."""

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_write(path: str | Path, *, durable: bool = False) -> Iterator[BinaryIO]:
    """A binary file that takes the place of `path` when the block ends, and leaves no trace if
    it fails.

    Args:
        durable: flushed to the disk first, so that even a power cut leaves the old file or the
            new one; for files that cost hours.
    Raises:
        OSError: the folder cannot be made or written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: str | Path, text: str) -> None:
    """A text file that appears whole or not at all."""
    with atomic_write(path) as file:
        file.write(text.encode())


def write_lines(path: str | Path, lines: Iterable[str]) -> None:
    """A text file of these lines, which appears whole or not at all."""
    write_text(path, "".join(f"{line}\n" for line in lines))


def link_or_copy(source: Path, target: Path) -> None:
    """Give `source` a second name; a copy where the file system has no hard links.

    `target` appears whole or not at all, and its folder is made.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source.resolve(), temporary)
    except OSError:
        shutil.copy2(source, temporary)
    os.replace(temporary, target)
