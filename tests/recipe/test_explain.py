"""What a recipe is shown as: YAML that reads back exactly, columns for people, the JSON schema."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from lockadapt.recipe.explain import as_yaml, json_schema, print_config, resolved
from lockadapt.recipe.keys import FREE, POSITION, at, every_key, expected, meaning
from lockadapt.recipe.objectives import KEYS_OF_KINDS
from lockadapt.recipe.read import load_recipe
from lockadapt.recipe.schema import Recipe
from lockadapt.recipe.sources import SAMPLE_FIELDS
from tests.support.runs import RECIPE_TEXT

# What YAML likes to read as something else, beside all that hypothesis finds.
TRICKY = [
    "yes",
    "no",
    "null",
    "~",
    "1e3",
    "1_0",
    "012",
    "0x1",
    ".inf",
    "true",
    "=",
    "<<",
    "2001-01-01",
    "1:30",
    "- a",
]
TRICKY += [
    "a: b",
    "a #b",
    "#",
    "!x",
    "&x",
    "*x",
    "{}",
    "[",
    "%",
    "@",
    "'",
    '"',
    "\n",
    "\n ",
    " \n",
    "a\tb",
    "é",
    "😀",
]
TRICKY += [
    "\x85",
    "\u2028",
    "\ufeff",
    "\x7f",
    "\r",
    "a\n\n b ",
    " ",
    "? ",
    "---",
    "...",
    "| ",
    ">",
    "x" * 200,
]
texts = st.one_of(
    st.sampled_from(TRICKY), st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1)
)
names = st.from_regex(r"[A-Za-z][A-Za-z0-9_-]{0,9}", fullmatch=True)
rates = st.floats(min_value=0, exclude_min=True, allow_infinity=False)
weights = st.floats(1e-9, 1e9)
counts = st.integers(1, 10**9)


def section(required: dict[str, Any], **optional: Any) -> st.SearchStrategy[dict[str, Any]]:
    """Mappings with all of the one and some of the other keys."""
    return st.fixed_dictionaries(required, optional=optional)


sources = section(
    {"format": st.sampled_from(["jsonl", "csv", "datasets"]), "path": texts},
    images=texts,
    columns=st.dictionaries(st.sampled_from(SAMPLE_FIELDS), texts | st.integers(0, 99)),
    limit=st.none() | counts,
)
objectives = section(
    {"train": sources, "kind": st.sampled_from(["caption", "vqa"])},
    test=st.none() | sources,
    sampling_weight=weights,
    prompt=st.none() | texts.map(lambda text: text + "{question}"),
    answers=st.none() | texts | st.lists(texts, min_size=1),
)
stages = section(
    {"name": names},
    train=st.sampled_from([["lora"], ["projector", "lora"]]),
    learning_rate=rates,
    steps=counts,
)
recipes = section(
    {
        "model": section(
            {"llm": texts, "tower": texts}, feature_layer=st.integers(-9, 9), image_size=st.integers(1, 8192)
        ),
        "objectives": st.dictionaries(names, objectives, min_size=1, max_size=2),
    },
    lora=section(
        {}, alpha=weights, targets=st.just("attention") | st.lists(texts, min_size=1), dora=st.booleans()
    ),
    training=section(
        {}, epochs=st.floats(1e-9, 1e5), seed=st.integers(0, 2**32 - 1), report_to=st.just(["wandb"])
    ),
    stages=st.lists(stages, max_size=2, unique_by=lambda stage: stage["name"]),
    blind=st.booleans(),
    output=texts,
)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file to write recipes to."""
    return tmp_path_factory.mktemp("recipe") / "x.yaml"


@settings(max_examples=80, deadline=None)
@given(values=recipes)
def test_yaml_reads_back_exactly(file: Path, values: dict[str, Any]) -> None:
    recipe = Recipe.model_validate(values)
    file.write_bytes(as_yaml(recipe).encode())
    assert load_recipe(file).recipe == recipe


@pytest.mark.parametrize("text", TRICKY)
def test_tricky_text_reads_back(file: Path, text: str) -> None:
    values = {
        "model": {"llm": text, "tower": text},
        "objectives": {"vqa": {"train": {"format": "csv", "path": text}}},
    }
    recipe = Recipe.model_validate(values)
    file.write_bytes(as_yaml(recipe).encode())
    assert load_recipe(file).recipe == recipe


