"""CIFAR-10 and CIFAR-100 as their authors pack them: Python pickles, read without running code.

Krizhevsky: "Learning Multiple Layers of Features from Tiny Images", 2009. A pickle is a program;
those read here can make numbers, text, lists, dictionaries and arrays of bytes, and nothing else.
"""

import os
import pickle
import pickletools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ...config.errors import DataError
from ...config.limits import PICKLE_BYTES, PICKLE_TUPLES
from ...util.files import atomic_write
from ...util.logger import visible

SIDE = 32
FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}
BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
PUBLISHED = {"train": 50_000, "val": 10_000}  # images, of both


class _Array:
    """Takes the place of a numpy array while unpickling: keeps bytes and shape, calls no numpy code
    that the file names."""

    values: np.ndarray | None = None

    def __init__(self, *_: object) -> None:
        """Type, shape and kind of an array that is still empty."""

    def __setstate__(self, state: tuple) -> None:
        _, shape, kind, fortran, content = state
        if not (isinstance(kind, _Kind) and kind.name in ("u1", "|u1") and not fortran):
            raise pickle.UnpicklingError("an array of other values than bytes")
        self.values = np.frombuffer(content, np.uint8).reshape(shape)


class _Kind:
    """Takes the place of a numpy dtype while unpickling: keeps its name."""

    def __init__(self, name: str | bytes, *_: object) -> None:
        self.name = name.decode("ascii") if isinstance(name, bytes) else name

    def __setstate__(self, state: object) -> None:
        """Byte order and the like: bytes have none."""


KNOWN = {  # all that a CIFAR pickle may name, and what takes its place
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Kind,
}


