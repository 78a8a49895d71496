"""What studies and sweeps share: they give one config other options again and again."""

import json
from collections.abc import Mapping
from typing import Any

# that belong to each run, so that no file may set them for all
EACH_RUNS_OWN = (
    "experiment",
    "TRAIN.save_path",
    "TRAIN.resume",
    "TEST.save_folder",
    "TEST.model_path",
)


def as_words(options: Mapping[str, Any]) -> list[str]:
    """{option: value} as the words of a command, where values are read as YAML once more."""
    return [word for key, value in options.items() for word in (key, as_yaml(value))]


def as_yaml(value: Any) -> str:
    """JSON, which is YAML too; text is quoted, so that no text is taken for something else."""
    return json.dumps(value, ensure_ascii=False, default=str)
