"""Reading recipes: all problems at once, who wins, and where each value came from."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lockadapt.errors import RecipeError
from lockadapt.recipe.explain import as_yaml
from lockadapt.recipe.objectives import KEYS_OF_KINDS, TextToImageSection
from lockadapt.recipe.problems import MAX_PROBLEMS
from lockadapt.recipe.read import load_recipe
from lockadapt.recipe.schema import Recipe
from tests.support.runs import RECIPE_TEXT


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A good recipe, named as a user in its folder would name it."""
    monkeypatch.chdir(tmp_path)
    Path("x.yaml").write_text(RECIPE_TEXT)
    return "x.yaml"


def test_all_problems_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(
        """\
modell: {}
model:
  llm: a
  towr: b
lora:
  rank: 0
  rank: x
  5: 6
objectives:
  vqa:
    train: {format: jsnol}
training:
  steps: 5
  epochs: 1
  seed: !secret 5
stages:
  - name: a
    train: [projector]
    learning_rate: 1
"""
    )
    with pytest.raises(RecipeError) as caught:
        load_recipe(file, ["lora.rnak=8", "data.workers=many", "evaluation.batch_size=1"])
    assert str(caught.value).replace(str(file), "x.yaml").splitlines() == [
        "x.yaml:1: modell: unknown key. Did you mean model?",
        "x.yaml:4: model.towr: unknown key. Did you mean model.tower?",
        "x.yaml:7: lora.rank: given twice (first on line 6)",
        "x.yaml:8: lora: the key 5 is not text; put it in quotes",
        "x.yaml:11: objectives.vqa.train.path: required, but missing (file or folder (for `datasets`: folder or "
        "Hub id; for `parquet` and `webdataset` also a pattern or an fsspec URL))",
        "x.yaml:11: objectives.vqa.train.format: should be one of jsonl, csv, imagefolder, llava, coco, vqa-v2, "
        "refcoco, llava-rlhf, datasets, parquet, webdataset, got 'jsnol'. Did you mean jsonl?",
        "x.yaml:15: training.seed: the tag !secret is not allowed: a recipe holds plain values only",
        "x.yaml:19: stages.0.learning_rate: applies to lora, which this stage does not train; for the projector, set "
        "`projector_learning_rate`",
        "override 'lora.rnak=8': unknown key. Did you mean lora.rank?",
        "override 'data.workers=many': should be a whole number, got 'many'",
    ]


