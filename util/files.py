"""Files that appear whole or not at all, whenever the process is stopped."""

import errno
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ..config.errors import DataError


def no_links(path: str, flags: int) -> int:
    """The `opener` of a file in a folder that others may write to: a link there is not followed.

    Raises:
        OSError: the path is a link.
    """
    try:
        return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            reason = "it is a link, which may lead anywhere; remove it"
            raise OSError(errno.ELOOP, reason, path) from None
        raise


def refuse_linked_folders(folder: Path, names: Iterable[str]) -> None:
    """Refuse the folders `names` of `folder`, and what lies below them, where they are links.

    What is written, replaced or removed there would be a file of wherever they lead. `folder`
    itself may be a link, and so may single files: a file takes the place of a link.

    Raises:
        DataError: one of them is a link.
    """
    for name in names:
        linked = [folder / name] if (folder / name).is_symlink() else []
        for parent, folders, _ in os.walk(folder / name):  # which enters no links
            linked += [path for path in (Path(parent, f) for f in folders) if path.is_symlink()]
        if linked:
            raise DataError(
                f"{min(linked)}: is a link to {os.readlink(min(linked))}, where files would be "
                f"replaced or removed; remove the link. To keep results on another disk, link "
                f"{folder} as a whole"
            )


def temporary_beside(path: Path) -> Path:
    """A name that cannot be guessed and that no other process, on any machine, uses."""
    return path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}.tmp")


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
    temporary = temporary_beside(path)
    try:
        with open(temporary, "xb", opener=no_links) as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: str | Path, text: str) -> None:
    """A text file that appears whole or not at all.

    Raises:
        DataError: the text names a file whose name is not UTF-8.
    """
    try:
        content = text.encode()
    except UnicodeEncodeError as error:
        start = text.rfind("\n", 0, error.start) + 1
        line = text[start:].partition("\n")[0]
        raise DataError(
            f"{path}: cannot hold {line!a}: the name is not UTF-8, as those of old archives "
            "are not; rename the file (convmv does whole folders)"
        ) from None
    with atomic_write(path) as file:
        file.write(content)


def write_changed(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all, unless it is there with this content."""
    if path.is_file() and path.read_bytes() == content:
        return
    with atomic_write(path) as file:
        file.write(content)


def write_lines(path: str | Path, lines: Iterable[str]) -> None:
    """A text file of these lines, which appears whole or not at all."""
    write_text(path, "".join(f"{line}\n" for line in lines))


def link_or_copy(source: Path, target: Path) -> None:
    """Give `source` a second name; a copy where the file system has no hard links.

    `target` appears whole or not at all, and its folder is made.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(target)
    try:
        os.link(source.resolve(), temporary)
    except OSError:
        with open(source, "rb") as file, open(temporary, "xb", opener=no_links) as copy:
            shutil.copyfileobj(file, copy)
        shutil.copystat(source, temporary)
    os.replace(temporary, target)
    temporary.unlink(missing_ok=True)  # it stays where both are names of one file already
