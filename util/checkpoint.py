"""Checkpoints: written whole or not at all, read as data only, found again after a stop."""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from ..config.atomic import atomic_write
from ..config.errors import CheckpointError

FORMAT_VERSION = 1


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
    return content


class CheckpointFolder:
    """The checkpoints of one run: `last.pth`, `best.pth` and `train_epoch_N.pth`.

    `train_epoch_N.pth` are kept for the last `keep` saved epochs, under the family's names.
    """

    def __init__(self, folder: str | Path, *, keep: int = 2) -> None:
        self.folder = Path(folder)
        self.keep = keep

    @property
    def last(self) -> Path:
        return self.folder / "last.pth"

    @property
    def best(self) -> Path:
        return self.folder / "best.pth"

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
                "away, or set TRAIN.resume to 'none', to start anew"
            )
        return None


def link_or_copy(source: Path, target: Path) -> None:
    """Give `source` a second name; a copy where the file system has no hard links."""
    temporary = target.with_name(f".{target.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
    os.replace(temporary, target)
