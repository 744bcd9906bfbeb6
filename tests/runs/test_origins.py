"""Sources, licences and relations in model cards, and where a run keeps them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from lockadapt.building.experiment import build_experiment
from lockadapt.models.origins import UNKNOWN, Origin
from lockadapt.recipe.read import load_recipe
from lockadapt.runs.card import CardFields, base_relation, card_text
from lockadapt.runs.origins import card_data, recipe_origins, sources_section
from lockadapt.runs.run import Run
from tests.support.runs import record, values

LLM = Origin("LLM", "org/llm", "org/llm", "apache-2.0", "README.md: apache-2.0")
TOWER = Origin("tower", "org/tower", "org/tower", "apache-2.0", "README.md: apache-2.0")
LOCAL = Origin("tower", "/models/tower", None, "mit", "LICENSE: MIT License")
DATA = Origin("data", "org/rows", "org/rows", "cc-by-4.0", "README.md: cc-by-4.0")


@pytest.mark.parametrize(
    ("origins", "licence", "bases"),
    [
        ([LLM, TOWER, DATA], "apache-2.0", ["org/llm", "org/tower"]),
        ([LLM, LOCAL], "other", ["org/llm"]),
        ([LLM, Origin("tower", "x", None, None, UNKNOWN)], "unknown", ["org/llm"]),
        ([LOCAL], "mit", None),
    ],
)
def test_front_matter_is_what_the_hub_reads(
    origins: list[Origin], licence: str, bases: list[str] | None
) -> None:
    front_matter = yaml.safe_load(card_data(origins, "merge", "peft", "image-text-to-text").to_yaml())
    assert front_matter["license"] == licence
    assert front_matter.get("base_model") == bases
    assert front_matter.get("base_model_relation") == ("merge" if bases else None)
    assert front_matter.get("datasets") == (["org/rows"] if DATA in origins else None)


def test_readers_see_every_source_and_the_unknown_as_unknown() -> None:
    text = "\n".join(sources_section([LLM, Origin("tower", "x", None, None, UNKNOWN), DATA], "merge"))
    assert "| LLM | `org/llm` | apache-2.0 | README.md: apache-2.0 |" in text
    assert "| tokenizer | of the LLM, with `<image>` added | apache-2.0 |" in text
    assert f"| tower | `x` | {UNKNOWN} | - |" in text
    assert "| data | `org/rows` | cc-by-4.0 |" in text


def test_a_run_keeps_what_its_sources_said(tiny: Path, tmp_path: Path) -> None:
    recipe = load_recipe(None, (), values(tiny, tmp_path)).recipe
    origins_of_recipe = recipe_origins(recipe)
    assert [origin.part for origin in origins_of_recipe] == ["LLM", "tower", "data"]
    experiment = build_experiment(recipe)
    old = Run(tmp_path, experiment, record(sources=None), None)
    assert old.origins() == origins_of_recipe, "runs of older versions"
    assert Run(tmp_path, experiment, record(sources=(LLM,)), None).origins() == (LLM,)


def test_a_vlm_passes_on_what_it_was_made_of(tmp_path: Path, tiny: Path) -> None:
    vlm = tmp_path / "vlm"
    vlm.mkdir()
    (vlm / "lockadapt.json").write_text(json.dumps({"sources": [LLM.__dict__]}))
    given = values(tiny, tmp_path)
    given["model"] = {"vlm": str(vlm)}
    recipe = load_recipe(None, (), given).recipe
    assert [origin.part for origin in recipe_origins(recipe)] == ["VLM", "LLM", "data"]
    assert base_relation(recipe, adapter=False) == "finetune"
    assert base_relation(recipe, adapter=True) == "adapter"


def test_relations_of_cards(tiny: Path, tmp_path: Path) -> None:
    recipe = load_recipe(None, (), values(tiny, tmp_path)).recipe
    run = Run(tmp_path / "run", build_experiment(recipe), record(sources=(LLM, TOWER)), None)
    relations = {}
    cards = {
        "run": None,
        "merged": CardFields("transformers", "x", ()),
        "adapter": CardFields("peft", "x", (), adapter=True),
    }
    for name, made in cards.items():
        front = yaml.safe_load(card_text(run, made).split("---")[1])
        relations[name] = front["base_model_relation"]
        assert front["base_model"] == ["org/llm", "org/tower"]
    assert relations == {"run": "adapter", "merged": "merge", "adapter": "adapter"}
