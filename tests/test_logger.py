"""What a command says while it works: on a terminal, in a log, and when asked to be quiet."""

import logging

import pytest

from stripseg.util import logger
from stripseg.util.logger import progress, run_logger


class Terminal:
    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return True


def count(items: int = 4, **options) -> list[int]:
    return list(progress(iter(range(items)), total=items, unit="image", what="testing", **options))


def test_without_a_terminal_a_line_comes_now_and_then(capsys, monkeypatch) -> None:
    assert count() == [0, 1, 2, 3]
    assert capsys.readouterr().err == ""  # it was over in no time
    monkeypatch.setattr(logger, "LINE_SECONDS", 0)
    assert count(start=0) == [0, 1, 2, 3]
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == [
        f"testing: {done} of 4 images" for done in (1, 2, 3)
    ]
    assert all("a second" in line and line.endswith(" left") for line in lines)
    frames = progress(iter(range(3)), total=None, unit="frame", what="predicting")  # of a camera
    assert list(frames) == [0, 1, 2]
    assert capsys.readouterr().err.splitlines()[0].startswith("predicting: 1 frames, ")
    assert count(lines=False) == [0, 1, 2, 3]
    assert capsys.readouterr().err == ""


def test_on_a_terminal_there_is_a_bar(monkeypatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    assert count() == [0, 1, 2, 3]
    assert "testing" in terminal.text


def test_quiet_leaves_warnings_alone(capsys, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv(logger.QUIET, "1")
    monkeypatch.setattr(logger, "LINE_SECONDS", 0)
    log = run_logger(tmp_path / "test.log")
    log.info("told in the file")
    log.warning("told in both")
    assert count() == [0, 1, 2, 3]
    shown = capsys.readouterr()
    assert shown.out == ""  # which is left to --json
    assert "told in the file" not in shown.err
    assert len(shown.err.splitlines()) == 1
    assert "told in both" in shown.err
    assert "told in the file" in (tmp_path / "test.log").read_text()


@pytest.fixture(autouse=True)
def fresh_logger():
    yield
    for handler in list(logging.getLogger("stripseg").handlers):
        logging.getLogger("stripseg").removeHandler(handler)
        handler.close()
