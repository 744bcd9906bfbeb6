"""CLIP from two locked models: texts run once, losses and gradients stay; hard negatives; heads of two layers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from lockadapt.architectures.dual_encoder.assemble import assemble_dual
from lockadapt.data.encode import Encoder
from lockadapt.data.pixels import PixelInputs
from lockadapt.data.readers import Source, read_samples
from lockadapt.errors import DataError
from lockadapt.features.inputs import memory_features
from lockadapt.features.policy import FeatureSettings, ImagePolicy
from lockadapt.objectives import ImageText
from lockadapt.objectives.retrieval import retrieval_of
from lockadapt.tuning.adapters import LoraSettings, attach_adapters, set_trainable
from tests.support.rows import pair_samples

POLICY = ImagePolicy(FeatureSettings("memory"), 10**6)
NEGATIVES = {"rows:0": ("a green shape", "green"), "rows:2": ("nothing blue",)}
"""One of them is what another row says of its own image."""


def built(tiny: Path, objective: ImageText, lora: bool = False) -> tuple[Any, Any]:
    """A dual encoder whose heads alone train, or with LoRA."""
    made = assemble_dual(
        tiny / "llama-tied", tiny / "clip-vision", None, dtype="float32", prove=False, dimension=8
    )
    model = attach_adapters(made.model, LoraSettings(rank=2) if lora else None, [])
    objective.prepare(model)
    set_trainable(model, ["retrieval", "lora"] if lora else ["retrieval"])
    return model, made.processor


def rows(objective: ImageText, processor: Any, folder: Path, negatives: bool = False) -> list[Any]:
    given = pair_samples(folder)
    if negatives:
        given = [dataclasses.replace(s, negatives=NEGATIVES.get(s.where, ())) for s in given]
    return objective.encode(Encoder(processor, 128), given).encoded


def gradients(objective: ImageText, model: Any, batch: Any) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss, _ = objective.loss(model, batch)
    loss.backward()
    return {"loss": loss.detach()} | {
        n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad
    }


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_kept_states_do_as_the_text_model(tiny: Path, tmp_path: Path, head: Any) -> None:
    objective = ImageText(mode="dual", dimension=8, head=head, chunk=2)
    model, processor = built(tiny, objective)
    items, pixels = (
        rows(objective, processor, tmp_path, negatives=True),
        PixelInputs(processor.image_processor, 10**6),
    )
    kept = objective.keep(model, items, POLICY)
    plain = objective.collate(items, pixels, 2, "itc")
    cached = objective.collate(kept, memory_features(model, pixels), 2, "itc")
    assert "text_ids" not in cached
    assert cached["text_states"].shape == (6, 32)
    expected, made = gradients(objective, model, plain), gradients(objective, model, cached)
    assert any("text_head" in name for name in made) == (head == "mlp")
    for name, gradient in expected.items():
        torch.testing.assert_close(made[name], gradient, rtol=1e-4, atol=1e-6)


def test_states_on_disk_are_computed_once(tiny: Path, tmp_path: Path) -> None:
    objective = ImageText(mode="dual", dimension=8)
    model, processor = built(tiny, objective)
    items, notes = rows(objective, processor, tmp_path), list[str]()
    settings = FeatureSettings("disk", cache=tmp_path / "cache", stored="float32")
    policy = ImagePolicy(settings, 10**6, note=notes.append)
    pixels = PixelInputs(processor.image_processor, 10**6)
    states = [
        objective.collate(kept, pixels, 2, "itc")["text_states"]
        for kept in (objective.keep(model, items, p) for p in (POLICY, policy, policy))
    ]
    torch.testing.assert_close(states[1], states[0])
    torch.testing.assert_close(states[2], states[0])
    assert ["(4 computed" in note for note in notes] == [True, False]
    with torch.no_grad():
        model.text_model.embed_tokens.weight.mul_(2)
    objective.keep(model, items, policy)
    assert "(4 computed" in notes[-1]  # another text model, other states


def test_texts_of_a_model_that_trains_are_not_kept(tiny: Path, tmp_path: Path) -> None:
    objective = ImageText(mode="dual", dimension=8)
    model, processor = built(tiny, objective, lora=True)
    items = rows(objective, processor, tmp_path)
    assert all(row.kept is None for row in objective.keep(model, items, POLICY))
    model, processor = built(tiny, objective)
    none = ImagePolicy(FeatureSettings("none"), 10**6)
    assert all(row.kept is None for row in objective.keep(model, items, none))


@pytest.mark.parametrize("contrast", ["infonce", "sigmoid"])
def test_hard_negatives_as_a_plain_loss(tiny: Path, tmp_path: Path, contrast: Any) -> None:
    objective = ImageText(mode="dual", dimension=8, contrast=contrast)
    model, processor = built(tiny, objective)
    items = rows(objective, processor, tmp_path, negatives=True)
    batch = objective.collate(items, PixelInputs(processor.image_processor, 10**6), 2, "itc")
    images = objective.embed_images(model, batch)[batch["image_of"]]
    texts = objective.embed_texts(model, batch)[batch["text_of"]]
    assert len(texts) == 8
    words = [item.sample.answer for item in items] + [t for n in NEGATIVES.values() for t in n]
    names = [item.images[0].key for item in items] + [None] * 3
    right = torch.tensor(
        [[names[i] == names[j] or words[i] == words[j] for j in range(8)] for i in range(5)]
    ).float()
    own = retrieval_of(model).temperature
    logits = images @ texts.T * own.logit_scale.exp()
    if contrast == "sigmoid":
        expected = -F.logsigmoid((2 * right - 1) * (logits + own.logit_bias)).sum() / 8
    else:
        of_image = -(logits.log_softmax(1) * right / right.sum(1, keepdim=True)).sum(1).mean()
        columns = right.sum(0) > 0
        share = (right / right.sum(0).clamp(min=1))[:, columns]
        of_text = -(logits.log_softmax(0)[:, columns] * share).sum(0).mean()
        expected = (of_image + of_text) / 2
    assert float(objective.loss(model, batch)[0].detach()) == pytest.approx(
        float(expected.detach()), abs=1e-5
    )
    without = objective.collate(
        rows(objective, processor, tmp_path / "b"), PixelInputs(processor.image_processor, 10**6), 2, "itc"
    )
    assert float(objective.loss(model, without)[0].detach()) != pytest.approx(
        float(expected.detach()), abs=1e-3
    )


def test_negatives_of_rows(tmp_path: Path) -> None:
    lines = [
        {"image": "0.png", "caption": "a cat", "negatives": ["a dog", "a cow"]},
        {"image": "0.png", "captions": ["a cat", "cats"], "negatives": "a dog"},
        {"image": "0.png", "caption": "a cat", "negatives": None},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    made = list(read_samples("jsonl", Source(path=tmp_path / "a.jsonl", kind="caption")))
    assert [sample.negatives for sample in made] == [("a dog", "a cow"), ("a dog",), ("a dog",), ()]
    (tmp_path / "a.jsonl").write_text(json.dumps({**lines[0], "negatives": [3]}))
    with pytest.raises(DataError, match="negatives is 3"):
        list(read_samples("jsonl", Source(path=tmp_path / "a.jsonl", kind="caption")))
