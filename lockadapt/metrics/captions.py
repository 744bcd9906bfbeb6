"""Scores captions given as plain text, by the three scores that need no Java."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lockadapt.metrics.bleu import corpus_bleu
from lockadapt.metrics.cider import cider_d
from lockadapt.metrics.pairs import check_pairs
from lockadapt.metrics.ptb import tokenize
from lockadapt.metrics.rouge import rouge_l


def score_captions(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Score one caption an image with CIDEr-D, BLEU-4 and ROUGE-L after PTB tokenisation.

    CIDEr-D is in 0..10, and 0 when there is one image only (see `cider_d`); BLEU-4 and ROUGE-L are in 0..1.

    Args:
        candidates: one caption an image, as text.
        references: every accepted caption of the same image, at least one.

    Returns:
        `{"cider", "bleu4", "rouge_l", "n", "tokenizer": "ptb-py"}`.

    Raises:
        DataError: lengths differ, nothing to score, or an image without references.
    """
    check_pairs(candidates, references)
    own = [tokenize(text) for text in candidates]
    accepted = [[tokenize(text) for text in texts] for texts in references]
    return {
        "cider": sum(cider_d(own, accepted)) / len(own),
        "bleu4": corpus_bleu(own, accepted)[3],
        "rouge_l": sum(rouge_l(own, accepted)) / len(own),
        "n": len(own),
        "tokenizer": "ptb-py",
    }
