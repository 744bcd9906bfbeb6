"""Load a causal language model and prove by running it that a stock VLM class can hold it exactly."""

from __future__ import annotations

import copy
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    DynamicCache,
    PreTrainedModel,
)
from transformers.modeling_outputs import MultimodalBaseModelOutputWithPast

from lockadapt.errors import AssemblyError, memory_ran_out
from lockadapt.models.finite import require_finite
from lockadapt.models.model_folder import check_described_size
from lockadapt.models.sources import Source, check_unexpected, find, loading, some, tolerance

PROBE_SHAPE = (2, 12)
"""Rows and tokens of the random text that an LLM is probed and proved on."""

ATTENTION = {"full_attention", "sliding_attention", "chunked_attention", "moe", "mlp", "dense", "sparse"}
"""Kinds of layers, as configs list them, in which tokens get from others only what the mask lets through."""


@dataclass(frozen=True)
class LoadedLlm:
    """A language model in evaluation mode, frozen, and the checkpoint keys that it did not use."""

    model: PreTrainedModel
    source: Source
    unexpected: tuple[str, ...]


@dataclass(frozen=True)
class LlmFacts:
    """What an LLM was measured to be.

    `rows` is the size of its embedding table, `context` None where unlimited.
    `tied` says that head and embedding are one tensor; `keeps_tie` that the stock class can tie them too (it
    only finds a table called `embed_tokens`), else the head is stored as a copy.
    """

    hidden_size: int
    rows: int
    context: int | None
    tied: bool
    keeps_tie: bool


def llm_config(source: Source) -> Any:
    """The config of a causal LM or encoder-decoder that can be bridged; no weight is read.

    Args:
        source: folder or Hub id.

    Returns:
        The config.

    Raises:
        SetupError: it does not exist or cannot be read.
        AssemblyError: it is no causal LM, or is stored quantized.
    """
    with loading(source, "LLM"):
        config = AutoConfig.from_pretrained(source.name, **source.arguments)
    if getattr(config, "is_decoder", True) is False and not getattr(config, "is_encoder_decoder", False):
        config.is_decoder = True  # encoders such as BERT get a causal mask by it
    known = (
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING if is_encoder_decoder(config) else MODEL_FOR_CAUSAL_LM_MAPPING
    )
    if type(config) not in known:
        raise AssemblyError(
            f"{config.model_type} is no language model that writes text",
            where=source.name,
            fix="give a decoder LLM, or an encoder-decoder such as T5",
        )
    if getattr(config, "quantization_config", None) is not None:
        raise AssemblyError(
            "the LLM is stored quantized, so its exact weights are not known",
            where=source.name,
            fix="give the full-precision checkpoint; `model.quantization` quantizes it for training",
        )
    return config


def is_encoder_decoder(config: Any) -> bool:
    """Whether an LLM reads prompts with an encoder and writes answers with a decoder, by its config."""
    return bool(getattr(config, "is_encoder_decoder", False))


def auto_class(config: Any) -> Any:
    """Transformers' class that makes an LLM of a config."""
    return AutoModelForSeq2SeqLM if is_encoder_decoder(config) else AutoModelForCausalLM


def llm_arguments(llm: Any, ids: Tensor) -> dict[str, Tensor]:
    """Arguments of a forward pass over token ids; an encoder-decoder's decoder reads them backwards."""
    given = {"input_ids": ids}
    return {**given, "decoder_input_ids": ids.flip(1)} if is_encoder_decoder(llm.config) else given


def load_llm(llm: str | Path, dtype: torch.dtype) -> LoadedLlm:
    """Load a causal LM or encoder-decoder from a folder or Hub id, safetensors only, without remote code.

    Args:
        llm: folder or Hub id.
        dtype: of the weights.

    Returns:
        The LLM, its source and the keys that it did not use.

    Raises:
        SetupError: it does not exist or cannot be read.
        AssemblyError: it is no causal LM, or its checkpoint and its config do not belong together.
        VerificationError: a weight is not finite.
    """
    source = find(llm, "LLM")
    config = llm_config(source)
    with loading(source, "LLM"):
        if source.local:
            check_described_size(
                Path(source.name), lambda: auto_class(config).from_config(copy.deepcopy(config)), "LLM"
            )
        loaded: Any = auto_class(config).from_pretrained(
            source.name,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            **source.arguments,
        )
    model, info = loaded
    if info["missing_keys"]:
        raise AssemblyError(
            f"the LLM's checkpoint lacks {some(info['missing_keys'])}",
            where=source.name,
            fix="use a complete causal language model checkpoint",
        )
    unexpected = check_unexpected(model, info["unexpected_keys"], "LLM", source)
    require_finite(model, source.name)
    return LoadedLlm(model.eval().requires_grad_(False), source, unexpected)


