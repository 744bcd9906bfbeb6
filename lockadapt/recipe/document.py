"""YAML text to plain values with the place of every value, and all that is wrong with the text at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lockadapt.errors import RecipeError, SafetyError
from lockadapt.recipe.former_keys import present_path, with_present_keys
from lockadapt.recipe.keys import dotted
from lockadapt.recipe.sections import KeyPath
from lockadapt.recipe.yaml12 import MAX_VALUES, PLAIN_TAGS, TAG, RefusedError, compose, scalar

MAX_BYTES = 1 << 20


@dataclass(frozen=True)
class Origin:
    """Where a value was written.

    `where` opens the line of a problem; `source` is its short form; `order` sorts problems. `key` is the key
    path that an override sets: it is already part of `where`, so a problem with just that key does not repeat
    it.
    """

    where: str
    source: str
    order: tuple[int, int]
    key: KeyPath | None = None


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, and where."""

    origin: Origin
    path: KeyPath
    text: str

    def __str__(self) -> str:
        if not self.path or self.path == self.origin.key:
            return f"{self.origin.where}: {self.text}"
        return f"{self.origin.where}: {dotted(self.path)}: {self.text}"


@dataclass
class Document:
    """Plain values, where each came from by key path, what is wrong, and notices by former key."""

    value: Any = None
    origins: dict[KeyPath, Origin] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    notices: dict[str, str] = field(default_factory=dict)

    def rename_former_keys(self) -> None:
        """Give every key its present name, and note once for each former name where it stands."""
        for path, origin in list(self.origins.items()):
            now = present_path(path)
            if now == path or now in self.origins:
                continue
            self.origins[now] = self.origins.pop(path)
            if now[-1] != path[-1]:
                self.note_former_key(path, origin)
        self.value = with_present_keys(self.value)

    def note_former_key(self, path: KeyPath, origin: Origin) -> None:
        """Note that a key is called otherwise now, once for each former name."""
        notice = f"{origin.where}: {dotted(path)} is now called {dotted(present_path(path))}"
        self.notices.setdefault(str(path[-1]), notice)


def read_text(path: Path) -> str:
    """The text of a recipe file.

    Raises RecipeError for what is no readable UTF-8 text file of at most `MAX_BYTES`.
    """
    try:
        if path.is_dir():
            raise RecipeError("is a folder, not a recipe", where=str(path), fix=_recipes_in(path))
        if not path.exists():
            raise RecipeError("no such file", where=str(path), fix=_recipes_in(path.parent))
        if not path.is_file():
            raise RecipeError("is not a regular file", where=str(path), fix="name a YAML file")
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise RecipeError(f"cannot be read: {reason}", where=str(path), fix="name a YAML file") from None
    if len(raw) > MAX_BYTES:
        raise RecipeError("is larger than 1 MiB", where=str(path), fix="name a recipe: a small YAML file")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError(
            f"is not UTF-8 text: byte 0x{raw[error.start]:02x}",
            where=f"{path}:{raw.count(10, 0, error.start) + 1}",
            fix="save it as UTF-8",
        ) from None


def parse(text: str, origin_at: Callable[[int], Origin], below: KeyPath = ()) -> Document:
    """Parse YAML text as plain values, and record the origin of each key.

    `origin_at` turns a line, from 1, into an origin; key paths start with `below`.

    Problems of the text are gathered in the document. Raises SafetyError for a tag that asks for a Python
    object.
    """
    document = Document()
    try:
        node = compose(text)
        if node is not None:
            document.value = _Walk(document, origin_at).value(node, below)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        shown = f"holds the control character U+{ord(text[error.position]):04X}"
        document.problems = [Problem(origin_at(line), (), shown)]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        document.problems = [Problem(origin_at(line), (), _syntax(error, text, line))]
    return document


