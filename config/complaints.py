"""Sentences for people: which option is wrong, where it was given, and what would be right."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from .schema import SECTIONS
from .types import nearest

COMMAND_LINE = "command line"
TOP_LEVEL = ("base", "experiment")  # what a YAML may say outside its sections

Key = tuple[str, ...]  # ("TRAIN", "base_lr")
Origins = dict[Key, str]  # the file (or the command line) that gave the key


def options_named(key: str) -> list[str]:
    """`TRAIN.base_lr` for `base_lr`: every section's option of that name."""
    return [f"{name}.{key}" for name, section in SECTIONS.items() if key in section.model_fields]


def trains_first(options: Sequence[str]) -> str:
    """Of the options that a bare name may mean TRAIN's, where semseg has it, or the first."""
    return next((option for option in options if option.startswith("TRAIN.")), options[0])


def option_meant(key: str) -> str:
    """`TRAIN.momentum` for `momentum`; a name with its section, or of no option, as it is."""
    return trains_first(options_named(key) or [key])


def unknown_section(name: object) -> str:
    """The complaint about a word that stands where a section should."""
    if options := options_named(str(name)):
        return f"{name} is not a section; it is an option, {' or '.join(options)}"
    likely = nearest(str(name), (*SECTIONS, *TOP_LEVEL))
    return f"{name} is not a section" + (f"; did you mean {likely}?" if likely else "")


def unknown_option(section: str, key: object) -> str:
    name = f"{section}.{key}"
    if elsewhere := options_named(str(key)):
        return f"{name} is not an option of {section}; it belongs to {' and '.join(elsewhere)}"
    if likely := nearest(str(key), SECTIONS[section].model_fields):
        return f"{name} is not an option; did you mean {section}.{likely}?"
    return f"{name} is not an option" + suggestion(str(key))


def suggestion(key: str) -> str:
    """The nearest option of any section."""
    sections = {option: name for name in SECTIONS for option in SECTIONS[name].model_fields}
    likely = nearest(key, sections)
    return f"; did you mean {sections[likely]}.{likely}?" if likely else ""


def explain(error: ValidationError, source: str, origins: Mapping[Key, str]) -> str:
    """Pydantic's report as one line per mistake."""
    lines = []
    for entry in error.errors(include_url=False):
        key = tuple(str(part) for part in entry["loc"])
        where = origins.get(key, source)
        lines.append(f"{where}: {_sentence(key, entry)}")
    return "\n".join(lines)


def _sentence(key: Key, entry: Mapping[str, Any]) -> str:
    name = ".".join(key)
    if entry["type"] == "extra_forbidden":
        return unknown_option(key[0], key[1])
    if entry["type"] == "missing":
        description = SECTIONS[key[0]].model_fields[key[1]].description
        return f"{name} is missing: the {description}"
    return f"{name} {entry['ctx']['error']}"
