"""Ollama's `Modelfile` for the two GGUF files: the model's own prompt in Ollama's template language."""

from __future__ import annotations

from typing import Any

ASKED = "\ue000"
"""Stands for the question while the chat template is rendered; no template holds it."""


def modelfile(processor: Any, model: str, mmproj: str) -> str:
    """Writes a Modelfile by the published rules of Ollama, which is not run here.

    Ollama does not read the Jinja template of a GGUF file, and puts images before the prompt's text by
    itself. So the text around one question is taken from the chat template, without the image's placeholder.

    Args:
        processor: of the merged folder.
        model: name of the LLM's GGUF file.
        mmproj: name of the vision part's.

    Returns:
        The text.
    """
    before, between, after = _around(processor)
    lines = [f"FROM ./{model}", f"FROM ./{mmproj}", f'TEMPLATE """{before}{{{{ .Prompt }}}}{after}"""']
    if between:
        lines.insert(0, f"# Training had {between!r} between image and question, which Ollama leaves out.")
    return "\n".join([*lines, "PARAMETER temperature 0", ""])


def _around(processor: Any) -> tuple[str, str, str]:
    """What a prompt has before its image, between image and question, and behind the question."""
    content = [{"type": "image"}, {"type": "text", "text": ASKED}]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    head, _, after = prompt.partition(ASKED)
    before, _, between = head.partition(processor.image_token)
    # llama.cpp puts the first token of a text there itself.
    first = getattr(processor.tokenizer, "bos_token", None)
    return before.removeprefix(first or ""), between, after
