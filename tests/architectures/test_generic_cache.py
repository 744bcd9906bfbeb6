"""Kept features of stock VLMs: the class's own loss and gradients, through memory and disk, or off with a reason."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from lockadapt.architectures import layout_of
from lockadapt.architectures.base import parameters_at
from lockadapt.architectures.features import kept_outputs
from lockadapt.architectures.generic.features import stock_features
from lockadapt.architectures.generic.image_keys import numbers_of, tensor_of
from lockadapt.architectures.kept import RaggedFeatures
from lockadapt.building.cache import cache_recipe
from lockadapt.building.cache_trial import try_cache
from lockadapt.building.experiment import build_experiment
from lockadapt.console import Reporter
from lockadapt.data.batch import Batch, collate
from lockadapt.data.encode import IGNORED, Encoded, Encoder
from lockadapt.data.pixels import ProcessorInputs, pixel_inputs
from lockadapt.data.sample import ImageRef, question_answer
from lockadapt.errors import AssemblyError
from lockadapt.evaluation.evaluate import evaluate_folder
from lockadapt.features.inputs import disk_features, memory_features
from lockadapt.features.policy import FeatureSettings
from lockadapt.objectives.answer_tokens import model_inputs
from lockadapt.planning.admission import check_vlm
from lockadapt.recipe.schema import Recipe
from lockadapt.runs.run import open_run
from lockadapt.training.loop import train
from tests.support.existing_vlm import recipe_for, written
from tests.support.zoo import entry_of

QUIET = Reporter(quiet=True)
EIGHT = (
    *("qwen2_5_vl", "qwen3_vl", "gemma3", "idefics3"),
    *("internvl", "llava_next", "llava_onevision", "mistral3"),
)
OTHERS = (
    "pixtral",
    "aya_vision",
    "gemma4",
    "glm4v",
    "ovis2",
    "video_llama_3",
    "deepseek_vl",
    "perception_lm",
)
SIZES = ((64, 48), (40, 56), (90, 30))


def pictures() -> list[ImageRef]:
    noise = np.random.default_rng(0)
    made = [Image.fromarray(noise.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in SIZES]
    return [ImageRef(f"picture {number}", picture=picture) for number, picture in enumerate(made)]


def built(name: str, several: bool = True) -> tuple[Any, Any, list[Encoded]]:
    """A model, its processor, and rows: pictures of three sizes, one of them twice, two of them in one row."""
    entry = entry_of(name)
    if missing := entry.missing():
        pytest.skip(f"its processor needs {' and '.join(missing)}")
    model, processor = entry.build()
    first, second, third = pictures()
    samples = [
        question_answer("What is it?", "red and round", [first], "a"),
        question_answer("Which of them is flat?", "blue", [second], "b"),
        question_answer("And here?", "green", [first] + ([third] if several else []), "c"),
    ]
    return model, processor, Encoder(processor, 4096).encode(samples).encoded


def stock_loss(model: nn.Module, batch: Batch, rows: Sequence[Encoded]) -> torch.Tensor:
    """What the class itself computes of pixels and labels."""
    labels = torch.full_like(batch["input_ids"], IGNORED)
    for number, row in enumerate(rows):
        labels[number, : len(row.labels)] = torch.from_numpy(row.labels.astype("int64"))
    return model(**model_inputs(model, batch), labels=labels).loss  # type: ignore[no-any-return]


def gradients(model: nn.Module, loss: torch.Tensor, learned: Sequence[nn.Parameter]) -> list[torch.Tensor]:
    made = torch.autograd.grad(loss, list(learned), allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(learned, made, strict=True)]


@pytest.mark.parametrize("projected", [True, False], ids=["lora-only", "connector-trains"])
@pytest.mark.parametrize("name", [*EIGHT, *OTHERS])
def test_kept_features_give_the_loss_and_gradients_of_pixels(name: str, projected: bool) -> None:
    # LLaVA-OneVision cuts no tiles of pictures that stand beside others.
    model, processor, rows = built(name, several=name != "llava_onevision")
    model.requires_grad_(False)
    llm = layout_of(model).llm
    learned = [p for n, p in model.named_parameters() if n.startswith(llm) and p.dim() == 2][-3:]
    if not projected:
        learned += [p for path in layout_of(model).projector for p in parameters_at(model, path)]
    for parameter in learned:
        parameter.requires_grad_(True)
    pixels, pad = pixel_inputs(processor, 10**6), processor.tokenizer.pad_token_id
    assert isinstance(pixels, ProcessorInputs)
    kept = memory_features(model, pixels, projected=projected)
    kept.fill(pictures())
    before = dict(model.named_modules())
    live, cached = collate(rows, pixels, pad, "vqa"), collate(rows, kept, pad, "vqa")
    assert "pixel_values" not in cached
    expected = stock_loss(model, live, rows)
    wanted = gradients(model, expected, learned)
    # Transformers hooks modules by itself when it is first asked for hidden states.
    hooks = sum(len(module._forward_hooks) for module in model.modules())
    loss = stock_loss(model, cached, rows)
    assert abs(float(loss.detach() - expected.detach())) < 2e-6
    largest = max(float(gradient.abs().max()) for gradient in wanted)
    for gradient, want in zip(gradients(model, loss, learned), wanted, strict=True):
        assert float((gradient - want).abs().max()) < 5e-6 * largest
    # Others' features are others' loss, and nothing stays in the modules' places.
    features = cached["image_features"]
    others = stock_loss(model, {**cached, "image_features": features.negative()}, rows)
    assert float(others.detach()) != float(loss.detach())
    assert dict(model.named_modules()) == before
    assert hooks == sum(len(module._forward_hooks) for module in model.modules())


@pytest.mark.parametrize(("name", "levels"), [("qwen3_vl", 3), ("gemma3", 1)])
@pytest.mark.parametrize("stored", ["float32", "int8"])
def test_the_disk_gives_them_back_as_it_stores_them(
    name: str, levels: int, stored: str, tmp_path: Path
) -> None:
    model, processor, rows = built(name)
    pixels, pad = pixel_inputs(processor, 10**6), processor.tokenizer.pad_token_id
    settings = FeatureSettings("disk", stored=stored, cache=tmp_path)
    kept = disk_features(model, pixels, settings, print)
    assert kept.fill(pictures()) == 3
    live, cached = collate(rows, pixels, pad, "vqa"), collate(rows, kept, pad, "vqa")
    assert len(cached["image_features"].levels) == levels
    with torch.no_grad():
        difference = abs(float(stock_loss(model, cached, rows) - stock_loss(model, live, rows)))
    assert difference < (2e-6 if stored == "float32" else 0.05)
    assert disk_features(model, pixels, settings, print).fill(pictures()) == 0
    # Image tokens are another cache than the tower's outputs, and a moved projector makes others.
    tokens = disk_features(model, pixels, settings, print, projected=True).folder.fingerprint
    parameter = next(parameters_at(model, layout_of(model).projector[0]))
    with torch.no_grad():
        parameter.add_(1)
    moved = [
        disk_features(model, pixels, settings, print, projected=projected).folder.fingerprint
        for projected in (True, False)
    ]
    assert moved[0] != tokens
    assert moved[1] == kept.folder.fingerprint != tokens


def test_settings_of_the_processor_are_part_of_the_cache(tmp_path: Path) -> None:
    model, processor, _ = built("idefics3")
    settings = FeatureSettings("disk", cache=tmp_path)

    def fingerprint() -> str:
        return disk_features(model, pixel_inputs(processor, 10**6), settings, print).folder.fingerprint

    before = fingerprint()
    assert fingerprint() == before
    processor.image_processor.size = {"longest_edge": 96}
    assert fingerprint() != before


def test_a_picture_beside_others_may_be_another(tmp_path: Path) -> None:
    model, processor, rows = built("llava_onevision")
    trial = try_cache(model, processor, rows, True, 10**6)
    assert trial.problem is not None
    assert "with kept features" in trial.problem
    pixels = pixel_inputs(processor, 10**6)
    assert isinstance(pixels, ProcessorInputs)
    assert [pixels.as_alone(row.images) for row in rows] == [True, True, False]


def test_what_is_not_the_same_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor, rows = built("gemma3")
    assert try_cache(model, processor, rows, True, 10**6).problem is None
    level = RaggedFeatures.level
    monkeypatch.setattr(RaggedFeatures, "level", lambda *a: tuple(-rows for rows in level(*a)))
    trial = try_cache(model, processor, rows, True, 10**6)
    assert trial.problem is not None
    assert "differs by" in trial.problem
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_a_class_without_image_features_keeps_nothing(tmp_path: Path) -> None:
    findings = {f["probe"]: f for f in check_vlm(str(written("mllama", tmp_path)), QUIET)["findings"]}
    assert findings["cache"]["result"] == "off"
    assert "has no get_image_features" in findings["cache"]["detail"]


def test_image_features_without_image_tokens_cannot_be_kept_by_structure() -> None:
    model, processor, rows = built("granite4_vision")
    pixels = processor.image_processor(images=[rows[0].images[0].picture], return_tensors="pt")
    with pytest.raises(AssemblyError, match="gives its image tokens otherwise than others"):
        stock_features(layout_of(model)).take(model, dict(pixels))


def run_recipe(vlm: Path, folder: Path, features: str, **changes: Any) -> Recipe:
    data = {"features": features, "cache": str(folder / "cache"), "feature_dtype": "float32"}
    return recipe_for(vlm, folder, data=data, **changes)


@pytest.mark.parametrize(("name", "lora_only"), [("llava_next", False), ("qwen3_vl", True)])
def test_runs_with_and_without_the_cache_are_the_same(name: str, lora_only: bool, tmp_path: Path) -> None:
    vlm = written(name, tmp_path / "vlm")
    stages = {"stages": [{"name": "one", "train": ["lora"]}]} if lora_only else {}
    recipe = run_recipe(vlm, tmp_path, "disk", **stages)
    made = cache_recipe(recipe, QUIET)
    assert made["computed"] == made["images"] > 0
    losses = []
    for features in ("none", "disk", "memory"):
        run = tmp_path / features
        train(run_recipe(vlm, tmp_path, features, **stages), run, QUIET)
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        losses.append([line["train_loss"] for line in lines if "train_loss" in line])
    assert len(losses[0]) > 0
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert losses[2] == pytest.approx(losses[0], rel=1e-4)
    record = open_run(tmp_path / "disk").record
    assert [finding["result"] for finding in record.admission or () if finding["probe"] == "cache"] == [
        "exact"
    ]
    assert record.locked
    again = cache_recipe(recipe, QUIET)
    assert (again["computed"], again["folder"]) == (0, made["folder"])
    scores = [evaluate_folder(tmp_path / f, None, (), False, None, QUIET) for f in ("disk", "memory")]
    live = evaluate_folder(tmp_path / "disk", None, ("data.features=none",), False, None, QUIET)
    assert scores[0]["vqa"]["accuracy"] == pytest.approx(live["vqa"]["accuracy"])


def test_what_cannot_be_kept_is_refused_where_it_was_asked_for(tmp_path: Path) -> None:
    vlm = written("mllama", tmp_path / "vlm")
    with pytest.raises(AssemblyError, match="cannot be kept"):
        train(run_recipe(vlm, tmp_path, "memory"), tmp_path / "run", QUIET)
    with pytest.raises(AssemblyError, match="cannot be kept"):
        cache_recipe(run_recipe(vlm, tmp_path, "disk"), QUIET)


def test_keys_of_images_come_back_from_whole_numbers() -> None:
    for tensor in (
        torch.tensor([[1, 24, 38]]),
        torch.ones(1, 3, 8, 8, dtype=torch.bool),
        torch.tensor([[[0, 1], [-5, 2**40]]]),
        torch.zeros(0, 3, dtype=torch.int32),
        torch.tensor(7),
        torch.tensor([2.0, 3.0]),
    ):
        made = tensor_of(numbers_of("key", tensor))
        assert made.dtype == tensor.dtype
        assert made.shape == tensor.shape
        assert torch.equal(made, tensor)
    for tensor in (torch.tensor([0.5]), torch.arange(5000)):
        with pytest.raises(AssemblyError, match="key"):
            numbers_of("key", tensor)


def test_one_image_at_a_time_is_kept(tmp_path: Path) -> None:
    model, processor, _ = built("mistral3")
    pixels = pixel_inputs(processor, 10**6)
    part = pixels.of_pictures([pictures()[0].picture])  # type: ignore[list-item]
    records = kept_outputs(model, part, ragged=True)
    assert len(records) == 1
    assert records[0].keys["image_sizes"] == (48, 64)
    assert isinstance(build_experiment(recipe_for(tmp_path, tmp_path)).projector_trains, bool)
