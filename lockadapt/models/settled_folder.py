"""Brings a stock folder up to what lockadapt trains with: chat template, and where generation stops."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoProcessor, GenerationConfig

from lockadapt.files import write_text
from lockadapt.models.chat_template import add_end_tokens, end_token_ids, settle_template
from lockadapt.models.sources import find, loading


@dataclass(frozen=True)
class Unsettled:
    """What a folder says otherwise than `load_model` and `load_processor` do; None where it says the same."""

    template: str | None
    generation: GenerationConfig | None

    def __bool__(self) -> bool:
        return self.template is not None or self.generation is not None


def unsettled(folder: str | Path) -> Unsettled:
    """Compares a stock folder's chat template and generation settings with the settled ones.

    Args:
        folder: or a Hub id.

    Returns:
        What differs; None for what does not.

    Raises:
        SetupError: it does not exist or cannot be read.
        DataError: its chat template is no valid Jinja.
    """
    source = find(folder, "VLM")
    with loading(source, "VLM's processor"):
        processor: Any = AutoProcessor.from_pretrained(source.name, **source.arguments)
        config = AutoConfig.from_pretrained(source.name, **source.arguments)
    given = getattr(processor, "chat_template", None)
    if not isinstance(given, str) or not getattr(processor, "image_token", None):
        return Unsettled(None, None)
    template = settle_template(processor.tokenizer, given)
    try:
        generation = GenerationConfig.from_pretrained(source.name, **source.arguments)
    except OSError:  # the folder has none
        generation = GenerationConfig.from_model_config(config)
    before = generation.eos_token_id
    add_end_tokens(generation, end_token_ids(processor.tokenizer, template))
    return Unsettled(
        None if template == given else template, None if generation.eos_token_id == before else generation
    )


def settle_folder(folder: Path) -> None:
    """Writes what `unsettled` finds into a stock folder; one that says the same keeps every byte."""
    files = unsettled(folder)
    if files.template is not None:
        write_text(folder / "chat_template.jinja", files.template)
        (folder / "chat_template.json").unlink(missing_ok=True)
    if files.generation is not None:
        settings = files.generation
        try:
            settings.validate(strict=True)
        except (
            ValueError
        ):  # Transformers saves no settings that contradict each other, and ignores them when it generates
            ids = {name: getattr(settings, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
            settings = GenerationConfig(**ids)
        settings.save_pretrained(folder)
