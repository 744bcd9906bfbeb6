"""VisionEncoderDecoder (arXiv 2109.10282): decoders with cross-attention to a vision transformer's outputs.

Fresh cross-attention starts with an output of zero, so that the assembled model's logits are the LLM's own
whatever the image. Encoders such as BERT become decoders by a causal mask.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import VisionEncoderDecoderConfig, VisionEncoderDecoderModel
from transformers.modeling_outputs import BaseModelOutput

from lockadapt.architectures.assembly import Assembly, Fusion, Ingredients
from lockadapt.architectures.base import RETRIEVAL, Architecture, Beside, Clients, ModelLayout, Positions
from lockadapt.architectures.beside import (
    CROSS_ATTENTION,
    INPUTS,
    REFUSED,
    draw_,
    last_hidden_state,
    processor,
    standardise,
    tower_features,
)
from lockadapt.architectures.bridge import forget_origin, same_structure
from lockadapt.errors import AssemblyError
from lockadapt.models.quiet import quiet
from lockadapt.models.sources import some

PROJECTION = "enc_to_dec_proj"
"""Leads from the tower's width to the decoder's, where they differ."""
OUTPUTS = ("crossattention.c_proj", "crossattention.output.dense", "encoder_attn.out_proj")
"""What cross-attention's outputs go through last: GPT-2, BERT and its kin, XGLM."""
READERS = (
    *("crossattention.c_attn", "encoder_attn.k_proj", "encoder_attn.v_proj"),
    *("crossattention.self.key", "crossattention.self.value"),
)
"""What reads the tower's outputs in there."""


def build(ingredients: Ingredients, fusion: Fusion, seed: int) -> Any:
    """See `Assembly.build`."""
    llm, tower = ingredients.llm, ingredients.tower
    decoder = with_cross_attention(llm, torch.Generator().manual_seed(seed))
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(tower.config, decoder.config)
    with torch.device("meta"), quiet():
        model: Any = VisionEncoderDecoderModel(config)
    for path, part in (("encoder", tower), ("decoder", decoder)):
        same_structure(path, model.get_submodule(path), part)
        model.set_submodule(path, part)
        part.config = getattr(config, path)
    projection = getattr(model, PROJECTION, None)
    if projection is not None:
        # Of unit variance for standardised inputs, which calibration makes them.
        model.set_submodule(PROJECTION, _fresh(projection, llm, torch.Generator().manual_seed(seed), None))
    forget_origin(llm.dtype, model.config, model.config.encoder, model.config.decoder)
    return model.eval().requires_grad_(False)


def with_cross_attention(llm: Any, generator: torch.Generator) -> Any:
    """The decoder with fresh cross-attention in every block, which changes nothing yet.

    Args:
        llm: the causal LM; its modules move into the result, its config changes.
        generator: of the fresh weights.

    Returns:
        The decoder, of the LLM's class.

    Raises:
        AssemblyError: its class keeps other modules with cross-attention than without.
    """
    llm.config.add_cross_attention = llm.config.is_decoder = True
    with torch.device("meta"), quiet():
        decoder = type(llm)(llm.config)
    fresh = list(_adopt(decoder, llm, ""))
    decoder.tie_weights()
    for path in fresh:
        decoder.set_submodule(path, _fresh(decoder.get_submodule(path), llm, generator, path))
    lost = {
        name for name, tensor in decoder.state_dict().items() if tensor.is_meta and not llm.dtype.is_complex
    }
    if llm.device.type != "meta" and lost:
        raise AssemblyError(f"{type(llm).__name__} with cross-attention has other weights: {some(lost)}")
    _move_norms(decoder)
    return decoder.eval()


def _adopt(decoder: nn.Module, llm: nn.Module, path: str) -> Iterator[str]:
    """Puts the LLM's modules into the decoder, the largest alike; gives the paths of what only that has."""
    theirs = dict(llm.named_children())
    for table in ("_parameters", "_buffers"):
        vars(decoder)[table] = vars(llm)[table]
    for name, child in decoder.named_children():
        full = f"{path}.{name}" if path else name
        if name not in theirs:
            yield full
        elif child.state_dict().keys() == theirs[name].state_dict().keys():
            setattr(decoder, name, theirs[name])
        else:
            yield from _adopt(child, theirs[name], full)


@torch.no_grad()
def _fresh(module: nn.Module, llm: Any, generator: torch.Generator, path: str | None) -> nn.Module:
    """A module of the LLM's dtype, on its device: matrices drawn, norms as by default, the output zero."""
    module = module.to_empty(device=llm.device).to(llm.dtype)
    if llm.device.type == "meta":
        return module
    for name, part in module.named_modules():
        full = f"{path}.{name}" if path and name else path or name
        for leaf, parameter in part.named_parameters(recurse=False):
            if "norm" in type(part).__name__.lower():
                parameter.fill_(1.0 if leaf == "weight" else 0.0)
            elif leaf != "weight" or (full and full.endswith(OUTPUTS)):
                parameter.zero_()
            else:
                draw_(parameter, generator, transposed=not isinstance(part, nn.Linear))
    for leaf, buffer in module.named_buffers():
        raise AssemblyError(f"{path}.{leaf} is a buffer that nothing fills", where=str(buffer.dtype))
    return module


