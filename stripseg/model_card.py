"""The model card: what a trained network is, inside every checkpoint and export.

Class names and colours, the config, the figures of the last validation with their protocol, the
versions that made it, and a fingerprint of the training data.
"""

import hashlib
import platform
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from . import __version__
from .config.errors import CheckpointError, ConfigError, DataError
from .config.load import stored_config
from .config.schema import Config
from .dataset.build import Classes, build_classes
from .dataset.classification.build import class_names
from .dataset.classification.images import TrainingImages
from .dataset.description import default_colors
from .dataset.segmentation import TrainingSet
from .util.logger import visible

VERSION = 1


@dataclass(frozen=True)
class ModelCard:
    """What is known of a trained network.

    Args:
        names: of the classes, in index order.
        colors: (K, 3) uint8.
        config: {section: {key: value}} and `experiment`, as a checkpoint stores it.
        figures: {"epoch": 3, "val": {"mIoU": 0.6, ...}, "protocol": {...}}; empty without one.
        versions: of the programs that trained it.
        data: {"images": 367, "fingerprint": sha256 of the names of the training images}.
    """

    names: list[str]
    colors: np.ndarray
    config: dict[str, Any]
    figures: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, without the config, which a checkpoint has beside the card."""
        return {
            "version": VERSION,
            "names": list(self.names),
            "colors": self.colors.tolist(),
            "figures": self.figures,
            "versions": self.versions,
            "data": self.data,
        }

    def lines(self) -> list[str]:
        """Return the card as text, one fact per line."""
        train, data = self.config["TRAIN"], self.config["DATA"]
        listed = ", ".join(self.names[:20]) + ", ..." * (len(self.names) > 20)
        lines = [
            f"network: {train['arch']} on {train['backbone']}",
            f"classes: {len(self.names)} ({listed})",
            f"input: {data['in_channels']} channels, mean {data['mean']}, std {data['std']}",
        ]
        if self.figures:
            values, protocol = (listing(self.figures.get(key)) for key in ("val", "protocol"))
            epoch = self.figures.get("epoch", "?")
            lines.append(f"validation after epoch {epoch}: {values} ({protocol})")
        if self.data:
            lines.append(
                f"trained on {self.data.get('images', '?')} images of {data['dataset']}, list "
                f"{str(self.data.get('fingerprint', '?'))[:12]}"
            )
        if self.versions:
            lines.append("made by " + ", ".join(f"{k} {v}" for k, v in self.versions.items()))
        return [visible(line) for line in lines]


def listing(facts: Any) -> str:
    """`name value, name value` of a mapping; files from elsewhere may hold anything."""
    if not isinstance(facts, Mapping):
        return "unknown"
    return ", ".join(
        f"{k} {v:.4f}" if isinstance(v, float) else f"{k} {v}" for k, v in facts.items()
    )


def card_of_run(config: Config, images: TrainingSet | TrainingImages) -> ModelCard:
    """The card of a training run, without figures."""
    if isinstance(images, TrainingImages):
        names = list(class_names(config, images.images))
        classes = Classes(names, spread_colors(len(names)))
        listed: list[str] = []
    else:
        classes = build_classes(config)
        listed = [pair.name for pair in images.pairs]
    return ModelCard(
        names=list(classes.names),
        colors=classes.colors,
        config=config.model_dump(mode="json"),
        versions={
            "stripseg": __version__,
            "torch": str(torch.__version__),
            "python": platform.python_version(),
        },
        data={
            "images": len(images),
            "fingerprint": hashlib.sha256("\n".join(listed).encode()).hexdigest(),
        },
    )


def spread_colors(count: int) -> np.ndarray:
    """(K, 3) uint8 colours where nothing names any; after 255 they repeat."""
    return np.resize(np.array(default_colors(min(count, 255)), np.uint8), (count, 3))


def card_of_checkpoint(content: Mapping[str, Any], *, origin: str) -> ModelCard:
    """The card in a checkpoint's content; of one without a card, what its config says.

    Raises:
        CheckpointError: it has no config, or one of a version that is not known here.
    """
    stored = content.get("config")
    if not isinstance(stored, Mapping):
        raise CheckpointError(
            f"{origin}: has no config, so it is not known what network its weights belong to; test "
            "it with its YAML: TEST.model_path"
        )
    try:
        config = stored_config(stored, origin)
    except ConfigError as error:
        raise CheckpointError(f"{origin}: its config is of another version: {error}") from error
    plain = config.model_dump(mode="json")
    card = content.get("card")
    if isinstance(card, Mapping):
        return read_card(card, plain, origin=origin)
    classes = Classes(
        [f"class {index}" for index in range(config.DATA.classes)],
        spread_colors(config.DATA.classes),
    )
    if not config.classifies:
        with suppress(ConfigError, DataError):  # files of the machine that trained it: numbers do
            classes = build_classes(config)
    return ModelCard(list(classes.names), classes.colors, plain)


def read_card(card: Mapping[str, Any], config: Mapping[str, Any], *, origin: str) -> ModelCard:
    """A card from its plain values.

    Raises:
        CheckpointError: it is of a later version, or damaged.
    """
    if card.get("version") not in range(1, VERSION + 1):
        raise CheckpointError(
            f"{origin}: its model card is of version {card.get('version')} and this program reads "
            f"1 to {VERSION}; update stripseg"
        )
    try:
        names = [visible(str(name)) for name in card["names"]]
        colors = np.array(card["colors"], np.uint8)
        classes = config["DATA"]["classes"]
        if len(names) != classes or colors.shape != (classes, 3):
            raise ValueError(f"names and colours are not those of {classes} classes")
        return ModelCard(
            names,
            colors,
            dict(config),
            figures=dict(card.get("figures", {})),
            versions=dict(card.get("versions", {})),
            data=dict(card.get("data", {})),
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{origin}: its model card is damaged ({error})") from error