def probe_ids(rows: int, seed: int, context: int | None = None, avoid: int | None = None) -> Tensor:
    """Random token ids, (2, up to 12), of a vocabulary of `rows`; `avoid` is never among them."""
    generator = torch.Generator().manual_seed(seed)
    length = min(PROBE_SHAPE[1], context or PROBE_SHAPE[1])
    ids = torch.randint(0, rows, (PROBE_SHAPE[0], length), generator=generator)
    return ids if avoid is None else torch.where(ids == avoid, (ids + 1) % rows, ids)


@torch.no_grad()
def probe_llm(llm: PreTrainedModel, seed: int = 0) -> LlmFacts:
    """Run the LLM and check that `logits == head(body(embedding(ids)))` for a linear head without a bias.

    That is what LLaVA and FastVLM compute, so whatever else the LLM does would be lost silently.

    Args:
        llm: in evaluation mode.
        seed: of the text that it reads.

    Returns:
        What it is.

    Raises:
        AssemblyError: it computes something else; the message names what was measured.
    """
    body, table, head = _parts(llm)
    config = llm.config
    hidden_size = int(config.hidden_size)
    if table.weight.shape[1] != hidden_size:
        raise _cannot(
            llm, f"an embedding of {table.weight.shape[1]} dimensions beside hidden states of {hidden_size}"
        )
    ids = probe_ids(table.weight.shape[0], seed, context_of(config)).to(table.weight.device)

    try:
        hidden = body(input_ids=ids, use_cache=False).last_hidden_state
        output = body(input_ids=ids)
    except Exception as error:
        if memory_ran_out(error):
            raise
        raise _unreadable(llm, ids, error) from error
    allowed = tolerance(hidden.dtype, hidden)
    _refuse_memories(llm, output)
    _refuse_caches(llm, body, ids, output)
    embedded = body(inputs_embeds=table(ids), use_cache=False).last_hidden_state
    if not _close(hidden, embedded, allowed):
        raise _cannot(llm, "token ids that it reads otherwise than through its embedding table")
    seen, plain = _head_input(llm, head, ids, 1.0)
    if seen.shape != hidden.shape or not _close(hidden, seen, allowed):
        raise _cannot(llm, "a layer between its blocks and its head")
    _check_head(llm, head, ids, seen, plain)

    return llm_structure(llm)


@torch.no_grad()
def probe_whole_llm(llm: PreTrainedModel, seed: int = 0) -> LlmFacts:
    """Runs an LLM that a class keeps whole, and checks that it can be given embeddings and keeps a cache.

    Whatever its head does (a bias, a scale, a soft-cap), the class does too, as it calls the LLM itself.

    Args:
        llm: a causal LM or encoder-decoder.
        seed: of the random tokens.

    Returns:
        What was measured.

    Raises:
        AssemblyError: it computes something else from embeddings than from tokens, or keeps no cache.
    """
    body, table, _ = _parts(llm, whole=True)
    width = table.weight.shape[1]
    if width != llm.config.hidden_size:
        raise _cannot(
            llm, f"an embedding of {width} dimensions beside hidden states of {llm.config.hidden_size}"
        )
    ids = probe_ids(table.weight.shape[0], seed, context_of(llm.config)).to(table.weight.device)
    try:
        given = llm_arguments(llm, ids)
        logits = llm(**given, use_cache=False).logits
        output = body(**given)
    except Exception as error:
        if memory_ran_out(error):
            raise
        raise _unreadable(llm, ids, error) from error
    if not is_encoder_decoder(llm.config):
        _refuse_memories(llm, output)
    given["inputs_embeds"] = table(given.pop("input_ids"))
    embedded = llm(**given, use_cache=False).logits
    if not _close(logits, embedded, tolerance(logits.dtype, logits)):
        raise _cannot(llm, "token ids that it reads otherwise than through its embedding table")
    facts = llm_structure(llm)
    return replace(facts, keeps_tie=facts.tied)


