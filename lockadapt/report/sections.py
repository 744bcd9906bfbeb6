"""What the page shows: a section each, in order, only where a run has what it is about."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lockadapt.report.charts import Charts
from lockadapt.report.numbers import EXACT, interval, is_right
from lockadapt.report.pictures import Thumbnails
from lockadapt.report.predictions import by_objective, prediction_sections
from lockadapt.report.read import RunFiles
from lockadapt.report.section import Section, named, run_table, table
from lockadapt.runs.curves import before, cosine_name, loss_name, reward_name

LENGTH = "completions/mean_length"


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
            *_tokens(runs),
            *_curves(runs),
            *_rewards(runs),
            *_scores(runs),
            *prediction_sections(runs, thumbnails),
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
        yield Section("differences", "How the recipes differ", "table", table(head, differing))
    summary = [[run.name, *_summary(run)] for run in runs]
    head = ["run", "LLM", "vision tower or model", "trained", "quantization", "steps", "training time"]
    yield Section("overview", "What was trained", "table", run_table(runs, head, summary))
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
        name = named("What was locked", run, runs)
        yield Section("locks", name, "table", table(head, rows, note))


def _tokens(runs: Sequence[RunFiles]) -> Iterator[Section]:
    for run in runs:
        content = [(objective, row) for objective, rows in run.tokens.items() for row in rows]
        yield Section("tokens", named("What is learned, token by token", run, runs), "tokens", content)


def _curves(runs: Sequence[RunFiles]) -> Iterator[Section]:
    charts, starts = Charts(), runs[0].logged.starts if len(runs) == 1 else {}

    def chart(title: str, label: str, name_of: Any, log: bool = False) -> str:
        return charts.draw(
            title, label, {run.name: run.logged.curves(name_of) for run in runs}, starts, log=log
        )

    drawn = [
        ("Losses", chart("Loss by objective, training and validation", "loss (nats)", loss_name, log=True)),
        ("Rewards", chart("Rewards, of training and validation rows", "reward", reward_name)),
        ("KL", chart("KL from the start of the stage", "nats per token", _only("kl", "KL"))),
        ("Answer lengths", chart("Mean length of sampled answers", "tokens", _only(LENGTH, "tokens"))),
        ("Learning rates", chart("Learning rates by part", "rate", _rate_name)),
        ("Gradient norms", chart("Gradient norm by objective", "norm", _norm_name, log=True)),
        ("Cosines", chart("Cosine between the objectives' gradients", "cosine", cosine_name)),
        ("Speed", chart("Samples a second", "samples/s", _only("samples_per_second", "samples/s"))),
        ("Waiting", chart("Share of the time spent on data", "share", _only("data_share", "data"))),
    ]
    yield Section("curves", "Curves", "charts", [pair for pair in drawn if pair[1]])


def _rewards(runs: Sequence[RunFiles]) -> Iterator[Section]:
    rows = []
    for run in runs:
        for stage in run.record.stages if run.record is not None else ():
            change, perplexity = stage.held_out_change, stage.text_perplexity
            if change is None or perplexity is None:
                continue
            scores = [f"{value:.4f}" for value in (change.before, change.after)]
            interval = f"{change.low:+.4f} to {change.high:+.4f}"
            texts = f"{perplexity.before:.2f} to {perplexity.after:.2f}"
            rows.append([run.name, stage.name, change.measure, *scores, interval, f"{change.n:,}", texts])
    head = ["run", "stage", "of validation rows", "before", "after", "change (95 %)", "n", "text perplexity"]
    yield Section("rewards", "What rewards and preferences changed", "table", run_table(runs, head, rows))


def _scores(runs: Sequence[RunFiles]) -> Iterator[Section]:
    rows = []
    for run in runs:
        seeing, blind = (_score_texts(run.scores.get(shown, {})) for shown in ("seeing", "blind"))
        rows += [
            [run.name, *key, seeing.get(key, ""), blind.get(key, "")]
            for key in dict.fromkeys([*seeing, *blind])
        ]
    note = "Seeing: scored with its images. Blind: with the mean image in place of every image."
    head = ["run", "objective", "score", "seeing", "blind"]
    yield Section("scores", "Scores", "table", run_table(runs, head, rows, note))
    intervals = []
    for run in runs:
        for objective, answers in by_objective(run).items():
            if run.recipe.objectives[objective].kind in EXACT:
                mean, low, high = interval([is_right(row) for row in answers])
                cells = [f"{mean:.4f}", f"{low:.4f} to {high:.4f}", f"{len(answers):,}"]
                intervals.append([run.name, objective, *cells])
    head = ["run", "objective", "same text as the reference", "95 % interval (bootstrap)", "n"]
    yield Section("intervals", "How certain that is", "table", run_table(runs, head, intervals))


def _closing(runs: Sequence[RunFiles], thumbnails: Thumbnails) -> Iterator[Section]:
    for run in runs:
        drawn = sorted((run.folder / "samples").glob("*/*/*.png"))
        shown = [
            (f"{file.parent.parent.name}, {file.stem}", uri)
            for file in drawn[-4:]
            if (uri := thumbnails.of_picture(str(file)))
        ]
        yield Section("generated", named("Generated images", run, runs), "pictures", shown)
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
    yield Section(
        "provenance", "Where it comes from", "table", run_table(runs, ["run", "what", "value"], rows)
    )


def _summary(run: RunFiles) -> list[str]:
    model, record = run.recipe.model, run.record
    start = [model.llm or "", model.tower or ""] if model.vlm is None else ["", model.vlm]
    trained = ", ".join(sorted(record.trained)) if record else "still training"
    ended = [f"{record.steps:,}", f"{record.seconds:,.0f} s"] if record else ["", ""]
    return [*start, trained, model.quantization, *ended]


def _score_texts(scores: Mapping[str, Any]) -> dict[tuple[str, str], str]:
    return {
        (objective, key): _text(value)
        for objective, values in scores.items()
        for key, value in _flat(values).items()
        if isinstance(value, (int, float, str))
    }


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
