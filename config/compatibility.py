"""Whether a checkpoint was made with the network of this config."""

from collections.abc import Iterator, Mapping
from typing import Any

from .errors import CheckpointError
from .schema import Config, NetworkOptions

OF_DATA = ("in_channels", "classes", "mean", "std")
# what networks were before these options, which checkpoints of then do not name
ADDED = {
    "strip_pooling": "average",
    "spm_control": False,
    "spm_stages": [],
    "mixed_pooling_branches": "both",
    "align_corners": True,
}


def compared_options(arch: str) -> Iterator[tuple[str, str]]:
    """Yield (section, key) of every option that the function of a network of `arch` depends on.

    These are all of `NetworkOptions`, except those declared `compared=False` or for another arch.
    """
    yield from (("DATA", key) for key in OF_DATA)
    for key, field in NetworkOptions.model_fields.items():
        properties = field.json_schema_extra or {}
        if properties.get("compared", True) and properties.get("arch", arch) == arch:
            yield "TRAIN", key


def stored_option(config: Mapping[str, Any], section: str, key: str) -> Any:
    """Return an option of the config that a checkpoint carries; None where it cannot be known.

    Where the checkpoint is older than the option, it is what networks were before.
    """
    return (config.get(section) or {}).get(key, ADDED.get(key))


def check_same_network(content: Mapping[str, Any], config: Config, *, origin: str) -> None:
    """Compare the config that a checkpoint carries with the one in use.

    Many options leave no trace in the tensors' names and shapes (`output_stride`, `psa_type`): with
    another value the weights load and the figures are wrong.

    Raises:
        CheckpointError: an option of the network differs.
    """
    stored = content.get("config")
    if not isinstance(stored, Mapping):
        return  # weights alone, or another author's
    given = config.model_dump(mode="json")
    for section, key in compared_options(config.TRAIN.arch):
        if key not in (stored.get(section) or {}) and key not in ADDED:
            continue
        before = stored_option(stored, section, key)
        if before != given[section][key]:
            raise CheckpointError(
                f"{origin}: was trained with {section}.{key} {before}, and now it is "
                f"{given[section][key]}; give {section}.{key} {before} to this command, too "
                "(`stripseg test FILE` takes the checkpoint's own config)"
            )
