"""A trained network as a folder to share: weights without code, config and card, a README.

segmenter.save_pretrained("spnet18-camvid")
stripseg.load("spnet18-camvid")            # or from the Hugging Face hub: "hf://owner/name"
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .config.errors import CheckpointError, ExportError, first_line
from .config.schema import SECTIONS
from .config.types import Kind, PathText, kind_of
from .model.segmenter import Segmenter
from .model_card import ModelCard
from .util.checkpoint import read_checkpoint, write_weights
from .util.experiments.report import markdown_text
from .util.files import write_text
from .util.logger import visible

if TYPE_CHECKING:
    from .trained_network import TrainedNetwork

CARD, WEIGHTS = "config.json", "model.safetensors"
HUB = "hf://"
VERSION = 1
MARK = "<!-- written by stripseg; remove this line to keep your changes -->"


def write_folder(trained: "TrainedNetwork", folder: Path) -> Path:
    """Write weights, config and card into `folder`.

    Raises:
        ExportError: the network is an export, whose weights are in its own file.
    """
    if not isinstance(trained.network, Segmenter):
        raise ExportError(f"{trained.path}: is an export; share the file, or save the checkpoint")
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {key: value.detach().cpu() for key, value in trained.network.state_dict().items()}
    write_weights(folder / WEIGHTS, {}, tensors)
    content = {
        "format": "stripseg",
        "version": VERSION,
        "card": trained.card.as_dict(),
        "config": without_places(trained.card.config),
    }
    write_text(folder / CARD, json.dumps(content, indent=2) + "\n")
    page = folder / "README.md"
    if not page.is_file() or MARK in page.read_text(encoding="utf-8", errors="replace"):
        write_text(page, readme(trained.card, folder.resolve().name))
    return folder


def without_places(config: dict[str, Any]) -> dict[str, Any]:
    """A config without options of the machine that trained: folders, lists, weights, hosts."""
    kept = {name: dict(part) if isinstance(part, dict) else part for name, part in config.items()}
    kept["DATA"]["data_root"] = "."
    for name, section in SECTIONS.items():
        for key, field in section.model_fields.items():
            value = kept.get(name, {}).get(key)
            if takes_path(kind_of(field)) and isinstance(value, str) and key != "data_root":
                kept[name][key] = Path(value).name if key.endswith("list") else None
    kept["TRAIN"].pop("resume", None)
    kept.pop("Distributed", None)
    return kept


def takes_path(kind: Kind) -> bool:
    """Return whether an option may be a path, or a path or nothing."""
    return isinstance(getattr(kind, "kind", kind), PathText)


def readme(card: ModelCard, name: str) -> str:
    """The card in Markdown, with how to use it."""
    name = visible(name)
    facts = "\n".join(f"- {markdown_text(line)}" for line in card.lines())
    return (
        "---\nlibrary_name: stripseg\npipeline_tag: image-segmentation\n---\n\n"
        f"{MARK}\n\n# {markdown_text(name)}\n\n{facts}\n\n```python\nimport stripseg\n\n"
        f'segmenter = stripseg.load("{name}")  # this folder, or "hf://OWNER/{name}"\n'
        'segmenter.predict("photo.jpg").overlay().save("overlay.png")\n```\n'
    )


def read_folder(folder: Path) -> dict[str, Any]:
    """A folder's content, as a checkpoint has it.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    path = folder / CARD
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder}: has no {CARD}; name a folder that save_pretrained wrote, or a checkpoint"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error
    if not isinstance(content, dict) or content.get("format") != "stripseg":
        raise CheckpointError(f"{path}: is not a config of stripseg")
    if content.get("version") != VERSION:
        raise CheckpointError(
            f"{path}: is of version {content.get('version')} and this program reads {VERSION}; "
            "update stripseg"
        )
    state: dict[str, torch.Tensor] = read_checkpoint(folder / WEIGHTS)
    return {"card": content.get("card"), "config": content.get("config"), "state_dict": state}


def fetch(name: str) -> Path:
    """Download OWNER/NAME, or OWNER/NAME@REVISION, from the Hugging Face hub or its cache.

    Raises:
        CheckpointError: huggingface_hub is not installed, or the hub does not give it.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise CheckpointError(
            f"hf://{name}: needs huggingface_hub; install it: pip install huggingface_hub"
        ) from error
    repository, _, revision = name.partition("@")
    wanted = [CARD, WEIGHTS, "README.md"]
    try:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=wanted))
    except Exception as error:  # of the network, the hub, or an impossible name
        raise CheckpointError(f"hf://{name}: cannot be fetched ({first_line(error)})") from error
