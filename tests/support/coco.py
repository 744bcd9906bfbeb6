"""The COCO oracle as the scores take it: tokens, and what pycocoevalcap made of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class CocoOracle:
    """1,000 items: texts, their PTB tokens by Java, and the scores."""

    texts: list[str]
    reference_texts: list[list[str]]
    candidates: list[list[str]]
    references: list[list[list[str]]]
    scores: dict[str, Any]
    first_items: dict[str, list[float]]


def load_coco(folder: Path) -> CocoOracle:
    """Reads `captions.jsonl` and `expected.json`."""
    lines = (folder / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    expected = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    return CocoOracle(
        texts=[row["candidate"] for row in rows],
        reference_texts=[row["references"] for row in rows],
        candidates=[row["candidate_ptb"].split() for row in rows],
        references=[[text.split() for text in row["references_ptb"]] for row in rows],
        scores=expected["scores"],
        first_items=expected["first_20_items"],
    )
