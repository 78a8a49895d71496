"""The files of a release: `normalise SDIST` makes an archive of the same files byte for byte the
same; `check FILE ...` looks at what is in sdist and wheel. Called by .ci/release."""

import gzip
import io
import os
import re
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LARGEST = 2_000_000  # bytes
NEEDED = {
    "tar.gz": [
        "LICENSE",
        "README.md",
        "CHANGELOG.md",
        "pyproject.toml",
        "setup.py",
        "requirements.txt",
        "PKG-INFO",
        "stripseg/py.typed",
        "config/shapes/shapes_spnet18.yaml",
        "dataset/catalog/ade20k.yaml",
    ],
    "whl": [
        "stripseg/py.typed",
        "stripseg/config/shapes/shapes_spnet18.yaml",
        "stripseg/dataset/catalog/ade20k.yaml",
        "stripseg/tool/environment.sh",
        "stripseg/report/assets/",
    ],
}
UNWANTED = re.compile(r"(^|/)(tests|exp|pretrained|benchmark|\.git|\.venv|__pycache__)(/|$)|\.pyc$")
WEIGHTS = (".pth", ".pt", ".onnx", ".safetensors", ".npz", ".jpg", ".zip")


def normalise(path: Path) -> None:
    """Write the archive again: sorted, without owners, with SOURCE_DATE_EPOCH as time."""
    epoch = int(os.environ["SOURCE_DATE_EPOCH"])
    with tarfile.open(path, "r:gz") as archive:
        content = [
            (member, archive.extractfile(member).read() if member.isfile() else b"")
            for member in sorted(archive.getmembers(), key=lambda member: member.name)
        ]
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for member, data in content:
            member.mtime, member.uid, member.gid = epoch, 0, 0
            member.uname = member.gname = ""
            member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            member.pax_headers = {}
            archive.addfile(member, io.BytesIO(data))
    with path.open("wb") as file, gzip.GzipFile("", "wb", 9, file, mtime=epoch) as packed:
        packed.write(plain.getvalue())


def names_in(path: Path) -> list[str]:
    """The files of an archive, those of an sdist without its folder."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    with tarfile.open(path) as archive:
        return [m.name.partition("/")[2] for m in archive.getmembers() if m.isfile()]


def description_of(path: Path) -> str:
    """The metadata of a wheel or sdist, which ends with the description."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as archive:
            (name,) = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
            return archive.read(name).decode()
    with tarfile.open(path) as archive:
        (name,) = [n for n in archive.getnames() if re.fullmatch(r"[^/]+/PKG-INFO", n)]
        return archive.extractfile(name).read().decode()


def mistakes(path: Path, version: str) -> list[str]:
    """What is wrong with a file of a release, one line each."""
    kind = "whl" if path.suffix == ".whl" else "tar.gz"
    names = names_in(path)
    wrong = [f"no {n}" for n in NEEDED[kind] if not any(name.startswith(n) for name in names)]
    if not any(re.search(r"(^|/)LICENSE$", name) for name in names):
        wrong.append("no licence")
    wrong += [f"has {name}" for name in names if UNWANTED.search(name) or name.endswith(WEIGHTS)]
    text = description_of(path)
    wrong += [f"links to {link}" for link in re.findall(r"\]\((?!\w+:)([^)\s]+)\)", text)]
    if "# stripseg" not in text:
        wrong.append("no description")
    if not path.name.startswith(f"stripseg-{version}{'-' if kind == 'whl' else '.tar'}"):
        wrong.append(f"is not of version {version}")
    if path.stat().st_size > LARGEST:
        wrong.append(f"has {path.stat().st_size} bytes, more than {LARGEST}")
    return [f"{path.name}: {line}" for line in wrong]


def main() -> None:
    command, *files = sys.argv[1:]
    paths = [Path(file) for file in files]
    if command == "normalise":
        for path in paths:
            normalise(path)
        return
    source = (ROOT / "stripseg/__init__.py").read_text(encoding="utf-8")
    version = re.search(r'^__version__ = "(.+)"$', source, re.MULTILINE)[1]
    wrong = [line for path in paths for line in mistakes(path, version)]
    if len(paths) != 2:
        wrong.append(f"an sdist and a wheel are expected, not {', '.join(files)}")
    if f"## [{version}] - " not in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"):
        print(f"note: CHANGELOG.md has no section [{version}] with a date: this is a rehearsal")
    for path in paths:
        print(f"{path.name}: {path.stat().st_size} bytes, {len(names_in(path))} files")
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
