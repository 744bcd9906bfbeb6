"""The model card of a run, or of a folder made from it: numbers from `run.json` and `evaluation.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lockadapt.files import write_text
from lockadapt.models.origins import source_name
from lockadapt.recipe.schema import Recipe
from lockadapt.runs.origins import card_data, sources_section
from lockadapt.runs.record import RunRecord
from lockadapt.runs.run import Run


def write_card(run: Run) -> None:
    """Writes `README.md` into a run folder."""
    write_text(run.folder / "README.md", card_text(run))


@dataclass(frozen=True)
class CardFields:
    """What the card of a folder that was made from a run says instead of the run's files.

    Attributes:
        library, task: as the Hub calls them.
        section: lines of Markdown.
        adapter: it holds what was trained, but not what it belongs on.
    """

    library: str
    task: str
    section: tuple[str, ...]
    adapter: bool = False


def card_text(run: Run, made: CardFields | None = None) -> str:
    """The card of a run; with `made`, that of a folder made from it."""
    recipe, record, origins = run.recipe, run.record, run.origins()
    relation = base_relation(recipe, adapter=made is None or made.adapter)
    library, task = (made.library, made.task) if made else ("peft", "image-text-to-text")
    lines = [
        "---",
        card_data(origins, relation, library, task).to_yaml(),
        "---",
        f"# {run.folder.name}",
        "",
        _sentence(recipe.model, recipe.lora is not None),
        "",
        *_scores(run.scores()),
        *_training(record),
        *(made.section if made else _files()),
        *sources_section(origins, relation),
        "## Versions",
        "",
        ", ".join(f"{name} {version}" for name, version in record.versions.items()),
        "",
    ]
    return "\n".join(lines)


def base_relation(recipe: Recipe, *, adapter: bool) -> str:
    """The Hub's name for the relation to the base models: a VLM is tuned, LLM and tower are joined."""
    if adapter:
        return "adapter"
    return "finetune" if recipe.model.vlm else "merge"


def _sentence(model: Any, lora: bool) -> str:
    trained = "A trained projector" + (" and LoRA adapters" if lora else "")
    if model.vlm:
        return f"{trained} on the frozen vision-language model `{source_name(model.vlm)}`."
    return (
        f"{trained} bridge the frozen LLM `{source_name(model.llm)}` and the frozen vision tower "
        f"`{source_name(model.tower)}`."
    )


def _scores(scores: Mapping[str, Any]) -> list[str]:
    if not scores:
        return ["Not evaluated yet: run `lockadapt eval` on the run folder.", ""]
    lines = ["## Test scores", "", "| objective | images | score | value |", "| --- | --- | --- | --- |"]
    for images_shown, objectives in scores.items():
        for name, values in objectives.items():
            flat = [(k, v) for k, v in values.items() if not isinstance(v, dict)]
            flat += [(f"{k}: {a}", b) for k, v in values.items() if isinstance(v, dict) for a, b in v.items()]
            shown = "real" if images_shown == "seeing" else "mean image"
            lines += [f"| {name} | {shown} | {key} | {_number(value)} |" for key, value in flat]
    return [*lines, ""]


def _training(record: RunRecord) -> list[str]:
    lines = [
        "## Training",
        "",
        f"{record.steps:,} steps in {record.seconds:.0f} s ({record.samples_per_second:.0f} samples/s) on "
        f"{record.versions.get('device', 'an unknown device')}, dtype {record.dtype}, quantization "
        f"{record.quantization}, "
        f"seed {record.seed}.",
        "",
        "| stage | component | parameters | dtype | state | LoRA modules |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for stage in record.stages:
        lines += [
            f"| {stage.name} | {row.component} | {row.parameters:,} | {row.dtype} | {row.state} | "
            f"{row.adapters or '-'} |"
            for row in stage.components
        ]
    locked = max(stage.locked for stage in record.stages)
    return [
        *lines,
        "",
        f"Lock proof: {locked:,} frozen tensors have the same SHA-256 before and after training.",
        "",
    ]


def _files() -> list[str]:
    return [
        "## Files",
        "",
        "`adapter/` is a plain PEFT adapter of the LLM, `projector.safetensors` holds the projector "
        "under its Transformers names "
        "(`retrieval.safetensors` and `generation.safetensors`, if present, the retrieval weights and "
        "the image-generation head), "
        "`processor/` is the processor. `lockadapt merge` merges them into one Transformers model folder.",
        "",
    ]


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
