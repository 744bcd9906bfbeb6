"""`lockadapt check`: everything that can be known without training, and the first samples token by token."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.text import Text

from lockadapt.architectures import inputs_of
from lockadapt.architectures.base import unwrap_model
from lockadapt.building.cache_trial import rows_to_try
from lockadapt.building.experiment import Experiment, build_experiment
from lockadapt.building.model import add_adapters, draft_model
from lockadapt.console import Reporter, printable
from lockadapt.data.encode import IGNORED, Encoded, Encoder, EncodeReport
from lockadapt.data.ledger import ImageLedger
from lockadapt.data.mixture import by_source
from lockadapt.data.model_encoder import model_encoder
from lockadapt.data.scan import scan_images
from lockadapt.data.whole_image import crop_note
from lockadapt.errors import DataError
from lockadapt.models.chat_template import thinking_off
from lockadapt.planning.admission import admit_rows
from lockadapt.recipe.schema import Recipe
from lockadapt.tuning.adapters import default_parts, set_trainable
from lockadapt.tuning.experts import experts_note
from lockadapt.tuning.locks import component_table, component_text, table_json


def check_recipe(recipe: Recipe, reporter: Reporter, shown: int = 3) -> dict[str, Any]:
    """Loads components and rows, opens every image, encodes every row, and shows what will be learned.

    Args:
        recipe: read and valid.
        reporter: is told what was found.
        shown: samples of each objective that are shown token by token, learned tokens in colour.

    Returns:
        `{"ok": True, "components", "objectives": {name: {part: {"rows", "images", "tokens", …}}}, "steps",
        "admission"}`; the last is what was measured of a model that nobody described, on the first rows.

    Raises:
        LockadaptError: whatever would stop the run.
    """
    experiment = build_experiment(recipe)  # also reads the closed lists of answers, which may be wrong
    parts = {part: experiment.samples(part, note=reporter.note) for part in ("train", "validation", "test")}
    data = experiment.data
    everything = [s for rows in parts.values() for samples in rows.values() for s in samples]
    scan = scan_images(
        everything,
        data.max_pixels,
        data.on_bad_image,
        data.max_bad_fraction,
        progress=reporter.counted("opening images"),
        ledger=ImageLedger(experiment.features.cache, recall=False),
    )
    bad = {entry.key for entry in scan.bad}
    for entry in scan.bad[:20]:
        reporter.note(f"bad image, its samples are left out: {entry.where}: {entry.reason}")
    model, processor = draft_model(experiment)
    crop = crop_note(processor) if recipe.model.vlm else None
    if crop:
        reporter.note(crop)
    model, objectives = add_adapters(experiment, model, processor), experiment.objectives
    experts = experts_note(model) if experiment.lora is not None else None
    if experts:
        reporter.note(experts)
    for objective in objectives.values():
        objective.prepare(model)
    set_trainable(
        model,
        default_parts(model, [objective.parts for objective in objectives.values()]),
        lock_text=experiment.model.lock_text,
    )
    table = component_table(model)
    reporter.note(component_text(table))
    encoder = model_encoder(model, processor, data.max_length, data.allow_special_tokens)
    dialogue = describe_dialogue(encoder, model)
    if dialogue:
        reporter.note(dialogue_text(dialogue))
    counts: dict[str, dict[str, Any]] = {}
    for part, by_objective in parts.items():
        for name, samples in by_objective.items():
            good = [s for s in samples if not bad & {image.key for image in s.images}]
            report = objectives[name].encode(encoder, good, reporter.counted(f"encoding {name} {part}"))
            if not report.encoded:
                raise DataError(
                    "no sample is left", where=f"objectives.{name}.{part}", fix="raise data.max_length"
                )
            counts.setdefault(name, {})[part] = _counted(report, f"{name} {part}", encoder, reporter)
            if part == "train":
                counts[name][part]["sources"] = _sources(experiment, name, report, reporter)
            for item in report.encoded[: shown if part == "train" else 0]:
                show_tokens(item, encoder, reporter)
    measured = [s for samples in parts["train"].values() for s in samples]
    shown_rows = rows_to_try([s for s in measured if not bad & {image.key for image in s.images}])
    admission = admit_rows(model, processor, shown_rows, reporter, experiment.projector_trains)
    rows = {name: entry["train"]["rows"] for name, entry in counts.items()}
    stages = experiment.stages(rows)
    for stage in stages:
        size = stage.micro_batch * stage.accumulation
        reporter.note(
            f"stage {stage.name}: {stage.steps:,} steps of {size:g} samples train {', '.join(stage.train)}"
        )
    return {
        "ok": True,
        "components": table_json(table),
        "objectives": counts,
        "bad_images": len(scan.bad),
        "dialogue": dialogue,
        "experts": experts,
        "crop": crop,
        "admission": [asdict(finding) for finding in admission],
        "steps": sum(stage.steps for stage in stages),
    }


def describe_dialogue(encoder: Encoder, model: Any) -> dict[str, Any] | None:
    """What ends an answer, what generation stops at, whether thoughts are off; None without a chat template.

    Args:
        encoder: of the run.
        model: whose generation settings say where it stops.

    Returns:
        `{"ends", "appended", "stops", "thinking_off"}`: `ends` are the tokens that an answer is learned with;
        `appended` says that the template writes none, so that the tokenizer's eos is put there.
    """
    if inputs_of(encoder.processor).apart:
        return None
    stops = unwrap_model(model).generation_config.eos_token_id
    ids = stops if isinstance(stops, list) else [stops]
    dialogue = encoder.dialogue
    return {
        "ends": list(dialogue.ends) or [dialogue.end],
        "appended": not dialogue.ends,
        "stops": encoder.tokenizer.convert_ids_to_tokens([token for token in ids if token is not None]),
        "thinking_off": thinking_off(encoder.tokenizer, dialogue.template),
    }


def dialogue_text(described: dict[str, Any]) -> str:
    """What `describe_dialogue` found, for people."""
    ends, stops = ("".join(described["ends"]), ", ".join(described["stops"]))
    how = (
        "appended: the chat template writes no end"
        if described["appended"]
        else "written by the chat template"
    )
    thinking = "; prompts close the model's thinking" if described["thinking_off"] else ""
    return f"answers end with {ends} ({how}), generation stops at {stops}{thinking}"


def show_tokens(item: Encoded, encoder: Encoder, reporter: Reporter) -> None:
    """One sample: learned tokens in green (and between brackets, also without colour), images counted."""
    line, images = Text(), 0
    if encoder.beside and item.images:
        line.append(f"<image x{len(item.images)}, beside the text> ", style="cyan")
    for token, label in zip(item.input_ids.tolist(), item.labels.tolist(), strict=True):
        if token == encoder.image_token_id:
            images += 1
            continue
        if images:
            line.append(f"<image x{images}>", style="cyan")
            images = 0
        text = printable(encoder.tokenizer.convert_ids_to_tokens(token).replace("\n", "\\n"))
        if label == IGNORED:
            line.append(text + " ", style="dim")
        else:
            line.append(f"[{text}] ", style="bold green")
    reporter.console.print(Text(printable(f"  {item.sample.where}: ")).append_text(line), soft_wrap=True)


def _sources(
    experiment: Experiment, name: str, report: EncodeReport, reporter: Reporter
) -> list[dict[str, Any]]:
    """Say what each source of an objective's training rows gives; also as values for JSON."""
    parts = by_source(report.encoded, len(experiment.objectives[name].sources))
    told = experiment.source_rows(name, [len(own) for own in parts])
    for source in told if len(told) > 1 else ():
        reporter.note(f"  {source['path']}: {source['rows']:,} rows, {source['share']:.1%} of the samples")
    return told


