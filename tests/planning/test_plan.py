"""Plans against the real thing: bytes of components, peaks, arithmetic, rows that are absent, and what the verb says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lockadapt.architectures import tower_of
from lockadapt.architectures.base import unwrap_model
from lockadapt.building.objectives import build_objectives
from lockadapt.data.pixels import PixelInputs
from lockadapt.errors import AssemblyError, DoesNotFitError, RecipeError, SetupError
from lockadapt.features.in_memory import FeatureInputs
from lockadapt.planning import extrapolate, plan
from lockadapt.planning.arithmetic import training_costs
from lockadapt.planning.fake import FakeFloats
from lockadapt.planning.memory import PeakTracker, step_peak
from lockadapt.planning.plan import parse_size, plan_recipe, refuse_unless_fits
from lockadapt.planning.planner import Planner, changes
from lockadapt.planning.sizes import component_sizes, named_tensors
from lockadapt.planning.trace import MicroBatch, tensors_of
from lockadapt.recipe.read import load_recipe
from lockadapt.tuning.adapters import set_trainable
from tests.support.command import lockadapt
from tests.support.planned import QUIET, real_model, small
from tests.support.runs import recipe_file, rows_file, values
from tests.support.tiny import tiny_llm, tiny_tower

SHAPES = [
    ("llama", "clip-vision", ()),
    ("qwen3", "siglip-vision", ("data.features=none", "training.batch_size=8")),
    ("gpt2", "mobilenet-v2", ("training.gradient_checkpointing=true", "model.fusion=linear")),
    ("gemma3-text", "convnext", ("lora=null",)),
    ("llama-tied", "dinov2", ("model.quantization=nf4", "training.accumulation=2")),
    ("llama", "clip-vision", ("model.quantization=int8", "training.gradient_checkpointing=true")),
    ("llama-tied", "clip-vision", ("model.dtype=bfloat16", "lora.dora=true")),
    ("llama-tied", "siglip-vision", ("model.fusion=pixel-shuffle-linear",)),
    ("llama-tied", "siglip-vision", ("model.fusion=pixel-shuffle-linear", "data.features=none")),
]


@pytest.mark.parametrize(("llm", "tower", "overrides"), SHAPES)
def test_a_plan_agrees_with_the_model_that_is_loaded(
    llm: str, tower: str, overrides: tuple[str, ...], tmp_path: Path
) -> None:
    recipe = small(tmp_path, llm, tower, *overrides)
    planner = Planner(recipe, QUIET)
    stage = planner.stages[0]
    name, items = planner.batches(stage, planner.choice)[0]
    cached, accumulate = planner.cached, stage.accumulation > 1
    checkpointing = recipe.training.gradient_checkpointing
    trace = planner.model(planner.choice)
    objective = build_objectives(recipe)[name]
    max_row_tokens = planner.packing(stage).max_row_tokens
    step = MicroBatch(name, objective, items, stage.train, cached, checkpointing, accumulate, max_row_tokens)
    planned, parts, batch_bytes = trace.peak(step)

    model, rows = real_model(recipe, tmp_path / "run")
    set_trainable(model, stage.train)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    assert trace.sizes(stage.train) == component_sizes(model)
    assert isinstance(rows.images[name], FeatureInputs if cached else PixelInputs)
    if cached:
        assert planner.host() == rows.images[name]._store.nbytes
    if checkpointing:
        model.activation_checkpointing_enable()
    model.train()
    tower_of(model).eval()
    pad = trace.processor.tokenizer.pad_token_id
    batch = objective.collate(items, rows.images[name], pad, name, max_row_tokens)
    assert batch_bytes == sum(tensor.nbytes for tensor in batch.values() if isinstance(tensor, torch.Tensor))

    def loss() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.model.dtype == "bfloat16"):
            return objective.loss(model, batch)[0]

    counted = step_peak(model, loss, accumulate, tensors_of(batch)).total
    assert planned == pytest.approx(counted, rel=0.03)
    assert sum(parts.values()) == planned
    assert all(parameter.grad is None for parameter in model.parameters())


def test_counting_bytes_by_hand() -> None:
    with PeakTracker(vocabulary=7) as tracker:
        first = torch.zeros(100)
        view = first[10:]
        second = first + 1
        del first, view
        logits = torch.zeros(3, 7)
        assert tracker.live == {"activations": 400, "logits": 84}
        del second
    assert tracker.segments == [(800, {"activations": 800})]
    assert tracker.live == {"activations": 0, "logits": 84}
    tracker.split()
    assert tracker.segments[1] == (84, {"logits": 84})
    tracker.hold([logits], "gradients")
    assert tracker.live == {"activations": 0, "logits": 0, "gradients": 84}


def test_the_formula_agrees_with_counted_operations(tmp_path: Path) -> None:
    recipe = small(tmp_path, "llama", "clip-vision", "lora.rank=8", "training.batch_size=8")
    planner = Planner(recipe, QUIET)
    trace = planner.model(planner.choice)
    name, items = planner.batches(planner.stages[0], planner.choice)[0]
    unwrap_model(trace.model).set_attn_implementation("eager")  # torch counts no fused attention on the CPU
    counter = FlopCounterMode(display=False)
    with counter:
        objective = build_objectives(recipe)[name]
        trace.peak(MicroBatch(name, objective, items, ("projector", "lora"), True, False, False, None))
    batch = planner.peak(planner.choice).batch
    costs = training_costs(trace.model, False, trace.images.tokens(items))
    formula = costs.tokens(
        len(items) * batch["longest"], batch["longest"], batch["learned_tokens"], len(items)
    )
    assert formula == pytest.approx(counter.get_total_flops(), rel=0.1)


def test_no_weight_is_read_and_components_add_up(tmp_path: Path) -> None:
    recipe = small(tmp_path, "llama", "clip-vision", "data.max_samples_per_image=2")
    for file in [*tmp_path.glob("llama/*.safetensors"), *tmp_path.glob("clip-vision/*.safetensors")]:
        file.unlink()
    report = plan_recipe(recipe, QUIET)
    assert report["peak_bytes"] == sum(entry["bytes"] for entry in report["components"].values())
    assert report["components"]["lora"]["trained"] == report["components"]["lora"]["parameters"] > 0
    assert report["components"]["tower"]["trained"] == 0
    assert report["fits"] == dict.fromkeys(("8GB", "12GB", "16GB", "24GB", "48GB"), True)
    assert report["changes"] == {}
    # 4 pictures; two rows each, which share the image and the start of the prompt
    assert (report["images"], report["rows"], report["steps"]) == (4, {"vqa": 8}, 5)
    assert report["cache_bytes"] == 4 * 16 * 24 * 2
    assert report["tokens_per_epoch"] < report["tokens_per_epoch_unpacked"]
    assert report["seconds"] > 0
    assert report["assumptions"] == []
    assert json.loads(json.dumps(report)) == report


def test_several_processes_are_planned(tmp_path: Path) -> None:
    """What is shared shrinks by the number of processes; epochs take fewer steps, and steps more samples."""
    plain = ["data.packing=none", "data.features=none", "training={epochs: 4.0, batch_size: 2}"]
    recipe = small(tmp_path, "llama", "clip-vision", *plain)
    alone, two, four = (plan_recipe(recipe, QUIET, processes=count) for count in (1, 2, 4))
    assert "processes" not in alone
    assert (alone["steps"], two["steps"], four["steps"]) == (16, 8, 4)
    assert two["flops"] == pytest.approx(alone["flops"] / 2, rel=0.01)
    shared, half = four["processes"], two["processes"]
    assert (half["count"], half["samples_per_step"]) == (2, 4)
    assert half["tokens_per_step"] == alone["tokens_per_epoch_unpacked"] // 2
    assert half["ddp"]["bytes"] == shared["ddp"]["bytes"] >= alone["card_peak_bytes"]
    blocks, lora = (alone["components"][name] for name in ("blocks", "lora"))
    divided = blocks["bytes"] + lora["bytes"] + 12 * lora["parameters"]
    assert half["fsdp"]["bytes"] - shared["fsdp"]["bytes"] == pytest.approx(divided / 4, abs=1)
    assert shared["fsdp"]["fits"] == dict.fromkeys(("8GB", "12GB", "16GB", "24GB", "48GB"), True)


def test_rows_that_are_not_here_are_assumed(tmp_path: Path) -> None:
    recipe = small(tmp_path, "llama", "clip-vision", "data.max_length=60", "training.batch_size=3")
    rows_file(tmp_path).unlink()
    report = plan_recipe(recipe, QUIET)
    assert report["worst_batch"] == {
        "stage": "train",
        "objective": "vqa",
        "rows": 3,
        "longest": 60,
        "learned_tokens": 3 * 44,
    }
    assert report["tokens_per_epoch"] is report["tokens_per_epoch_unpacked"] is report["seconds"] is None
    assert "is not here; every row is taken to have 60 tokens" in report["assumptions"][0]


def test_a_model_that_is_not_here_is_named(tmp_path: Path) -> None:
    recipe = small(tmp_path, "llama", "clip-vision")
    shutil.rmtree(tmp_path / "llama")
    with pytest.raises(SetupError, match="the LLM does not exist"):
        plan_recipe(recipe, QUIET)


def test_the_nearest_change_is_found_by_planning_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "CARD_RESERVE", 0)
    recipe = small(tmp_path, "llama", "clip-vision", "training.batch_size=2")
    planner = Planner(recipe, QUIET)
    texts = dict(changes(planner, planner.choice))
    assert list(texts)[:3] == [
        "training.gradient_checkpointing=true",
        "training.batch_size=1 training.accumulation=2",
        "model.quantization=nf4",
    ]
    now = planner.peak(planner.choice).total
    peaks = {text: planner.peak(choice).total for text, choice in texts.items()}
    assert now > peaks["training.gradient_checkpointing=true"]
    assert now > peaks["training.batch_size=1 training.accumulation=2"]
    assert now > peaks["model.quantization=nf4"]

    for target in (peaks["training.batch_size=1 training.accumulation=2"], 10):
        enough = [text for text, peak in peaks.items() if peak <= target]
        report = plan_recipe(recipe, QUIET, target)
        assert report["fits_memory"] is False
        assert report["changes"]["memory"] == (enough[0] if enough else None)
        with pytest.raises(DoesNotFitError) as raised:
            refuse_unless_fits(report, target)
        assert (raised.value.fix or "").startswith(enough[0] if enough else "no single change")


def test_changes_reach_stages_with_batches_of_their_own(tmp_path: Path) -> None:
    stages = "stages=[{name: a, train: [projector], batch_size: 2}, {name: b, accumulation: 3}]"
    recipe = small(tmp_path, "llama", "clip-vision", stages)
    planner = Planner(recipe, QUIET)
    overrides = next(text for text, choice in changes(planner, planner.choice) if choice.divide == 2)
    assert overrides == (
        "training.batch_size=2 training.accumulation=2 stages.0.batch_size=1 stages.0.accumulation=2 "
        "stages.1.accumulation=6"
    )
    changed = load_recipe(None, overrides.split(), recipe.model_dump(mode="json")).recipe
    for before, after in zip(planner.stages, Planner(changed, QUIET).stages, strict=True):
        assert after.batch_size * after.accumulation == before.batch_size * before.accumulation
        assert after.batch_size < before.batch_size


def test_sizes() -> None:
    assert parse_size("8GB") == parse_size("8 GiB") == 8 * 2**30
    assert parse_size("1.5mb") == 3 * 2**19
    with pytest.raises(RecipeError, match="is no size"):
        parse_size("much")


def test_the_verb(tmp_path: Path) -> None:
    tiny_llm("llama", tmp_path / "llama")
    tiny_tower("clip-vision", tmp_path / "clip-vision")
    file = recipe_file(tmp_path, values(tmp_path, tmp_path))
    done = lockadapt("plan", file, "--json", "-q", "--memory", "8GB")
    assert (done.returncode, done.stderr) == (0, "")
    assert set(json.loads(done.stdout)["fits"]) == {"8GB", "12GB", "16GB", "24GB", "48GB"}
    done = lockadapt("plan", file, "--memory", "100MB")
    assert done.returncode == 5
    assert "8GB   fits" in done.stdout
    assert "error:" in done.stderr


def test_fake_floats_leave_values_of_integers_alone(tmp_path: Path) -> None:
    recipe = small(tmp_path, "llama", "clip-vision")
    planner = Planner(recipe, QUIET)
    trace = planner.model(planner.choice)
    mask = torch.tensor([[True, False, True]])
    weight = next(tensor for _, tensor in named_tensors(trace.model) if tensor.ndim == 2)
    with FakeFloats(trace.mode):
        assert bool(mask.any())
        assert weight[torch.ones(len(weight), dtype=torch.bool)].shape == weight.shape
        assert weight[:3][mask[0]].shape[0] == 2


@pytest.mark.parametrize(
    "overrides",
    [
        ("training.gradient_checkpointing=true",),
        ("lora.rank=64", "training.batch_size=1"),  # gradients outgrow activations
        ("lora.rank=64", "training.batch_size=1", "training.accumulation=2"),
    ],
)
def test_a_deep_model_is_foretold_from_its_first_blocks(
    overrides: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_llm("llama", tmp_path / "llama")
    config = json.loads((tmp_path / "llama" / "config.json").read_text())
    (tmp_path / "llama" / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 7}))
    recipe = small(tmp_path, "llama", "clip-vision", *overrides)
    planner = Planner(recipe, QUIET)
    foretold = planner.peak(planner.choice)
    monkeypatch.setattr(extrapolate, "TRACED_WHOLE", 99)
    traced = Planner(recipe, QUIET).peak(planner.choice)
    assert foretold.sizes == traced.sizes
    assert foretold.total == pytest.approx(traced.total, rel=0.01)
    for name, size in traced.parts.items():
        assert foretold.parts[name] == pytest.approx(size, abs=0.02 * traced.total)


@pytest.mark.parametrize(
    ("overrides", "kept"),
    [
        ((), "memory"),
        (("data.features=disk",), "disk"),
        (("data.feature_memory_gib=1e-9",), "disk"),
        (("data.feature_memory_gib=1e-9", "data.feature_disk_gib=0"), "none"),
        (("data.features=none",), "none"),
    ],
)
def test_a_plan_keeps_features_where_the_run_does(
    overrides: tuple[str, ...], kept: str, tmp_path: Path
) -> None:
    planner = Planner(small(tmp_path, "llama", "clip-vision", *overrides), QUIET)
    assert planner.features == kept
    assert planner.cached == (kept != "none")
    assert (planner.host() > 0) == (kept == "memory")


def test_the_cache_is_planned_in_the_dtype_that_is_stored(tmp_path: Path) -> None:
    planner = Planner(small(tmp_path, "llama", "clip-vision", "data.feature_dtype=int8"), QUIET)
    assert planner.on_disk() == 4 * (16 * 24 + 4 * 24)


def test_an_llm_that_training_refuses_is_not_planned(tmp_path: Path) -> None:
    recipe = small(tmp_path, "llama", "clip-vision")
    config = tmp_path / "llama" / "config.json"
    config.write_text(
        json.dumps({**json.loads(config.read_text()), "quantization_config": {"quant_method": "gptq"}})
    )
    with pytest.raises(AssemblyError, match="stored quantized"):
        Planner(recipe, QUIET)
