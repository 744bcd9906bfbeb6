"""The zoo: every tiny model is what its stock class saves and loads, and sees pictures through its stock processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from PIL import Image, ImageDraw

from tests.support.zoo import ENTRIES, Entry

QUESTION = "what color is the shape?"
LARGEST = 5 * 2**20
"""Bytes of the largest folder."""


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_an_entry_is_a_folder_of_its_stock_class_and_sees_pictures(entry: Entry, tmp_path: Path) -> None:
    if missing := entry.missing():
        pytest.skip(f"its processor needs {' and '.join(missing)}")
    entry.write(tmp_path)
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < LARGEST

    model, loading = hf.AutoModelForImageTextToText.from_pretrained(
        tmp_path, dtype=torch.float32, output_loading_info=True
    )
    assert (type(model).__name__, model.config.model_type) == (entry.architecture, entry.model_type)
    assert not any(loading.values()), loading
    _check_tensors(model, entry.build()[0])

    processor = hf.AutoProcessor.from_pretrained(tmp_path)
    red, blue = (_inputs(processor, entry, _picture(color)).to(model.dtype) for color in ("red", "blue"))
    assert torch.equal(red["input_ids"], blue["input_ids"])
    if entry.raises:
        with pytest.raises(entry.raises):
            model(**red)
        return
    before, after = _logits(model, red), _logits(model, blue)
    assert before.isfinite().all()
    assert (before - after).abs().max() > 1e-3, "the picture does not matter"


def _check_tensors(loaded: hf.PreTrainedModel, built: hf.PreTrainedModel) -> None:
    expected = built.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, expected[name]), f"{name} is not what was saved"
    for name, parameter in loaded.named_parameters():
        assert not (parameter == 0).all(), f"{name} is zero"
        assert not (parameter == 1).all(), f"{name} is an identity"


def _inputs(processor: Any, entry: Entry, picture: Image.Image) -> Any:
    if entry.prompt:
        return processor(images=picture, text=entry.prompt.format(question=QUESTION), return_tensors="pt")
    content = [{"type": "image", "image": picture}, {"type": "text", "text": QUESTION}]
    return processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )


def _picture(color: str) -> Image.Image:
    picture = Image.new("RGB", (56, 40), "white")
    ImageDraw.Draw(picture).ellipse((12, 8, 44, 32), fill=color)
    return picture


@torch.no_grad()
def _logits(model: hf.PreTrainedModel, inputs: Any) -> torch.Tensor:
    decoder = {"decoder_input_ids": torch.tensor([[2, 1]])} if model.config.is_encoder_decoder else {}
    return model(**inputs, **decoder).logits[:, -1]
