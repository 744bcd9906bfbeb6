"""Terms that were replaced by the field's own do not come back into documentation, messages and help."""

from __future__ import annotations

import ast
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LOCALS = {"found", "one", "room", "said", "place"}
"""Names that say nothing of what they hold; the keys of files that were written so are no locals."""
CODE = ("lockadapt", "tests", "scripts", "benchmarks", "examples")
REPLACED = {
    r"(?:class|-> |: )Parts\b(?!:)|parts_of|\bstock\(": "ModelLayout, layout_of, unwrap_model",
    r"[Ss]tock models?\b": "a Transformers model (a stock class, processor or folder is fine)",
    r"\bBench\b|EvaluationBench": "EvaluationContext",
    r"\bBody\b": "an architecture",
    r"\bsight\b(?<!out of sight)": "image sensitivity",
    r"\bas_trained\b|still\.py|widen\.py": "training_autocast, freeze_tower_mode, resize_vocabulary",
    r"class (Made|Change|Edit)\b": "CardFields, WeightUpdate, TensorWrite",
    r"DRAWING|set_drawing|_exact_row_tokens": "image generation, max_row_tokens",
    r"--codes\b(?!\", hidden=| is now called)": "--codebook-size",
    r"pieces\.py|useful\.py|dialects": "sentencepiece.py, ideal_flops.py, key_layouts.py",
    r"check_sight|BlindError": "check_image_sensitivity, ImageIgnoredError",
    r"\bplace_for\b|pick_dtype": "choose_device, resolve_dtype",
    r"Requantized|merge_any|FinishedRun": "QuantizationRoundTrip, merge_command, RunRecord",
    r"EnvironmentProblem": "SetupError",
    r"[Oo]ne body|the one body": "a single model",
    r"did not move by a bit": "bit-identical",
    r"right one among": "R@1 / R@5 / R@10",
    r"wants more than": "needs a higher learning rate than",
    r"the wording alone": "the text alone",
    r"[Tt]aking it elsewhere|^## Not there yet": "Export and serving, Limitations",
    r"[Oo]f what draws": "of the image-generation head",
    r"if they fit and pay": "if they fit and images are reused",
    r"Ask this and leave|Of Adam, at": "Ask one question and exit, Peak learning rate",
    r"\bis no adapter\b(?!:)": "not a PEFT adapter",
    r"hardly looks": "barely uses the image",
    r"Foretells": "Extrapolates",
    r"without a word": "silently",
    r"Nothing has bounds|note to nobody": "No bounded parameters., No-op.",
    r"nobody else's business": "a local path, not published",
}
PROSE = ("README.md", "CONTRIBUTING.md", "docs/*.md", "examples/*", "recipes/*.yaml", "lockadapt/**/*.py")


def _files() -> Iterator[Path]:
    for pattern in PROSE:
        yield from sorted(ROOT.glob(pattern))


def test_every_place_is_read() -> None:
    places = {str(file.relative_to(ROOT)).split("/")[0] for file in _files()}
    assert places == {"README.md", "CONTRIBUTING.md", "docs", "examples", "recipes", "lockadapt"}


@pytest.mark.parametrize("term", REPLACED)
def test_replaced_terms_stay_replaced(term: str) -> None:
    places = []
    for file in _files():
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            if re.search(term, line):
                places.append(f"{file.relative_to(ROOT)}:{number}: {line.strip()}")
    assert not places, f"write {REPLACED[term]!r}:\n" + "\n".join(places)


def _named(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Lines and names of parameters and of whatever is assigned, but not of a class's own fields."""
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    fields = {line.target for owner in classes for line in owner.body if isinstance(line, ast.AnnAssign)}
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node not in fields:
            yield node.lineno, node.id


def test_locals_say_what_they_hold() -> None:
    places = set()
    for folder in CODE:
        for file in sorted((ROOT / folder).rglob("*.py")):
            for line, name in _named(ast.parse(file.read_text(encoding="utf-8"))):
                if name in LOCALS:
                    places.add(f"{file.relative_to(ROOT)}:{line}: {name}")
    assert not places, "name what it holds:\n" + "\n".join(sorted(places))


def test_help_and_documentation_call_models_transformers_models() -> None:
    """`stock` is a word for code; users read of Transformers models, folders and classes."""
    places = []
    for file in _files():
        text = file.read_text(encoding="utf-8")
        if file.suffix == ".md":
            lines = enumerate(text.splitlines(), 1)
        elif file.parent == ROOT / "lockadapt" / "cli":
            with file.open("rb") as stream:
                lines = iter(
                    [
                        (t.start[0], t.string)
                        for t in tokenize.tokenize(stream.readline)
                        if t.type == tokenize.STRING
                    ]
                )
        else:
            continue
        places += [
            f"{file.relative_to(ROOT)}:{number}"
            for number, line in lines
            if re.search(r"\bstock\b(?!_)", line)
        ]
    assert not places
