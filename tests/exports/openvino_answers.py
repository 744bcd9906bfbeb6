"""Exports stock LLaVA folders to OpenVINO and answers about an image there. Run by the Python of an environment of its own.

    python openvino_answers.py REQUEST.json

The request: `folder` in the older key dialect, and `flat`, the same in that of Transformers 5.6 and later; `output`, a folder to
write; `image`, a path; `messages`; `new_tokens`; `answer`, a JSON file to write: `transformers` (version), `missing` and
`missing_flat` (numbers of keys that Transformers does not find there), `optimum` (new token ids), `genai` (new text).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino_genai
import transformers
from openvino_tokenizers import convert_tokenizer
from optimum.exporters.openvino import main_export
from optimum.intel.openvino import OVModelForVisualCausalLM
from PIL import Image

EXACT = {"INFERENCE_PRECISION_HINT": "f32"}


def main() -> None:
    """Answer the request whose path is the only argument."""
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    output = Path(request["output"])
    main_export(request["folder"], output, task="image-text-to-text", library_name="transformers")
    processor = transformers.AutoProcessor.from_pretrained(output)
    image = Image.open(request["image"]).convert("RGB")
    prompt = processor.apply_chat_template(request["messages"], add_generation_prompt=True, tokenize=False)
    inputs = processor(text=[prompt], images=[image], add_special_tokens=False, return_tensors="pt")
    model = OVModelForVisualCausalLM.from_pretrained(output, device="CPU", ov_config=EXACT)
    made = model.generate(**inputs, max_new_tokens=request["new_tokens"], do_sample=False)
    answer = {
        "transformers": transformers.__version__,
        "missing": missing(request["folder"]),
        "missing_flat": missing(request["flat"]),
        "optimum": made[0, inputs["input_ids"].shape[1] :].tolist(),
        "genai": genai(output, processor, prompt, image, request["new_tokens"]),
    }
    Path(request["answer"]).write_text(json.dumps(answer), encoding="utf-8")


def missing(folder: str) -> int:
    """How many weights this Transformers would make up."""
    _, info = transformers.LlavaForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    return len(info["missing_keys"])


def genai(folder: Path, processor: Any, prompt: str, image: Image.Image, new_tokens: int) -> str:
    """What the runtime answers that knows neither torch nor Transformers."""
    for name, model in zip(
        ("openvino_tokenizer.xml", "openvino_detokenizer.xml"),
        convert_tokenizer(processor.tokenizer, with_detokenizer=True),
        strict=True,
    ):
        openvino.save_model(model, folder / name)
    # It reads the size of images from `shortest_edge` alone, and takes 336 pixels where there is none.
    file = folder / "preprocessor_config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    settings["size"] = {"shortest_edge": settings["size"]["height"]}
    file.write_text(json.dumps(settings), encoding="utf-8")
    pipeline = openvino_genai.VLMPipeline(str(folder), "CPU", **EXACT)
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens, config.do_sample, config.apply_chat_template = new_tokens, False, False
    # Its tokenizer puts bos before the text itself.
    text = prompt.removeprefix(processor.tokenizer.bos_token or "")
    shown = [openvino.Tensor(np.asarray(image)[None])]
    return str(pipeline.generate(text, images=shown, generation_config=config).texts[0])


if __name__ == "__main__":
    main()