class _Reader(pickle.Unpickler):
    """Knows the names in `KNOWN` and refuses every other, so that no code of a file is run."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in KNOWN:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, which no CIFAR archive needs: do not trust this file"
            )
        return KNOWN[module, name]


def refuse_costly(file: BinaryIO) -> None:
    """Look through a pickle, and go back to its beginning.

    Raises:
        UnpicklingError: it would take more memory or time than its size tells: by memo entries far
            beyond what it holds, or by tuples of tuples, whose hash doubles with each.
    """
    if file.seek(0, os.SEEK_END) > PICKLE_BYTES:
        raise pickle.UnpicklingError(f"larger than {PICKLE_BYTES} bytes")
    file.seek(0)
    tuples = 0
    for number, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        tuples += "TUPLE" in opcode.name or opcode.name == "FROZENSET"
        if tuples > PICKLE_TUPLES:
            raise pickle.UnpicklingError(f"more than {PICKLE_TUPLES} tuples")
        if "PUT" in opcode.name and int(argument) > number:
            raise pickle.UnpicklingError(f"a memo of {argument} entries")
    file.seek(0)


def read_archive(path: Path) -> dict[str, Any]:
    """The dictionary of one file: keys and text as str, arrays as uint8.

    Raises:
        DataError: it cannot be read, or asks for anything else than plain values.
    """
    try:
        with path.open("rb") as file:
            refuse_costly(file)
            content = _Reader(file, encoding="bytes").load()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    except Exception as error:  # a damaged pickle can fail in any way
        raise DataError(f"{path}: not a file of CIFAR's archives: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: not a file of CIFAR's archives: it holds no dictionary")
    return {_text(key): _plain(value) for key, value in content.items()}


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, _Array):
        return value.values
    if isinstance(value, list):
        return [_text(entry) if isinstance(entry, bytes) else entry for entry in value]
    return _text(value) if isinstance(value, bytes) else value


@dataclass(frozen=True)
class CifarImages:
    """One split in memory. `images` (N, 32, 32, 3) uint8 RGB; `labels` (N,) int64."""

    images: np.ndarray
    labels: np.ndarray
    classes: Sequence[str]
    files: Sequence[str]

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> np.ndarray:
        """(32, 32, 3) uint8 RGB."""
        return self.images[index]

    def name(self, index: int) -> str:
        """For messages."""
        return self.files[index]


def find_archive(root: Path, classes: int) -> tuple[str, Path] | None:
    """("cifar10" or "cifar100", its folder) at or below `root`, or None.

    Where both are there, the class count chooses.
    """
    found = {}
    for name, folder in FOLDERS.items():
        for path in (root / folder, root):
            if path.name == folder and path.is_dir():
                found.setdefault(name, path)
    if not found:
        return None
    wanted = "cifar10" if classes == 10 else "cifar100"
    name = wanted if wanted in found else next(iter(found))
    return name, found[name]


def read_cifar(root: Path, split: str, *, classes: int) -> CifarImages:
    """The "train" or "val" (the authors' test) images of the archives at or below `root`.

    Args:
        classes: of CIFAR-100, 100 fine ones or 20 coarse ones.
    Raises:
        DataError: the archive or one of its files is missing, damaged or of other classes.
    """
    found = find_archive(root, classes)
    if found is None:
        raise DataError(f"{root}: holds neither {' nor '.join(FOLDERS.values())}")
    name, folder = found
    if name == "cifar10":
        files, meta, key, names_key = BATCHES, "batches.meta", "labels", "label_names"
        files = files if split == "train" else ("test_batch",)
    else:
        files, meta = ("train" if split == "train" else "test",), "meta"
        kind = "coarse" if classes == 20 else "fine"
        key, names_key = f"{kind}_labels", f"{kind}_label_names"
    stored = _entry(folder / meta, read_archive(folder / meta), names_key, list)
    names = [visible(str(name)) for name in stored]
    parts = [_read_batch(folder / file, key, len(names)) for file in files]
    images, labels, origins = zip(*parts, strict=True)
    return CifarImages(np.concatenate(images), np.concatenate(labels), names, [*chain(*origins)])


def _read_batch(path: Path, key: str, classes: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """(images (N, 32, 32, 3) uint8, labels (N,) int64, names) of one file."""
    content = read_archive(path)
    data = _entry(path, content, "data", np.ndarray)
    labels = _entry(path, content, key, list)
    if data.ndim != 2 or data.shape[1] != 3 * SIDE * SIDE or len(data) != len(labels):
        raise DataError(
            f"{path}: data of shape {data.shape} for {len(labels)} labels; expected a row of "
            f"{3 * SIDE * SIDE} bytes for each"
        )
    wrong = [v for v in labels if not (type(v) is int and 0 <= v < classes)]
    if wrong:
        raise DataError(f"{path}: label {wrong[0]!r} is none of the {classes} classes")
    planes = data.reshape(-1, 3, SIDE, SIDE)  # red, green and blue, one after the other
    images = np.ascontiguousarray(planes.transpose(0, 2, 3, 1))
    names = [f"{path.parent.name}/{path.name} image {index}" for index in range(len(labels))]
    return images, np.array(labels, np.int64), names


def _entry(path: Path, content: Mapping[str, Any], key: str, kind: type) -> Any:
    value = content.get(key)
    if not isinstance(value, kind) or getattr(value, "ndim", 1) == 0 or len(value) == 0:
        raise DataError(f"{path}: has no {key}; is it whole, and of the right archive?")
    return value


def download_archive(name: str, root: Path) -> None:
    """Fetch and unpack an archive with torchvision, which checks its MD5.

    Raises:
        DataError: torchvision is not installed, or the download failed.
    """
    try:
        from torchvision import datasets
    except ImportError as error:
        raise DataError("--download needs torchvision: pip install torchvision") from error
    root.mkdir(parents=True, exist_ok=True)
    fetch = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
    try:
        fetch(str(root), download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(f"{root}: the download of {name} failed: {error}") from error


def write_cifar10(
    root: Path, splits: Mapping[str, tuple[np.ndarray, np.ndarray]], names: Sequence[str]
) -> Path:
    """Write images as CIFAR-10's archives below `root`; the folder.

    Args:
        splits: "train" and "val": images (N, 32, 32, 3) uint8 and labels (N,). The training images
            are divided among five files.
    """
    folder = Path(root) / FOLDERS["cifar10"]

    def write(file: str, content: dict) -> None:
        with atomic_write(folder / file) as target:
            target.write(pickle.dumps(content, protocol=3))

    def batch(images: np.ndarray, labels: np.ndarray, title: str) -> dict:
        data = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(len(images), -1)
        files = [b"%05d.png" % index for index in range(len(images))]
        entries = {"batch_label": title.encode(), "labels": labels.tolist()}
        entries |= {"data": data, "filenames": files}
        return {key.encode(): value for key, value in entries.items()}

    images, labels = splits["train"]
    for number, file in enumerate(BATCHES):
        part = slice(
            number * len(images) // len(BATCHES), (number + 1) * len(images) // len(BATCHES)
        )
        write(file, batch(images[part], labels[part], f"training batch {number + 1} of 5"))
    write("test_batch", batch(*splits["val"], "testing batch 1 of 1"))
    meta = {"label_names": [name.encode() for name in names], "num_vis": 3 * SIDE * SIDE}
    write("batches.meta", {key.encode(): value for key, value in meta.items()})
    return folder
