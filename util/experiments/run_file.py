"""The YAML file of a sweep or a study: strict models, and options as a command takes them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from ...config.errors import ConfigError
from ...config.types import nearest, shown
from ...config.yaml_file import read_yaml

# keys of W&B or of former versions, and what to write instead
DROPPED = {
    "aliases": "name the option itself, such as TRAIN.train_w",
    "count": "write run_cap",
    "max_iter": "write min_iter, the first epoch at which trials are judged",
    "parameters": "write a nested parameter as SECTION.option",
    "q": "list the values",
    "s": "write min_iter, the first epoch at which trials are judged",
}


def own_options(folder: Path) -> dict[str, Any]:
    """Return the options that belong to each run, so that no file may set them for all."""
    return {
        "TRAIN.save_path": str(folder / "model"),
        "TRAIN.resume": "auto",
        "TEST.save_folder": str(folder / "result"),
        "TEST.model_path": None,
    }


RUN_OPTIONS = ("experiment", *own_options(Path()))


class Strict(BaseModel):
    """A mapping of a file: other keys than its fields are refused, with the nearest name."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _knows_the_keys(cls, content: Any) -> Any:
        for key in content if isinstance(content, Mapping) else ():
            if key not in cls.model_fields:
                likely = nearest(str(key), cls.model_fields)
                known = f"there are {', '.join(cls.model_fields)}"
                there = f"did you mean {likely}?" if likely else known
                raise ValueError(f"{shown(key)} is not a key here; {DROPPED.get(key, there)}")
        return content


Model = TypeVar("Model", bound=BaseModel)


def read_model(model: type[Model], path: Path, **defaults: Any) -> Model:
    """Return a YAML as a model; mistakes are told with the file, the key and the value.

    Raises:
        ConfigError: one line per mistake.
    """
    try:
        return model.model_validate({**defaults, **read_yaml(path)}, context={"path": path})
    except ValidationError as error:
        lines = []
        for entry in error.errors(include_url=False):
            key = ".".join(str(part) for part in entry["loc"])
            text = entry["msg"].removeprefix("Value error, ")
            if entry["type"] == "missing":
                text = "is missing"
            elif not isinstance(entry["input"], Mapping | BaseModel):
                text = f"{shown(entry['input'])}: {text}"
            lines.append(": ".join(filter(None, [str(path), key, text])))
        raise ConfigError("\n".join(lines)) from None


def as_arguments(options: Mapping[str, Any]) -> list[str]:
    """{option: value} as the arguments of a command; values are JSON, which YAML reads alike."""
    return [
        word
        for option, value in options.items()
        for word in (option, json.dumps(value, ensure_ascii=False, default=str))
    ]