@torch.no_grad()
def _move_norms(decoder: nn.Module) -> None:
    """Moves scale and shift of norms behind self-attention behind cross-attention (post-LN decoders).

    The norm of a normalised vector is that vector, up to rounding: so two norms compute what one did.
    """
    for block in decoder.modules():
        own = getattr(getattr(getattr(block, "attention", None), "output", None), "LayerNorm", None)
        cross = getattr(getattr(getattr(block, "crossattention", None), "output", None), "LayerNorm", None)
        if isinstance(own, nn.LayerNorm) and isinstance(cross, nn.LayerNorm):
            cross.weight.copy_(own.weight)
            cross.bias.copy_(own.bias)
            own.weight.fill_(1.0)
            own.bias.zero_()


def locate(model: Any) -> ModelLayout:
    """Where the parts are: the bridge is all that the decoder has with cross-attention only."""
    decoder = model.decoder
    config = copy.deepcopy(decoder.config)
    config.add_cross_attention = False
    with torch.device("meta"), quiet():
        plain = type(decoder)(config)
    known = {name for name, _ in plain.named_modules()}
    fresh: list[str] = [PROJECTION] if hasattr(model, PROJECTION) else []
    for name, module in decoder.named_modules():
        if ".lora_" in f".{name}." or ".base_layer" in name or next(module.parameters(), None) is None:
            continue
        if name not in known and name.rpartition(".")[0] in known:
            fresh.append(f"decoder.{name}")
    names = {module: name for name, module in decoder.named_modules()}
    head = decoder.get_output_embeddings()
    return ModelLayout(
        tower="encoder",
        llm=f"decoder.{names[decoder.base_model]}",
        projector=tuple(fresh),
        head=f"decoder.{names[head]}",
        retrieval=(RETRIEVAL,),
    )


def arguments(model: Any, given: Any, image_rows: Tensor) -> dict[str, Any]:
    """See `Beside.arguments`: every row has an image, in the rows' order."""
    renamed = ("input_ids", "attention_mask", "position_ids", "logits_to_keep")
    made = {f"decoder_{name}" if name in renamed else name: value for name, value in given.items()}
    positions = made.get("decoder_position_ids")
    if positions is not None:
        made["decoder_position_ids"] = positions + first_position(model)
    return made


def first_position(model: Any) -> int:
    """The position of a row's first token: RoBERTa and its kin count from behind the padding's id."""
    for module in model.decoder.base_model.modules():
        padding = getattr(module, "padding_idx", None)
        rows = module.weight.shape[0] if isinstance(module, nn.Embedding) else None
        if padding is not None and rows == model.decoder.config.max_position_embeddings:
            return int(padding) + 1
    return 0


def probe_arguments(model: Any, token_ids: Tensor, pixel_values: Tensor) -> dict[str, Any]:
    """See `Assembly.arguments`: the image path itself, which starts as a no-op."""
    return {"decoder_input_ids": token_ids, "pixel_values": pixel_values[: len(token_ids)]}


def calibrate_model(model: Any, batches: Iterable[Tensor], embedding_rms: float) -> int:
    """See `Assembly.calibrate`: the projection works on standardised outputs, or else keys and values do."""
    if hasattr(model, PROJECTION):
        return standardise([getattr(model, PROJECTION)], batches)
    return standardise([layer for name, layer in model.named_modules() if name.endswith(READERS)], batches)


def finish(model: Any, tokenizer: Any) -> None:
    """See `Assembly.finish`: prompts begin with bos, so that `generate` puts nothing before them."""
    for config in (model.config, model.generation_config):
        config.decoder_start_token_id = tokenizer.bos_token_id
        config.pad_token_id = tokenizer.pad_token_id


def refuse(llm: Any, tower: Any) -> str | None:
    """See `Assembly.refuse`."""
    name = type(llm).__name__
    if "encoder_hidden_states" not in inspect.signature(llm.forward).parameters:
        return f"{name} has no cross-attention"
    config = copy.deepcopy(llm.config)
    config.add_cross_attention = config.is_decoder = True
    with torch.device("meta"), quiet():
        crossed = {
            key
            for key in type(llm)(config).state_dict()
            if any(f"{output}.weight" in key for output in OUTPUTS)
        }
    depth = config.num_hidden_layers
    if len(crossed) != depth:
        return f"{name} has {len(crossed)} layers of cross-attention for {depth} blocks"
    if getattr(tower.config, "hidden_size", None) is None:
        return f"{type(tower).__name__} names no hidden size"
    return None


VISION_ENCODER_DECODER = Architecture(
    model_class=VisionEncoderDecoderModel,
    config_class=VisionEncoderDecoderConfig,
    layout=ModelLayout(tower="encoder", llm="decoder", projector=(PROJECTION,), head="decoder.lm_head"),
    inputs=INPUTS,
    assemble=Assembly(
        fusions={CROSS_ATTENTION.name: CROSS_ATTENTION},
        fusion_of=lambda config: CROSS_ATTENTION,
        towers=("tokens",),
        projected=last_hidden_state,
        build=build,
        processor=processor,
        finish=finish,
        whole_llm=True,
        arguments=probe_arguments,
        calibrate=calibrate_model,
        refuse=refuse,
        begun=True,
    ),
    features=tower_features(
        "encoder", "encoder_outputs", lambda kept: BaseModelOutput(last_hidden_state=kept)
    ),
    positions=Positions("attention_mask", "position_ids"),
    clients=Clients(refused=REFUSED),
    settings=("decoder_start_token_id",),
    beside=Beside(arguments),
    logits_to_keep="decoder_logits_to_keep",
    locate=locate,
)
