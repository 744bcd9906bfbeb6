"""Builds the model of a run without its weights: fake tensors of the right shapes, from configs alone."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    LlavaProcessor,
)

from lockadapt.errors import AssemblyError
from lockadapt.models.adapters import LoraSettings, attach_lora, lora_config
from lockadapt.models.chat_template import chat_template
from lockadapt.models.embeddings import image_token_id, load_tokenizer, widen_vocabulary
from lockadapt.models.fusions import get_fusion, processor_arguments
from lockadapt.models.join import join
from lockadapt.models.llms import llm_structure
from lockadapt.models.load import load_model
from lockadapt.models.parts import PROJECTOR, block_linears, stock
from lockadapt.models.preprocessing import load_image_processor, square_processor
from lockadapt.models.quantize import Quantization
from lockadapt.models.quiet import quiet
from lockadapt.models.sources import find, loading
from lockadapt.models.towers import LoadedTower, probe_pixels, tower_facts


META = torch.device("meta")


@dataclass(frozen=True)
class Blueprint:
    """A stock model on torch's meta device (shapes, no memory), and its real processor."""

    model: Any
    processor: Any


def assembled_blueprint(
    llm: str | Path,
    tower: str | Path,
    dtype: torch.dtype,
    *,
    fusion_name: str = "mlp",
    image_size: int | None = None,
    feature_layer: int = -2,
) -> Blueprint:
    """What `assemble` would build from these sources, without reading a weight. Arguments as there.

    Raises:
        EnvironmentProblem: a config, tokenizer or image processor is neither here nor to be had.
        AssemblyError: the stock class cannot hold these, as far as structure shows it; numbers are not compared.
    """
    source = find(llm, "LLM")
    with loading(source, "LLM"):
        config = AutoConfig.from_pretrained(source.name, **source.arguments)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise AssemblyError(
            f"{config.model_type} is no causal language model", where=source.name, fix="give a decoder LLM"
        )
    with loading(source, "LLM"), META:
        text = AutoModelForCausalLM.from_config(config, dtype=dtype)
    tokenizer = load_tokenizer(source, text)
    vision = _tower(tower, dtype)
    image_processor, _ = square_processor(vision.image_processor, image_size, vision.source.name)
    with torch.no_grad():
        vision_facts, _ = tower_facts(vision, probe_pixels(image_processor).to(META, dtype), feature_layer)
        text_facts = llm_structure(text)
        with quiet():
            widen_vocabulary(text, tokenizer)
        # Values are drawn by a generator, which the meta device has none of; it has no values either.
        projector = replace(get_fusion(fusion_name), initialise=lambda *_: None)
        model = join(text, vision.model, text_facts, vision_facts, image_token_id(tokenizer), projector, 0)
    template, _ = chat_template(tokenizer)
    tokenizer.chat_template = None
    processor = LlavaProcessor(
        image_processor, tokenizer, chat_template=template, **processor_arguments(vision_facts)
    )
    return Blueprint(model, processor)


def stock_blueprint(folder: str | Path, dtype: torch.dtype) -> Blueprint:
    """A stock LLaVA or FastVLM folder or Hub id without its weights.

    Raises:
        EnvironmentProblem, AssemblyError: as `load_model`.
    """
    model, processor = load_model(folder, dtype, meta=True)
    return Blueprint(model.eval(), processor)


def trainable_blueprint(
    blueprint: Blueprint, quantization: Quantization, dtype: torch.dtype, lora: LoraSettings | None
) -> Any:
    """The blueprint as it is trained: blocks quantized, adapter attached, projector in float32. In place.

    Returns:
        The model, wrapped by PEFT where there is an adapter; still on the meta device.
    """
    model = blueprint.model
    with META, quiet():
        if quantization != "none":
            _quantize(model, quantization, dtype)
        model.requires_grad_(False)
        if lora is not None:
            # Other ways to draw A need numbers; none of them changes a shape.
            model = attach_lora(model, lora_config(model, replace(lora, init="default")))
        stock(model).get_submodule(PROJECTOR).float()
    return model


