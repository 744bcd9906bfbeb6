"""The proof in a fresh process holds for real assemblies, notices tampering, and leaves nothing after a failure."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from lockadapt.architectures import assemble as assembly
from lockadapt.architectures.assemble import Assembled, assemble
from lockadapt.errors import VerificationError
from lockadapt.models.proof import Expectation, compare, run_fresh
from tests.support.tiny import tiny_llm, tiny_tower


@pytest.mark.slow
@pytest.mark.cold
def test_proved_in_a_fresh_process(tmp_path: Path) -> None:
    llm, tower = "gpt2", "dinov2-registers"  # a copied head, and register tokens
    result = assemble(
        tiny_llm(llm, tmp_path / "llm"),
        tiny_tower(tower, tmp_path / "tower"),
        tmp_path / "out",
        dtype="float32",
    )
    proof = result.report.proof
    assert proof.fresh_process
    assert proof.logit_difference <= proof.logit_tolerance
    assert proof.feature_difference <= proof.feature_tolerance


@pytest.mark.slow
def test_fresh_process_answers_as_this_one_does(tiny: Path, tmp_path: Path) -> None:
    made = assemble(
        tiny / "llama-tied", tiny / "mobilenet-v2", tmp_path / "out", dtype="float32", prove=False
    )
    assert made.folder is not None
    picture = tmp_path / "picture.png"
    Image.effect_noise((30, 20), 80).convert("RGB").save(picture)
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what color?"}]}]
    ids = torch.randint(3, 280, (2, 5), generator=torch.Generator().manual_seed(0))
    fresh = run_fresh(
        made.folder,
        dtype=torch.float32,
        tensors={"some.input_ids": ids},
        conversations=[{"messages": messages, "images": [picture]}],
        max_new_tokens=4,
    )
    with torch.no_grad():
        torch.testing.assert_close(fresh.tensors["some.logits"], made.model(input_ids=ids).logits)
    text = made.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    inputs = made.processor(
        text=[text], images=[Image.open(picture)], add_special_tokens=False, return_tensors="pt"
    )
    assert fresh.answer["prompt_ids"] == inputs["input_ids"].tolist()
    ids = made.model.generate(**inputs, max_new_tokens=4, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert fresh.texts == (made.processor.decode(ids, skip_special_tokens=True),)
    assert fresh.answer["lockadapt"] is False
    assert fresh.answer["missing_keys"] == fresh.answer["unexpected_keys"] == []
    assert fresh.answer["tower_class"].endswith("MobileNetV2Model")


@pytest.mark.slow
@pytest.mark.cold
def test_a_folder_that_does_not_run_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(VerificationError, match="fresh process cannot load") as caught:
        run_fresh(tmp_path, dtype=torch.float32)
    assert caught.value.where == str(tmp_path)


def test_nothing_is_left_after_a_failed_proof(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = assembly._build

    def saboteur(*arguments: object) -> object:
        built = honest(*arguments)  # type: ignore[arg-type]
        file = Path(arguments[1]) / "model.safetensors"  # type: ignore[arg-type]
        tensors = load_file(file)
        name = next(key for key in tensors if key.endswith("norm.weight"))
        tensors[name] = tensors[name] * 1.01
        save_file(tensors, file, metadata={"format": "pt"})
        return built

    monkeypatch.setattr(assembly, "_build", saboteur)
    with pytest.raises(VerificationError, match="text-only logits differ"):
        assemble(tiny / "llama", tiny / "clip-vision", tmp_path / "out", dtype="float32", prove=False)
    assert list(tmp_path.iterdir()) == []


def test_comparison_sees_small_differences_and_other_shapes(assembled: Assembled) -> None:
    logits, features = torch.randn(2, 3, 9), torch.randn(2, 4, 5)
    expected = Expectation(torch.ones(2, 3).long(), logits, torch.zeros(2, 3, 8, 8), features, "t", "l")
    wider = torch.cat([logits, torch.full((2, 3, 4), 50.0)], dim=-1)
    report = compare(expected, wider, features, torch.float32, fresh_process=False)
    assert report.logit_difference == report.feature_difference == 0
    with pytest.raises(VerificationError, match="logits differ"):
        compare(expected, wider * 1.001, features, torch.float32, fresh_process=False)
    with pytest.raises(VerificationError, match=r"features differ.*shape"):
        compare(expected, wider, features[:, :3], torch.float32, fresh_process=False)
    broken = dataclasses.replace(expected, features=features * float("nan"))
    with pytest.raises(VerificationError, match="features differ"):
        compare(broken, wider, features, torch.float32, fresh_process=False)
