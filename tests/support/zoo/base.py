"""What the zoo's families share: tokenizers, templates, configs of tiny parts, random weights, and how an entry becomes a folder."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers.processors import ByteLevel

import lockadapt.quickstart

TOKENIZER = Path(lockadapt.quickstart.__file__).parent / "assets" / "llm"
TEMPLATES = Path(__file__).parent / "templates"

TORCHVISION = ("torchvision",)

VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
"""Sizes of every tower; narrower than the LLM, so that neither can be taken for the other."""

SIGLIP = {
    **VISION,
    "model_type": "siglip_vision_model",
    "image_size": 32,
    "patch_size": 8,
    "vision_use_head": False,
}
CLIP = {
    **VISION,
    "model_type": "clip_vision_model",
    "image_size": 32,
    "patch_size": 8,
    "projection_dim": 32,
}
PIXTRAL = {**VISION, "model_type": "pixtral", "head_dim": 16, "image_size": 64, "patch_size": 8}

MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
"""Three-dimensional rotary positions for heads of 16."""

SQUARE = {"height": 32, "width": 32}


@dataclass(frozen=True)
class Made:
    """A config of a whole model and the processor that goes with it."""

    config: hf.PreTrainedConfig
    processor: hf.ProcessorMixin


@dataclass(frozen=True)
class Entry:
    """A tiny model of one stock class.

    Attributes:
        name: What the zoo calls it.
        architecture: The Transformers class that loads it.
        model_type: The config's.
        make: Builds config and processor, offline.
        needs: Packages that its processor imports and lockadapt does not require.
        prompt: Where the real checkpoints have no chat template: the text of a question, with `{question}`.
        raises: What the class's own forward raises on any input, if it does.
    """

    name: str
    architecture: str
    model_type: str
    make: Callable[[], Made]
    needs: tuple[str, ...] = ()
    prompt: str = ""
    raises: type[Exception] | None = None

    def missing(self) -> list[str]:
        """Names the packages that it needs and that do not import here."""
        return [package for package in self.needs if not _imports(package)]

    def build(self, seed: int = 0) -> tuple[hf.PreTrainedModel, hf.ProcessorMixin]:
        """Builds the model in float32, in eval mode, and its processor."""
        made = self.make()
        with torch.random.fork_rng():
            torch.manual_seed(seed)  # vectors start where the class puts them
            model = getattr(hf, self.architecture)._from_config(made.config, dtype=torch.float32)
        randomize(model, seed)
        return model.eval(), made.processor

    def write(self, folder: Path, seed: int = 0) -> None:
        """Saves model and processor into `folder`, as stock classes load them."""
        model, processor = self.build(seed)
        model.save_pretrained(folder)
        processor.save_pretrained(folder)


def tokenizer(*tokens: str, bos: bool = False, eos: str = "</s>", **named: str) -> hf.PreTrainedTokenizerFast:
    """The quickstart's tokenizer with a family's special tokens.

    Args:
        tokens: Special tokens.
        bos: Whether `<s>` is put in front of every text, as Llama, Mistral and Gemma do and Qwen does not.
        eos: What ends an answer; added if it is new.
        named: Special tokens that a processor asks the tokenizer for: `image_token="<image>"`.
    """
    made = hf.AutoTokenizer.from_pretrained(TOKENIZER, extra_special_tokens=named)
    special = list(dict.fromkeys([*tokens, *named.values()]))
    made.add_special_tokens({"additional_special_tokens": special, "eos_token": eos})
    if not bos:
        made.backend_tokenizer.post_processor = ByteLevel(trim_offsets=False)
    made.padding_side = "right"
    made.model_max_length = 4096
    return made


def template(name: str, **replaced: str) -> str:
    """A chat template of `templates/`; `image="[IMG]"` puts `[IMG]` wherever it says `<image>`."""
    text = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8").rstrip("\n")
    for old, new in replaced.items():
        text = text.replace(f"<{old}>", new)
    return text


def token_id(tokens: hf.PreTrainedTokenizerFast, token: str) -> int:
    """The id of a special token that must be there."""
    (number,) = tokens.convert_tokens_to_ids([token])
    assert number != tokens.unk_token_id, f"{token} is not in the vocabulary"
    return number


def text_config(model_type: str, tokens: hf.PreTrainedTokenizerFast, **changes: Any) -> dict[str, Any]:
    """A tiny LLM's config: columns are multiples of 64, the block size of NF4."""
    return {
        "model_type": model_type,
        "vocab_size": len(tokens),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 4096,
        "pad_token_id": tokens.pad_token_id,
        "bos_token_id": tokens.bos_token_id,
        "eos_token_id": tokens.eos_token_id,
        **changes,
    }


def image_processor(name: str, **settings: Any) -> Any:
    """The image processor `name`: torchvision's where that imports, else PIL's. Both are saved under the same name."""
    return getattr(hf, name if _imports("torchvision") else f"{name}Pil")(**settings)


@torch.no_grad()
def randomize(model: torch.nn.Module, seed: int = 0) -> None:
    """Makes every tensor matter: random matrices of unit gain, and biases, norms and gates that are no identity."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.numel() == 1:
            parameter.add_(0.5)
        elif parameter.dim() == 1:
            parameter.add_(0.1 * noise)
        else:
            inputs = parameter.shape[-1] if parameter.dim() <= 3 else parameter[0].numel()
            parameter.copy_(noise / inputs**0.5)
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for name, tensor in model.state_dict().items():
        if name not in parameters and tensor.is_floating_point():
            tensor.mul_(1 + 0.1 * torch.rand(tensor.shape, generator=generator))


def _imports(package: str) -> bool:
    try:
        importlib.import_module(package)
    except (ImportError, RuntimeError):  # RuntimeError: a torchvision made for another torch
        return False
    return True
