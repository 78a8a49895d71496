"""docs/adding.md as it stands: with its files and lines a copy of the checkout passes its tests."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "adding.md"
BLOCK = re.compile(r"^```(python|yaml|diff)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def changed(source: str, lines: list[str]) -> str:
    """`source` after a change that is shown as lines with "+", "-" and " " in front."""
    before = "".join(line[1:] for line in lines if line[0] in " -")
    after = "".join(line[1:] for line in lines if line[0] in " +")
    assert source.count(before) == 1, f"the page shows {source.count(before)} times:\n{before}"
    return source.replace(before, after)


def apply(block: tuple[str, str], checkout: Path) -> Path:
    """Write the file of a block, named in its first line, or change it."""
    language, text = block
    first, *lines = text.splitlines(keepends=True)
    path = checkout / re.fullmatch(r"(?:---|#) (\S+)\n", first)[1]
    if language == "diff":
        shown = [line if line.strip() else " \n" for line in lines]
        path.write_text(changed(path.read_text(encoding="utf-8"), shown), encoding="utf-8")
    else:
        assert not path.exists(), path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(lines), encoding="utf-8")
    return path


def not_code(place: str, names: list[str]) -> list[str]:
    """Caches, and users' data: folders of dataset/ that are neither packages nor the catalog."""
    data = [
        name
        for name in names
        if Path(place) == ROOT / "dataset"
        and Path(place, name).is_dir()
        and not Path(place, name, "__init__.py").is_file()
        and name != "catalog"
    ]
    return [*data, "__pycache__"]


def run(*words: str, folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=folder,
        env=dict(os.environ, PYTHONPATH=str(folder)),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_parts_of_the_page_work(tmp_path: Path) -> None:
    for name in ("config", "model", "util", "dataset", "stripseg", "tool"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=not_code)
    for name in ("setup.py", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    blocks = BLOCK.findall(PAGE.read_text(encoding="utf-8"))
    paths = list(dict.fromkeys(str(apply(block, tmp_path)) for block in blocks))
    tests = [path for path in paths if "/tests/" in path]
    assert len(tests) == 5
    run("pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *tests, folder=tmp_path)
    run("ruff", "check", *(path for path in paths if path.endswith(".py")), folder=tmp_path)


def test_a_change_that_fits_nowhere_is_named() -> None:
    assert changed("a\nb\nc\n", [" a\n", "+x\n", "-b\n"]) == "a\nx\nc\n"
    with pytest.raises(AssertionError, match="shows 0 times"):
        changed("a\n", ["-b\n", "+c\n"])
