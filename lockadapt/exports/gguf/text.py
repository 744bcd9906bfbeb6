"""The LLM of a Transformers model as a folder of its own, which is what llama.cpp's converter reads."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

from lockadapt.architectures import class_name, layout_of
from lockadapt.errors import AssemblyError
from lockadapt.exports.gguf.sentencepiece import came_from_sentencepiece, sentence_pieces
from lockadapt.models.quiet import quiet

DRAFTING = "mtp_num_hidden_layers", "num_nextn_predict_layers"
"""How configs count layers that draft tokens ahead, which no Transformers class holds."""


def causal_class(config: Any) -> str | None:
    """Name of the Transformers class `XForCausalLM` of a text config, or None."""
    kind = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    return getattr(kind, "__name__", None)


def text_class(config: Any, known: frozenset[str]) -> str | None:
    """Under which name llama.cpp's converter takes the LLM of a model.

    Args:
        config: of the whole model.
        known: names of the converter's text models.

    Returns:
        The LLM's causal class, if Transformers has one; else the whole class, if the converter knows it; else
        None.
    """
    name = class_name(config)
    return causal_class(config.get_text_config()) or (name if name in known else None)


def vocabulary_rows(tokenizer: Any) -> int:
    """How many rows the tokenizer can name.

    The padding behind them, which no text reaches, does not go along.
    """
    return int(max(tokenizer.get_vocab().values())) + 1


def write_vocabulary(config: Any, processor: Any, folder: Path) -> tuple[str, ...]:
    """Writes config, tokenizer and chat template, but no weights, into an existing folder.

    The config is the LLM's; the whole model's, where Transformers has no class for the LLM alone.

    Args:
        config: of the whole model.
        processor: the model's.
        folder: an existing one.

    Returns:
        What the user must know of the tokenizer in llama.cpp.

    Raises:
        AssemblyError: llama.cpp would tokenize otherwise.
    """
    tokenizer = copy.deepcopy(processor.tokenizer)
    tokenizer.chat_template = processor.chat_template
    text = copy.deepcopy(config.get_text_config())
    if name := causal_class(text):
        text.architectures = [name]
        text.vocab_size = min(text.vocab_size, vocabulary_rows(tokenizer))
    else:
        whole = copy.deepcopy(config)
        whole.architectures, whole.get_text_config().architectures = [class_name(config)], None
        text = whole
    _draft_nothing(text.get_text_config())
    with quiet():
        tokenizer.save_pretrained(folder)
        text.save_pretrained(folder)
    if not came_from_sentencepiece(tokenizer):
        return ()
    pieces = sentence_pieces(tokenizer, processor.image_token)
    (folder / "tokenizer.model").write_bytes(pieces.model)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["add_prefix_space"] = pieces.space_first
    path.write_text(json.dumps(settings, ensure_ascii=False, indent=1), encoding="utf-8")
    return pieces.notes


def write_llm(model: Any, processor: Any, folder: Path) -> tuple[str, ...]:
    """Writes a model's LLM with its tokenizer into an existing folder, weights in the model's dtype.

    A causal class loses the vocabulary's padding, in place. Where Transformers has none, the LLM's weights
    keep the names that they have in the whole class.

    Args:
        model: a Transformers model.
        processor: the model's.
        folder: an existing one.

    Returns:
        What the user must know, see `write_vocabulary`.

    Raises:
        AssemblyError: the LLM has parts that its causal class does not hold, or llama.cpp would tokenize
            otherwise.
    """
    config = copy.deepcopy(model.config.get_text_config())
    if causal_class(config) is None:
        notes = write_vocabulary(model.config, processor, folder)
        weights = folder / "weights"
        with quiet():
            # Names on the disk are not those in memory; only Transformers knows both.
            model.save_pretrained(weights, state_dict=llm_tensors(model))
        for file in weights.glob("*.safetensors*"):
            file.rename(folder / file.name)
        shutil.rmtree(weights)
        return notes
    _draft_nothing(config)
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    config.tie_word_embeddings = head.weight is embedding.weight
    with quiet(), torch.device("meta"):
        causal: Any = AutoModelForCausalLM.from_config(config, dtype=model.dtype)
    setattr(causal, causal.base_model_prefix, model.get_decoder())
    causal.set_output_embeddings(head)
    _require_real(causal)
    rows = vocabulary_rows(processor.tokenizer)
    notes = write_vocabulary(model.config, processor, folder)
    with quiet():
        if rows < embedding.weight.shape[0]:
            causal.resize_token_embeddings(rows)
        causal.save_pretrained(folder)
    return notes


def llm_tensors(model: Any) -> dict[str, torch.Tensor]:
    """The tensors of a model's LLM and head, by their names in the whole."""
    layout = layout_of(model)
    parts = (layout.llm, layout.head) if layout.head else (layout.llm,)
    states = [model.get_submodule(part).state_dict(keep_vars=True) for part in parts]
    within = {id(tensor) for state in states for tensor in state.values()}
    state = model.state_dict(keep_vars=True)
    return {name: tensor for name, tensor in state.items() if id(tensor) in within}


def _draft_nothing(config: Any) -> None:
    """Says in a text config, in place, that there are no layers that draft, if it counts any."""
    for key in DRAFTING:
        if getattr(config, key, None):
            setattr(config, key, 0)


def _require_real(causal: nn.Module) -> None:
    empty = [name for name, tensor in causal.named_parameters() if tensor.is_meta]
    if empty:
        raise AssemblyError(
            f"the model has no {empty[0]}, which {type(causal).__name__} needs",
            fix="please report this",
        )
