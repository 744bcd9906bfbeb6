"""Puts a PEFT folder on a stock folder in a process of its own, as clients do, without lockadapt.

A script, run by path.

    python fresh_adapter.py REQUEST.json

The request is that of `fresh_process.py`, and:
    adapter       the PEFT folder, or null
    ways          how it is put on: "peft" (`PeftModel.from_pretrained`), "load_adapter" (Transformers' own),
                  "alone" (not)
    quantization  arguments of `BitsAndBytesConfig`, or null
    output        for every way and case `way:case.logits`
    answer        model_class, missing_keys, unexpected_keys (base and adapter, all ways), answer_ids and
                  prompt_ids (of the first way), lockadapt, versions
"""

from __future__ import annotations

import importlib.util
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
from safetensors import safe_open  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig  # noqa: E402

LOCAL = {"local_files_only": True, "trust_remote_code": False}


def main() -> None:
    """Answer the request whose path is the only argument."""
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    alone = neighbour()
    processor = AutoProcessor.from_pretrained(request["folder"], **LOCAL)
    given = load_file(request["tensors"])
    outputs: dict[str, torch.Tensor] = {}
    answer: dict[str, Any] = {
        "missing_keys": set(),
        "unexpected_keys": set(),
        "answer_ids": [],
        "prompt_ids": [],
    }
    for number, way in enumerate(request["ways"]):
        model, info = load_base(request)
        alone.keep_as_trained(model)
        answer["model_class"] = alone.full_name(model)
        model, missing, unexpected = WAYS[way](model, request["adapter"])
        answer["missing_keys"] |= {*info["missing_keys"], *missing}
        answer["unexpected_keys"] |= {*info["unexpected_keys"], *unexpected}
        model.eval().to(request["device"])
        outputs |= {f"{way}:{name}": output for name, output in alone.run_cases(model, given).items()}
        for conversation in request["conversations"] if number == 0 else ():
            prompt, new, _ = alone.converse(model, processor, conversation, request["max_new_tokens"])
            answer["answer_ids"].append(new)
            answer["prompt_ids"].append(prompt)
    save_file(outputs, request["output"])
    answer |= {key: sorted(answer[key]) for key in ("missing_keys", "unexpected_keys")}
    answer["lockadapt"] = any(name.split(".")[0] == "lockadapt" for name in sys.modules)
    answer["versions"] = {"torch": torch.__version__, "transformers": transformers.__version__}
    Path(request["answer"]).write_text(json.dumps(answer), encoding="utf-8")


def neighbour() -> Any:
    """`fresh_process.py`, which runs a stock folder by itself: the same cases and conversations."""
    spec = importlib.util.spec_from_file_location(
        "fresh_process", Path(__file__).with_name("fresh_process.py")
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_base(request: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The Transformers model, quantized if it is asked for, and what loading it said."""
    dtype = getattr(torch, request["dtype"])
    how: dict[str, Any] = {}
    if request["quantization"]:
        how["quantization_config"] = BitsAndBytesConfig(**request["quantization"])
        # By itself Transformers would quantize on any GPU, whatever room it has.
        how["device_map"] = {"": request["device"]}
    loaded: Any = AutoModelForImageTextToText.from_pretrained(
        request["folder"], dtype=dtype, use_safetensors=True, output_loading_info=True, **LOCAL, **how
    )
    model, info = loaded
    return model, info


def with_peft(model: Any, adapter: str) -> tuple[Any, set[str], set[str]]:
    """PEFT's model, and keys that the file lacks, or has too many. PEFT itself only warns of them."""
    from peft import PeftModel, get_peft_model_state_dict

    wrapped = PeftModel.from_pretrained(model, adapter)
    with safe_open(Path(adapter) / "adapter_model.safetensors", "pt") as file:
        saved = set(file.keys())
    own = set(get_peft_model_state_dict(wrapped))
    return wrapped, own - saved, saved - own


def with_load_adapter(model: Any, adapter: str) -> tuple[Any, set[str], set[str]]:
    """The Transformers model with the adapter in it, and what loading it said of keys."""
    info = model.load_adapter(adapter)
    tensors = dict(model.named_parameters(remove_duplicate=False))
    there = {id(tensor) for name, tensor in tensors.items() if name not in info.missing_keys}
    # A tied head's vocabulary rows are those of the embedding, under a second name that no file has.
    missing = {name for name in info.missing_keys if name not in tensors or id(tensors[name]) not in there}
    return model, missing, set(info.unexpected_keys)


def without(model: Any, adapter: None) -> tuple[Any, set[str], set[str]]:
    """The Transformers model by itself."""
    return model, set(), set()


WAYS: dict[str, Any] = {"peft": with_peft, "load_adapter": with_load_adapter, "alone": without}

if __name__ == "__main__":
    main()
