"""A hostile case: files, a command, and how it must end."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.hostile.pictures import png

Content = str | bytes | Callable[[Path], None]
"""Of a file: text, bytes, or what makes it."""

ACCEPTED = 4, ("./llm", "does not exist")
"""How `check` ends where the data is good: the next thing that it opens is a model, which is not there."""


@dataclass(frozen=True)
class Case:
    """What is given to the command line, and how it must end.

    Attributes:
        group: what is attacked.
        what: the attack.
        code: expected exit code.
        words: all of them stand in the message.
        files: by name, relative to the folder that the command runs in.
        arguments: of the command; `recipe.yaml` is there unless `files` has one.
        source: changes to the source of the recipe's training rows.
        recipe: changes to the recipe.
    """

    group: str
    what: str
    code: int
    words: tuple[str, ...]
    files: Mapping[str, Content] = field(default_factory=dict)
    arguments: tuple[str, ...] = ("check", "recipe.yaml")
    source: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    kind: str = "vqa"

    def write(self, folder: Path) -> None:
        """Lay the files out."""
        if "recipe.yaml" not in self.files:
            (folder / "recipe.yaml").write_text(yaml.safe_dump(self.plain_recipe()))
        for name in ("0.png", "1.png"):
            (folder / name).write_bytes(png())
        for name, content in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if callable(content):
                path.unlink(missing_ok=True)
                content(path)
            elif isinstance(content, bytes):
                path.write_bytes(content)
            else:
                path.write_text(content, encoding="utf-8")

    def plain_recipe(self) -> dict[str, Any]:
        """The recipe as plain values."""
        source = {"format": "jsonl", "path": "rows.jsonl", **self.source}
        return {
            "model": {"llm": "./llm", "tower": "./tower"},
            "objectives": {self.kind: {"train": source}},
            **self.recipe,
        }


def row(**changes: Any) -> dict[str, Any]:
    """A good row with changes; None removes a column."""
    values = {"image": "0.png", "question": "what?", "answer": "red", **changes}
    return {key: value for key, value in values.items() if value is not ...}


def lines(*rows: Any) -> str:
    """JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in rows)