def fake(model: nn.Module) -> FakeTensorMode:
    """Replaces a meta model's tensors by fake ones that say that they are on the CPU. In place; ties are kept.

    Returns:
        The mode that they belong to.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    known: dict[int, Any] = {}

    def faked(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in known:
            with mode:
                new = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
            if isinstance(tensor, nn.Parameter):
                new = nn.Parameter(new, requires_grad=tensor.requires_grad)
                for name, value in vars(tensor).items():
                    setattr(new, name, faked_state(value))
            known[id(tensor)] = (new, tensor)  # the old one lives on, so that its id stays its own
        return known[id(tensor)][0]

    def faked_state(state: Any) -> Any:
        """bitsandbytes' records of scales."""
        if isinstance(state, torch.Tensor):
            return faked(state)
        if type(state).__name__ not in ("QuantState", "MatmulLtState"):
            return state
        if id(state) not in known:
            new = copy.copy(state)
            known[id(state)] = (new, state)
            for name, value in vars(state).items():
                setattr(new, name, faked_state(value))
        return known[id(state)][0]

    for module in model.modules():
        for table in (module._parameters, module._buffers):
            for name, tensor in table.items():
                if tensor is not None and tensor.is_meta:
                    table[name] = faked(tensor)
        for name in ("quant_state", "state"):
            if name in vars(module):
                setattr(module, name, faked_state(vars(module)[name]))
    return mode


def _tower(tower: str | Path, dtype: torch.dtype) -> LoadedTower:
    source = find(tower, "tower")
    with loading(source, "tower"):
        config = AutoConfig.from_pretrained(source.name, **source.arguments)
    config = getattr(config, "vision_config", None) or config
    with loading(source, "tower"), META:
        model = AutoModel.from_config(config, dtype=dtype)
    if model.main_input_name != "pixel_values":
        raise AssemblyError(
            f"{type(model).__name__} does not take images",
            where=source.name,
            fix="give a vision model as tower",
        )
    model = model.eval().requires_grad_(False)
    return LoadedTower(model, load_image_processor(source), source, (), ())


def _quantize(model: Any, quantization: Quantization, dtype: torch.dtype) -> None:
    """Replaces the blocks' linear layers by bitsandbytes' own, on the meta device as well."""
    from lockadapt.models.bitsandbytes import require_bitsandbytes

    require_bitsandbytes()
    for name, layer in block_linears(model).items():
        if not isinstance(layer, nn.Linear):
            continue  # GPT-2's Conv1D, which bitsandbytes does not take either
        parent, _, leaf = name.rpartition(".")
        make = _four_bit if quantization == "nf4" else _eight_bit
        setattr(model.get_submodule(parent), leaf, make(layer, dtype))
    setattr(model, "is_loaded_in_4bit" if quantization == "nf4" else "is_loaded_in_8bit", True)


def _four_bit(layer: nn.Linear, dtype: torch.dtype) -> nn.Module:
    """NF4 with double quantisation: half a byte a weight, a byte a block of 64, four bytes for 256 of these."""
    from bitsandbytes.functional import QuantState
    from bitsandbytes.nn import Linear4bit

    count = layer.weight.numel()
    blocks = -(-count // 64)
    nested = QuantState(
        absmax=torch.empty(-(-blocks // 256)), blocksize=256, code=torch.empty(256), dtype=torch.float32
    )
    state = QuantState(
        absmax=torch.empty(blocks, dtype=torch.uint8),
        shape=layer.weight.shape,
        dtype=dtype,
        blocksize=64,
        code=torch.empty(16),
        quant_type="nf4",
        offset=torch.empty(()),
        state2=nested,
    )
    new = _bare(Linear4bit, layer)
    weight = nn.Parameter(torch.empty(-(-count // 2), 1, dtype=torch.uint8), requires_grad=False)
    weight.quant_state, weight.compress_statistics, weight.quant_type = state, True, "nf4"
    new.weight, new.quant_state, new.compute_dtype, new.compute_type_is_set = weight, state, dtype, True
    new.support_avx512bf16_for_cpu = False
    return new


def _eight_bit(layer: nn.Linear, dtype: torch.dtype) -> nn.Module:
    """LLM.int8(): a byte a weight, and four bytes a row."""
    import bitsandbytes as bnb

    new = _bare(bnb.nn.Linear8bitLt, layer)
    state = bnb.MatmulLtState()
    state.threshold, state.has_fp16_weights, state.use_pool = 6.0, False, True
    state.CB = torch.empty(layer.weight.shape, dtype=torch.int8)
    state.SCB = torch.empty(layer.weight.shape[0])
    weight = nn.Parameter(state.CB, requires_grad=False)
    weight.CB = weight.SCB = None
    new.weight, new.state, new.index = weight, state, None
    return new


def _bare(kind: Any, layer: nn.Linear) -> Any:
    """A layer of bitsandbytes' class around another's bias; its own constructor would allocate a weight first."""
    new = kind.__new__(kind)
    nn.Module.__init__(new)
    new.in_features, new.out_features, new.bias = layer.in_features, layer.out_features, layer.bias
    return new

