"""Checkpoints: written whole or not at all, read as data only, found again after a stop."""

import os
import re
import socket
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from ..config.errors import CheckpointError, TrainingError
from .files import atomic_write, link_or_copy, no_links
from .memory import HostCopy

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

FORMAT_VERSION = 1
LOCK = ".lock"
LOCK_POLL = 0.05  # seconds


def write_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Save `content` as a checkpoint of this program."""
    with atomic_write(path, durable=True) as file:
        torch.save({"format": "stripseg", "version": FORMAT_VERSION, **content}, file)


def write_weights(path: Path, content: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Save weights to share: `tensors` alone as .safetensors, or `content` as .pth.

    Raises:
        CheckpointError: another suffix.
    """
    if path.suffix == ".safetensors":
        whole = {key: value.contiguous() for key, value in tensors.items()}
        with atomic_write(path, durable=True) as file:
            file.write(safetensors.torch.save(whole))
    elif path.suffix == ".pth":
        with atomic_write(path, durable=True) as file:
            torch.save(content, file)
    else:
        raise CheckpointError(f"{path}: weights are written as .pth or .safetensors")


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The content of a weights file, on the CPU; never executes what it holds.

    Raises:
        CheckpointError: the file is missing, damaged, or would run code when loaded.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise CheckpointError(f"{path}: checkpoint does not exist; check the path that names it")
    try:
        if path.suffix == ".safetensors":
            return dict(safetensors.torch.load_file(path))
        check_sums(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        if re.search("GLOBAL|Unsupported (global|class)", str(error)):
            raise CheckpointError(
                f"{path}: holds Python objects beyond tensors and plain data, which could run code "
                "when loaded; save its state_dict alone and use that file"
            ) from error
        raise CheckpointError(
            f"{path}: is damaged or no PyTorch checkpoint; copy or save it again"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path}: holds a {type(content).__name__}, not a dictionary of weights"
        )
    version = content.get("version")
    known = type(version) is int and 1 <= version <= FORMAT_VERSION
    if str(content.get("format")) == "stripseg" and not known:
        raise CheckpointError(
            f"{path}: is of version {version} of stripseg's checkpoints and this program reads "
            f"1 to {FORMAT_VERSION}; update stripseg, or convert the file with the newer one "
            "(stripseg convert)"
        )
    return content


def check_sums(path: Path) -> None:
    """Compare every record of the file with its CRC-32, which PyTorch writes and does not read.

    Raises:
        ValueError: a record was altered, or takes more memory than it has bytes.
        zipfile.BadZipFile: the file ends early.
    """
    with open(path, "rb") as file:
        is_zip = file.read(2) == b"PK"  # PyTorch's format since 1.6
    if is_zip:
        with zipfile.ZipFile(path) as records:
            packed = [r for r in records.infolist() if r.compress_type != zipfile.ZIP_STORED]
            if packed or sum(r.file_size for r in records.infolist()) > path.stat().st_size:
                raise ValueError("its records are compressed, which PyTorch never writes")
            altered = records.testzip()
        if altered is not None:
            raise ValueError(f"{altered} does not match its checksum")


