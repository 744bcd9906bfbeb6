"""Plans of every fusion's class against the assembled model: components, the batch's bytes, the peak of a step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lockadapt.architectures import tower_of
from lockadapt.architectures.base import unwrap_model
from lockadapt.planning.memory import step_peak
from lockadapt.planning.planner import Planner
from lockadapt.planning.sizes import component_sizes
from lockadapt.planning.trace import MicroBatch, tensors_of
from lockadapt.tuning.adapters import set_trainable
from tests.support.planned import QUIET, real_model, small

CASES = [
    ("llama", "clip-vision", "pixel-shuffle", "AyaVisionForConditionalGeneration", ()),
    ("llama", "clip-vision", "tiles", "LlavaNextForConditionalGeneration", ()),
    ("llama", "clip-vision", "mlp", "LlavaForConditionalGeneration", ("model.feature_layer=[-2,1]",)),
    ("llama", "vit", "qformer", "Blip2ForConditionalGeneration", ()),
    ("t5", "vit", "qformer", "Blip2ForConditionalGeneration", ("model.queries=3",)),
    ("llama", "clip-wide", "qformer", "Granite4VisionForConditionalGeneration", ()),
    ("llama", "clip-wide", "qformer", "Granite4VisionForConditionalGeneration", ("data.features=none",)),
    ("gpt2", "vit", "cross-attention", "VisionEncoderDecoderModel", ()),
    ("bert", "siglip-vision", "cross-attention", "VisionEncoderDecoderModel", ("data.features=none",)),
    ("llama", "clip-vision", "cross-attention", "IdeficsForVisionText2Text", ()),
]


@pytest.mark.parametrize(("llm", "tower", "fusion", "model_class", "overrides"), CASES)
def test_a_plan_agrees_with_the_assembled_model(
    llm: str, tower: str, fusion: str, model_class: str, overrides: tuple[str, ...], tmp_path: Path
) -> None:
    recipe = small(tmp_path, llm, tower, f"model.fusion={fusion}", *overrides)
    planner = Planner(recipe, QUIET)
    (stage,) = planner.stages
    ((name, items),) = planner.batches(stage, planner.choice)
    trace, learned = planner.model(planner.choice), planner.objectives[name]
    longest = planner.packing(stage).max_row_tokens
    step = MicroBatch(name, learned, items, stage.train, planner.cached, False, False, longest)
    planned, _, batch_bytes = trace.peak(step)

    model, rows = real_model(recipe, tmp_path / "run")
    assert type(unwrap_model(model)).__name__ == model_class
    set_trainable(model, stage.train)
    assert trace.sizes(stage.train) == component_sizes(model)
    model.train()
    tower_of(model).eval()
    pad = trace.processor.tokenizer.pad_token_id
    tensors = tensors_of(batch := learned.collate(items, rows.images[name], pad, name, longest))
    assert batch_bytes == sum(tensor.nbytes for tensor in tensors)
    with torch.no_grad():
        learned.loss(model, batch)  # measures once whether the head's output is what the class returns
    counted = step_peak(model, lambda: learned.loss(model, batch)[0], False, tensors).total
    assert planned == pytest.approx(counted, rel=0.05)
