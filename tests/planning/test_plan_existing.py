"""Plans of existing vision-language models against the models themselves: dynamic sizes, tiles, ragged features."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lockadapt.architectures import tower_of
from lockadapt.building.experiment import build_experiment
from lockadapt.building.model import add_adapters, build_model
from lockadapt.console import Reporter
from lockadapt.data.pixels import ProcessorInputs
from lockadapt.errors import AssemblyError
from lockadapt.features.in_memory import FeatureInputs
from lockadapt.planning.memory import step_peak
from lockadapt.planning.plan import plan_recipe
from lockadapt.planning.planner import Planner
from lockadapt.planning.sizes import component_sizes
from lockadapt.planning.text import plan_text
from lockadapt.planning.trace import MicroBatch, tensors_of
from lockadapt.recipe.read import load_recipe
from lockadapt.recipe.schema import Recipe
from lockadapt.training.rows import encode_rows, image_policy, load_samples
from lockadapt.tuning.adapters import set_trainable
from tests.support.existing_vlm import written
from tests.support.runs import values

QUIET = Reporter(quiet=True)


def recipe_of(name: str, folder: Path, *overrides: str) -> Recipe:
    plain = values(folder, folder)
    plain["model"] = {"vlm": str(written(name, folder / "vlm")), "dtype": "float32"}
    plain["training"] = {"steps": 4, "batch_size": 4}
    return load_recipe(None, overrides, plain).recipe


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("idefics3", ("data.features=none",)),
        ("idefics3", ("data.packing=shared",)),
        ("gemma3", ("training.gradient_checkpointing=true",)),
        ("llava_next", ("model.quantization=nf4",)),
        ("granite4_vision", ("data.features=none",)),
        ("qwen2_5_vl", ()),
        ("qwen3_vl", ("data.features=none",)),
    ],
)
def test_a_plan_agrees_with_the_existing_model(name: str, overrides: tuple[str, ...], tmp_path: Path) -> None:
    recipe = recipe_of(name, tmp_path, *overrides)
    planner = Planner(recipe, QUIET)
    (stage,) = planner.stages
    ((objective, items),) = planner.batches(stage, planner.choice)
    checkpointing, longest = recipe.training.gradient_checkpointing, planner.packing(stage).max_row_tokens
    assert (longest is not None) == ("data.packing=shared" in overrides)
    trace, learned = planner.model(planner.choice), planner.objectives[objective]
    step = MicroBatch(objective, learned, items, stage.train, planner.cached, checkpointing, False, longest)
    planned, _, batch_bytes = trace.peak(step)

    experiment = build_experiment(recipe)
    samples = load_samples(experiment, QUIET)
    model, processor = build_model(experiment, tmp_path / "base", samples["train"]["vqa"], QUIET)
    model = add_adapters(experiment, model, processor)
    rows = encode_rows(experiment, model, processor, samples, image_policy(experiment, QUIET))
    set_trainable(model, stage.train)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    images = rows.images[objective]
    assert trace.sizes(stage.train) == component_sizes(model)
    assert isinstance(images, FeatureInputs if planner.cached else ProcessorInputs)
    if isinstance(images, FeatureInputs):
        kept = [level for record in images._records for level in record.levels.values()]
        assert planner.host() == sum(level.nbytes for level in kept)
    if checkpointing:
        model.activation_checkpointing_enable()
    model.train()
    tower_of(model).eval()
    batch = learned.collate(items, images, processor.tokenizer.pad_token_id, objective, longest)
    tensors = tensors_of(batch)
    assert batch_bytes == sum(tensor.nbytes for tensor in tensors)
    with torch.no_grad():
        learned.loss(model, batch)  # measures once whether the head's output is what the class returns
    counted = step_peak(model, lambda: learned.loss(model, batch)[0], False, tensors).total
    assert planned == pytest.approx(counted, rel=0.03)


def test_rows_that_are_not_here_are_planned_with_an_image_of_everyday_size(tmp_path: Path) -> None:
    recipe = recipe_of("idefics3", tmp_path, "objectives.vqa.train.path=nowhere.jsonl", "data.max_length=100")
    plan = plan_recipe(recipe, QUIET)
    assert plan["tokens_per_epoch"] is plan["seconds"] is None
    assert "one image of 1,024 x 768 pixels (20 tokens)" in plan["assumptions"][0]
    assert plan["worst_batch"]["longest"] == 100
    assert "`lockadapt check` measures" in plan_text(plan)
    limited = plan_recipe(
        load_recipe(None, ("model.max_image_tokens=8",), recipe.model_dump(mode="json")).recipe, QUIET
    )
    assert "(4 tokens)" in limited["assumptions"][0], "the limit of the recipe holds in its plan"


def test_a_class_whose_forward_fails_is_refused_by_its_plan(tmp_path: Path) -> None:
    with pytest.raises(AssemblyError, match="forward of Llama4ForConditionalGeneration fails"):
        plan_recipe(recipe_of("llama4", tmp_path), QUIET)
