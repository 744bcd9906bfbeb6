"""Keys of objectives become their fields."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from lockadapt.errors import DataError
from lockadapt.objectives import KINDS
from lockadapt.recipe.objectives import KEYS_OF_KINDS
from tests.support.recipe_keys import GROUNDING, ITC, OBJECTIVES, T2I, built, has_its_effect


@pytest.mark.parametrize("key", OBJECTIVES)
def test_key_has_its_effect(key: str, tmp_path: Path) -> None:
    has_its_effect(OBJECTIVES, key, tmp_path)


OF_KINDS = {"itc": ITC, "t2i": T2I, "grounding": GROUNDING}


@pytest.mark.parametrize(("kind", "key"), [(kind, key) for kind, keys in OF_KINDS.items() for key in keys])
def test_keys_of_one_kind(kind: str, key: str, tmp_path: Path) -> None:
    text, expected = OF_KINDS[kind][key]
    rows = "train: {format: jsonl, path: rows.jsonl}"
    before = built(tmp_path, f"objectives={{{kind}: {{{rows}}}}}")
    after = built(tmp_path, f"objectives={{{kind}: {{{rows}, {key}: {text}}}}}")
    assert getattr(after.objectives[kind], key) == expected
    assert getattr(before.objectives[kind], key) != expected


def test_the_keys_of_a_kind_are_the_fields_of_its_class() -> None:
    for kind, objective in KINDS.items():
        fields = {field.name for field in dataclasses.fields(objective)} - {
            "weight",
            "sampling_weight",
            "batch_size",
            "sources",
        }
        assert fields == set(KEYS_OF_KINDS[kind]) - {"prompt"}, kind


@pytest.mark.parametrize(
    ("answers", "message"), [("[a]", "two answers or more"), ("nowhere.txt", "is no file")]
)
def test_closed_lists_are_checked(answers: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        built(tmp_path, f"objectives.vqa.answers={answers}")
