"""What the page shows: a section each, in order, only where a run has what it is about."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lockadapt.report.charts import Charts
from lockadapt.report.numbers import Row, changed, confusion, interval, is_right
from lockadapt.report.pictures import Thumbnails
from lockadapt.report.read import RunFiles
from lockadapt.runs.curves import before, cosine_name, loss_name

WALL, FOLLOWED_COLUMNS = 24, 6
EXACT, TEXTS = ("vqa", "dialogue"), ("vqa", "dialogue", "caption", "grounding")
"""Kinds of objectives whose answers are right or wrong as texts, and all whose answers are texts."""


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        name: says what it is in `--json`, and is its anchor.
        title: its heading.
        kind: which block of the template shows it.
        content: what that block reads.
    """

    name: str
    title: str
    kind: str
    content: Any


def sections_of(runs: Sequence[RunFiles], thumbnails: Thumbnails) -> list[Section]:
    """Gives the sections of a report about one run, or about several side by side.

    Args:
        runs: at least one.
        thumbnails: makes the pictures.

    Returns:
        Sections with something to show.
    """
    return [
        section
        for section in (
            *_setup(runs),
            *_curves(runs),
            *_scores(runs),
            *_predictions(runs, thumbnails),
            *_closing(runs, thumbnails),
        )
        if section.content
    ]


def _setup(runs: Sequence[RunFiles]) -> Iterator[Section]:
    flat = [_flat(run.recipe.model_dump(mode="json")) for run in runs]
    if len(runs) > 1:
        keys = [key for key in dict.fromkeys(key for keys in flat for key in keys) if key != "output"]
        rows = [[key, *(_text(values.get(key)) for values in flat)] for key in keys]
        differing = [row for row in rows if len(set(row[1:])) > 1]
        head = ["key", *(run.name for run in runs)]
        yield Section("differences", "How the recipes differ", "table", _table(head, differing))
    summary = [[run.name, *_summary(run)] for run in runs]
    head = ["run", "LLM", "vision tower or model", "trained", "quantization", "steps", "training time"]
    yield Section("overview", "What was trained", "table", _table(head, summary))
    for run in runs:
        if run.record is None:
            continue
        rows = [
            [stage.name, row.component, row.state, f"{row.parameters:,}", row.dtype]
            for stage in run.record.stages
            for row in stage.components
        ]
        head = ["stage", "component", "state", "parameters", "dtype"]
        proved = max(stage.locked for stage in run.record.stages)
        note = f"Lock proof: {proved:,} frozen tensors have the SHA-256 sums that they had before training."
        name = _named("What was locked", run, runs)
        yield Section("locks", name, "table", _table(head, rows, note))


def _curves(runs: Sequence[RunFiles]) -> Iterator[Section]:
    charts, starts = Charts(), runs[0].logged.starts if len(runs) == 1 else {}

    def chart(title: str, label: str, name_of: Any, log: bool = False) -> str:
        return charts.draw(
            title, label, {run.name: run.logged.curves(name_of) for run in runs}, starts, log=log
        )

    drawn = [
        ("Losses", chart("Loss by objective, training and validation", "loss (nats)", loss_name, log=True)),
        ("Learning rates", chart("Learning rates by part", "rate", _rate_name)),
        ("Gradient norms", chart("Gradient norm by objective", "norm", _norm_name, log=True)),
        ("Cosines", chart("Cosine between the objectives' gradients", "cosine", cosine_name)),
        ("Speed", chart("Samples a second", "samples/s", _only("samples_per_second", "samples/s"))),
        ("Waiting", chart("Share of the time spent on data", "share", _only("data_share", "data"))),
    ]
    yield Section("curves", "Curves", "charts", [pair for pair in drawn if pair[1]])


def _scores(runs: Sequence[RunFiles]) -> Iterator[Section]:
    rows = []
    for run in runs:
        for shown, objectives in run.scores.items():
            for objective, values in objectives.items():
                rows += [
                    [run.name, shown, objective, key, _text(value)]
                    for key, value in _flat(values).items()
                    if isinstance(value, (int, float, str))
                ]
    note = "“seeing” scores the model with its images, “blind” with the mean image in place of every image."
    head = ["run", "images", "objective", "score", "value"]
    yield Section("scores", "Scores", "table", _table(head, rows, note))
    intervals = []
    for run in runs:
        for objective, answers in _by_objective(run).items():
            if run.recipe.objectives[objective].kind in EXACT:
                mean, low, high = interval([is_right(row) for row in answers])
                cells = [f"{mean:.4f}", f"{low:.4f} to {high:.4f}", f"{len(answers):,}"]
                intervals.append([run.name, objective, *cells])
    head = ["run", "objective", "same text as the reference", "95 % interval (bootstrap)", "n"]
    yield Section("intervals", "How certain that is", "table", _table(head, intervals))