def llm_structure(llm: PreTrainedModel) -> LlmFacts:
    """What an LLM's modules and config say, nothing of it measured; also for a model without weights.

    Args:
        llm: a causal LM or encoder-decoder.

    Returns:
        What it is said to be.

    Raises:
        AssemblyError: it has no body, embedding table and linear head.
    """
    body, table, head = _parts(llm, whole=True)
    tied = head.weight is table.weight
    keeps = tied and "embed_tokens.weight" in dict(body.named_parameters())
    context = context_of(llm.config)
    return LlmFacts(int(llm.config.hidden_size), table.weight.shape[0], context, tied, keeps)


def context_of(config: Any) -> int | None:
    """The context in tokens that an LLM's config names; None: unlimited, which XLNet says by 0 or -1."""
    context = getattr(config, "max_position_embeddings", None)
    return int(context) if context is not None and context > 0 else None


def beside_attention(llm: nn.Module, inside: nn.Module | None = None) -> str | None:
    """What an LLM has beside plain attention that carries something from token to token; None: nothing.

    Found by structure: the layers that its config lists (as Transformers makes caches from them), the class's
    word that it keeps a state, modules that are convolutions or recurrent, and attention that counts places
    in the row.

    Args:
        llm: the body of a causal LM.
        inside: where modules are looked for, in bodies that hold more than the LLM; None: all of it.

    Returns:
        What it has, in words.
    """
    config: Any = llm.config
    others = sorted({str(kind) for kind in getattr(config, "layer_types", None) or ()} - ATTENTION)
    if others:
        return f"{' and '.join(others)} layers"
    if "local" in (getattr(config, "attention_layers", None) or ()):
        return "local attention layers"
    if getattr(llm, "_is_stateful", False):
        return "recurrent layers"
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.RNNBase)
    beside = next(
        (type(module).__name__ for module in (inside or llm).modules() if isinstance(module, kinds)), None
    )
    return f"{beside} layers" if beside else None


def _parts(llm: PreTrainedModel, *, whole: bool = False) -> tuple[nn.Module, nn.Embedding, nn.Linear]:
    """What lies before the head, embedding table, head; `whole`: also those of an encoder-decoder."""
    body, table, head = llm.base_model, llm.get_input_embeddings(), llm.get_output_embeddings()
    coded = is_encoder_decoder(llm.config)
    if coded and not whole:
        raise _cannot(llm, BESIDE, fix="use fusion: qformer, which holds it")
    if body is llm and not coded:
        raise _cannot(llm, f"no part called {llm.base_model_prefix}, its class's own word for its body")
    if not isinstance(table, nn.Embedding) or not isinstance(head, nn.Linear):
        raise _cannot(llm, f"a {type(head).__name__} as head over a {type(table).__name__}")
    if llm.config.get_text_config() is not llm.config:
        raise _cannot(llm, "other modalities beside text (to train an existing VLM, start from `model.vlm`)")
    return body, table, head


def _unreadable(llm: PreTrainedModel, ids: Tensor, error: Exception) -> AssemblyError:
    first = (str(error).strip().splitlines() or [""])[0]
    return AssemblyError(
        f"{type(llm).__name__} cannot read {ids.shape[1]} tokens: {type(error).__name__}: {first}",
        where=str(llm.config.name_or_path) or None,
        fix="check its config.json: Transformers itself cannot run it",
    )


def _refuse_memories(llm: PreTrainedModel, output: Any) -> None:
    others = output.keys() - {field.name for field in fields(MultimodalBaseModelOutputWithPast)}
    if others:
        raise _cannot(
            llm,
            f"{', '.join(sorted(others))} beside hidden states and a cache",
            fix="no Transformers class lets such an LLM answer about images; it can retrieve them as the "
            "text side of a dual encoder (objectives of the kind itc alone)",
        )