def test_contradictions_show_beside_errors_in_other_sections(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(RECIPE_TEXT.replace("rank: 8", "rank: x") + "    epochs: 2\n    objectives: [caption]\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(file)
    assert [line.split(":", 2)[1] for line in str(caught.value).splitlines()] == ["3", "16"]
    file.write_text(RECIPE_TEXT.replace("rank: 8", "rank: x") + "    objectives: [caption]\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(file)
    assert [line.split(":", 2)[1] for line in str(caught.value).splitlines()] == ["3", "16"]


def test_a_flood_of_problems_is_cut(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("k: 1\n" * (MAX_PROBLEMS + 50))
    with pytest.raises(RecipeError) as caught:
        load_recipe(file)
    lines = str(caught.value).splitlines()
    assert len(lines) == MAX_PROBLEMS + 1
    assert lines[-1] == "and 51 problems more"  # 149 of `k`, and two sections that are missing


def test_later_wins(file: str) -> None:
    assert load_recipe(file).recipe.lora.alpha is None
    assert load_recipe(file).recipe.lora.rank == 8
    assert load_recipe(file, values={"lora": {"rank": 4, "alpha": 2.0}}).recipe.lora.rank == 4
    loaded = load_recipe(file, ["lora.rank=2", "lora.rank=1"], {"lora": {"rank": 4, "alpha": 2.0}})
    assert loaded.recipe.lora.rank == 1
    assert loaded.recipe.lora.alpha == 2.0


def test_every_value_knows_its_source(file: str) -> None:
    loaded = load_recipe(file, ["training.seed=5"], {"output": Path("runs/x"), "data": {"workers": 2}})
    for key, source in {
        "lora.rank": "x.yaml:3",
        "lora": "x.yaml:2",
        "lora.alpha": "default",
        "objectives.vqa.train.path": "x.yaml:8",
        "stages.0.train": "x.yaml:13",
        "stages.1.steps": "x.yaml:15",
        "stages.1.batch_size": "default",
        "training.steps": "x.yaml:10",
        "training.seed": "override",
        "output": "values",
        "data.workers": "values",
        "evaluation": "default",
    }.items():
        assert loaded.source_of(key) == source, key
    assert loaded.path == Path("x.yaml")
    assert loaded.recipe.output == "runs/x"


def test_source_of_an_unknown_key(file: str) -> None:
    with pytest.raises(RecipeError, match=r"lora\.rnak: unknown key\. Did you mean lora\.rank\?"):
        load_recipe(file).source_of("lora.rnak")


def test_a_recipe_from_values_alone() -> None:
    source = {"format": "csv", "path": Path("rows.csv"), "columns": {"image": 0}}
    values = {
        "model": {"vlm": Path("folder")},
        "objectives": {"vqa": {"train": source, "answers": ("a", "b")}},
    }
    loaded = load_recipe(None, ["lora=null"], values)
    assert loaded.path is None
    assert loaded.recipe.model.vlm == "folder"
    assert loaded.recipe.lora is None
    assert loaded.recipe.objectives["vqa"].answers == ["a", "b"]
    assert loaded.source_of("objectives.vqa.train.columns.image") == "values"
    assert load_recipe(None, values=loaded.recipe.model_dump()).recipe == loaded.recipe


def test_values_are_checked_as_files_are() -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(None, values={"model": {"llm": "a", "towr": "b"}, 5: 6, "lora": {"rank": 10**5000}})
    assert str(caught.value).splitlines() == [
        "recipe: objectives: required, but missing (name -> objective; any name is allowed if `kind` is given)",
        "values: the key 5 is not text",
        "values: model.towr: unknown key. Did you mean model.tower?",
        "values: lora.rank: should be at most 8,192, got a number of more than 30 digits",
    ]


def test_values_open_a_section_that_is_null(file: str) -> None:
    Path(file).write_text(
        RECIPE_TEXT.replace("lora:\n  rank: 8\n", "lora: null\n").replace(
            "  - name: instruct\n    steps: 7\n", ""
        )
    )
    assert load_recipe(file).recipe.lora is None
    loaded = load_recipe(file, values={"lora": {"rank": 4}})
    assert loaded.recipe.lora is not None
    assert loaded.recipe.lora.rank == 4
    assert loaded.source_of("lora") == "values"


def test_byte_order_mark_and_windows_line_ends(file: str) -> None:
    Path(file).write_bytes(b"\xef\xbb\xbf" + RECIPE_TEXT.replace("\n", "\r\n").encode())
    assert load_recipe(file).source_of("training.steps") == "x.yaml:10"


def test_an_alias_stands_for_its_value(file: str) -> None:
    Path(file).write_text(
        RECIPE_TEXT.replace("train:\n      format", "train: &rows\n      format").replace(
            "training:", "    test: *rows\ntraining:"
        )
    )
    vqa = load_recipe(file).recipe.objectives["vqa"]
    assert vqa.test == vqa.train


def test_a_loaded_recipe_cannot_be_changed(file: str) -> None:
    loaded = load_recipe(file)
    with pytest.raises(dataclasses.FrozenInstanceError):
        loaded.path = None  # type: ignore[misc]
    with pytest.raises(ValueError, match="frozen"):
        loaded.recipe.lora.rank = 3


def test_reading_needs_no_torch() -> None:
    code = (
        "import sys, lockadapt.recipe.read, lockadapt.recipe.explain\n"
        "print([name for name in ('torch', 'transformers', 'numpy', 'peft', 'datasets') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_older_versions_wrote_every_key_of_every_kind(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    absent = "".join(f"    {key}: null\n" for keys in KEYS_OF_KINDS.values() for key in dict.fromkeys(keys))
    lines = dict.fromkeys(absent.splitlines(keepends=True))
    rows = "    train: {format: csv, path: a.csv}\n"
    file.write_text(
        "model: {vlm: a}\nobjectives:\n  vqa:\n    kind: null\n" + rows + "".join(lines) + "  words:\n"
        "    kind: text\n" + rows + "".join(lines)
    )
    objectives = load_recipe(file).recipe.objectives
    assert {name: objective.kind for name, objective in objectives.items()} == {"vqa": "vqa", "words": "text"}


FORMER = """\
model: {vlm: a}
data:
  row_tokens: 64
  samples_per_image: 3
objectives:
  vqa:
    train: {format: csv, path: a.csv}
    ratio: 2.0
  caption:
    train: {format: csv, path: a.csv}
    ratio: 3.0
stages:
  - {name: a, ratios: {vqa: 5.0}}
"""


def test_former_keys_are_read_with_one_notice_each(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(FORMER)
    loaded = load_recipe(file)
    assert (loaded.recipe.data.max_row_tokens, loaded.recipe.data.max_samples_per_image) == (64, 3)
    assert [objective.sampling_weight for objective in loaded.recipe.objectives.values()] == [2.0, 3.0]
    assert loaded.recipe.stages[0].sampling_weights == {"vqa": 5.0}
    assert loaded.notices == (
        f"{file}:3: data.row_tokens is now called data.max_row_tokens",
        f"{file}:4: data.samples_per_image is now called data.max_samples_per_image",
        f"{file}:8: objectives.vqa.ratio is now called objectives.vqa.sampling_weight",
        f"{file}:13: stages.0.ratios is now called stages.0.sampling_weights",
    )
    assert loaded.source_of("data.max_row_tokens") == f"{file}:3"
    file.write_text(as_yaml(loaded.recipe))
    assert load_recipe(file) == dataclasses.replace(load_recipe(file), recipe=loaded.recipe, notices=())


def test_former_keys_of_image_generation_are_read(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(
        "model: {vlm: a}\nobjectives:\n  images:\n    kind: t2i\n    train: {format: csv, path: a.csv}\n"
        "    code_noise: 0.25\n    drawing_seed: 3\n"
    )
    loaded = load_recipe(file)
    objective = loaded.recipe.objectives["images"]
    assert isinstance(objective, TextToImageSection)
    assert (objective.image_token_noise, objective.generation_seed) == (0.25, 3)
    assert loaded.notices == (
        f"{file}:6: objectives.images.code_noise is now called objectives.images.image_token_noise",
        f"{file}:7: objectives.images.drawing_seed is now called objectives.images.generation_seed",
    )


def test_former_keys_in_overrides_and_values(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(FORMER)
    overrides = ["data.row_tokens=32", "objectives.vqa={train: {format: csv, path: a}, ratio: 7.0}"]
    loaded = load_recipe(
        file, [*overrides, "stages.0.ratios.caption=2.0"], {"data": {"samples_per_image": 9}}
    )
    assert (loaded.recipe.data.max_row_tokens, loaded.recipe.data.max_samples_per_image) == (32, 9)
    assert loaded.recipe.objectives["vqa"].sampling_weight == 7.0
    assert loaded.recipe.stages[0].sampling_weights == {"vqa": 5.0, "caption": 2.0}
    assert len(loaded.notices) == 4
    new = load_recipe(None, ["data.row_tokens=8"], {"model": {"vlm": "a"}, "objectives": {"vqa": {"train":
        {"format": "csv", "path": "a"}}}})  # fmt: skip
    assert new.notices == ("override 'data.row_tokens=8': data.row_tokens is now called data.max_row_tokens",)


def test_a_recipe_of_an_older_version_is_read_as_plain_values() -> None:
    values = yaml.safe_load(FORMER)
    assert Recipe.model_validate(values).data.max_row_tokens == 64
    assert values == yaml.safe_load(FORMER)


def test_a_former_key_beside_its_present_name_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(FORMER.replace("row_tokens: 64", "row_tokens: 64\n  max_row_tokens: 32"))
    with pytest.raises(
        RecipeError, match=":3: data.row_tokens: unknown key. Did you mean data.max_row_tokens"
    ):
        load_recipe(file)


def test_what_is_wrong_with_a_former_key_is_said_at_its_line(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(FORMER.replace("ratio: 3.0", "ratio: none"))
    with pytest.raises(RecipeError, match=":11: objectives.caption.sampling_weight: should be a number"):
        load_recipe(file)
