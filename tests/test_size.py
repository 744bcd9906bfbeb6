"""Functions and files stay small enough to be read at once."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "lockadapt"
MOST_PARAMETERS = 6
MOST_LINES = 500


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """How many a call must or may give by position; options that need their names are not counted."""
    arguments = function.args
    given = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args)]
    required = [
        argument.arg
        for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
        if default is None
    ]
    return len([name for name in (*given, *required) if name not in ("self", "cls", "ctx")])


def exempt(file: Path, function: ast.FunctionDef | ast.AsyncFunctionDef, owner: str | None) -> bool:
    """Where others say what a signature looks like: options of a verb, autograd, and TRL's trainers."""
    verb = file.parent.name == "cli"
    autograd = function.name == "forward" and function.args.args[0].arg == "ctx"
    return verb or autograd or (owner, function.name) == ("GroundingTrainer", "__init__")


def test_functions_take_six_parameters_at_most() -> None:
    many = []
    for file in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        owners = {
            child: node.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ClassDef)
            for child in node.body
        }
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if not exempt(file, node, owners.get(node)) and parameters(node) > MOST_PARAMETERS:
                many.append(f"{file.relative_to(PACKAGE)}:{node.lineno}: {node.name}: {parameters(node)}")
    assert not many, "make one frozen dataclass of what belongs together:\n" + "\n".join(many)


def test_files_are_not_longer_than_a_reader_can_hold() -> None:
    lengths = {
        str(file.relative_to(PACKAGE)): len(file.read_text(encoding="utf-8").splitlines())
        for file in PACKAGE.rglob("*.py")
    }
    assert not {name: lines for name, lines in lengths.items() if lines > MOST_LINES}
