"""Docstrings as mkdocstrings wants them: sections stand apart, and what begins with >>> is one."""

import re
from typing import Any

import griffe

HEADING = re.compile(r"(?<=\S)\n(?=(?:Args|Attributes|Raises|Returns|Yields):\n)")
EXAMPLE = re.compile(r"\n+(>>> .*(?:\n.+)*)")


class Sections(griffe.Extension):
    """Sets a blank line above each section and the heading `Examples:` above each example."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = separated(obj.docstring.value)


def separated(docstring: str) -> str:
    """The same docstring with blank lines and headings."""
    return EXAMPLE.sub(
        lambda match: "\n\nExamples:\n" + re.sub("(?m)^", "    ", match[1]),
        HEADING.sub("\n\n", docstring),
    )
