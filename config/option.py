"""How an option is declared: its default and its meaning."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


def option(default: Any, description: str) -> Any:
    return Field(default, description=description)


def derived(description: str) -> Any:
    """An option that may be left out; checks.py then works its value out from the others."""
    return Field(None, description=description, json_schema_extra={"derived": True})


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
