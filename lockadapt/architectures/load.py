"""Load an existing stock VLM folder, and accept it only if every weight found its place."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from transformers import AutoConfig, AutoProcessor, PreTrainedModel

from lockadapt.architectures import architecture_of, class_name, find_architecture, inputs_of
from lockadapt.architectures.absent_tower import TowerRecord, put_absent_tower, towerless_class
from lockadapt.architectures.belonging import check_belonging
from lockadapt.architectures.generic.prompts import usual_template
from lockadapt.errors import AssemblyError, VerificationError
from lockadapt.models.chat_template import add_end_tokens, end_token_ids, settle_template
from lockadapt.models.finite import require_finite
from lockadapt.models.four_bit import keep_as_trained
from lockadapt.models.model_folder import check_described_size
from lockadapt.models.sources import find, loading, resolve_dtype, some


def load_model(
    folder: str | Path,
    dtype: str | torch.dtype = "auto",
    *,
    device_map: Any = None,
    quantization_config: Any = None,
    meta: bool = False,
    without_tower: TowerRecord | None = None,
) -> tuple[Any, Any]:
    """Model (evaluation mode) and processor of a stock folder or Hub id of any class in `ARCHITECTURES`.

    What a class wants to have rows of length 1 (`Architecture.unit_rows`) gets them, and generation stops at
    what the chat template ends an answer with.

    Args:
        folder: safetensors only.
        dtype: of the weights; `"auto"` is bfloat16 where the GPU has it, else float32.
        device_map: as `from_pretrained` takes it; `None` for the CPU.
        quantization_config: as `from_pretrained` takes it.
        meta: build the model without its weights, on torch's meta device, to look at its structure.
        without_tower: leave the tower's weights on the disk, and put an `AbsentTower` with this record in its
            place.

    Returns:
        Model and processor.

    Raises:
        SetupError: it does not exist or cannot be read.
        AssemblyError: it is of no class that lockadapt trains, or its files do not belong together.
        VerificationError: a weight is missing or has no place.
    """
    source, chosen = find(folder, "VLM"), resolve_dtype(dtype)
    with loading(source, "VLM"):
        config = AutoConfig.from_pretrained(source.name, **source.arguments)
    architecture = find_architecture(config)
    if architecture is None:
        raise AssemblyError(
            f"{class_name(config)} is not a class that lockadapt trains",
            where=source.name,
            fix="start from a checkpoint in Transformers format that answers questions about images, "
            "or from an LLM and a tower",
        )
    kind: Any = architecture.model_class if without_tower is None else towerless_class(architecture)
    processor = load_processor(folder)
    if architecture.inputs.stock and not getattr(processor, "image_token", None):
        raise AssemblyError(
            f"{type(processor).__name__} has no image token, so images cannot stand in a conversation",
            where=source.name,
            fix="start from another class, or from an LLM and a tower",
        )
    if meta:
        with loading(source, "VLM"), torch.device("meta"):
            return kind._from_config(config, dtype=chosen), processor
    extra = {"device_map": device_map} if device_map is not None else {}
    if quantization_config is not None:
        extra["quantization_config"] = quantization_config
    with loading(source, "VLM"):
        if source.local:
            check_described_size(Path(source.name), lambda: kind._from_config(copy.deepcopy(config)), "VLM")
        loaded: Any = kind.from_pretrained(
            source.name,
            dtype=chosen,
            use_safetensors=True,
            output_loading_info=True,
            **source.arguments,
            **extra,
        )
    model, info = loaded
    _check(model, info, source.name)
    _check_image_tokens(model, processor, source.name)
    require_finite(model, source.name)
    check_belonging(model, processor, source.name)
    with torch.no_grad():
        for name in architecture.unit_rows:
            table = model.get_parameter(name)
            table.copy_(F.normalize(table.double(), dim=-1))
    keep_as_trained(model)
    if isinstance(getattr(processor, "chat_template", None), str) and model.generation_config is not None:
        add_end_tokens(model.generation_config, end_token_ids(processor.tokenizer, processor.chat_template))
    if without_tower is not None:
        put_absent_tower(model, without_tower)
    return model.eval(), processor


def load_processor(folder: str | Path) -> Any:
    """The processor of a stock folder or Hub id, its chat template settled (`settle_template`).

    Args:
        folder: the folder or the Hub id.

    Returns:
        The processor.

    Raises:
        SetupError: it does not exist or cannot be read.
        DataError: its chat template is no valid Jinja.
    """
    source = find(folder, "VLM")
    with loading(source, "VLM's processor"):
        processor: Any = AutoProcessor.from_pretrained(source.name, **source.arguments)
    template = getattr(processor, "chat_template", None)
    if not template and not getattr(getattr(processor, "tokenizer", None), "chat_template", None):
        template = usual_template(processor)
    if isinstance(template, str) and getattr(processor, "image_token", None):
        processor.chat_template = settle_template(processor.tokenizer, template)
    return processor


def _check_image_tokens(model: PreTrainedModel, processor: Any, where: str) -> None:
    """Refuses a processor that writes another number of image tokens than a class takes silently."""
    wanted, span = architecture_of(model).inputs.image_tokens, inputs_of(processor).span
    if wanted is None or span is None:
        return
    if (written := span(processor).count) != (held := wanted(model)):
        raise VerificationError(
            f"{type(model).__name__} has {held} tokens for an image, and the processor writes {written}",
            where=where,
            fix="the folder's processor and config.json do not belong together: export or download it again",
        )


def _check(model: PreTrainedModel, info: dict[str, Any], where: str) -> None:
    for kind, keys in (("lacks", info["missing_keys"]), ("has no place for", info["unexpected_keys"])):
        if keys:
            raise VerificationError(
                f"{type(model).__name__} {kind} {some(keys)}",
                where=where,
                fix="the folder's weights and config.json do not belong together: export or download it "
                "again",
            )
