"""Adapters of existing VLMs: clients without lockadapt load them onto the checkpoint that the run started from."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from lockadapt.console import Reporter
from lockadapt.exports.export import export_run
from lockadapt.runs.run import load_run
from lockadapt.training.loop import train
from tests.support.existing_vlm import recipe_for, written
from tests.support.warm import Warm

CLIENT = Path(__file__).with_name("existing_client.py")
QUIET = Reporter(quiet=True)
BELOW = "below `vision_model.`"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "vllm"), [("qwen2_5_vl", ""), ("gemma3", BELOW), ("idefics3", "")])
def test_peft_and_transformers_load_it(name: str, vllm: str, tmp_path: Path, warm: Warm) -> None:
    vlm = written(name, tmp_path / "vlm")
    stages = [{"name": "lora", "train": ["lora"], "steps": 3}]
    train(recipe_for(vlm, tmp_path, stages=stages), tmp_path / "run", QUIET)
    report = export_run(tmp_path / "run", "adapter", tmp_path / "exported", QUIET)
    assert report["missing_keys"] == report["unexpected_keys"] == []
    assert set(report["clients"]) == {"peft", "load_adapter"}
    # The zoo's Gemma 3 is saved by Transformers 5, which takes the level out that vLLM wants.
    assert report["servable"]["vllm"] is True if not vllm else vllm in report["servable"]["vllm"]
    assert (report["serve"] is None) == bool(vllm)
    trained = load_run(tmp_path / "run")
    content = [{"type": "image", "image": Image.linear_gradient("L").resize((64, 64)).convert("RGB")}]
    content.append({"type": "text", "text": "what color is the shape?"})
    inputs = trained.processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    save_file({key: tensor.contiguous() for key, tensor in inputs.items()}, tmp_path / "inputs.safetensors")
    request = {
        "base": report["bridge"],
        "adapter": report["adapter"],
        "tensors": str(tmp_path / "inputs.safetensors"),
        "output": str(tmp_path / "logits.safetensors"),
    }
    (tmp_path / "request.json").write_text(json.dumps(request))
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    code, errors = warm([str(CLIENT), str(tmp_path / "request.json")], tmp_path, offline)
    assert code == 0, errors
    logits = load_file(tmp_path / "logits.safetensors")
    with torch.no_grad():
        expected = trained.model(**inputs).logits
    assert float((logits.pop("alone") - expected).abs().max()) > 1e-2
    assert set(logits) == {"peft", "peft, merged", "load_adapter"}
    for way, actual in logits.items():
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4, msg=lambda t, way=way: f"{way}: {t}")