@settings(max_examples=30, deadline=None)
@given(values=recipes)
def test_every_value_is_shown_on_one_line(values: dict[str, Any]) -> None:
    loaded = load_recipe(None, values=values)
    assert len(print_config(loaded).split("\n")) == len(resolved(loaded))


def test_columns_for_people(file: Path) -> None:
    file.write_text(RECIPE_TEXT)
    loaded = load_recipe(file, ["blind=true"])
    lines = print_config(loaded).splitlines()
    assert lines[0].split() == ["model.llm:", "a", "#", f"{file}:1"]
    assert "training.steps: 100" in [line.split("  ")[0] for line in lines]
    assert [line.split("  # ")[1] for line in lines if line.startswith("blind: true ")] == ["override"]
    assert len({line.index("  # ") for line in lines}) == 1


def test_resolved_holds_every_key_once(file: Path) -> None:
    file.write_text(RECIPE_TEXT)
    keys = [key for key, _, _ in resolved(load_recipe(file))]
    assert len(keys) == len(set(keys))
    assert {
        "lora.rank",
        "stages.0.name",
        "stages.1.steps",
        "evaluation.method",
        "objectives.vqa.train.path",
    } <= set(keys)
    assert keys.index("model.llm") < keys.index("lora.rank") < keys.index("output")
    values = {key: (value, source) for key, value, source in resolved(load_recipe(file))}
    assert values["stages.0.train"] == (["projector"], f"{file}:13")
    assert values["objectives.vqa.train.columns"] == ({}, "default")


def test_json_schema_names_every_key_and_says_what_it_is_for() -> None:
    schema = json_schema()
    assert schema["$schema"].startswith("https://json-schema.org/")
    keys = list(every_key())
    assert len(keys) > 100
    for key in keys:
        node = schema
        for part in key:
            node = below(schema, node, str(part))
        own = key[-1] not in (FREE, POSITION) and key[-2:-1] != ("columns",)
        assert node.get("description") or not own, f"{key} has no description"
    assert {key[0] for key in keys} == set(schema["properties"])


def test_json_schema_knows_the_keys_of_each_kind() -> None:
    schema = json_schema()
    objectives = schema["properties"]["objectives"]
    union = objectives["additionalProperties"]
    for kind, reference in union["discriminator"]["mapping"].items():
        section = schema["$defs"][reference.rsplit("/", 1)[1]]
        shared = {"kind", "train", "validation", "test", "weight", "batch_size"}
        assert set(KEYS_OF_KINDS[kind]) | shared < set(section["properties"])
        assert section["additionalProperties"] is False
        assert section["properties"]["kind"]["const"] == kind
        # The name says the kind where there is none: another name does not.
        assert objectives["properties"][kind]["anyOf"][0] == {"$ref": reference}
    assert set(objectives["properties"]) == set(KEYS_OF_KINDS) == set(union["discriminator"]["mapping"])
    assert union["required"] == ["kind"]
    assert "templates" not in schema["$defs"]["VqaSection"]["properties"]


def test_expected_and_meaning_exist_for_every_key() -> None:
    for key in every_key():
        assert expected(at(key))
        assert meaning(key) or key[-1] == FREE or key[-2:-1] == ("columns",)


def below(schema: dict[str, Any], node: dict[str, Any], part: str) -> dict[str, Any]:
    """The part of a JSON schema that describes a key below a node."""
    for branch in node.get("anyOf") or node.get("oneOf") or [node]:
        if "$ref" in branch:
            branch = schema["$defs"][branch["$ref"].rsplit("/", 1)[1]]
        if part in branch.get("properties", {}):
            return branch["properties"][part]
        if part == POSITION and "items" in branch:
            return branch["items"]
        if part in branch.get("propertyNames", {}).get("enum", []) or part == FREE:
            return branch["additionalProperties"]
    raise AssertionError(f"the JSON schema has no {part}")


def test_schema_refuses_what_no_file_could_hold() -> None:
    with pytest.raises(ValidationError):
        Recipe.model_validate({"model": {"vlm": "\ud800"}, "objectives": {}})
