"""PyYAML with YAML 1.2's plain scalars and limits on nesting and aliases, and without objects.

YAML 1.2 differs from PyYAML's YAML 1.1 where it hurts here: `3e-3` is a number; `yes`, `no` and `on` are text
(they are answers in VQA data); `010` is ten; `1:30` and dates are text.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import yaml

MAX_DEPTH = 20
MAX_ALIASES = 64
MAX_VALUES = 20_000
TAG = "tag:yaml.org,2002:"
PLAIN_TAGS = frozenset(TAG + name for name in ("map", "seq", "str", "int", "float", "bool", "null"))


class RefusedError(yaml.MarkedYAMLError):
    """A text that is YAML, but not one that a recipe may be."""

    def __init__(self, problem: str, mark: Any) -> None:
        super().__init__(problem=problem, problem_mark=mark)


def compose(text: str) -> yaml.Node | None:
    """YAML text to nodes with tags and marks; None for an empty text. Nothing is constructed from tags.

    Raises `yaml.MarkedYAMLError` (RefusedError for a broken limit) and `yaml.reader.ReaderError`.
    """
    return _Loader(text).get_single_node()


def scalar(node: yaml.ScalarNode) -> Any:
    """The value of a scalar node.

    Raises KeyError for a tag that is none of YAML's core, ValueError, saying what is wrong, for a text that
    does not suit its tag.
    """
    return _SCALARS[node.tag](node.value)


def dump(value: Any) -> str:
    """Plain values as YAML text that reads back exactly."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def dump_line(value: Any) -> str:
    """A plain value as YAML on one line."""
    text = yaml.dump([value], Dumper=_Dumper, allow_unicode=True, width=float("inf"), default_flow_style=True)
    return text.strip()[1:-1]


# https://yaml.org/spec/1.2.2/#103-core-schema, without its octal and hexadecimal numbers.
_PLAIN = {
    "null": re.compile(r"(?:~|null|Null|NULL|)\Z"),
    "bool": re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z"),
    "int": re.compile(r"[-+]?[0-9]+\Z"),
    "float": re.compile(
        r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"
    ),
}
# None: tried on every scalar, whatever its first character.
_RESOLVERS = {None: [(TAG + name, pattern) for name, pattern in _PLAIN.items()]}


class _Loader(yaml.SafeLoader):
    """PyYAML's parser with limits; its constructor is never called."""

    yaml_implicit_resolvers = _RESOLVERS

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.aliases = self.nodes = 0
        self.open: list[str | None] = []  # the anchors of the nodes around the current one

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        self.nodes += 1
        if self.nodes > MAX_VALUES:
            raise RefusedError(f"more than {MAX_VALUES:,} values", event.start_mark)
        if isinstance(event, yaml.AliasEvent):
            self.aliases += 1
            if self.aliases > MAX_ALIASES:
                raise RefusedError(f"more than {MAX_ALIASES} aliases (`*name`)", event.start_mark)
            if event.anchor in self.open:
                raise RefusedError(f"the alias *{event.anchor} stands inside itself", event.start_mark)
        if len(self.open) >= MAX_DEPTH:
            raise RefusedError(f"nested more than {MAX_DEPTH} levels deep", event.start_mark)
        self.open.append(event.anchor)
        node = super().compose_node(parent, index)
        self.open.pop()
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes what YAML 1.2 would not read as text, and never writes an alias."""

    yaml_implicit_resolvers = _RESOLVERS

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        # Only double quotes keep every kind of line break, U+0085 for one, as it is.
        broken = "".join(data.splitlines()) != data
        return self.represent_scalar(TAG + "str", data, style='"' if broken else None)


_Dumper.add_representer(str, _Dumper.represent_str)


def _bool(text: str) -> bool:
    if not _PLAIN["bool"].match(text):
        raise ValueError("cannot be read as true or false")
    return text.lower() == "true"


def _null(text: str) -> None:
    if not _PLAIN["null"].match(text):
        raise ValueError("cannot be read as null")


def _float(text: str) -> float:
    if not (_PLAIN["float"].match(text) or _PLAIN["int"].match(text)):
        raise ValueError("cannot be read as a number")
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


def _int(text: str) -> int:
    if not _PLAIN["int"].match(text):
        raise ValueError("cannot be read as a whole number")
    if len(text) > 30:
        raise ValueError("is too long for a number")
    return int(text)


def _str(text: str) -> str:
    if any(character == "\0" or "\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("holds a character that text cannot hold")
    return text


_SCALARS: dict[str, Callable[[str], Any]] = {
    TAG + "str": _str,
    TAG + "int": _int,
    TAG + "float": _float,
    TAG + "bool": _bool,
    TAG + "null": _null,
}
