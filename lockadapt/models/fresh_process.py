"""Runs a stock folder in a process of its own, with torch, Transformers, safetensors and Pillow only.

A script, run by path.

    python fresh_process.py REQUEST.json

The request:
    folder        the stock folder
    dtype         "float32" … (of the weights); device: "cpu", "cuda"
    tensors       safetensors file with inputs named `case.argument`, e.g. `text.input_ids`,
                  `text.attention_mask`, `image.pixel_values`; or null
    conversations list of {"messages": chat messages with {"type": "image"} parts, "images": [paths]}; may be
                  empty
    max_new_tokens for the conversations, greedy
    parts         full paths of tower and llm, where images are shown beside the text; empty in other classes
    output        safetensors file to write: for every case with token ids `case.logits` (batch, tokens,
                  vocabulary), for every case with pixel_values alone `case.features` (images, tokens,
                  channels), what the projector is fed, or with `parts` the tower's last hidden state; for
                  every conversation `conversation0.logits` … (1, vocabulary), what its first new token is
                  taken from, and `conversation0.pixel_values` if it has images
    answer        JSON file to write: model_class, tower_class, llm_class, missing_keys, unexpected_keys,
                  mismatched_keys, texts, prompt_ids and answer_ids (a list of token ids for each
                  conversation), image_token_id, processor_image_token_id, versions, lockadapt (whether
                  anything imported it)

Nothing is run, and there are no outputs, if keys are missing, unexpected or of another shape, or if model and
processor name different image tokens: what would be computed means nothing.
"""

from __future__ import annotations

import inspect
import json
import sys
from pathlib import Path
from typing import Any

# A script's folder comes first on the import path; its neighbours must not be mistaken for libraries.
sys.path[:] = [
    entry for entry in sys.path if entry and Path(entry).resolve() != Path(__file__).resolve().parent
]

import torch  # noqa: E402
import transformers  # noqa: E402
from PIL import Image  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import AutoModelForImageTextToText, AutoProcessor  # noqa: E402

TOWERS = ("vision_tower", "vision_model")
PROJECTORS = ("multi_modal_projector", "aligner", "connector", "layerwise_projectors")
LLMS = ("language_model", "text_model")
KINDS = ("missing", "unexpected", "mismatched")


def main() -> None:
    """Answer the request whose path is the only argument."""
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    arguments = {"local_files_only": True, "trust_remote_code": False}
    loaded: Any = AutoModelForImageTextToText.from_pretrained(
        request["folder"],
        dtype=getattr(torch, request["dtype"]),
        use_safetensors=True,
        output_loading_info=True,
        **arguments,
    )
    model, info = loaded
    keep_as_trained(model)
    model = model.eval().to(request["device"])
    processor = AutoProcessor.from_pretrained(request["folder"], **arguments)
    keys = {f"{kind}_keys": names(info.get(f"{kind}_keys", ())) for kind in KINDS}
    parts = request.get("parts") or {}
    image_token_id = getattr(model.config, "image_token_id", None)
    written = written_token(processor, image_token_id)
    sound = not any(keys.values()) and image_token_id == written
    outputs: dict[str, torch.Tensor] = {}
    if sound and request.get("tensors"):
        outputs = run_cases(model, load_file(request["tensors"]), parts.get("tower"))
    texts: list[str] = []
    prompts, answers = [], []
    for conversation in (request.get("conversations") or []) if sound else []:
        prompt, new, made = converse(model, processor, conversation, request["max_new_tokens"])
        outputs |= {f"conversation{len(texts)}.{name}": tensor for name, tensor in made.items()}
        texts.append(processor.decode(new, skip_special_tokens=True))
        prompts.append(prompt)
        answers.append(new)
    save_file(outputs, request["output"])
    answer = {
        "model_class": full_name(model),
        "tower_class": full_name(placed(model, parts.get("tower"), TOWERS)),
        "llm_class": full_name(placed(model, parts.get("llm"), LLMS)),
        **keys,
        "texts": texts,
        "prompt_ids": prompts,
        "answer_ids": answers,
        "image_token_id": image_token_id,
        "processor_image_token_id": written,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "lockadapt": any(name.split(".")[0] == "lockadapt" for name in sys.modules),
    }
    Path(request["answer"]).write_text(json.dumps(answer), encoding="utf-8")


