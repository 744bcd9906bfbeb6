"""What llama.cpp's graph cannot hold is said from the config, and colours are measured on the processor."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf

from lockadapt.exports.gguf.refusal import class_refusal
from lockadapt.exports.gguf.tower import Colours, feature_layer, measure_colours, tower_refusal
from lockadapt.models.preprocessing import pixels
from tests.support.gguf import VISIONS, noise
from tests.support.tiny import COMMON, SIDE, VIT


def config(kind: str = "siglip", vision: dict[str, Any] | None = None, **changes: Any) -> Any:
    tower, strategy = VISIONS[kind]
    settings = {"vision_feature_select_strategy": strategy, **changes}
    return hf.LlavaConfig(
        vision_config=tower(**{**VIT, **(vision or {})}), text_config=hf.LlamaConfig(**COMMON), **settings
    )


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_clip_and_siglip_are_taken(kind: str) -> None:
    assert tower_refusal(config(kind)) is None
    assert class_refusal(config(kind)) is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"projector_hidden_act": "linear"}, "always has a GELU inside, this one 'linear'"),
        ({"vision_feature_select_strategy": "default"}, "must be 'full' for this tower, it is 'default'"),
        ({"vision_feature_layer": [-2, -1]}, "several layers"),
        ({"vision_feature_layer": -4}, "names no block's output"),
        ({"vision": {"hidden_act": "relu"}}, "no activation 'relu'"),
    ],
)
def test_what_the_graph_cannot_compute(changes: dict[str, Any], reason: str) -> None:
    assert reason in str(tower_refusal(config(**changes)))


def test_other_classes() -> None:
    text = hf.LlamaConfig(**COMMON)
    dinov2 = hf.LlavaConfig(vision_config=hf.Dinov2Config(), text_config=text)
    assert "CLIP and SigLIP towers in this class, not dinov2" in str(class_refusal(dinov2))
    assert "CNN tower" in str(class_refusal(hf.FastVlmConfig()))
    assert "cannot generate images" in str(class_refusal(hf.JanusConfig()))
    dual = hf.VisionTextDualEncoderConfig.from_vision_text_configs(hf.SiglipVisionConfig(), hf.BertConfig())
    assert "dual encoder" in str(class_refusal(dual))
    assert class_refusal(hf.Idefics3Config()) is None


@pytest.mark.parametrize(("layer", "blocks"), [(-2, 2), (-1, 3), (2, 2)])
def test_layers_count_from_the_front(layer: int, blocks: int) -> None:
    assert feature_layer(config(vision_feature_layer=layer)) == blocks


@pytest.mark.parametrize(
    "settings",
    [
        {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]},
        {"do_normalize": False},
        {"image_mean": [0.0] * 3, "image_std": [1.0] * 3, "rescale_factor": 1 / 127.5},
    ],
)
def test_colours_make_the_processors_pixels(settings: dict[str, Any]) -> None:
    processor = hf.ViTImageProcessorPil(size={"height": SIDE, "width": SIDE}, **settings)
    colours = measure_colours(processor, SIDE)
    assert isinstance(colours, Colours)
    image = noise(3, SIDE)
    raw = torch.tensor(list(image.getdata())).view(SIDE, SIDE, 3).permute(2, 0, 1) / 255
    mean, std = torch.tensor(colours.mean), torch.tensor(colours.std)
    ours = (raw - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(ours, pixels(processor, [image])[0], rtol=0, atol=1e-5)


def test_pictures_that_are_no_squares_of_the_tower() -> None:
    wide = hf.ViTImageProcessorPil(size={"height": SIDE, "width": 2 * SIDE})
    assert "squares of 32 pixels, the processor makes (1, 3, 32, 64)" in str(measure_colours(wide, SIDE))
    framed = hf.CLIPImageProcessorPil(
        size={"shortest_edge": SIDE // 2}, crop_size={"height": SIDE, "width": SIDE}
    )
    assert "does more than resize" in str(measure_colours(framed, SIDE))