class _Walk:
    """From YAML nodes to plain values; fills in the origins and problems of a document."""

    def __init__(self, document: Document, origin_at: Callable[[int], Origin]) -> None:
        self.document, self.origin_at, self.visits = document, origin_at, 0

    def value(self, node: yaml.Node, path: KeyPath, line: int | None = None) -> Any:
        """The plain value of a node. `line` is that of its key, if it has one."""
        self.visits += 1  # visits, not nodes: aliases of aliases multiply
        if self.visits > MAX_VALUES:
            raise RefusedError(f"more than {MAX_VALUES:,} values", node.start_mark)
        line = line or node.start_mark.line + 1
        self.document.origins[path] = self.origin_at(line)
        if isinstance(node, yaml.MappingNode) and node.tag == TAG + "map":
            return self.mapping(node, path)
        if isinstance(node, yaml.SequenceNode) and node.tag == TAG + "seq":
            return [self.value(item, (*path, number)) for number, item in enumerate(node.value)]
        if not isinstance(node, yaml.ScalarNode):
            return self.refused_tag(node, path, line)
        try:
            return scalar(node)
        except KeyError:
            return self.refused_tag(node, path, line)
        except ValueError as error:
            return self.problem(line, path, str(error))

    def mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        """The plain dict of a mapping node; its keys are unique texts."""
        values: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if key_node.tag not in PLAIN_TAGS:
                self.refused_tag(key_node, path, line)
            elif not isinstance(key_node, yaml.ScalarNode):
                self.problem(line, path, "a key is a list or a mapping; keys are text")
            elif key_node.tag != TAG + "str":
                self.problem(line, path, f"the key {key_node.value or 'null'} is not text; put it in quotes")
            elif key_node.value == "<<":
                self.problem(line, path, "merge keys (`<<`) are not supported; write the keys out")
            else:
                key = key_node.value
                if key in values:
                    self.problem(line, (*path, key), f"given twice (first on line {lines[key]})")
                lines.setdefault(key, line)
                values[key] = self.value(value_node, (*path, key), line)
        return values

    def refused_tag(self, node: yaml.Node, path: KeyPath, line: int) -> None:
        """Note a tag that is not one of plain values; raise SafetyError where it asks for a Python object."""
        tag = node.tag.replace(TAG, "!!")
        if tag.startswith("!!python"):
            raise SafetyError(
                f"the tag {tag} asks for a Python object",
                where=self.origin_at(line).where,
                fix="remove it: a recipe holds plain values only",
            )
        self.problem(line, path, f"the tag {tag} is not allowed: a recipe holds plain values only")

    def problem(self, line: int, path: KeyPath, text: str) -> None:
        """Note what is wrong with the value at a key path, and let None stand for it."""
        self.document.problems.append(Problem(self.origin_at(line), path, text))


def _syntax(error: yaml.MarkedYAMLError, text: str, line: int) -> str:
    """What is wrong with the YAML, in plain words where the cause is a common one."""
    problem = error.problem or "it cannot be parsed"
    if isinstance(error, RefusedError):
        return problem
    lines = text.splitlines()
    indents = [row[: len(row) - len(row.lstrip())] for row in lines[max(0, line - 2) : line]]
    if "'\\t'" in problem or any("\t" in indent for indent in indents):
        return "a tab is used for indentation; YAML wants spaces"
    if problem == "but found another document":
        return "a second document starts here (`---`); a recipe is one document"
    hint = ""
    if "mapping values are not allowed" in problem:
        hint = " (text with `: ` in it belongs in quotes; or the indentation is wrong)"
    elif "expected <block end>" in problem or "could not find expected ':'" in problem:
        hint = " (wrong indentation, a missing `:` or space after it, or an open quote or bracket)"
    elif "found unexpected end of stream" in problem:
        hint = " (a quote is not closed)"
    return f"not valid YAML: {problem}{hint}"


def _recipes_in(folder: Path) -> str:
    """Which recipes a folder holds, as advice."""
    names = sorted(path.name for path in folder.glob("*.y*ml"))[:12] if folder.is_dir() else []
    return f"recipes in {folder}: {', '.join(names)}" if names else "name a YAML file"
