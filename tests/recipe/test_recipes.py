"""The recipes that come with the project."""

from __future__ import annotations

from pathlib import Path

import pytest

from lockadapt.recipe.explain import as_yaml
from lockadapt.recipe.read import load_recipe

FOLDER = Path(__file__).resolve().parents[2] / "recipes"
FILES = sorted(FOLDER.glob("*.yaml"))


def test_there_are_recipes() -> None:
    assert len(FILES) >= 7


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_is_well_formed(file: Path, tmp_path: Path) -> None:
    recipe = load_recipe(file).recipe
    assert recipe.training.steps or recipe.training.epochs or all(s.steps or s.epochs for s in recipe.stages)
    (tmp_path / "again.yaml").write_text(as_yaml(recipe))
    assert load_recipe(tmp_path / "again.yaml").recipe == recipe


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_its_head_tells_command_memory_and_time(file: Path) -> None:
    head = file.read_text().split("\nmodel:")[0].splitlines()
    assert all(line.startswith("#") for line in head)
    assert sum(f"lockadapt train recipes/{file.name} --output runs/" in line for line in head) == 1
    for subject in ("memory", "time"):
        lines = [line for line in head if line.startswith(f"# {subject}:")]
        assert len(lines) == 1
        assert lines[0].split(":")[1].split(",")[0].strip() in ("estimate", "measured")


@pytest.mark.real
def test_easy_vqa_finds_its_files(real: Path) -> None:
    recipe = load_recipe(FOLDER / "easy-vqa.yaml").recipe
    vqa = recipe.objectives["vqa"]
    assert vqa.test is not None
    for name in (
        recipe.model.llm,
        recipe.model.tower,
        vqa.train.path,
        vqa.train.images,
        vqa.test.path,
        vqa.answers,
    ):
        assert isinstance(name, str)
        assert (real / name.removeprefix("../shared/real/")).exists(), name