def _counted(report: EncodeReport, heading: str, encoder: Encoder, reporter: Reporter) -> dict[str, Any]:
    """Say what encoding the rows of one objective and part did; also as values for JSON."""
    images = len({image.key for item in report.encoded for image in item.images})
    lengths = [len(item.input_ids) for item in report.encoded]
    reporter.note(
        f"{heading}: {len(report.encoded):,} rows, {images:,} images ({encoder.image_tokens} tokens each), "
        f"{report.tokens:,} tokens (longest {max(lengths):,} of {encoder.max_length:,}), "
        f"{report.label_tokens:,} learned, "
        f"{len(report.cut)} cut, {len(report.dropped)} dropped"
    )
    interleaved = sum(any(any(turn.places) for turn in item.sample.turns) for item in report.encoded)
    if interleaved:
        reporter.note(f"  {interleaved:,} rows show images between or behind their texts")
    if report.merged_boundaries:
        reporter.note(
            f"  {len(report.merged_boundaries)} answers share their first token with the prompt, e.g. "
            f"{report.merged_boundaries[0]}: generation will start differently from training"
        )
    return {
        "rows": len(report.encoded),
        "images": images,
        "interleaved": interleaved,
        "tokens": report.tokens,
        "learned_tokens": report.label_tokens,
        "longest": max(lengths),
        "cut": len(report.cut),
        "dropped": len(report.dropped),
        "merged_boundaries": len(report.merged_boundaries),
    }
