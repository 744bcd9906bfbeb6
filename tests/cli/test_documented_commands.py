"""Every `lockadapt …` that the documentation and the recipes show is a command as the command line reads it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from lockadapt.cli import app

ROOT = Path(__file__).resolve().parents[2]
GROUP: Any = typer.main.get_command(app)
BLOCK = re.compile(r"^```(?:bash|sh|shell)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SHOWN = ("…", "...")


def commands(file: Path) -> list[str]:
    """Command lines of shell blocks, or of a recipe's comments, continued lines joined."""
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".yaml":
        text = "\n".join(line[1:].strip() for line in text.splitlines() if line.startswith("#"))
    else:
        text = "\n".join(BLOCK.findall(text))
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    parts = (re.split(r"\s#\s|\s\|\s|\s&&\s|;", f"{line.strip()} ")[0] for line in lines)
    return [part.strip() for part in parts if part.startswith("lockadapt ")]


def parse(command: str) -> None:
    """Read a command line as the shell and the command would, without running it."""
    optional = re.sub(r"\[(--[^\]]*)\]", r"\1", command)  # `[--json]` may be left out
    name, *arguments = [word for word in shlex.split(optional)[1:] if word not in SHOWN]
    if name.startswith("-"):
        return
    verb = GROUP.commands[name]
    if hasattr(verb, "commands"):
        name, *arguments = arguments
        verb = verb.commands[name]
    verb.make_context(name, arguments)


SHOWING = [
    file
    for file in (*ROOT.glob("README*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "recipes").glob("*.yaml"))
    if commands(file)
]


@pytest.mark.parametrize("file", SHOWING, ids=lambda file: str(file.relative_to(ROOT)))
def test_shown_commands_parse(file: Path) -> None:
    for command in commands(file):
        try:
            parse(command)
        except Exception as error:
            pytest.fail(f"{command}: {type(error).__name__}: {error}")


def test_a_wrong_command_is_seen() -> None:
    with pytest.raises(Exception, match="unexpected extra argument"):
        parse("lockadapt merge runs/one merged/one")
