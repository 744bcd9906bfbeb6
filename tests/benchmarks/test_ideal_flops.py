"""The count of necessary arithmetic, against what PyTorch counts while it runs."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
from torch.utils.flop_counter import FlopCounterMode

from lockadapt.architectures import layout_of, llm_of
from lockadapt.architectures.assemble import Assembled
from lockadapt.architectures.base import unwrap_model
from lockadapt.architectures.features import kept_outputs
from lockadapt.data.batch import collate
from lockadapt.data.encode import Encoded, Encoder
from lockadapt.data.pack import count_tokens
from lockadapt.data.pixels import PixelInputs
from lockadapt.data.sample import ImageRef, Sample
from lockadapt.features.in_memory import FeatureInputs
from lockadapt.objectives.answer_tokens import answer_loss
from lockadapt.tuning.adapters import LoraSettings, attach_lora, lora_config, set_trainable
from tests.support.rows import vqa_samples


@pytest.mark.usefixtures("scripts")
def test_matrix_products_of_a_packed_step(assembled: Assembled, tmp_path: Path) -> None:
    from ideal_flops import count, flops

    model = copy.deepcopy(assembled.model)
    model = attach_lora(model, lora_config(model, LoraSettings(rank=4)))
    set_trainable(model, ["projector", "lora"])
    encoder = Encoder(assembled.processor, 250)
    items = encoder.encode(vqa_samples(tmp_path)).encoded[:2]  # two questions about one picture
    tokens = count(items, encoder.image_tokens)

    base = unwrap_model(model)
    images = FeatureInputs(
        PixelInputs(assembled.processor.image_processor, 10**6), lambda part: kept_outputs(base, part)
    )
    batch = collate(items, images, 2, "vqa", max_row_tokens=2048)
    with FlopCounterMode(display=False) as counter:
        answer_loss(model, batch)[0].backward()
    products = sum(
        number
        for operation, number in counter.get_flop_counts()["Global"].items()
        if "attention" not in str(operation)
    )
    config = llm_of(base).config
    attention = 12 * config.hidden_size * config.num_hidden_layers * tokens.attended
    left_out = 2 * base.get_submodule(layout_of(base).projector[0]).linear_2.weight.numel() * tokens.image
    assert flops(model, tokens) - attention + left_out == products


@pytest.mark.usefixtures("scripts")
def test_tokens_of_a_batch() -> None:
    from ideal_flops import count

    first, other = ImageRef("one"), ImageRef("other")
    items = [
        _item([5, 5, 1, 2, 3], first),
        _item([5, 5, 1, 4], first),
        _item([5, 5, 1, 2, 3, 6], first),
        _item([5, 5, 1, 2], other),
    ]
    tokens = count(items, 2)
    # The three about one image: 5 5 1, then 2 3 6 or 4.
    assert (tokens.padded, tokens.unpacked, tokens.unique) == (24, 19, 7 + 4)
    assert tokens.attended == (1 + 2 + 3 + 4 + 5 + 6) + 4 + (1 + 2 + 3 + 4)
    assert (tokens.image, tokens.labelled) == (4, 4)
    assert count_tokens(items) == (tokens.unpacked, tokens.unique)


def _item(ids: list[int], image: ImageRef) -> Encoded:
    labels = np.full(len(ids), -100, np.int32)
    labels[-1] = ids[-1]
    return Encoded(np.asarray(ids, np.int32), labels, (image,), Sample((image,), (), "rows:0"), 2)
