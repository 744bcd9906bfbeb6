"""Sections of predictions beside their pictures: followed, changed between runs, wrong, random, retrieved."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lockadapt.report.numbers import EXACT, Row, changed, confusion, is_right
from lockadapt.report.pictures import Thumbnails
from lockadapt.report.read import RunFiles
from lockadapt.report.section import Section, named, table

WALL, FOLLOWED_COLUMNS, RETRIEVED = 24, 6, 8
TEXTS = (*EXACT, "caption", "grounding")
"""Kinds of objectives whose answers are texts."""


def prediction_sections(runs: Sequence[RunFiles], thumbnails: Thumbnails) -> Iterator[Section]:
    """Followed samples, what changed between runs, and walls of answers; see `sections_of`."""
    for run in runs:
        yield Section(
            "followed",
            named("The same samples at every validation", run, runs),
            "followed",
            _followed(run, thumbnails),
        )
    if len(runs) > 1:
        for other in runs[1:]:
            better, worse = changed(runs[0].predictions, other.predictions)
            ways = (("became-right", "Wrong to right", better), ("became-wrong", "Right to wrong", worse))
            for name, way, rows in ways:
                title = f"{way}: {other.name} against {runs[0].name} ({len(rows):,})"
                yield Section(name, title, "wall", _wall(rows, thumbnails))
    for run in runs:
        for objective, rows in by_objective(run).items():
            exact = run.recipe.objectives[objective].kind in EXACT
            wrong = [row for row in rows if exact and not is_right(row)]
            title = named(f"{objective}: wrong answers", run, runs)
            yield Section(f"wrong-{objective}", title, "wall", _wall(wrong, thumbnails))
            title = named(f"{objective}: answers drawn at random", run, runs)
            yield Section(f"random-{objective}", title, "wall", _wall(rows, thumbnails, WALL // 2, exact))
            if exact:
                answers, counts = confusion(rows)
                cells = [[answer, *map(str, line)] for answer, line in zip(answers, counts, strict=True)]
                head = ["expected \\ given", *answers, "other"]
                title = named(f"{objective}: most frequent answers", run, runs)
                yield Section(f"confusion-{objective}", title, "table", table(head, cells))
        title = named("Retrieval: the nearest images to texts", run, runs)
        yield Section("retrieval", title, "retrieval", _retrieved(run, thumbnails))


def _followed(run: RunFiles, thumbnails: Thumbnails) -> dict[str, Any]:
    """Samples as rows, validations as columns; the first, the last and some between if there are many."""
    steps = list(dict.fromkeys((row["stage"], row["step"]) for row in run.followed))
    if not steps:
        return {}
    every = max(1, (len(steps) - 1) // (FOLLOWED_COLUMNS - 1))
    shown = list(dict.fromkeys([*steps[::every][: FOLLOWED_COLUMNS - 1], steps[-1]]))
    by_sample: dict[tuple[str, str, str], dict[Any, Row]] = {}
    for row in run.followed:
        key = (row["objective"], row["where"], row["question"])
        by_sample.setdefault(key, {})[row["stage"], row["step"]] = row
    exact = {name: objective.kind in EXACT for name, objective in run.recipe.objectives.items()}
    samples = []
    for answers in by_sample.values():
        last = list(answers.values())[-1]
        given = [answers.get(step) for step in shown]
        samples.append(
            {
                **_card(last, thumbnails),
                "answers": [_verdict(row, exact) if row else None for row in given],
            }
        )
    heads = [f"{stage} {step:,}" for stage, step in shown]
    counts = []
    for step in shown:
        verdicts = [_verdict(row, exact)[1] for row in run.followed if (row["stage"], row["step"]) == step]
        judged = [verdict for verdict in verdicts if verdict is not None]
        counts.append(f"{sum(judged)} of {len(judged)} right" if judged else "")
    return {"steps": list(zip(heads, counts, strict=True)), "samples": samples}


def _verdict(row: Row, exact: Mapping[str, bool]) -> tuple[str, bool | None]:
    """The answer, and whether it is right where its objective is judged by the text."""
    return row["answer"], is_right(row) if exact.get(row["objective"]) else None


def _wall(
    rows: Sequence[Row], thumbnails: Thumbnails, number: int = WALL, exact: bool = True
) -> list[dict[str, Any]]:
    """A few rows drawn by a fixed seed, so that a report does not change when it is made again."""
    chosen = random.Random(0).sample(list(rows), min(number, len(rows)))
    return [_card(row, thumbnails, exact) for row in chosen]


def _card(row: Row, thumbnails: Thumbnails, exact: bool = True) -> dict[str, Any]:
    images = [thumbnails.of_file(image) for image in row["images"][:2]]
    return {
        "images": [image for image in images if image],
        **{key: str(row.get(key, "")) for key in ("question", "answer", "truth", "before")},
        "right": is_right(row) if exact else None,
    }


def _retrieved(run: RunFiles, thumbnails: Thumbnails) -> list[dict[str, Any]]:
    """Texts, each with the pictures that are nearest to it; right are those that bear that text."""
    rows = [row for row in run.predictions if isinstance(row.get("truth"), list) and row["images"]]
    chosen = random.Random(0).sample(rows, min(RETRIEVED, len(rows)))
    return [
        {
            "query": str(row["question"]),
            "results": [(thumbnails.of_file(image), image in row["truth"]) for image in row["images"]],
        }
        for row in chosen
    ]


def by_objective(run: RunFiles) -> dict[str, list[Row]]:
    """Predictions of objectives whose answers are texts."""
    rows: dict[str, list[Row]] = {}
    for row in run.predictions:
        objective = run.recipe.objectives.get(row.get("objective", ""))
        if objective is not None and objective.kind in TEXTS:
            rows.setdefault(row["objective"], []).append(row)
    return rows
