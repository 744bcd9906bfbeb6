"""The built-in example: scenes and answers are right, combinations are disjoint, blindness cannot win, models load."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from random import Random

import pytest
from PIL import Image

from lockadapt.console import Reporter
from lockadapt.errors import RecipeError
from lockadapt.models.llms import load_llm
from lockadapt.quickstart.drawing import COLOURS, SHAPES
from lockadapt.quickstart.grammar import NUMBERS, captions, pair, questions, relation
from lockadapt.quickstart.recipe import quickstart_recipe
from lockadapt.quickstart.scenes import HELD_OUT, SEEN, draw, make_dataset, random_scene
from lockadapt.quickstart.show import show
from lockadapt.quickstart.tour import ASSETS, DRAWN, tour, wording_alone
from lockadapt.recipe.read import load_recipe


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    make_dataset(folder, seed=0, train=240, test=80)
    return folder


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_same_seed_same_bytes(data: Path, tmp_path: Path) -> None:
    make_dataset(tmp_path, seed=0, train=240, test=80)
    for name in ("train.jsonl", "captions_test.jsonl", "train/00007.png"):
        assert (data / name).read_bytes() == (tmp_path / name).read_bytes()


def test_combinations_are_disjoint(data: Path) -> None:
    assert len(HELD_OUT) == len(SHAPES)
    assert not HELD_OUT & SEEN
    assert {shape for _, shape in HELD_OUT} == set(SHAPES)
    assert len({colour for colour, _ in HELD_OUT}) == len(HELD_OUT)
    told = {
        half: " ".join(row["caption"] for row in lines(data / f"captions_{half}.jsonl"))
        for half in ("train", "test")
    }
    for colour, shape in HELD_OUT:
        assert f"{colour} {shape}" not in told["train"]
    for colour, shape in SEEN:
        assert f"{colour} {shape}" not in told["test"]


@pytest.mark.parametrize("seed", range(40))
def test_answers_follow_from_the_scene(seed: int) -> None:
    random = Random(seed)
    scene = random_scene(random, SEEN)
    things = scene.things
    kinds = {pair(thing) for thing in things}
    asked = questions(scene, SEEN, random)
    assert asked
    for question in asked:
        if question.kind == "number":
            assert question.answer == NUMBERS[len(things)]
        elif question.kind == "yes/no":
            colour, shape = question.text.rstrip("?").split()[-2:]
            assert question.answer == ("yes" if (colour, shape) in kinds else "no")
        elif question.kind == "relation":
            first, second = things
            side = next(s for s in ("left", "right", "top", "bottom") if s in question.text)
            direction = {"top": "above", "bottom": "below"}.get(side, side)
            thing = first if relation(first, second) == direction else second
            assert relation(thing, second if thing is first else first) == direction
            assert question.answer == (thing.shape if "shape" in question.text else thing.colour)
        else:
            assert len(kinds) == 1
            assert question.answer in pair(things[0])
            assert question.answer in (COLOURS if question.kind == "colour" else SHAPES)
    assert all(colour in captions(scene)[0] for colour, _ in kinds)
    assert draw(scene).tobytes() == draw(scene).tobytes()


def test_wording_alone_is_worth_less_than_half(tmp_path: Path) -> None:
    make_dataset(tmp_path, seed=0, train=600, test=200)
    assert wording_alone(tmp_path / "train.jsonl", tmp_path / "test.jsonl") < 0.5
    counts = Counter(row["answer_type"] for row in lines(tmp_path / "train.jsonl"))
    assert counts["colour"] + counts["shape"] > 0.6 * sum(counts.values())
    yes = [row["answer"] for row in lines(tmp_path / "train.jsonl") if row["answer_type"] == "yes/no"]
    assert abs(yes.count("yes") - yes.count("no")) <= 0.2 * len(yes)


def test_carried_models_load_and_are_small() -> None:
    from transformers import AutoModelForCausalLM, JanusVQVAE, SiglipVisionModel

    carried = (AutoModelForCausalLM, "llm"), (SiglipVisionModel, "tower"), (JanusVQVAE, "image-tokenizer")
    for kind, name in carried:
        _, info = kind.from_pretrained(ASSETS / name, output_loading_info=True, local_files_only=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
    assert sum(path.stat().st_size for path in ASSETS.rglob("*.safetensors")) < 12_000_000
    assert load_llm(ASSETS / "llm", "float32").model.config.vocab_size > 300


def test_picture_shows_all_four(data: Path, tmp_path: Path) -> None:
    """One row of predictions a kind, right and wrong ones; each makes its panel."""
    image, told = (lines(data / "captions_test.jsonl")[0][key] for key in ("image", "captions"))
    other = lines(data / "captions_test.jsonl")[1]["image"]
    rows = [
        {"objective": "vqa", "images": [image], "question": "What colour?", "answer": "RED", "truth": "red"},
        {"objective": "caption", "images": [image], "question": "", "answer": told[-1], "truth": told[0]},
        {"objective": "caption", "images": [other], "question": "", "answer": "a mouse", "truth": "a cat"},
        {"objective": "itc", "images": [image, other], "question": "it", "answer": "", "truth": [other]},
    ]
    drawn = [("a blue square", Image.new("RGB", (64, 64), "blue"))]
    for count in range(1, 5):
        show(rows[:count], drawn, data, tmp_path / f"{count}.png")
    heights = [Image.open(tmp_path / f"{count}.png").height for count in range(1, 5)]
    assert heights[0] == heights[1] < heights[2] < heights[3]


def test_recipe_is_well_formed(tmp_path: Path) -> None:
    recipe = load_recipe(None, (), quickstart_recipe(tmp_path, ASSETS, tmp_path / "run")).recipe
    assert set(recipe.objectives) == {"vqa", "caption", "itc", "t2i"}


@pytest.mark.slow
@pytest.mark.cold
def test_tour_from_end_to_end(tmp_path: Path) -> None:
    """Too few steps to learn much, enough for every objective to have its turn; everything else as users have it."""
    result = tour(tmp_path / "out", Reporter(quiet=True), ("training.steps=24",), scenes=(60, 20))
    assert 0 <= result["vqa"]["accuracy"] <= 1
    assert result["wording_alone"] < 0.6
    assert result["merge"]["missing_keys"] == []
    assert result["merge"]["model_class"] == "JanusForConditionalGeneration"
    assert result["retrieval"]["n"] == sum(
        len(row["captions"]) for row in lines(tmp_path / "out" / "data" / "captions_test.jsonl")
    )
    assert set(result["blind"]) == set(result["vqa"])
    assert len(list((tmp_path / "out" / "drawn").glob("0*.png"))) == DRAWN
    assert Path(result["picture"]).is_file()
    assert "</html>" in Path(result["report"]).read_text()
    assert any("unseen" in line for line in result["summary"])
    again = tour(tmp_path / "out", Reporter(quiet=True), ("training.steps=24",), scenes=(60, 20))
    assert again["vqa"] == result["vqa"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "note.txt").write_text("keep")
    with pytest.raises(RecipeError, match="not of a quickstart"):
        tour(tmp_path / "mine", Reporter(quiet=True))
