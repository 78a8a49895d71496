"""A trained network in its file: checkpoint, export, folder to share, or name on the hub."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .config.errors import CheckpointError
from .onnx_network import OnnxNetwork
from .sharing import CARD, HUB, fetch, read_folder
from .util.checkpoint import read_checkpoint


def is_network(word: str) -> bool:
    """Return whether an argument names a trained network instead of a dataset."""
    return (
        word.startswith(HUB)
        or Path(word).suffix.lower() in (".pth", ".onnx", ".safetensors", ".pt2")
        or (Path(word) / CARD).is_file()
    )


def local_path(name: str) -> str:
    """The path of a network's file; what is on the hub is fetched first."""
    return str(fetch(name.removeprefix(HUB))) if name.startswith(HUB) else name


def read_network(name: str | Path, device: torch.device) -> OnnxNetwork | Mapping[str, Any]:
    """An export ready to run, or the content of a checkpoint.

    Args:
        name: .pth, .onnx, a folder that `save_pretrained` wrote (or the .safetensors in it), or
            hf://OWNER/NAME, with @REVISION where a certain one is meant.
        device: where an export should run.
    Raises:
        CheckpointError: the file is missing, damaged, or not a network that stripseg reads.
    """
    path = Path(local_path(str(name))).expanduser()
    suffix = path.suffix.lower()
    if suffix == ".onnx":
        return OnnxNetwork(path, device)
    if suffix == ".pt2":
        raise CheckpointError(
            f"{name}: is for programs without stripseg (torch.export.load); name the checkpoint or "
            "an .onnx export instead"
        )
    if suffix == ".safetensors" and (path.parent / CARD).is_file():
        path = path.parent
    return read_folder(path) if path.is_dir() else read_checkpoint(path)
