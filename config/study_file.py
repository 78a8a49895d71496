"""The file of a study: configs, the options that vary, and seeds."""

from itertools import product
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .errors import ConfigError
from .load import find_config, load_config
from .schema import Config
from .yaml_file import read_yaml


class StudyFile(BaseModel):
    """As written in the YAML; see docs/classification.md."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[\w.-]+$")
    configs: list[str] = Field(min_length=1)
    vary: dict[str, list[Any]] = Field(default_factory=dict)
    seeds: list[int] = Field(default=[0], min_length=1)
    options: dict[str, Any] = Field(default_factory=dict)


class Cell(BaseModel):
    """One row of the table: a config and a value for every option that varies."""

    model_config = ConfigDict(frozen=True)

    config: str
    values: tuple[tuple[str, Any], ...]

    @property
    def folder(self) -> str:
        """Its folder below the study's: readable, and different for different cells."""
        parts = [f"{key.rpartition('.')[2]}-{value}" for key, value in self.values]
        return "/".join([self.config.replace(" ", "_"), "_".join(parts) or "as_it_is"])

    @property
    def words(self) -> list[str]:
        """The options as they follow a command."""
        return [word for key, value in self.values for word in (key, str(value))]


class Study:
    """The matrix of a study's file.

    Raises:
        ConfigError: the file is no study, or one of its runs is no run.
    """

    def __init__(self, path: Path) -> None:
        try:
            self.file = StudyFile.model_validate(read_yaml(path))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ConfigError(
                f"{path}: {where or 'the file'}: {first['msg']}; a study has name, configs, vary, "
                "seeds and options"
            ) from None
        self.cells = [
            Cell(config=config, values=tuple(zip(self.file.vary, values, strict=True)))
            for config in self.file.configs
            for values in product(*self.file.vary.values())
        ]
        for cell in self.cells:  # before the first run starts
            self.load(cell, path)

    def load(self, cell: Cell, origin: Path) -> Config:
        """The config of a cell, without a seed."""
        names = cell.config.split()
        if len(names) != 2:
            raise ConfigError(
                f"{origin}: configs: {cell.config!r} is not 'DATASET EXPERIMENT', such as "
                "'cifar10 resnet18'"
            )
        try:
            return load_config(find_config(*names), [*self.options, *cell.words])
        except ConfigError as error:
            raise ConfigError(f"{origin}: {cell.folder}: {error}") from error

    @property
    def options(self) -> list[str]:
        """The options of all runs."""
        return [word for key, value in self.file.options.items() for word in (key, str(value))]
