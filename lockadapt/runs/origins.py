"""Sources and licences of a run: LLM, tower, tokenizer and data, as `run.json` keeps them and model cards tell them."""

from __future__ import annotations

from collections.abc import Sequence

from lockadapt.models.origins import UNKNOWN, Origin, inherited, read_origin
from lockadapt.recipe.schema import Recipe

DATA = "data"


def recipe_origins(recipe: Recipe) -> list[Origin]:
    """What a recipe starts from, and the rows that it trains on."""
    section = recipe.model
    parts = {
        "LLM": section.llm,
        "tower": section.tower,
        "image tokenizer": section.image_tokenizer,
        "VLM": section.vlm,
    }
    found = []
    for part, source in parts.items():
        if source is not None:
            found.append(read_origin(part, source))
            found += inherited(source) if part == "VLM" else []
    rows = dict.fromkeys(one.train.path for one in recipe.objectives.values() if one.train is not None)
    return [*found, *(read_origin(DATA, path, "dataset") for path in rows)]


def front_matter(origins: Sequence[Origin], relation: str) -> list[str]:
    """Lines of YAML for a model card: licence, base models on the Hub and their relation, data sets on the Hub."""
    models = [one for one in origins if one.part != DATA]
    lines = _licence({one.licence for one in models})
    bases = list(dict.fromkeys(one.hub_id for one in models if one.hub_id))
    if bases:
        lines += ["base_model:", *[f"- {base}" for base in bases], f"base_model_relation: {relation}"]
    data = list(dict.fromkeys(one.hub_id for one in origins if one.part == DATA and one.hub_id))
    if data:
        lines += ["datasets:", *[f"- {name}" for name in data]]
    return lines


def sources_section(origins: Sequence[Origin], relation: str) -> list[str]:
    """The same for readers: every source, its licence, and where that stands."""
    rows = []
    for one in origins:
        licence = one.licence or ("see the source" if one.said != UNKNOWN else UNKNOWN)
        where = one.said if one.said != UNKNOWN else "-"
        rows.append(f"| {one.part} | `{one.source}` | {licence} | {where} |")
        if one.part == "LLM":
            rows.append(f"| tokenizer | of the LLM, with `<image>` added | {licence} | {where} |")
    return [
        "## Sources and licences",
        "",
        "| part | source | licence | as said in |",
        "| --- | --- | --- | --- |",
        *rows,
        "",
        f"Relation to these models: {relation}. Licences are copied from the sources, not judged.",
        "",
    ]


def _licence(found: set[str | None]) -> list[str]:
    if None in found or not found:
        return ["license: unknown"]
    if len(found) == 1:
        return [f"license: {found.pop()}"]
    return ["license: other", "license_name: see-sources-and-licences", "license_link: README.md"]
