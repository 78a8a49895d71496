"""What a run says: plain lines in a log file, the same on the terminal, a bar where one watches."""

import logging
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from ..config.errors import TrainingError
from .distributed import process_group
from .files import no_links

COMMANDS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
LINE_SECONDS = 30
QUIET = "STRIPSEG_QUIET"
T = TypeVar("T")


def counted(number: int, noun: str) -> str:
    """A number with its noun: `1 step`, `2 steps`, `2 processes`."""
    plural = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number} {noun}{plural}"


def visible(text: str) -> str:
    """Text without line breaks and without the control characters that command a terminal."""
    return "".join(sign if sign.isprintable() else " " for sign in text)


def for_terminal(text: str) -> str:
    """Text as it is, but for control characters and those that turn its direction: `\\x1b`.

    Files of strangers would command the terminal by them. Line breaks and tabs stay.
    """
    return COMMANDS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class _Formatter(logging.Formatter):
    """Formats lines for terminal and log file."""

    def format(self, record: logging.LogRecord) -> str:
        return for_terminal(super().format(record))


def run_logger(log_file: Path | None = None) -> logging.Logger:
    """The logger of this process: the main one writes to the terminal and to `log_file`.

    The other processes say nothing below errors, which end a process and are printed there.
    """
    logger = logging.getLogger("stripseg")
    logger.setLevel(logging.INFO if process_group.is_main() else logging.ERROR)
    logger.propagate = False
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    terminal = _AboveBar()
    if quiet():
        terminal.setLevel(logging.WARNING)
    terminal.setFormatter(_Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger.addHandler(terminal)
    if log_file is not None and process_group.is_main():
        try:
            log_file.parent.mkdir(parents=True, exist_ok=True)
            file = open(log_file, "a", encoding="utf-8", opener=no_links)  # noqa: SIM115 - for the run
        except OSError as error:
            raise TrainingError(f"{error.filename}: cannot be written: {error.strerror}") from error
        plain = _Closing(file)
        plain.setFormatter(_Formatter("%(asctime)s %(message)s"))
        logger.addHandler(plain)
    return logger


class _Closing(logging.StreamHandler):
    """Writes to a file of its own."""

    def close(self) -> None:
        super().close()
        self.stream.close()


class _AboveBar(logging.Handler):
    """Prints lines above the progress bar instead of through it.

    With `--quiet` stdout is left to the figures of `--json`, and warnings come to stderr.
    """

    def emit(self, record: logging.LogRecord) -> None:
        stream = sys.stderr if quiet() else sys.stdout
        tqdm.write(self.format(record), file=stream)
        stream.flush()


def progress(
    items: Iterable[T],
    *,
    total: int | None,
    start: int = 0,
    unit: str,
    what: str,
    lines: bool = True,
) -> Iterator[T]:
    """`items`, with a bar on a terminal and elsewhere a line every half minute.

    Args:
        total, start: of all items (None: unknown, as of a camera), and how many were done before.
        lines: False where the caller writes lines of its own.
    """
    shown = process_group.is_main() and not quiet()
    if shown and not sys.stderr.isatty():
        yield from with_lines(items, total, start, unit, what) if lines else items
        return
    yield from tqdm(
        items, total=total, initial=start, unit=unit, desc=what, disable=not shown, leave=False
    )


def with_lines(
    items: Iterable[T], total: int | None, start: int, unit: str, what: str
) -> Iterator[T]:
    """`items`; every `LINE_SECONDS` a line on stderr: how many are done, how fast, how long yet."""
    began = last = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if now - last >= LINE_SECONDS and done:
            rate = done / (now - began)
            if total is None:
                count, left = f"{start + done} {unit}s", ""
            else:
                count = f"{start + done} of {total} {unit}s"
                left = f", {tqdm.format_interval((total - start - done) / rate)} left"
            print(f"{what}: {count}, {rate:.3g} a second{left}", file=sys.stderr, flush=True)
            last = now
        yield item


def quiet() -> bool:
    """Return whether `--quiet` was given to this command or to the one that started it."""
    return os.environ.get(QUIET) == "1"
