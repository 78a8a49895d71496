"""Which options make the network, and whether a checkpoint was made with the same."""

from collections.abc import Mapping
from typing import Any

from .errors import CheckpointError
from .schema import Config

ALWAYS = {
    "DATA": ("in_channels", "classes", "mean", "std"),
    "TRAIN": (
        "arch",
        "backbone",
        "stem",
        "attention",
        "output_stride",
        "dilate_first_block",
        "multi_grid",
        "norm",
    ),
}
OF_ARCH = {
    "spnet": ("spm_on", "spm_blocks", "mixed_pooling_modules", "mixed_pooling_sizes"),
    "psp": ("use_ppm", "ppm_bins", "ppm_pooling", "ppm_reduction"),
    "psa": ("psa_type", "compact", "shrink_factor", "normalization_factor", "psa_softmax"),
}


def check_same_network(content: Mapping[str, Any], config: Config, *, origin: str) -> None:
    """Compare the config that a checkpoint of ours carries with the one in use.

    Many options leave no trace in the tensors' names and shapes (`output_stride`, `psa_type`): with
    another value the weights load and the figures are wrong.

    Raises:
        CheckpointError: an option of the network differs.
    """
    stored = content.get("config")
    if not isinstance(stored, Mapping):
        return  # weights alone, or another author's
    given = config.model_dump(mode="json")
    options = {**ALWAYS, "TRAIN": ALWAYS["TRAIN"] + OF_ARCH.get(config.TRAIN.arch, ())}
    for section, keys in options.items():
        theirs = stored.get(section, {})
        for key in keys:
            if key in theirs and theirs[key] != given[section][key]:
                raise CheckpointError(
                    f"{origin}: was trained with {section}.{key} {theirs[key]}, and now it is "
                    f"{given[section][key]}; take the config beside the checkpoint, or set it"
                )
