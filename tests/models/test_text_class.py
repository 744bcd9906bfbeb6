"""`text_config.architectures` is filled in, never changed."""

from __future__ import annotations

import transformers as hf

from lockadapt.models.llms import name_text_class


def test_it_is_filled_in_where_it_is_missing() -> None:
    config = hf.LlavaConfig(text_config=hf.Qwen2Config(), vision_config=hf.CLIPVisionConfig())
    assert config.text_config.architectures is None
    name_text_class(config)
    assert config.text_config.architectures == ["Qwen2ForCausalLM"]
    config.text_config.architectures = ["MyOwn"]
    name_text_class(config)
    assert config.text_config.architectures == ["MyOwn"]


def test_a_config_of_text_alone_is_left_alone() -> None:
    config = hf.LlamaConfig()
    name_text_class(config)
    assert config.architectures is None
