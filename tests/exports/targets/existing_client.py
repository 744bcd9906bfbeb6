"""Puts an adapter on an existing VLM as its users do, by PEFT and by Transformers. A script; lockadapt cannot be imported in it.

    python existing_client.py REQUEST.json

The request names `base` and `adapter`, `tensors` (inputs of one forward) and `output` (logits by way).
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
import torch  # noqa: E402
from peft import PeftModel  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import AutoModelForImageTextToText  # noqa: E402


def main() -> None:
    """Answer the request."""
    request = json.loads(Path(sys.argv[1]).read_text())
    inputs, logits = load_file(request["tensors"]), {}
    try:
        import lockadapt  # noqa: F401

        sys.exit("lockadapt was imported")
    except ModuleNotFoundError:
        pass

    def ask(name: str, model: Any) -> None:
        with torch.no_grad():
            logits[name] = model.eval()(**inputs).logits.contiguous()

    def base() -> Any:
        return AutoModelForImageTextToText.from_pretrained(request["base"], dtype=torch.float32)

    ask("alone", base())
    ask("peft", PeftModel.from_pretrained(base(), request["adapter"]))
    ask("peft, merged", PeftModel.from_pretrained(base(), request["adapter"]).merge_and_unload())
    model = base()
    model.load_adapter(request["adapter"])
    ask("load_adapter", model)
    save_file(logits, request["output"])


if __name__ == "__main__":
    main()