def keep_as_trained(model: Any) -> None:
    """Stops bitsandbytes from rounding 4-bit scales at the first forward, as on CPUs with AVX512-BF16."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def run_cases(
    model: Any, tensors: dict[str, torch.Tensor], tower: str | None = None
) -> dict[str, torch.Tensor]:
    """Logits of cases with token ids, projector inputs of cases with pixel_values alone, on the CPU."""
    cases: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        case, argument = name.rsplit(".", 1)
        tensor = tensor.to(model.device)
        cases.setdefault(case, {})[argument] = (
            tensor.to(model.dtype) if tensor.is_floating_point() else tensor
        )
    outputs = {}
    with torch.no_grad():
        for case, inputs in cases.items():
            if {"input_ids", "decoder_input_ids"} & inputs.keys():
                outputs[f"{case}.logits"] = model(**inputs).logits.cpu().contiguous()
                continue
            if tower is not None:
                outputs[f"{case}.features"] = (
                    model.get_submodule(tower)(**inputs).last_hidden_state.cpu().contiguous()
                )
                continue
            seen: list[torch.Tensor] = []
            handle = part(model, PROJECTORS).register_forward_pre_hook(
                lambda module, given, seen=seen: seen.append(given[0])
            )
            model.model.get_image_features(**inputs)
            handle.remove()
            outputs[f"{case}.features"] = seen[0].cpu().contiguous()
    return outputs


def converse(
    model: Any, processor: Any, conversation: dict[str, Any], max_new_tokens: int
) -> tuple[list[int], list[int], dict[str, torch.Tensor]]:
    """Ids of a conversation's prompt and greedy answer; logits (1, vocabulary) of its first token; pixels."""
    pictures = [Image.open(path).convert("RGB") for path in conversation["images"]]
    if getattr(processor, "image_token", None) is None:
        return converse_beside(model, processor, conversation["messages"], pictures, max_new_tokens)
    prompt = processor.apply_chat_template(
        conversation["messages"], add_generation_prompt=True, tokenize=False
    )
    bos = processor.tokenizer.bos_token
    # The same rule as the processor's own: a template that writes bos leaves nothing for the tokenizer to
    # add.
    special = bos is None or not prompt.startswith(bos)
    inputs = processor(
        text=[prompt],
        images=[pictures] if len(pictures) > 1 else pictures or None,  # of one conversation
        add_special_tokens=special,
        return_tensors="pt",
    ).to(model.device)
    if "pixel_values" not in inputs and wants_pixels(model):
        blank = processor.image_processor(Image.new("RGB", (64, 64), "white"), return_tensors="pt")
        unseen = {"pixel_values": blank["pixel_values"].to(model.device, model.dtype)}
    else:
        unseen = {}
    if "pixel_values" in inputs:
        inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    # What an encoder-decoder gives begins with one token that starts every answer.
    length = 1 if model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
    with torch.no_grad():
        made = model.generate(
            **inputs,
            **unseen,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
        )
    outputs = {"logits": made.logits[0].cpu().contiguous()}
    if "pixel_values" in inputs:
        outputs["pixel_values"] = inputs["pixel_values"].cpu().contiguous()
    return inputs["input_ids"][0].tolist(), made.sequences[0, length:].tolist(), outputs


def converse_beside(
    model: Any, processor: Any, messages: list[dict[str, Any]], pictures: list[Any], max_new_tokens: int
) -> tuple[list[int], list[int], dict[str, torch.Tensor]]:
    """As `converse`, by a class that is shown images beside the text, as its users would call it."""
    tokenizer = processor.tokenizer
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    special = tokenizer.bos_token is None or not prompt.startswith(tokenizer.bos_token)
    text = tokenizer([prompt], add_special_tokens=special, return_tensors="pt").to(model.device)
    ids, mask = text["input_ids"], text["attention_mask"]
    values = None
    if pictures:
        values = processor.image_processor(images=pictures, return_tensors="pt")["pixel_values"]
        values = values.to(model.device, model.dtype)
    stock = (
        model.get_base_model() if hasattr(model, "get_base_model") else model
    )  # PEFT says nothing of names
    if "decoder_input_ids" in inspect.signature(stock.forward).parameters:
        inputs = {"pixel_values": values, "decoder_input_ids": ids, "decoder_attention_mask": mask}
    else:
        vision = model.config.vision_config
        blank = torch.zeros(
            1, 3, vision.image_size, vision.image_size, device=model.device, dtype=model.dtype
        )
        shown = torch.full((1, ids.shape[1], max(len(pictures), 1)), int(bool(pictures)), device=model.device)
        pixels = (blank if values is None else values)[None]
        inputs = {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels}
        inputs["image_attention_mask"] = shown
    with torch.no_grad():
        made = model.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
        )
    outputs = {"logits": made.logits[0].cpu().contiguous()}
    if values is not None:
        outputs["pixel_values"] = inputs["pixel_values"].cpu().contiguous()
    return ids[0].tolist(), made.sequences[0, ids.shape[1] :].tolist(), outputs


def wants_pixels(model: Any) -> bool:
    """Whether forward wants pixels with every text, also where no token stands for them (BLIP-2)."""
    stock = model.get_base_model() if hasattr(model, "get_base_model") else model
    given = inspect.signature(type(stock).forward).parameters.get("pixel_values")
    return given is not None and given.default is inspect.Parameter.empty


def written_token(processor: Any, image_token_id: int | None) -> int | None:
    """The id that the processor writes for image features, which need not be its template's marker."""
    if getattr(processor, "image_token", None) is None:
        return None
    marker = int(processor.tokenizer.convert_tokens_to_ids(str(processor.image_token)))
    if marker == image_token_id:
        return marker
    blank = Image.new("RGB", (64, 64), "white")
    ids = processor(text=[str(processor.image_token)], images=[[blank]], return_tensors="pt")["input_ids"]
    return image_token_id if image_token_id in ids[0].tolist() else marker


def names(keys: Any) -> list[str]:
    """Names of weights in order; those of another shape come with their shapes."""
    return sorted(key if isinstance(key, str) else str(key[0]) for key in keys)


def placed(model: Any, path: str | None, names: tuple[str, ...]) -> Any:
    """What lies at a path; without one, the part of the body with one of these names."""
    return part(model, names) if path is None else model.get_submodule(path)


def part(model: Any, names: tuple[str, ...]) -> Any:
    """A part of the body, the first of several, which classes call by one of a few names; None in others."""
    body = getattr(model, "model", None)
    held = next((getattr(body, name) for name in names if hasattr(body, name)), None)
    return held[0] if isinstance(held, torch.nn.ModuleList) else held


def full_name(thing: object) -> str:
    """`module.Class` of an object."""
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


if __name__ == "__main__":
    main()
