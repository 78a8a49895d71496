"""Strict YAML: what is wrong is said with file and line, and nothing is silently dropped.

Repeated keys are errors (plain YAML keeps the last one). Aliases (`*name`) are refused: `base:`
does their work, and nested aliases let a file of a few lines fill the memory. For the same reason
a file may not be larger than 1 MB.
"""

from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode

from .errors import ConfigError, first_line
from .limits import LARGEST_YAML


class StrictLoader(yaml.SafeLoader):
    """Attributes:
    value: the mark of the value that was made last, or None while the text is being parsed.
    """

    value: yaml.Mark | None = None

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        self.value = node.start_mark
        return super().construct_object(node, deep)

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.constructor.ConstructorError(
                problem="aliases (*name) are not allowed; use base: to share options",
                problem_mark=mark,
            )
        return super().compose_node(parent, index)

    def construct_yaml_int(self, node: ScalarNode) -> int | str:
        """1:30 is text, as in YAML 1.2: the numbers to base 60 of YAML 1.1 take a time that grows
        with the square of their length, and are never intended."""
        return node.value if ":" in node.value else super().construct_yaml_int(node)

    def construct_yaml_float(self, node: ScalarNode) -> float | str:
        return node.value if ":" in node.value else super().construct_yaml_float(node)

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        pairs = node.value if isinstance(node, MappingNode) else []  # SafeLoader refuses others
        for key in (key for key, _ in pairs if isinstance(key, ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"{key.value} is given twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


for kind in ("int", "float"):
    StrictLoader.add_constructor(
        f"tag:yaml.org,2002:{kind}", getattr(StrictLoader, f"construct_yaml_{kind}")
    )


def parse_yaml(text: str, where: str, *, lines: bool = True) -> Any:
    """The content of a YAML text; ConfigError begins with `where` and the number of the line."""
    loader = None
    try:
        loader = StrictLoader(text)  # a SafeLoader: builds plain values only
        return loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        mark, problem = error.problem_mark, error.problem or error.context
    except RecursionError:
        mark, problem = None, "too many brackets inside each other"
    except Exception as error:  # of PyYAML's types: 2020-13-45, !!int "", "\UFFFFFFFF"
        mark = loader and (loader.value or loader.get_mark())
        known = isinstance(error, yaml.YAMLError | ValueError)
        reason = first_line(error) if known else "a value that its type does not have"
        problem = f"not valid YAML: {reason}"
    line = f":{mark.line + 1}" if lines and mark else ""
    raise ConfigError(f"{where}{line}: {problem}")


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds; an empty file is an empty mapping."""
    try:
        if path.stat().st_size > LARGEST_YAML:
            raise ConfigError(f"{path}: larger than 1 MB; this is not a config file")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not a text file in UTF-8") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{path}: cannot be read: {reason}") from None
    content = parse_yaml(text, str(path))
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(
            f"{path}: must hold sections such as TRAIN:, not {type(content).__name__}"
        )
    return content
