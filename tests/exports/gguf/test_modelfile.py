"""The Modelfile's template around a question is the prompt that the processor writes, but for the image's placeholder."""

from __future__ import annotations

import re

from lockadapt.architectures.assemble import Assembled
from lockadapt.exports.gguf.modelfile import modelfile


def test_template_is_the_models_own_prompt(assembled: Assembled) -> None:
    processor = assembled.processor
    text = modelfile(processor, "model-f32.gguf", "mmproj-model-f32.gguf")
    froms = re.findall(r"^FROM (.*)$", text, re.M)
    assert froms == ["./model-f32.gguf", "./mmproj-model-f32.gguf"]
    template = re.search(r'TEMPLATE """(.*?)"""', text, re.S)
    assert template is not None
    content = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    bos = processor.tokenizer.bos_token or ""
    between = re.search(r"^# Training had '(.*)' between", text, re.M)
    separator = between[1].encode().decode("unicode_escape") if between else ""
    shown = template[1].replace("{{ .Prompt }}", f"{processor.image_token}{separator}What is it?")
    assert shown == prompt.removeprefix(bos)
    assert "\ue000" not in text
