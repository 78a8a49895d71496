"""What SECURITY.md promises about files of strangers, each with the attack it withstands."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image
from scipy.io import savemat

from stripseg.command_line import run_command
from stripseg.config.errors import CheckpointError, DataError
from stripseg.config.load import load_config
from stripseg.dataset.classification.cifar import read_cifar, write_cifar10
from stripseg.dataset.description import read_colors, read_names
from stripseg.dataset.labels import read_matlab_label
from stripseg.dataset.lists import read_list
from stripseg.dataset.preparation.custom import read_table
from stripseg.dataset.preparation.match import find_images, inspect, read_any_label
from stripseg.dataset.results import ProgressJournal
from stripseg.model.build import build_network
from stripseg.model.pretrained import load_named_weights
from stripseg.model_card import read_card
from stripseg.sharing import read_folder, readme
from stripseg.tool import prepare, test, train
from stripseg.util.checkpoint import read_checkpoint
from stripseg.util.experiments.report import as_csv, latex, markdown
from stripseg.util.files import write_text
from stripseg.util.images import (
    IMAGE_SUFFIXES,
    LabelFile,
    read_image,
    read_label,
    stored_channels,
    stored_pixels,
)
from stripseg.util.logger import run_logger

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
        lambda path: read_any_label(LabelFile(path)),
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


@pytest.mark.parametrize("suffix", [".jp2", ".hdr", ".pfm", ".ras", ".pam"])
def test_opencv_decodes_no_format_that_nobody_asked_for(suffix: str, tmp_path: Path) -> None:
    pixels = np.zeros((64, 80, 3), np.float32 if suffix in (".hdr", ".pfm") else np.uint8)
    done, content = cv2.imencode(suffix, pixels)
    assert done
    (tmp_path / "x.png").write_bytes(content.tobytes())
    with pytest.raises(DataError, match=r"x.png: .* it is none of JPEG, PNG"):
        read_image(tmp_path / "x.png")


@pytest.mark.parametrize(
    "suffix", [*IMAGE_SUFFIXES, ".ppm", ".pgm", ".pbm"], ids=lambda suffix: suffix[1:]
)
def test_every_format_that_is_asked_for_is_decoded(suffix: str, tmp_path: Path) -> None:
    kind = {".pgm": "L", ".pbm": "1"}.get(suffix, "RGB")
    path = tmp_path / f"x{suffix}"
    Image.fromarray(np.full((8, 9, 3), 255, np.uint8)).convert(kind).save(path)
    assert read_image(path).min() > 250


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


@pytest.mark.parametrize(
    ("script", "knows_safe_path"), [("train.sh", True), ("test.sh", False), ("stripseg", False)]
)
def test_the_commands_import_nothing_from_the_current_folder(
    script: str, knows_safe_path: bool, strange_folder: Path, older_python: Path
) -> None:
    python = sys.executable if knows_safe_path else str(older_python)
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": python}
    command = ["sh", str(ROOT / "tool" / script), "--help"]
    if script == "stripseg":  # beside the Python that it was installed for
        command = [str(Path(sys.executable).with_name(script)), "train", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert not strange_folder.exists()


@pytest.mark.slow
@pytest.mark.parametrize("knows_safe_path", [pytest.param(True, marks=pytest.mark.long), False])
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


# ---- reports


HOSTILE = "a|b\n<img src=x onerror=y>\x1b[2J[l](u)\\input{/etc/passwd}$x^2~"


def test_reports_escape_what_is_in_them() -> None:
    table = markdown([["name"], [HOSTILE]])
    assert len(table.splitlines()) == 3
    assert not re.search(r"(?<!\\)[\[\]]|<|\x1b|(?<!\\)\|b", table)
    escaped = latex([["name"], [HOSTILE]])
    assert escaped.count("\\input") == 0
    assert "textbackslash{}input\\{" in escaped
    assert r"0.5 $\pm$ 0.1\_\% \\" in latex([["name"], ["0.5 ± 0.1_%"]])
    assert as_csv([["x"], ["=cmd()"], ["-1.5"], [-2], ["@a"]]) == "x\n'=cmd()\n-1.5\n-2\n'@a\n"


def test_class_names_hold_no_terminal_sequences(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("road\n\x1b]0;owned\x07\n")
    with pytest.raises(DataError, match=r"names.txt: .* cannot be shown"):
        read_names(tmp_path / "names.txt")


OWNED = "\x1b]0;owned\x07\u009b2J\r\u202e"
ORDINARY = "Straße äöü\xa0é 日本 👩‍🚀\tx\n"


def test_errors_and_logs_hold_no_terminal_sequences(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: object) -> None:
        run_logger(tmp_path / "run.log").info(ORDINARY + OWNED)
        raise DataError(ORDINARY + OWNED)

    monkeypatch.setattr(sys, "argv", ["stripseg"])
    monkeypatch.setattr("cv2.setNumThreads", lambda _: None)
    with pytest.raises(SystemExit, match="2"):
        run_command(fails)
    out, error = capsys.readouterr()
    for text in (out, error, (tmp_path / "run.log").read_text(encoding="utf-8")):
        assert text.endswith(ORDINARY + r"\x1b]0;owned\x07\x9b2J\r\u202e" + "\n")


def test_a_card_holds_no_terminal_sequences_nor_markdown() -> None:
    config = load_config(ROOT / "config/shapes10/shapes10_resnet18.yaml").model_dump(mode="json")
    stored = {
        "version": 1,
        "names": [f"{HOSTILE}{index}" for index in range(10)],
        "colors": [[0, 0, 0]] * 10,
        "versions": {HOSTILE: HOSTILE},
    }
    card = read_card(stored, config, origin="x.pth")
    assert all(text.isprintable() for text in (*card.names, *card.lines()))
    page = readme(card, HOSTILE)
    facts = [line for line in page.splitlines() if line.startswith(("- ", "# "))]
    assert len(facts) == 5
    assert not re.search(r"(?<!\\)[\[\]`|]|<|\x1b", "".join(facts))


def test_class_names_of_cifar_hold_no_terminal_sequences(tmp_path: Path) -> None:
    split = np.zeros((10, 32, 32, 3), np.uint8), np.arange(10)
    (tmp_path / "cifar-10-batches-py").mkdir()
    write_cifar10(tmp_path, {"train": split, "val": split}, [f"\x1b[2J{i}" for i in range(10)])
    assert read_cifar(tmp_path, "val", classes=10).classes[0] == " [2J0"


# ---- documented errors instead of tracebacks


@pytest.mark.parametrize("name", [b"caf\xe9.png", b"a\tb.png", b"a\nb.png", b"a\xc2\x9b2Jb.png"])
def test_a_file_name_that_no_list_can_hold_is_refused(name: bytes, tmp_path: Path) -> None:
    Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name))).touch()
    with pytest.raises(DataError, match="a list cannot hold this name: .*rename it"):
        find_images(tmp_path)


def test_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"list.txt: cannot hold 'caf.udce9.png': .* rename the file"
    ):
        write_text(tmp_path / "list.txt", "a.png\ncaf\udce9.png\n")


@pytest.mark.parametrize("content", [b"\xe9 1 2 3", "² 1 2 road".encode(), b"9" * 5000 + b" 1 2 x"])
def test_a_strange_colour_table_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes(b"1 2 3 a\n" + content)
    with pytest.raises(DataError, match="t.txt"):
        read_table(tmp_path / "t.txt")
    with pytest.raises(DataError, match="absent.txt"):
        read_table(tmp_path / "absent.txt")


def test_other_damage_is_a_documented_error(tmp_path: Path) -> None:
    (tmp_path / "colors.txt").write_text("9" * 5000 + " 1 2\n")
    with pytest.raises(DataError, match="is not a colour"):
        read_colors(tmp_path / "colors.txt")
    (tmp_path / "list.odgt").write_text("[" * 9000)
    with pytest.raises(DataError, match="line 1: expected a JSON object"):
        read_list(tmp_path / "list.odgt", tmp_path, split="train")
    (tmp_path / "long.txt").write_text("a" * 5000 + " b\n")
    with pytest.raises(DataError, match="line 1: .*does not exist"):
        read_list(tmp_path / "long.txt", tmp_path, split="train")
    torch.save({"format": "stripseg", "version": torch.zeros(2)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="a.pth: is of version"):
        read_checkpoint(tmp_path / "a.pth")
    for content in ({"Other": 1}, np.zeros((0, 0), [("Segmentation", "O")])):
        savemat(tmp_path / "s.mat", {"GTcls": content})
        with pytest.raises(DataError, match="s.mat: GTcls is "):
            read_matlab_label(tmp_path / "s.mat")
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match="config.json: cannot be read"):
        read_folder(tmp_path)
    (tmp_path / ".journal").mkdir()
    (tmp_path / ".journal/settings").write_bytes(b"\xff\xfe")
    journal = ProgressJournal(tmp_path, {})
    journal.add([{"name": "a.png"}])
    journal._file.write('"\0\0\0\n[1]\n')
    journal._file.close()
    assert ProgressJournal(tmp_path, {}).done.keys() == {"a.png"}


# ---- the network


@pytest.fixture
def unconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine where to open a connection, or to ask for an address, is an error."""

    def refuse(*_: object) -> None:
        raise AssertionError("a connection was opened")

    for name in ("connect", "connect_ex", "bind", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.usefixtures("unconnected")
def test_training_testing_and_preparing_connect_to_nothing(
    small_config: Path, tmp_path: Path
) -> None:
    train.main(["--config", str(small_config), "TRAIN.epochs", "1"])
    test.main(["--config", str(small_config)])
    prepare.main(["shapes10", str(tmp_path / "ten"), "--train", "10", "--val", "5"])


@pytest.mark.usefixtures("unconnected")
def test_weights_are_looked_for_on_this_machine_alone(
    small_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`TRAIN.pretrained auto`, with timm's model whose weights are on the hub."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    backbone = "timm/test_resnet"
    words = ["TRAIN.backbone", backbone, "TRAIN.width", "1"]
    network = build_network(load_config(small_config, words))
    with pytest.raises(CheckpointError, match="TRAIN.pretrained auto: no weights of timm/test_"):
        load_named_weights(network, backbone, "auto")
