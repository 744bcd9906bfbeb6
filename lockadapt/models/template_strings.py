"""Which texts a chat template might treat otherwise than others, read off its syntax tree.

A template that only copies what is said can be rendered once for all conversations of a shape. Real ones also
look into it: they drop thoughts, strip blanks, tell tool calls by their marks. What they look for stands in
them as constants.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols

_FILTERS = frozenset(
    {
        *("trim", "replace", "length", "count", "default", "d", "tojson", "string", "list", "first", "last"),
        *(
            "items",
            "selectattr",
            "rejectattr",
            "map",
            "join",
            "safe",
            "capitalize",
            "upper",
            "lower",
            "title",
        ),
        *("indent", "dictsort", "unique", "reverse"),
    }
)
"""Filters that treat all texts alike, but for blanks at their ends and for their own arguments."""

_METHODS = frozenset({"split", "rsplit", "strip", "lstrip", "rstrip", "startswith", "endswith", "replace"})
"""Methods of texts that look for their arguments."""

_OTHERS = frozenset(
    {
        *("get", "items", "keys", "values", "append", "update", "format"),
        *("title", "upper", "lower", "capitalize"),
    }
)
"""Methods of other things, or without a search."""

_NAMED = frozenset({"selectattr", "rejectattr", "map", "dictsort", "unique"})
"""Filters whose arguments name attributes and tests."""

_TESTS = frozenset(
    {
        *("string", "defined", "undefined", "none", "mapping", "iterable", "sequence", "true", "false"),
        *("boolean", "number", "integer", "odd", "even", "divisibleby"),
    }
)
"""Tests of what kind a value is, not of what a text says."""


@dataclass(frozen=True)
class TemplateStrings:
    """What a template looks for.

    Attributes:
        within: a text that holds one of these may be written otherwise.
        whole: a text that equals one of these may be.
    """

    within: frozenset[str]
    whole: frozenset[str]


def template_strings(template: str) -> TemplateStrings | None:
    """Read what a template looks for in texts.

    A text that is not empty, has no blanks at its ends and holds none of it is written like any other such
    text.

    Args:
        template: Jinja.

    Returns:
        The strings; None: the template does something with values that is not known here, or is no valid
        Jinja.
    """
    try:
        tree = jinja2.Environment(extensions=[_Generation, loopcontrols]).parse(template)
    except jinja2.TemplateError:
        return None
    within: set[str] = set()
    whole: set[str] = set()
    for node in tree.find_all((nodes.Filter, nodes.Test, nodes.Call, nodes.Compare)):
        if isinstance(node, nodes.Filter):
            known = node.name in _FILTERS and (node.name in _NAMED or _add(within, node.args))
        elif isinstance(node, nodes.Test):
            known = node.name in _TESTS
        elif isinstance(node, nodes.Compare):
            known = _compared(node, within, whole)
        else:
            known = not isinstance(node, nodes.Call) or _called(node, within)
        if not known:
            return None
    # What is no word may also be compared with a part of a text.
    within |= {text for text in whole if not text.replace("_", "").isalnum()}
    return TemplateStrings(frozenset(within - {""}), frozenset(whole))


def _called(node: nodes.Call, within: set[str]) -> bool:
    if not isinstance(node.node, nodes.Getattr):
        return True  # a macro, or a function that makes things
    name = node.node.attr
    if name not in _METHODS:
        return name in _OTHERS
    searched = name in ("strip", "lstrip", "rstrip") or bool(node.args)
    return searched and not node.kwargs and _add(within, node.args)


def _compared(node: nodes.Compare, within: set[str], whole: set[str]) -> bool:
    left: nodes.Expr = node.expr
    for operand in node.ops:
        right = operand.expr
        if operand.op in ("in", "notin"):
            if isinstance(left, nodes.Const):
                within.update(_strings(left))
            whole.update(_strings(right))
        else:
            texts = {*_strings(left), *_strings(right)}
            if texts and operand.op not in ("eq", "ne"):
                return False
            whole.update(texts)
        left = right
    return True


def _add(strings: set[str], arguments: Iterable[nodes.Node]) -> bool:
    """Adds constant arguments; False where one is none, so that it is not known what is looked for."""
    for argument in arguments:
        if isinstance(argument, nodes.Name) and argument.name.endswith("_token"):
            continue  # control tokens are looked for in any case
        if not isinstance(argument, nodes.Const):
            return False
        strings.update(_strings(argument))
    return True


def _strings(node: nodes.Node) -> set[str]:
    return {constant.value for constant in _constants(node) if isinstance(constant.value, str)}


def _constants(node: nodes.Node) -> list[Any]:
    return [node] if isinstance(node, nodes.Const) else list(node.find_all(nodes.Const))


class _Generation(Extension):
    """Transformers' tag around what an assistant says; its body is read like any other."""

    tags = {"generation"}  # noqa: RUF012  # as the base class has it

    def parse(self, parser: Any) -> list[nodes.Node]:
        next(parser.stream)
        body: list[nodes.Node] = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return body
