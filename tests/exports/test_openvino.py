"""A merged LLaVA in OpenVINO: another runtime, and a reader of the older key dialect, gives the same first tokens."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from lockadapt.architectures.load import load_model
from lockadapt.console import Reporter
from lockadapt.exports.merge import merge_run
from lockadapt.recipe.read import load_recipe
from lockadapt.training.loop import train
from tests.support.runs import values
from tests.support.tiny import SIDE, tiny_llm, tiny_tower

SCRIPT = Path(__file__).with_name("openvino_answers.py")
QUIET = Reporter(quiet=True)
NEW_TOKENS = 12
MESSAGES = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what color is the shape?"}]}
]
OLDER, FLAT = "vision_tower.vision_model.", "vision_tower."


@pytest.fixture(scope="session")
def openvino_python() -> str:
    """The Python named by `LOCKADAPT_OPENVINO`, of an environment with optimum-intel and openvino-genai."""
    python = os.environ.get("LOCKADAPT_OPENVINO")
    if not python or not Path(python).is_file():
        pytest.skip(
            "no OpenVINO: set LOCKADAPT_OPENVINO to the python of an environment with optimum-intel and openvino-genai"
        )
    return python


def dialects(merged: Path, scratch: Path) -> tuple[Path, Path]:
    """Copies of a folder whose tower's keys are the older ones, and the flattened ones of Transformers 5.6."""
    made = []
    for name, prefix in (("older", OLDER), ("flat", FLAT)):
        folder = Path(shutil.copytree(merged, scratch / name))
        tensors = {
            key.replace(OLDER, FLAT).replace(FLAT, prefix): tensor
            for key, tensor in load_file(folder / "model.safetensors").items()
        }
        assert any(prefix in key for key in tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        made.append(folder)
    return made[0], made[1]


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.parametrize("tower", ["clip-vision", "siglip-vision"])
def test_openvino_answers_about_an_image(tower: str, openvino_python: str, tmp_path: Path) -> None:
    tiny_llm("llama", tmp_path / "llama")
    tiny_tower(tower, tmp_path / "clip-vision")
    train(load_recipe(None, (), values(tmp_path, tmp_path)).recipe, tmp_path / "run", QUIET)
    merge_run(tmp_path / "run", tmp_path / "merged", QUIET)
    older, flat = dialects(tmp_path / "merged", tmp_path)
    picture = tmp_path / "picture.png"
    # Square and of the tower's own size: openvino-genai resizes and crops by rules of its own.
    Image.effect_noise((SIDE, SIDE), 90).convert("RGB").save(picture)

    model, processor = load_model(older, "float32")  # fails if a key is missing or has no place
    prompt = processor.apply_chat_template(MESSAGES, add_generation_prompt=True, tokenize=False)
    inputs = processor(
        text=[prompt], images=[Image.open(picture)], add_special_tokens=False, return_tensors="pt"
    )
    with torch.no_grad():
        made = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
    expected = made[0, inputs["input_ids"].shape[1] :].tolist()

    request = {
        "folder": str(older),
        "flat": str(flat),
        "output": str(tmp_path / "openvino"),
        "image": str(picture),
        "messages": MESSAGES,
        "new_tokens": NEW_TOKENS,
        "answer": str(tmp_path / "answer.json"),
    }
    (tmp_path / "request.json").write_text(json.dumps(request))
    settings = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    settings.pop("PYTHONPATH", None)
    done = subprocess.run(
        [openvino_python, str(SCRIPT), str(tmp_path / "request.json")],
        env=settings,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answer = json.loads((tmp_path / "answer.json").read_text())
    assert answer["missing"] == 0
    # Why the older dialect is written: this Transformers makes up the whole tower of the other, and only warns.
    assert answer["missing_flat"] > 20
    assert answer["optimum"] == expected
    assert answer["genai"].strip() == processor.decode(expected, skip_special_tokens=True).strip()
