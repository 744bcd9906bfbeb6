"""The first training rows as tokens, for the report: what is only read, what is learned, where images are."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lockadapt.data.encode import IGNORED, Encoded, Encoder
from lockadapt.files import write_json
from lockadapt.runs import kept_json

TOKENS = "tokens.json"
ROWS, LENGTH = 2, 200
"""Rows of each objective, and tokens of a row, that are kept."""


def write_tokens(folder: Path, encoder: Encoder, rows: Mapping[str, Sequence[Encoded]]) -> None:
    """Keeps the first rows of objectives in a run folder, beside those of earlier stages.

    Args:
        folder: of the run.
        encoder: of the run.
        rows: encoded training rows by objective.
    """
    file = folder / TOKENS
    known = kept_json.TOKENS.read(file, {})
    made = {name: [_marked(row, encoder) for row in items[:ROWS]] for name, items in rows.items()}
    write_json(file, {**known, **made})


def _marked(row: Encoded, encoder: Encoder) -> list[list[str]]:
    """Texts of a row's tokens, each with `image`, `read` or `learned`; tokens of an image are counted."""
    ids, labels = row.input_ids.tolist(), row.labels.tolist()
    kinds = [
        "image" if token == encoder.image_token_id else "read" if label == IGNORED else "learned"
        for token, label in zip(ids, labels, strict=True)
    ]
    texts = encoder.tokenizer.convert_ids_to_tokens(ids)
    marked: list[list[str]] = []
    for kind, group in itertools.groupby(zip(kinds, texts, strict=True), lambda pair: pair[0]):
        parts = [text for _, text in group]
        marked += [[f"image × {len(parts)}", kind]] if kind == "image" else [[text, kind] for text in parts]
    return marked[:LENGTH]


def read_tokens(folder: Path) -> dict[str, list[Any]]:
    """What `write_tokens` wrote; nothing for runs without."""
    return kept_json.TOKENS.read(folder / TOKENS, {})
