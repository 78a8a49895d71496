"""The file of a study: configs, the options that vary, and seeds."""

import hashlib
import math
import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from ...config.errors import ConfigError
from ...config.limits import COMBINATIONS
from ...config.load import find_config, load_config, option_meant
from ...config.schema import Config
from ...config.yaml_file import read_yaml
from .sweep_file import RUN_OPTIONS, Strict, as_arguments, read_model

LONGEST = 100  # characters of a folder's name


class StudyFile(Strict):
    """As written in the YAML; see docs/classification.md."""

    name: str = Field(pattern=r"^\w[\w.-]*$")
    configs: list[str] = Field(min_length=1)
    vary: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(default_factory=dict)
    seeds: list[Annotated[int, Field(ge=0)]] = Field(default=[0], min_length=1)
    options: dict[str, Any] = Field(default_factory=dict)


class Cell(Strict):
    """One row of the table: a config and a value for every option that varies."""

    config: str
    values: tuple[tuple[str, Any], ...]

    @property
    def folder(self) -> str:
        """Its folder below the study's: readable, and different for different cells."""
        parts = [f"{key.rpartition('.')[2]}-{value}" for key, value in self.values]
        name = "_".join(parts) or "as_it_is"
        plain = re.sub(r"[^\w.,-]+", "_", name)
        if plain != name or len(name) > LONGEST:
            plain = f"{plain[:LONGEST]}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        return "/".join([self.config.replace(" ", "_"), plain])

    @property
    def arguments(self) -> list[str]:
        """The options as arguments of a command."""
        return as_arguments(dict(self.values))


class Study:
    """The matrix of a study's file.

    Raises:
        ConfigError: the file is not a study, or one of its runs is not possible.
    """

    def __init__(self, path: Path) -> None:
        self.file = read_model(StudyFile, path, read_yaml(path))
        for problem in self._problems():
            raise ConfigError(f"{path}: {problem}")
        self.cells = [
            Cell(config=config, values=tuple(zip(self.file.vary, values, strict=True)))
            for config in self.file.configs
            for values in product(*self.file.vary.values())
        ]
        for cell in self.cells:  # before the first run starts
            self.load(cell, path)

    def _problems(self) -> Iterator[str]:
        """Mistakes beside those that the configs show."""
        given: dict[str, str] = {}
        for where, keys in (("vary", self.file.vary), ("options", self.file.options)):
            for key in keys:
                option = option_meant(key)
                if option in (*RUN_OPTIONS, "TRAIN.manual_seed"):
                    yield f"{where}.{key}: {option} is each run's own; list seeds under seeds:"
                if option in given:
                    yield f"{where}.{key}: {option} is already given in {given[option]}"
                given[option] = f"{where}.{key}"
        runs = math.prod(map(len, [self.file.configs, self.file.seeds, *self.file.vary.values()]))
        if runs > COMBINATIONS:
            yield f"configs, vary and seeds make {runs} runs; at most {COMBINATIONS} are possible"
        lists = {f"vary.{key}": values for key, values in self.file.vary.items()}
        for where, values in {**lists, "seeds": self.file.seeds}.items():
            if len({repr(value) for value in values}) < len(values):
                yield f"{where}: has a value twice: {values}"

    def load(self, cell: Cell, origin: Path) -> Config:
        """The config of a cell, without a seed."""
        names = cell.config.split()
        if len(names) != 2 or not all(re.fullmatch(r"\w[\w.-]*", name) for name in names):
            raise ConfigError(
                f"{origin}: configs: {cell.config!r} is not 'DATASET EXPERIMENT', such as "
                "'cifar10 resnet18'"
            )
        try:
            return load_config(find_config(*names), [*self.options, *cell.arguments])
        except ConfigError as error:
            raise ConfigError(f"{origin}: {cell.folder}: {error}") from error

    @property
    def options(self) -> list[str]:
        """The options of all runs."""
        return as_arguments(self.file.options)
