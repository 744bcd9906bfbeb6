"""Terms that were replaced by the field's own do not come back into documentation, messages and help."""

from __future__ import annotations

import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
REPLACED = {
    r"parts_of|\bstock\(": "layout_of, unwrap_model",
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
