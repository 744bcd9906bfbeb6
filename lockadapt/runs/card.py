"""The model card of a run, or of a folder made from it: real numbers only, from `run.json` and `evaluation.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lockadapt.files import write_text
from lockadapt.models.origins import source_name
from lockadapt.recipe.schema import Recipe
from lockadapt.runs import run_folder
from lockadapt.runs.origins import front_matter, origins_of, sources_section


def write_card(folder: Path) -> None:
    """Writes `README.md` into a run folder."""
    write_text(folder / "README.md", card_text(folder))


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


def card_text(run: Path, made: CardFields | None = None) -> str:
    """The card of a run; with `made`, that of a folder made from it."""
    facts, recipe = run_folder.read_facts(run), run_folder.read_recipe(run)
    scores_file = run / "evaluation.json"
    scores = json.loads(scores_file.read_text(encoding="utf-8")) if scores_file.is_file() else {}
    origins = origins_of(run)
    relation = base_relation(recipe, adapter=made is None or made.adapter)
    lines = [
        "---",
        f"library_name: {made.library if made else 'peft'}",
        f"pipeline_tag: {made.task if made else 'image-text-to-text'}",
        "tags: [lockadapt, locked-image-tuning]",
        *front_matter(origins, relation),
        "---",
        f"# {run.name}",
        "",
        _sentence(recipe.model, recipe.lora is not None),
        "",
        *_scores(scores),
        *_training(facts),
        *(made.section if made else _files()),
        *sources_section(origins, relation),
        "## Versions",
        "",
        ", ".join(f"{name} {version}" for name, version in facts["versions"].items()),
        "",
    ]
    return "\n".join(lines)


def base_relation(recipe: Recipe, *, adapter: bool) -> str:
    """What the Hub calls the relation to the base models: one VLM is tuned further, LLM and tower are joined."""
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
    for sight, objectives in scores.items():
        for name, values in objectives.items():
            flat = [(k, v) for k, v in values.items() if not isinstance(v, dict)]
            flat += [(f"{k}: {a}", b) for k, v in values.items() if isinstance(v, dict) for a, b in v.items()]
            shown = "real" if sight == "seeing" else "mean image"
            lines += [f"| {name} | {shown} | {key} | {_number(value)} |" for key, value in flat]
    return [*lines, ""]


def _training(facts: Mapping[str, Any]) -> list[str]:
    lines = [
        "## Training",
        "",
        f"{facts['steps']:,} steps in {facts['seconds']:.0f} s ({facts['samples_per_second']:.0f} samples/s) on "
        f"{facts['versions']['device']}, dtype {facts['dtype']}, quantization {facts['quantization']}, seed {facts['seed']}.",
        "",
        "| stage | component | parameters | dtype | state | LoRA modules |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for stage in facts["stages"]:
        lines += [
            f"| {stage['name']} | {row['component']} | {row['parameters']:,} | {row['dtype']} | {row['state']} | {row['adapters'] or '-'} |"
            for row in stage["components"]
        ]
    locked = max(stage["locked"] for stage in facts["stages"])
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
        "`adapter/` is a plain PEFT adapter of the LLM, `projector.safetensors` holds the projector by its stock names "
        "(`retrieval.safetensors` and `generation.safetensors`, where there are any, what embeds and what draws), "
        "`processor/` is the exact processor. `lockadapt merge` folds them into one stock folder.",
        "",
    ]


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
