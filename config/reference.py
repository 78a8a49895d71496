"""The options as tables in Markdown, made from schema.py, so that they cannot differ from it."""

from typing import Any

from pydantic.fields import FieldInfo

from .schema import SECTIONS, Section
from .types import Kind


def reference() -> str:
    return "\n".join(_table(name, section) for name, section in SECTIONS.items())


def _table(name: str, section: type[Section]) -> str:
    lines = [f"## {name}", "", section.__doc__ or "", ""]
    lines += ["| option | default | value | meaning |", "| --- | --- | --- | --- |"]
    lines += [_row(key, field) for key, field in section.model_fields.items()]
    return "\n".join(lines) + "\n"


def _row(key: str, field: FieldInfo) -> str:
    kind = next(part for part in field.metadata if isinstance(part, Kind))
    return f"| `{key}` | {_default(field)} | {kind.phrase} | {field.description} |"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    return "empty" if field.default is None else f"`{_plain(field.default)}`"


def _plain(value: Any) -> str:
    """As one would write it in YAML."""
    return str(value).replace("'", "")