def _predictions(runs: Sequence[RunFiles], thumbnails: Thumbnails) -> Iterator[Section]:
    for run in runs:
        yield Section(
            "followed",
            _named("The same samples at every validation", run, runs),
            "followed",
            _followed(run, thumbnails),
        )
    if len(runs) > 1:
        for other in runs[1:]:
            better, worse = changed(runs[0].predictions, other.predictions)
            for name, which, rows in (("became-right", "right", better), ("became-wrong", "wrong", worse)):
                title = f"Wrong to right: {other.name} against {runs[0].name}"
                if which == "wrong":
                    title = f"Right to wrong: {other.name} against {runs[0].name}"
                content = _wall(rows, thumbnails, WALL)
                yield Section(name, f"{title} ({len(rows):,})", "wall", content)
    for run in runs:
        for objective, rows in _by_objective(run).items():
            exact = run.recipe.objectives[objective].kind in EXACT
            wrong = [row for row in rows if exact and not is_right(row)]
            title = _named(f"{objective}: wrong answers", run, runs)
            yield Section(f"wrong-{objective}", title, "wall", _wall(wrong, thumbnails, WALL))
            title = _named(f"{objective}: answers drawn at random", run, runs)
            yield Section(f"random-{objective}", title, "wall", _wall(rows, thumbnails, WALL // 2))
            if exact:
                answers, counts = confusion(rows)
                cells = [[answer, *map(str, line)] for answer, line in zip(answers, counts, strict=True)]
                head = ["expected \\ given", *answers, "other"]
                title = _named(f"{objective}: most frequent answers", run, runs)
                yield Section(f"confusion-{objective}", title, "table", _table(head, cells))


def _closing(runs: Sequence[RunFiles], thumbnails: Thumbnails) -> Iterator[Section]:
    for run in runs:
        drawn = sorted((run.folder / "samples").glob("*/*/*.png"))
        shown = [
            (f"{file.parent.parent.name}, {file.stem}", uri)
            for file in drawn[-4:]
            if (uri := thumbnails.of_picture(str(file)))
        ]
        yield Section("generated", _named("Generated images", run, runs), "pictures", shown)
    rows = []
    for run in runs:
        if run.record is not None:
            versions = ", ".join(f"{name} {version}" for name, version in run.record.versions.items())
            rows += [[run.name, "command", run.record.command], [run.name, "versions", versions]]
            rows += [
                [run.name, f"licence of the {source.part}", f"{source.source}: {source.said}"]
                for source in run.record.sources or ()
            ]
            rows += [
                [run.name, f"largest batch of {stage.name}", f"{stage.largest_batch_bytes / 2**20:,.0f} MiB"]
                for stage in run.record.stages
                if stage.largest_batch_bytes
            ]
    yield Section("provenance", "Where it comes from", "table", _table(["run", "what", "value"], rows))


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
    samples = []
    for answers in by_sample.values():
        last = list(answers.values())[-1]
        given = [answers.get(step) for step in shown]
        samples.append(
            {
                **_card(last, thumbnails),
                "answers": [(row["answer"], is_right(row)) if row else ("", None) for row in given],
            }
        )
    heads = [f"{stage} {step:,}" for stage, step in shown]
    rights = [
        sum(is_right(row) for row in run.followed if (row["stage"], row["step"]) == step) for step in shown
    ]
    return {"steps": list(zip(heads, rights, strict=True)), "samples": samples}


def _wall(rows: Sequence[Row], thumbnails: Thumbnails, number: int) -> list[dict[str, Any]]:
    """A few rows drawn by a fixed seed, so that a report does not change when it is made again."""
    chosen = random.Random(0).sample(list(rows), min(number, len(rows)))
    return [_card(row, thumbnails) for row in chosen]


def _card(row: Row, thumbnails: Thumbnails) -> dict[str, Any]:
    images = [thumbnails.of_file(image) for image in row["images"][:2]]
    return {
        "images": [image for image in images if image],
        **{key: str(row.get(key, "")) for key in ("question", "answer", "truth", "before")},
        "right": is_right(row),
    }


def _by_objective(run: RunFiles) -> dict[str, list[Row]]:
    rows: dict[str, list[Row]] = {}
    for row in run.predictions:
        objective = run.recipe.objectives.get(row.get("objective", ""))
        if objective is not None and objective.kind in TEXTS:
            rows.setdefault(row["objective"], []).append(row)
    return rows


def _summary(run: RunFiles) -> list[str]:
    model, record = run.recipe.model, run.record
    start = [model.llm or "", model.tower or ""] if model.vlm is None else ["", model.vlm]
    trained = ", ".join(sorted(record.trained)) if record else "still training"
    ended = [f"{record.steps:,}", f"{record.seconds:,.0f} s"] if record else ["", ""]
    return [*start, trained, model.quantization, *ended]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], note: str = "") -> dict[str, Any]:
    return {"head": list(head), "rows": [list(row) for row in rows], "note": note} if rows else {}


def _named(title: str, run: RunFiles, runs: Sequence[RunFiles]) -> str:
    return title if len(runs) == 1 else f"{title}: {run.name}"


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e-3 and value else f"{value:.4f}".rstrip("0").rstrip(".")
    return "–" if value is None else str(value)


def _rate_name(key: str) -> str | None:
    if key == "learning_rate":
        return "LoRA"
    return key.removesuffix("_learning_rate") if key.endswith("_learning_rate") else None


def _norm_name(key: str) -> str | None:
    return "all" if key == "grad_norm" else before("/grad_norm")(key)


def _only(wanted: str, name: str) -> Any:
    return lambda key: name if key == wanted else None