def _refuse_caches(llm: PreTrainedModel, body: nn.Module, ids: Tensor, output: Any) -> None:
    """Refuses an LLM that reads no cache but its own: a VLM class gives it a DynamicCache."""
    if type(output.get("cache")) in (type(None), DynamicCache):
        return
    try:
        body(input_ids=ids, cache=DynamicCache(config=llm.config), use_cache=True)
    except Exception as error:
        if memory_ran_out(error):
            raise
        raise _cannot(
            llm,
            f"a {type(output.cache).__name__} in place of the cache that their `generate` makes",
            fix="no Transformers VLM class can write answers with it; choose another LLM",
        ) from error


def _check_head(llm: PreTrainedModel, head: nn.Linear, ids: Tensor, hidden: Tensor, logits: Tensor) -> None:
    """Compare logits with head(hidden), at the LLM's own scale and at one where a soft-cap cannot hide."""
    raw = nn.functional.linear(hidden, head.weight)
    size = float(raw.abs().max()) or 1.0
    loud_input, loud = _head_input(llm, head, ids, 100.0 / size)
    loud_raw = nn.functional.linear(loud_input, head.weight)
    if _close(logits, raw, tolerance(raw.dtype, raw)) and _close(
        loud, loud_raw, tolerance(raw.dtype, loud_raw)
    ):
        return
    rest = (logits - raw).flatten(0, 1)
    if head.bias is not None and _close(rest[0], rest, tolerance(raw.dtype, raw)):
        raise _cannot(llm, f"a head bias (up to {float(rest.abs().max()):.3g})")
    scale = float((loud * loud_raw).sum() / (loud_raw * loud_raw).sum())
    if _close(loud, scale * loud_raw, tolerance(raw.dtype, loud_raw)):
        raise _cannot(llm, f"a logit scale (its logits are {scale:.4g} times head(hidden))")
    _, louder = _head_input(llm, head, ids, 10_000.0 / size)
    if float(louder.abs().max()) < 0.1 * 10_000.0:
        raise _cannot(llm, f"a logit soft-cap (its logits never pass {float(louder.abs().max()):.4g})")
    raise _cannot(
        llm, f"logits that differ from head(hidden) by up to {float((loud - loud_raw).abs().max()):.3g}"
    )


def _head_input(llm: PreTrainedModel, head: nn.Linear, ids: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    """What the head is given, multiplied by `factor` on its way in, and the logits that come of it."""
    seen: list[Tensor] = []

    def louder(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        seen.append(arguments[0] * factor)
        return (seen[-1], *arguments[1:])

    handle = head.register_forward_pre_hook(louder)
    try:
        logits = llm(input_ids=ids, use_cache=False).logits
    finally:
        handle.remove()
    if not seen:
        raise _cannot(llm, "a head that its forward does not call")
    return seen[0], logits


def _close(first: Tensor, second: Tensor, allowed: float) -> bool:
    return bool(((first - second).abs() <= allowed).all())


BESIDE = "an encoder beside its decoder"
PLAIN_HEAD = (
    "choose an LLM whose logits are a bias-free linear head over its last hidden state "
    "(Llama, Qwen, SmolLM, Gemma 1 and 3, Phi-3, GPT-NeoX, GPT-2, OPT …)"
)


def _cannot(llm: PreTrainedModel, what: str, fix: str = PLAIN_HEAD) -> AssemblyError:
    return AssemblyError(
        f"{type(llm).__name__} has {what}, which the Transformers VLM classes cannot represent",
        where=str(llm.config.name_or_path) or None,
        fix=fix,
    )


def name_text_class(config: Any) -> None:
    """Fills in `text_config.architectures` where it is missing, in place.

    Transformers itself never reads it there and many checkpoints lack it; llama.cpp then takes every LLM for
    a Llama.
    """
    text = config.get_text_config()
    if text is config or text.architectures:
        return
    written = (
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING if is_encoder_decoder(text) else MODEL_FOR_CAUSAL_LM_MAPPING
    )
    kind: Any = written.get(type(text), None)
    if kind is not None:
        text.architectures = [(kind[0] if isinstance(kind, tuple) else kind).__name__]
