"""Which rows are read, and how, as the recipe says it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lockadapt.building.samples import build_samples
from lockadapt.errors import DataError
from lockadapt.recipe.read import load_recipe
from lockadapt.recipe.schema import Recipe
from tests.support.recipe_keys import SAMPLES, has_its_effect
from tests.support.runs import recipe


@pytest.mark.parametrize("key", SAMPLES)
def test_key_has_its_effect(key: str, tmp_path: Path) -> None:
    has_its_effect(SAMPLES, key, tmp_path)


def test_bad_rows_are_left_out_where_the_recipe_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = recipe(tmp_path)
    rows = Path(made.objectives["vqa"].train.path)
    lines = rows.read_text().splitlines()
    rows.write_text("\n".join([*lines, '{"image": "red.png", "question": "what?", "answer": ""}']))
    share = 1 / (len(lines) + 1)
    with pytest.raises(DataError, match="answer is empty"):
        build_samples(recipe_of(rows), "train")
    with pytest.raises(DataError, match="1 of 9 rows"):
        build_samples(recipe_of(rows, "data.on_bad_row=skip"), "train")
    good = recipe_of(rows, "data.on_bad_row=skip", f"data.max_bad_row_fraction={share}")
    assert len(build_samples(good, "train")["vqa"]) == len(lines)
    assert "left out 1 of 9 rows" in capsys.readouterr().err


def recipe_of(rows: Path, *overrides: str) -> Recipe:
    """A recipe about rows that are written already."""
    source = {"format": "jsonl", "path": str(rows), "images": str(rows.parent / "pictures")}
    values = {"model": {"llm": "./llm", "tower": "./tower"}, "objectives": {"vqa": {"train": source}}}
    return load_recipe(None, overrides, values).recipe
