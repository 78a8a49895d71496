"""A whole config: four sections of options and where they came from. docs/config.md is made by

python -m stripseg.config.schema
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from .option import Section
from .sections import DataSection, DistributedSection, TestSection, TrainSection
from .types import Name

__all__ = ["CLASSIFIER", "SECTIONS", "Config", "DataSection", "TestSection", "TrainSection"]


CLASSIFIER = "classifier"  # the TRAIN.arch that names the class of a whole image


class Config(BaseModel):
    """A run: four sections of options, and where they came from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    experiment: Annotated[str, Name()]
    DATA: DataSection
    TRAIN: TrainSection
    Distributed: DistributedSection
    TEST: TestSection
    source: str = Field(exclude=True)  # the YAML file, as it was named
    notices: list[str] = Field(default=[], exclude=True)  # what became of older keys

    @property
    def dataset(self) -> str:
        return self.DATA.dataset

    @property
    def classifies(self) -> bool:
        """Whole images, not their pixels."""
        return self.TRAIN.arch == CLASSIFIER

    def __eq__(self, other: object) -> bool:
        """Equal options make equal configs, whichever files they came from."""
        return isinstance(other, Config) and self.model_dump() == other.model_dump()


SECTIONS: dict[str, type[Section]] = {
    "DATA": DataSection,
    "TRAIN": TrainSection,
    "Distributed": DistributedSection,
    "TEST": TestSection,
}

if __name__ == "__main__":
    from .reference import reference

    print(reference(), end="")
