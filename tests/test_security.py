"""What SECURITY.md promises about files of strangers, each with the attack it withstands."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import EpsImagePlugin

from stripseg.config.errors import DataError
from stripseg.dataset.preparation.match import inspect, read_any_label
from stripseg.util.images import read_image, read_label, stored_channels, stored_pixels

ROOT = Path(__file__).resolve().parent.parent
# the first versions without holes that a file of a stranger reaches
SAFE_FROM = {
    "torch": (2, 10),  # CVE-2026-24747: code through torch.load(weights_only=True)
    "torchvision": (0, 25),  # the one that belongs to it
    "pillow": (10, 3),  # CVE-2023-4863 (WebP, 10.0.1), CVE-2024-28219 (10.3)
    "opencv-python-headless": (4, 9),  # CVE-2023-4863 (4.8.1)
    "pyyaml": (6,),
}
EPS = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
FITS = "".join(
    card.ljust(80)
    for card in ("SIMPLE  = T", "BITPIX  = 8", "NAXIS   = 2", "NAXIS1  = 4", "NAXIS2  = 4", "END")
).ljust(2880)


@pytest.fixture
def ghostscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in `gs` in PATH; the file that appears when it is started."""
    started, program = tmp_path / "gs was started", tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\necho started >>'{started}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    return started


@pytest.mark.parametrize("content", [EPS, FITS], ids=["EPS", "FITS"])
@pytest.mark.parametrize(
    "reader",
    [
        read_label,
        read_any_label,
        stored_channels,
        stored_pixels,
        read_image,
        lambda path: read_image(path, 4),
    ],
)
def test_a_file_of_another_format_named_png_is_refused(
    reader: Callable[[Path], object], content: str, tmp_path: Path, ghostscript: Path
) -> None:
    """Pillow chooses by content, and its reader of EPS starts Ghostscript."""
    path = tmp_path / "label.png"
    path.write_text(content)
    with pytest.raises(DataError, match="label.png: cannot be decoded as an? (label )?image"):
        reader(path)
    assert not ghostscript.exists()


def test_prepare_custom_starts_no_ghostscript(tmp_path: Path, ghostscript: Path) -> None:
    path = tmp_path / "label.png"
    path.write_text(EPS)
    assert "label.png: cannot be decoded" in (inspect(("label.png", path, path)).problem or "")
    assert not ghostscript.exists()


@pytest.mark.parametrize("name", SAFE_FROM)
def test_no_version_with_a_known_hole_is_installed(name: str) -> None:
    floor = re.search(rf"^{name}>=([\d.]+)$", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    assert floor is not None
    assert tuple(map(int, floor[1].split("."))) >= SAFE_FROM[name]


def test_security_md_names_the_floor_of_torch() -> None:
    floor = re.search(r"^torch>=(\S+)$", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    assert f"torch >= {floor[1]}" in (ROOT / "SECURITY.md").read_text()


@pytest.fixture
def strange_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with modules of a stranger; the file that appears when one is run."""
    folder, trace = tmp_path / "download", tmp_path / "a stranger's module was run"
    folder.mkdir()
    for name in ("yaml", "torch", "numpy", "cv2", "json", "stripseg", "sitecustomize", "config"):
        (folder / f"{name}.py").write_text(f"open({str(trace)!r}, 'w')\nraise SystemExit(9)\n")
    monkeypatch.chdir(folder)
    return trace


@pytest.fixture
def older_python(tmp_path: Path) -> Path:
    """A Python that does not know PYTHONSAFEPATH, as 3.10 does not."""
    path = tmp_path / "python3.10"
    path.write_text(f'#!/bin/sh\nexec env -u PYTHONSAFEPATH "{sys.executable}" "$@"\n')
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("script", ["train.sh", "test.sh"])
@pytest.mark.parametrize("knows_safe_path", [True, False])
def test_the_commands_import_nothing_from_the_current_folder(
    script: str, knows_safe_path: bool, strange_folder: Path, older_python: Path
) -> None:
    python = sys.executable if knows_safe_path else str(older_python)
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": python}
    command = ["sh", str(ROOT / "tool" / script), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert not strange_folder.exists()


@pytest.mark.slow
@pytest.mark.parametrize("knows_safe_path", [True, False])
def test_nor_do_the_processes_they_start(
    knows_safe_path: bool, small_config: Path, strange_folder: Path, older_python: Path
) -> None:
    python = sys.executable if knows_safe_path else str(older_python)
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": python, "OMP_NUM_THREADS": "1"}
    words = ["TRAIN.epochs", "1", "TRAIN.evaluate", "False", "Distributed.processes", "2"]
    command = ["sh", str(ROOT / "tool/train.sh"), "--config", str(small_config), *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    assert not strange_folder.exists()
