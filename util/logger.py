"""What a run says: plain lines in a log file, the same on the terminal, a bar where one watches."""

import logging
import sys
from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

from ..config.errors import TrainingError
from .distributed import process_group
from .files import no_links


def visible(text: str) -> str:
    """Text without line breaks and without the control characters that command a terminal."""
    return "".join(sign if sign.isprintable() else " " for sign in text)


def run_logger(log_file: Path | None = None) -> logging.Logger:
    """The logger of this process: the main one writes to the terminal and to `log_file`.

    The other processes are silent below warnings; errors end a process and are printed there.
    """
    logger = logging.getLogger("stripseg")
    logger.setLevel(logging.INFO if process_group.is_main() else logging.ERROR)
    logger.propagate = False
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    terminal = _AboveBar()
    terminal.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger.addHandler(terminal)
    if log_file is not None and process_group.is_main():
        try:
            log_file.parent.mkdir(parents=True, exist_ok=True)
            file = open(log_file, "a", encoding="utf-8", opener=no_links)  # noqa: SIM115 - for the run
        except OSError as error:
            raise TrainingError(f"{error.filename}: cannot be written: {error.strerror}") from error
        plain = _Closing(file)
        plain.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        logger.addHandler(plain)
    return logger


class _Closing(logging.StreamHandler):
    """Writes to a file of its own."""

    def close(self) -> None:
        super().close()
        self.stream.close()


class _AboveBar(logging.Handler):
    """Prints lines above the progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stdout)
        sys.stdout.flush()


def progress(items: Iterable, *, total: int, start: int = 0, unit: str, what: str) -> tqdm:
    """A progress bar around `items` on a terminal; plain iteration elsewhere."""
    shown = process_group.is_main() and sys.stderr.isatty()
    return tqdm(
        items, total=total, initial=start, unit=unit, desc=what, disable=not shown, leave=False
    )
