"""A fixture of `shared/compat`: its JSON, its arrays, and how far ours may be from them."""

import importlib.util
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import torch
from torch import Tensor

OUTPUT_TOLERANCE = 3e-5  # of the largest value stored, as the fixtures' README measured
UNIMPORTANT = {"cls", "pretrained", "weights", "criterion", "aux", "use_psa", "norm_layer"}

Errors = Iterator[tuple[str, float]]  # (what, error in units of its tolerance)


class UnknownFixtureError(Exception):
    """A kind, a constructor or an option that this runner cannot check."""


@dataclass
class Fixture:
    """One JSON, its arrays and the folder's recipe."""

    name: str
    facts: dict
    arrays: dict[str, np.ndarray]
    recipe: ModuleType

    @property
    def constructor(self) -> SimpleNamespace:
        return SimpleNamespace(**self.facts.get("constructor", {}))

    def weights(self) -> dict[str, Tensor]:
        """Under the author's names; made anew, their digest checked."""
        weights = self.recipe.weights_from_names([e[:2] for e in self.facts["state_dict"]])
        if self.recipe.weights_digest(weights) != self.facts["weights_sha256"]:
            raise UnknownFixtureError("numpy makes other weights than the fixture's")
        return {key: torch.from_numpy(value) for key, value in weights.items()}

    def input(self) -> Tensor:
        return torch.from_numpy(self.recipe.make_input(self.facts["input"]["shape"]))

    def option(self, known: dict):
        """The constructor's options, with `known` as their defaults; others are unknown."""
        given = {k: v for k, v in self.facts["constructor"].items() if k not in UNIMPORTANT}
        if strange := given.keys() - known.keys():
            raise UnknownFixtureError(f"constructor options {sorted(strange)}")
        return SimpleNamespace(**{**known, **given})


def read_fixture(path: Path) -> Fixture:
    spec = importlib.util.spec_from_file_location("recipe", path.parent / "recipe.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    with np.load(path.with_suffix(".npz")) as stored:
        arrays = dict(stored)
    return Fixture(path.stem, json.loads(path.read_text(encoding="utf-8")), arrays, recipe)


def sliced(array: Tensor, description: str) -> Tensor:
    """`array` cut as a text such as "logits[:, :, ::4, ::4]" says."""
    inside = re.search(r"\[([^\]]*)\]", description)
    if inside is None:
        return array
    parts = [part.strip().split(":") for part in inside[1].split(",")]
    return array[tuple(slice(*(int(n) if n else None for n in part)) for part in parts)]


def apart(ours: Tensor, stored: np.ndarray) -> float:
    """The largest difference in units of the tolerance for outputs."""
    if tuple(ours.shape) != stored.shape:
        return float("inf")
    difference = np.abs(ours.detach().numpy() - stored).max()
    return float(difference / (OUTPUT_TOLERANCE * max(1.0, np.abs(stored).max())))


def relative(ours: float, stored: float, tolerance: float) -> float:
    return abs(ours - stored) / (tolerance * max(abs(stored), 1e-9))


def classes_differ(scores: Tensor, dim: int, stored: np.ndarray, allowed_margin: float) -> float:
    """The largest lead of a class over the stored one, in units of what rounding allows."""
    best, second = scores.topk(2, dim=dim).values.unbind(dim)
    different = scores.argmax(dim).numpy() != stored
    lead = (best - second).detach().numpy()[different]
    return float(lead.max(initial=0) / allowed_margin)
