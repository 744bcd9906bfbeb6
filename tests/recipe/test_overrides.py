"""Overrides from a command line: what they set, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lockadapt.errors import RecipeError, SafetyError
from lockadapt.recipe.read import load_recipe
from tests.support.runs import RECIPE_TEXT


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A good recipe."""
    file = tmp_path / "x.yaml"
    file.write_text(RECIPE_TEXT)
    return file


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("lora.rank=4", "lora.rank", 4),
        (" lora . rank = 4 ", "lora.rank", 4),
        ("training.learning_rate=3e-3", "training.learning_rate", 0.003),
        ("blind=true", "blind", True),
        ("output=runs/a#b", "output", "runs/a#b"),
        ("output=a=b", "output", "a=b"),
        ("output=null", "output", None),
        ("output=", "output", None),
        ("output='5'", "output", "5"),
        ("lora.targets=[q_proj, v_proj]", "lora.targets", ["q_proj", "v_proj"]),
        ("stages.0.steps=10", "stages.0.steps", 10),
        ("stages.1.train.0=lora", "stages.1.train", None),
        ("objectives.vqa.answers=[yes, no]", "objectives.vqa.answers", ["yes", "no"]),
        ("objectives.vqa.train.columns.image=2", "objectives.vqa.train.columns", {"image": 2}),
        ("objectives.vqa.test={format: csv, path: a}", "objectives.vqa.test.path", "a"),
        ("data.features=none", "data.features", "none"),
    ],
)
def test_sets(file: Path, override: str, key: str, value: Any) -> None:
    if key == "stages.1.train":
        file.write_text(RECIPE_TEXT + "    train: [projector]\n")
        value = ["lora"]
    loaded = load_recipe(file, [override])
    actual: Any = loaded.recipe
    for part in key.split("."):
        actual = (
            actual[int(part)]
            if part.isdigit()
            else actual[part]
            if isinstance(actual, dict)
            else getattr(actual, part)
        )
    assert actual == value
    assert type(actual) is type(value)
    if key not in ("stages.1.train", "objectives.vqa.train.columns"):
        assert loaded.source_of(key) == "override"


def test_a_section_is_replaced_whole(file: Path) -> None:
    loaded = load_recipe(file, ["model={vlm: some/vlm}"])
    assert (loaded.recipe.model.llm, loaded.recipe.model.vlm) == (None, "some/vlm")
    assert loaded.source_of("model.vlm") == "override"
    assert loaded.source_of("model.llm") == "default"


def test_an_absent_section_and_a_null_one_are_opened(file: Path) -> None:
    loaded = load_recipe(
        file, ["evaluation.samples=3", "objectives.vqa.test.format=csv", "objectives.vqa.test.path=a"]
    )
    assert loaded.recipe.evaluation.samples == 3
    assert loaded.recipe.objectives["vqa"].test.path == "a"
    loaded = load_recipe(file, ["lora=null", "lora.rank=2"])
    assert loaded.recipe.lora.rank == 2
    assert loaded.source_of("lora.alpha") == "default"


def test_a_new_objective(file: Path) -> None:
    loaded = load_recipe(file, ["objectives.more={kind: caption, train: {format: coco, path: a}}"])
    assert list(loaded.recipe.objectives) == ["vqa", "more"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lora.rnak=8", "unknown key. Did you mean lora.rank?"),
        ("lroa.rank=8", "unknown key. Did you mean lora.rank?"),
        ("rank=8", "unknown key. Did you mean lora.rank?"),
        ("lora.rank.x=8", "unknown key."),
        ("objectives.vqa.trian.path=a", "unknown key. Did you mean objectives.vqa.train.path?"),
        ("lora.rank", "write it as key.path=value, such as lora.rank=8"),
        ("=8", "write it as key.path=value, such as lora.rank=8"),
        ("lora..rank=8", "write it as key.path=value, such as lora.rank=8"),
        ("lora.rank=abc", "should be a whole number, got 'abc'"),
        ("lora.rank=", "should be a whole number, got nothing (null)"),
        ("lora.rank=-1", "should be above 0, got -1"),
        ("lora={rnak: 8}", "lora.rnak: unknown key. Did you mean lora.rank?"),
        ("model.llm=123", "should be text, got 123; put it in quotes"),
        ("model=a", "should be a section of keys and values, got 'a'"),
        (
            "objectives.new.kind=vqa",
            "objectives.new.train: required, but missing (training rows; a list mixes several sources)",
        ),
        ("stages.2.steps=3", "stages has 2 entries, and positions count from 0"),
        ("stages.-1.steps=3", "stages is a list: name an entry by its position, such as stages.0"),
        ("stages.align.steps=3", "stages is a list: name an entry by its position, such as stages.0"),
        ("lora.targets.0=q_proj", "lora.targets is not a list in this recipe"),
        ("training.epochs=1", "give `steps` or `epochs`, not both (set the other to null)"),
        (
            "output=a: b",
            "should be text, got a section; text with `: ` or braces in it belongs in quotes",
        ),
        (
            "objectives.vqa.prompt={question} x",
            "not valid YAML: expected '<document start>', but found '<scalar>'; put the value in quotes if it is text",
        ),
        ("output=*x", "not valid YAML: found undefined alias 'x'; put the value in quotes if it is text"),
        ("output=!x y", "the tag !x is not allowed: a recipe holds plain values only"),
    ],
)
def test_is_refused(file: Path, override: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(file, [override])
    assert str(caught.value) == f"override {override!r}: {message}"
    assert caught.value.exit_code == 2


def test_python_objects_are_a_matter_of_safety(file: Path) -> None:
    with pytest.raises(SafetyError, match="asks for a Python object"):
        load_recipe(file, ["output=!!python/object/apply:os.getcwd []"])


def test_what_stands_in_the_way_is_reported_where_it_stands(file: Path) -> None:
    file.write_text(
        RECIPE_TEXT.replace("lora:\n  rank: 8\n", "lora: 5\n").replace(
            "    train:\n", "    test: 6\n    train:\n"
        )
    )
    with pytest.raises(RecipeError) as caught:
        load_recipe(file, ["lora.rank=8", "objectives.vqa.test.columns.image=0"])
    assert str(caught.value).splitlines() == [
        f"{file}:2: lora: should be a section of keys and values, got 5",
        f"{file}:5: objectives.vqa.test: should be a section of keys and values, got 6",
    ]


def test_a_list_in_the_place_of_a_section_is_reported_behind_other_overrides(file: Path) -> None:
    """Red before: the second override indexed the list that the first put there, and ended in a traceback."""
    with pytest.raises(RecipeError, match="training"):
        load_recipe(file, ["training=[1]", "training.steps=3"])
    with pytest.raises(RecipeError, match="training"):
        load_recipe(file, ["training=[]", "training.schedule=cosine"])
