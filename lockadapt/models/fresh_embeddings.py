"""Loads a folder that embeds images and texts, in a process of its own, without lockadapt.

A script, run by path.

    python fresh_embeddings.py REQUEST.json

The request:
    folder        the folder
    reader        "dual-states": `VisionTextDualEncoderModel`, its towers alone; "dual": the same class, its
                  own forward; "colpali": `ColPaliForRetrieval`, the last token; "sentence-transformers":
                  `SentenceTransformer`
    pooling       colpali: "tokens" for the embeddings of all tokens, without padding; else the last token's
    dtype         "float32" … (of the weights)
    tensors       dual-states: safetensors file with `input_ids`, `attention_mask`, `pixel_values`; else null
    texts, images, image_text
                  the others: texts (colpali: whole sequences), paths of RGB images, and the sequence that
                  stands for an image (colpali), all given to the processor that lies in the folder
    output        safetensors file to write: `texts`, `images`; for dual-states the towers' last hidden states
    answer        JSON file to write: model_class, parts (class names), missing_keys, unexpected_keys,
                  lockadapt
"""

from __future__ import annotations

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

LOCAL = {"local_files_only": True, "trust_remote_code": False}


def main() -> None:
    """Answer the request whose path is the only argument."""
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    reader = {
        "dual-states": dual_states,
        "dual": dual,
        "colpali": colpali,
        "sentence-transformers": sentence_transformers,
    }[request["reader"]]
    with torch.no_grad():
        outputs, answer = reader(request)
    save_file({name: tensor.cpu().contiguous() for name, tensor in outputs.items()}, request["output"])
    answer["lockadapt"] = any(name.split(".")[0] == "lockadapt" for name in sys.modules)
    Path(request["answer"]).write_text(json.dumps(answer), encoding="utf-8")


def dual_states(request: dict[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Last hidden states of both towers, for text models whose output the class cannot pool."""
    model, answer = load(transformers.VisionTextDualEncoderModel, request)
    given = load_file(request["tensors"])
    mask = given["attention_mask"]
    texts = model.text_model(input_ids=given["input_ids"], attention_mask=mask).last_hidden_state
    images = model.vision_model(pixel_values=given["pixel_values"].to(model.dtype)).last_hidden_state
    answer["parts"] = [full_name(model.vision_model), full_name(model.text_model)]
    return {"texts": texts, "images": images}, answer


def dual(request: dict[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Embeddings as the class's own forward gives them."""
    model, answer = load(transformers.VisionTextDualEncoderModel, request)
    kind: Any = transformers.VisionTextDualEncoderProcessor
    processor = kind.from_pretrained(request["folder"], **LOCAL)
    inputs = processor(text=request["texts"], images=pictures(request), padding=True, return_tensors="pt")
    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    output = model(**inputs)
    answer["logit_scale"] = float(model.logit_scale)
    return {"texts": output.text_embeds, "images": output.image_embeds}, answer


def colpali(request: dict[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The last token's embedding, or all; the processor pads on the left, so the last is never padding."""
    model, answer = load(transformers.ColPaliForRetrieval, request)
    processor = transformers.AutoProcessor.from_pretrained(request["folder"], **LOCAL)
    images = pictures(request)
    outputs = {}
    for name, given in (
        ("texts", {"text": request["texts"]}),
        ("images", {"text": [request["image_text"]] * len(images), "images": images}),
    ):
        inputs = processor(**given, padding=True, add_special_tokens=False, return_tensors="pt")
        embeddings = model(**inputs).embeddings
        if request["pooling"] == "tokens":
            rows = [row[mask.bool()] for row, mask in zip(embeddings, inputs["attention_mask"], strict=True)]
            outputs[name] = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        else:
            outputs[name] = embeddings[:, -1]
    return outputs, answer


def sentence_transformers(request: dict[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """What `encode` gives."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(
        request["folder"],
        device="cpu",
        local_files_only=True,
        trust_remote_code=False,
        model_kwargs={"dtype": getattr(torch, request["dtype"])},
    )
    outputs = {
        "texts": model.encode(request["texts"], convert_to_tensor=True, show_progress_bar=False),
        "images": model.encode(pictures(request), convert_to_tensor=True, show_progress_bar=False),
    }
    answer = {"model_class": full_name(model), "missing_keys": [], "unexpected_keys": []}
    return {name: tensor.float() for name, tensor in outputs.items()}, answer


def load(kind: Any, request: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """A model of the class in evaluation mode, and the beginning of the answer."""
    model, info = kind.from_pretrained(
        request["folder"],
        dtype=getattr(torch, request["dtype"]),
        use_safetensors=True,
        output_loading_info=True,
        **LOCAL,
    )
    answer = {
        "model_class": full_name(model),
        "missing_keys": sorted(info["missing_keys"]),
        "unexpected_keys": sorted(info["unexpected_keys"]),
    }
    return model.eval(), answer


def pictures(request: dict[str, Any]) -> list[Image.Image]:
    """The images of the request, RGB."""
    return [Image.open(path).convert("RGB") for path in request["images"]]


def full_name(thing: object) -> str:
    """`module.Class` of an object."""
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


if __name__ == "__main__":
    main()
