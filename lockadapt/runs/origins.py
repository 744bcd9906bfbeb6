"""Sources and licences of a run: LLM, tower, tokenizer and data, for `run.json` and model cards."""

from __future__ import annotations

from collections.abc import Sequence

from huggingface_hub import ModelCardData

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
    origins = []
    for part, source in parts.items():
        if source is not None:
            origins.append(read_origin(part, source))
            origins += inherited(source) if part == "VLM" else []
    rows = dict.fromkeys(
        source.path for section in recipe.objectives.values() for source in section.sources("train")
    )
    return [*origins, *(read_origin(DATA, path, "dataset") for path in rows)]


def card_data(origins: Sequence[Origin], relation: str, library: str, task: str) -> ModelCardData:
    """Describes a model card for the Hub: licence, base models and their relation, data sets, if on the Hub.

    Args:
        origins: the sources of the model, data included.
        relation: of the model to its base models, as the Hub calls it.
        library: the library that loads it, as the Hub calls it.
        task: the task, as the Hub calls it.

    Returns:
        The card's front matter.
    """
    models = [origin for origin in origins if origin.part != DATA]
    bases = list(dict.fromkeys(origin.hub_id for origin in models if origin.hub_id))
    data = list(dict.fromkeys(origin.hub_id for origin in origins if origin.part == DATA and origin.hub_id))
    licence, where = _licence({origin.licence for origin in models})
    return ModelCardData(
        library_name=library,
        pipeline_tag=task,
        tags=["lockadapt", "locked-image-tuning"],
        base_model=bases or None,
        datasets=data or None,
        base_model_relation=relation if bases else None,
        license=licence,
        license_name="see-sources-and-licences" if where else None,
        license_link=where,
    )


def sources_section(origins: Sequence[Origin], relation: str) -> list[str]:
    """The same for readers: every source, its licence, and where that stands."""
    rows = []
    for origin in origins:
        licence = origin.licence or ("see the source" if origin.said != UNKNOWN else UNKNOWN)
        where = origin.said if origin.said != UNKNOWN else "-"
        rows.append(f"| {origin.part} | `{origin.source}` | {licence} | {where} |")
        if origin.part == "LLM":
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


def _licence(licences: set[str | None]) -> tuple[str, str | None]:
    """The licence as the Hub calls it, and the file to read where there are several."""
    licence = next(iter(licences)) if len(licences) == 1 else None
    if None in licences or (licence is None and not licences):
        return "unknown", None
    return (licence, None) if licence is not None else ("other", "README.md")
