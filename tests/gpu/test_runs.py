"""Runs in 16 bits, as on a GPU: trained, scored, merged, verified, exported. On the GPU with `make test-gpu`, else on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

import lockadapt
from lockadapt.console import Reporter
from lockadapt.evaluation.chat import Chat
from lockadapt.evaluation.evaluate import evaluate_folder
from lockadapt.evaluation.target import open_target
from lockadapt.exports.export import export_run
from lockadapt.exports.merge import merge_run
from lockadapt.exports.verify import verify_folder
from lockadapt.objectives.generate_images import generate_images
from lockadapt.objectives.image_generation import ImageGenerationConfig
from lockadapt.recipe.read import load_recipe
from lockadapt.runs.run import load_run, open_run
from lockadapt.training.loop import train
from lockadapt.tuning.quantize import load_quantized
from tests.support.rows import embedding_recipe, pictures
from tests.support.runs import values
from tests.support.tiny import tiny_image_tokenizer, tiny_llm, tiny_tower

pytestmark = [pytest.mark.gpu, pytest.mark.slow]
QUIET = Reporter(quiet=True)
RUNS = {
    "feature map, pixels": ("mobilenet-v2", "none", "none"),
    "tokens, remembered, NF4": ("clip-vision", "nf4", "memory"),
    "feature map, pixels, NF4": ("mobilenet-v2", "nf4", "none"),
    "tokens, pixels, int8": ("clip-vision", "int8", "none"),
}


@pytest.fixture(scope="module", params=RUNS)
def run(request: pytest.FixtureRequest, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tower, quantization, features = RUNS[request.param]
    folder = tmp_path_factory.mktemp("sixteen")
    recipe = values(tiny, folder)
    recipe["model"] |= {"tower": str(tiny / tower), "dtype": "bfloat16", "quantization": quantization}
    recipe["data"] = {"features": features}
    train(load_recipe(None, (), recipe).recipe, folder / "run", QUIET)
    return folder / "run"


@pytest.fixture(scope="module")
def merged(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("merged") / "model"
    report = merge_run(run, folder, QUIET)
    assert (report["missing_keys"], report["unexpected_keys"]) == ([], [])
    return folder


def test_the_run_says_where_it_ran(run: Path) -> None:
    record = open_run(run).record
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    assert (record.dtype, record.versions["device"]) == ("bfloat16", device)
    model = load_run(run).model
    assert {p.device.type for p in model.parameters()} == {"cuda" if torch.cuda.is_available() else "cpu"}


def test_run_and_merged_folder_score_and_answer(run: Path, merged: Path, tmp_path: Path) -> None:
    for folder in (run, merged):
        assert evaluate_folder(folder, None, (), False, None, QUIET)["vqa"]["n"] == 8
        talk = Chat.open(folder, list(pictures(tmp_path).values())[:2], 4)
        assert isinstance(talk.ask("what color is the shape?"), str)


def test_the_merged_folder_is_verified(run: Path, merged: Path) -> None:
    report = verify_folder(merged, run, QUIET)
    assert report["decided_agreement"] > 0.98
    assert report["image_effect"] > 0


def test_the_adapter_is_what_peft_loads(run: Path, tmp_path: Path) -> None:
    report = export_run(run, "adapter", tmp_path / "out", QUIET)
    assert (report["missing_keys"], report["unexpected_keys"]) == ([], [])


@torch.no_grad()
def test_attached_to_a_live_model_it_is_the_run(run: Path, tmp_path: Path) -> None:
    loaded = load_run(run)
    live, processor = load_quantized(loaded.run.base, loaded.run.record.quantization, torch.bfloat16)
    live = live.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    red = Image.open(pictures(tmp_path)["red"])
    inputs = processor(text=[f"{processor.image_token}which color"], images=[red], return_tensors="pt")
    inputs = inputs.to(live.device, torch.bfloat16)
    alone = live(**inputs).logits
    adapter = lockadapt.attach(live, run)
    attached, trained = live(**inputs).logits, loaded.model(**inputs).logits
    assert (attached - trained).abs().max() <= 3e-2 * trained.abs().max()
    assert (attached - alone).abs().max() > 3e-2 * trained.abs().max()
    adapter.detach()
    assert torch.equal(live(**inputs).logits, alone)


@pytest.mark.parametrize(
    ("tower", "mode", "target"),
    [("mobilenet-v2", "dual", "sentence-transformers"), ("clip-vision", "vlm", "colpali")],
)
def test_embeddings(tower: str, mode: str, target: str, tiny: Path, tmp_path: Path) -> None:
    recipe = embedding_recipe(tiny, tmp_path, "llama")
    recipe["model"] |= {"tower": str(tiny / tower), "dtype": "bfloat16"}
    recipe["data"] = {"features": "none"}
    itc = recipe["objectives"]["itc"] | {"mode": mode, "pooling": "mean" if mode == "dual" else "last"}
    if mode == "dual":
        del itc["queries"], recipe["training"]["projector_learning_rate"]
    recipe["objectives"] = {"itc": itc}
    train(load_recipe(None, (), recipe).recipe, tmp_path / "run", QUIET)
    scores = evaluate_folder(tmp_path / "run", None, (), False, None, QUIET)
    assert scores["retrieval"]["n"] == 4
    report = export_run(tmp_path / "run", target, tmp_path / "out", QUIET)
    assert max(report["text_difference"], report["image_difference"]) < 3e-2


def test_one_body_that_answers_embeds_and_draws(tmp_path: Path) -> None:
    tiny_llm("llama-tied", tmp_path / "llama")
    tiny_tower("siglip-vision", tmp_path / "clip-vision")
    recipe = embedding_recipe(tmp_path, tmp_path, "llama")
    tokenizer = str(tiny_image_tokenizer(tmp_path / "tokenizer"))
    recipe["model"] |= {"image_tokenizer": tokenizer, "dtype": "bfloat16"}
    recipe["data"] = {"features": "none"}
    rows = recipe["objectives"]["itc"]["train"]
    recipe["objectives"]["t2i"] = {"train": rows, "test": rows}
    train(load_recipe(None, (), recipe).recipe, tmp_path / "run", QUIET)
    merge_run(tmp_path / "run", tmp_path / "merged", QUIET)
    for folder in (tmp_path / "run", tmp_path / "merged"):
        assert set(evaluate_folder(folder, None, (), False, None, QUIET)) == {"vqa", "retrieval", "t2i"}
        target = open_target(folder)
        assert (
            len(generate_images(target.model, target.processor, ["a red shape"], ImageGenerationConfig()))
            == 1
        )
