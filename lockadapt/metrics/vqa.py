"""Scores short answers: the official VQA v2 accuracy where ten people answered, exact match elsewhere."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any

from lockadapt.errors import DataError
from lockadapt.metrics.pairs import check_pairs

ANNOTATORS = 10


def score_answers(
    answers: Sequence[str], references: Sequence[Sequence[str]], answer_types: Sequence[str | None]
) -> dict[str, Any]:
    """Score answers by VQA accuracy or exact match, in total and by answer type.

    A question with at least ten references is scored by `vqa_accuracy`, any other by `exact_match`. Questions
    without a type count in "accuracy" alone; "by_answer_type" is sorted by name.

    Args:
        answers: one answer a question.
        references: the accepted answers to the same question.
        answer_types: the type of the same question, or None.

    Returns:
        `{"accuracy", "by_answer_type", "n"}`, accuracies in 0..1.

    Raises:
        DataError: lengths differ, nothing to score, or a question without references.
    """
    check_pairs(answers, references)
    if len(answer_types) != len(answers):
        raise DataError(
            f"{len(answers)} answers, but {len(answer_types)} answer types",
            where="scoring",
            fix="give one answer type, or None, for each answer",
        )
    scores = answer_scores(answers, references)
    groups: dict[str, list[float]] = {}
    for kind, score in zip(answer_types, scores, strict=True):
        if kind is not None:
            groups.setdefault(kind, []).append(score)
    return {
        "accuracy": sum(scores) / len(scores),
        "by_answer_type": {kind: sum(group) / len(group) for kind, group in sorted(groups.items())},
        "n": len(scores),
    }


def answer_scores(answers: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """Score each answer: `vqa_accuracy` where there are at least ten references, `exact_match` elsewhere.

    Args:
        answers: one answer a question.
        references: the accepted answers to the same question.

    Returns:
        One score a question, in 0..1.

    Raises:
        DataError: lengths differ, nothing to score, or a question without references.
    """
    check_pairs(answers, references)
    return [
        vqa_accuracy([answer], [accepted])[0]
        if len(accepted) >= ANNOTATORS
        else exact_match(answer, accepted)
        for answer, accepted in zip(answers, references, strict=True)
    ]


def vqa_accuracy(answers: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """Compute the official VQA v2 accuracy of each question; the published score is 100 times their mean.

    Mean over leaving out each person of min(people left who gave this answer / 3, 1). Both sides are
    normalised (`normalize_answer`) only if the people disagree: where all gave the same answer, only that
    very string, white space at its ends aside, is right.

    Args:
        answers: one answer a question.
        references: at least ten people's answers to the same question.

    Returns:
        One accuracy a question, in 0..1.

    Raises:
        DataError: lengths differ, nothing to score, or fewer than ten references.

    Source: GT-Vision-Lab/VQA `vqaEval.py`.
    """
    check_pairs(answers, references)
    for row, people in enumerate(references):
        if len(people) < ANNOTATORS:
            raise DataError(
                f"the official accuracy needs {ANNOTATORS} people's answers, there are {len(people)}",
                where=f"row {row} (counted from 0)",
                fix="score it by `exact_match`, as `score_answers` does",
            )
    return [_accuracy(answer, people) for answer, people in zip(answers, references, strict=True)]


def exact_match(answer: str, references: Sequence[str]) -> float:
    """Compare an answer with its references, normalised.

    Both sides are Unicode-composed (NFC) and case-folded, runs of white space become one space, and white
    space and `. , ! ? ; : …` at the end are removed, unless nothing else is there.

    Args:
        answer: the answer.
        references: the accepted answers.

    Returns:
        1.0 if the answer equals a reference, else 0.0.

    Raises:
        DataError: no reference, or a string instead of a list of them.
    """
    check_pairs([answer], [references])
    return float(_folded(answer) in {_folded(reference) for reference in references})


def normalize_answer(text: str) -> str:
    """The official normalisation: punctuation, case, number words, articles, contractions, in this order.

    Its oddities are kept, since published scores contain them. A punctuation mark becomes a space, but
    vanishes if it stands next to a space anywhere in the text, or if the text holds a comma between digits. A
    full stop vanishes unless a digit follows (the code means to look at the digit before it as well, but has
    a typing error), and only the first 32 do (a flag is passed as the count).
    """
    drop_all = re.search(r"\d,\d", text) is not None
    out = text
    for mark in _PUNCTUATION:
        drop = drop_all or f"{mark} " in text or f" {mark}" in text
        out = out.replace(mark, "" if drop else " ")
    out = re.sub(r"\.(?!\d)", "", out, count=32)
    words = (_NUMBERS.get(word, word) for word in out.lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in ("a", "an", "the"))


def _accuracy(answer: str, people: Sequence[str]) -> float:
    answer, people = _flat(answer), [_flat(given) for given in people]
    if len(set(people)) > 1:
        answer, people = normalize_answer(answer), [normalize_answer(given) for given in people]
    same = Counter(people)[answer]
    credit = [min(1.0, (same - (given == answer)) / 3) for given in people]
    return sum(credit) / len(credit)


def _flat(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _folded(text: str) -> str:
    plain = " ".join(unicodedata.normalize("NFC", text).casefold().split())
    return plain.rstrip(" .,!?;:…") or plain


_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_NUMBERS = {"none": "0"} | {
    word: str(number)
    for number, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
}
# Each is also recognised with exactly one of its apostrophes missing, which is the whole of the official
# table apart from one inverted entry and from keys in capitals, which lower-cased text never meets.
_CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've
needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've
somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll
that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've
weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've
why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're
you've
"""
_CONTRACTIONS = {"somebody'd": "somebodyd"} | {
    whole[:i] + whole[i + 1 :]: whole
    for whole in _CONTRACTED.split()
    for i, c in enumerate(whole)
    if c == "'"
}
