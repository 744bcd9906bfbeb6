"""What users of exported folders do, with Transformers and PEFT alone. A script, run by path; lockadapt cannot be imported in it.

    python client.py REQUEST.json

The request names folders (`merged`, `bridge`, `adapter`, `second`, `base`, `full`), `tensors` (inputs of one forward),
`image`, `question`, and the files to write: `output` (logits by name) and `answer` (texts, by name).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


class NoLockadapt:
    """Refuses to import lockadapt, however it is installed."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.split(".")[0] == "lockadapt":
            raise ModuleNotFoundError(f"No module named {name!r}")


sys.meta_path.insert(0, NoLockadapt())  # type: ignore[arg-type]
sys.path[:] = [
    entry for entry in sys.path if entry and Path(entry).resolve() != Path(__file__).resolve().parent
]

import torch  # noqa: E402
from peft import AutoPeftModel, PeftModel  # noqa: E402
from PIL import Image  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline  # noqa: E402


def main() -> None:
    """Answer the request."""
    request = json.loads(Path(sys.argv[1]).read_text())
    inputs, logits, answer = load_file(request["tensors"]), {}, {}

    def base(folder: str) -> Any:
        return AutoModelForImageTextToText.from_pretrained(request[folder]).eval()

    def ask(name: str, model: Any) -> None:
        with torch.no_grad():
            logits[name] = model.eval()(**inputs).logits.clone()

    try:
        import lockadapt  # noqa: F401

        answer["lockadapt"] = "imported"
    except ModuleNotFoundError:
        answer["lockadapt"] = "absent"
    ask("merged", base("merged"))
    ask("bridge alone", base("bridge"))

    wrapped = PeftModel.from_pretrained(base("bridge"), request["adapter"])
    ask("peft", wrapped)
    wrapped.load_adapter(request["second"], adapter_name="second")
    wrapped.set_adapter("second")
    ask("peft, second", wrapped)
    wrapped.set_adapter("default")
    ask("peft, first again", wrapped)
    ask("peft, second alone", PeftModel.from_pretrained(base("bridge"), request["second"]))
    ask("peft, by itself", AutoPeftModel.from_pretrained(request["adapter"], is_trainable=False))
    ask("peft, merged", PeftModel.from_pretrained(base("bridge"), request["adapter"]).merge_and_unload())

    model = base("bridge")
    model.load_adapter(request["adapter"], adapter_name="first")
    ask("load_adapter", model)
    model.load_adapter(request["second"], adapter_name="second")
    switch(model, "second")
    ask("load_adapter, second", model)
    switch(model, "first")
    ask("load_adapter, first again", model)
    switch(model, None)
    ask("load_adapter, disabled", model)

    ask("full, peft", PeftModel.from_pretrained(base("base"), request["full"]))
    model = base("base")
    model.load_adapter(request["full"])
    ask("full, load_adapter", model)

    image, question = Image.open(request["image"]).convert("RGB"), request["question"]
    content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
    chat = [{"role": "user", "content": content}]
    pipe = pipeline("image-text-to-text", model=request["merged"], device="cpu")
    answers = pipe(
        text=chat,
        max_new_tokens=8,
        return_full_text=False,
        generate_kwargs={"do_sample": False, "min_new_tokens": 4},
    )
    answer["pipeline"] = answers[0]["generated_text"]
    processor = AutoProcessor.from_pretrained(request["bridge"])
    asked = processor.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    with torch.no_grad():
        ids = wrapped.generate(**asked, max_new_tokens=8, min_new_tokens=4, do_sample=False)
    answer["peft"] = processor.decode(ids[0, asked["input_ids"].shape[1] :], skip_special_tokens=True)
    save_file({name: tensor.contiguous() for name, tensor in logits.items()}, request["output"])
    Path(request["answer"]).write_text(json.dumps(answer))


def switch(model: Any, name: str | None) -> None:
    """Makes an adapter the active one, or none: Transformers' own call, or what it does, where it wants a newer PEFT."""
    from peft import __version__ as installed
    from peft.tuners.tuners_utils import BaseTunerLayer
    from transformers.integrations.peft import MIN_PEFT_VERSION

    if tuple(map(int, installed.split(".")[:2])) >= tuple(map(int, MIN_PEFT_VERSION.split(".")[:2])):
        if name is None:
            model.disable_adapters()
        else:
            model.set_adapter(name)
        return
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer):
            if name is None:
                layer.enable_adapters(enabled=False)
            else:
                layer.set_adapter(name)


if __name__ == "__main__":
    main()