@contextmanager
def folder_lock(folder: Path, *, wait: float = 0) -> Iterator[None]:
    """Hold a run's folder, so that no second run writes there; freed when the process ends.

    Args:
        wait: seconds to wait for another run that holds it.
    Raises:
        TrainingError: another run holds it, or its lock cannot be made.
    """
    if fcntl is None:
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / LOCK, "a+", opener=no_links)  # noqa: SIM115 - closed by `with` below
    except OSError as error:
        raise TrainingError(
            f"{error.filename}: cannot be made or opened: {error.strerror}"
        ) from error
    deadline = time.monotonic() + wait
    with lock as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if time.monotonic() < deadline:
                    time.sleep(LOCK_POLL)
                    continue
                file.seek(0)
                raise TrainingError(
                    f"{folder} is in use by another run ({file.read().strip()}); wait for it, or "
                    "set another TRAIN.save_path or experiment"
                ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def move_aside(folder: Path) -> Path | None:
    """Rename a run's folder, so that a new run can have its name; None without an earlier run."""
    if not any(path.name != LOCK for path in folder.glob("*")):
        return None
    aside = folder.with_name(f"{folder.name}-until-{time.strftime('%Y%m%d_%H%M%S')}")
    folder.rename(aside)
    return aside


def snapshot(value: Any) -> Any:
    """`value` with every tensor copied to the CPU: what it is now, whatever training does next.

    Those of a GPU are copied asynchronously: `arrived` waits for them.
    """
    return with_each(
        value,
        Tensor,
        lambda x: HostCopy(x.detach()) if x.is_cuda else x.detach().to("cpu", copy=True),
    )


def arrived(copied: Any) -> Any:
    """A snapshot whose tensors are all there."""
    return with_each(copied, HostCopy, HostCopy.tensor)


def with_each(value: Any, kind: type, work: Callable[[Any], Any]) -> Any:
    """Dictionaries, lists and tuples with `work` done to what is of a kind in them."""
    if isinstance(value, kind):
        return work(value)
    if isinstance(value, dict):
        return {key: with_each(entry, kind, work) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(with_each(entry, kind, work) for entry in value)
    return value


class CheckpointFolder:
    """The checkpoints of one run: `last.pth`, `best.pth` and `train_epoch_N.pth`.

    `train_epoch_N.pth` are kept for the last `keep` saved epochs, under the family's names.
    Writing happens beside the training: `save` returns when the content is copied, `finish` when
    all is written. A file that cannot be written (a full disk) is reported to `warn`; those
    before it stay.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        keep: int = 2,
        warn: Callable[[str], None] = warnings.warn,
    ) -> None:
        self.folder = Path(folder)
        self.last = self.folder / "last.pth"
        self.best = self.folder / "best.pth"
        self.keep = keep
        self.warn = warn
        self.failure: str | None = None  # why the newest state could not be written
        self._best_lost = False
        self._writer = ThreadPoolExecutor(1)
        self._written: Future | None = None

    def save(
        self, content: dict[str, Any], *, epoch: int | None = None, best: bool = False
    ) -> None:
        """Write `last.pth`, and keep it as an epoch's and as the best one where these say so."""
        self.finish()
        copied = snapshot(content)
        self._written = self._writer.submit(self._write, copied, epoch, best)

    def finish(self) -> None:
        """Wait until everything is written."""
        written, self._written = self._written, None
        if written is not None:
            written.result()

    def lost_best(self) -> bool:
        """Return whether the best one so far could not be written; told once."""
        self.finish()
        lost, self._best_lost = self._best_lost, False
        return lost

    def _write(self, copied: dict[str, Any], epoch: int | None, best: bool) -> None:
        content = arrived(copied)  # an error of the GPU is not one of the disk
        try:
            self.folder.mkdir(parents=True, exist_ok=True)  # may have been removed meanwhile
            self.save_last(content)
            if epoch is not None:
                self.keep_epoch(epoch)
            if best:
                self.keep_best()
            self.failure = None
        except (OSError, RuntimeError) as error:  # PyTorch's writer raises the latter
            self.failure = str(error)
            self._best_lost |= best
            self.warn(
                f"{self.last}: THE CHECKPOINT COULD NOT BE WRITTEN ({error}); training continues, "
                "the checkpoints before it are as they were. Make room on the disk"
            )

    def epoch(self, number: int) -> Path:
        return self.folder / f"train_epoch_{number}.pth"

    def save_last(self, content: dict[str, Any]) -> None:
        write_checkpoint(self.last, content)

    def keep_epoch(self, number: int) -> None:
        """Keep what was just saved as the checkpoint of epoch `number`, and drop older ones."""
        link_or_copy(self.last, self.epoch(number))
        for path in self.epochs()[self.keep :]:
            path.unlink(missing_ok=True)

    def keep_best(self) -> None:
        link_or_copy(self.last, self.best)

    def epochs(self) -> list[Path]:
        """The `train_epoch_N.pth` files there are, newest first."""
        found = {
            int(match[1]): path
            for path in self.folder.glob("train_epoch_*.pth")
            if (match := re.fullmatch(r"train_epoch_(\d+)\.pth", path.name))
        }
        return [found[number] for number in sorted(found, reverse=True)]

    def candidates(self) -> Iterator[Path]:
        """Where a run can resume from, newest first."""
        if self.last.exists():
            yield self.last
        yield from self.epochs()

    def newest_good(self) -> tuple[Path, dict[str, Any], list[str]] | None:
        """(path, content, warnings about damaged ones) of the newest readable checkpoint."""
        warnings: list[str] = []
        for path in self.candidates():
            try:
                return path, read_checkpoint(path), warnings
            except CheckpointError as error:
                warnings.append(f"{error}; trying the one before it")
        if warnings:
            raise CheckpointError(
                "no readable checkpoint is left: " + " ".join(warnings) + f". Move {self.folder} "
                "away, or set TRAIN.resume to 'none', to train from scratch"
            )
        return None


def check_training_state(content: Mapping[str, Any], steps_per_epoch: int, *, origin: str) -> None:
    """Check that a run with this number of steps per epoch can resume from this content.

    Raises:
        CheckpointError: it is of another program, or of another length of epoch.
    """
    if "step" not in content or content.get("format") != "stripseg":
        raise CheckpointError(
            f"{origin}: has weights but no training state of stripseg; to start from its "
            "weights set TRAIN.weight to it instead of TRAIN.resume"
        )
    if content["steps_per_epoch"] != steps_per_epoch:
        raise CheckpointError(
            f"{origin}: its epochs have {content['steps_per_epoch']} steps and this run's "
            f"{steps_per_epoch}; the list or TRAIN.batch_size changed. Set "
            "TRAIN.weight to it to start a new run from its weights"
        )
