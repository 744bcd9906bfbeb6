"""A run that embeds is merged: a stock folder, what embeds beside it, and the same numbers from both."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lockadapt.console import Reporter
from lockadapt.errors import RecipeError, VerificationError
from lockadapt.evaluation.embedder import Embedder
from lockadapt.evaluation.evaluate import evaluate_folder
from lockadapt.evaluation.target import open_target
from lockadapt.exports.export import export_run
from lockadapt.exports.merge import merge_run
from lockadapt.exports.stock_folder import write_stock
from lockadapt.models.proof import run_fresh
from lockadapt.recipe.read import load_recipe
from lockadapt.runs.run import Run
from lockadapt.training.loop import train
from tests.support.rows import embedding_recipe, train_to_embed
from tests.support.tiny import tiny_image_tokenizer, tiny_llm, tiny_tower

QUIET = Reporter(quiet=True)


@pytest.fixture(scope="module", params=["llama-tied", pytest.param("llama", marks=pytest.mark.slow)])
def run(request: pytest.FixtureRequest, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that answers and embeds, its LLM's head tied and not."""
    if request.param == "llama-tied":
        return request.getfixturevalue("embedding_run")
    return train_to_embed(tiny, tmp_path_factory.mktemp("mixed"), request.param)


@pytest.fixture(scope="module")
def merged(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("merged") / "model"
    result = merge_run(run, folder, QUIET)
    assert result["max_abs_embedding_diff"] < 1e-4
    assert result["max_abs_logit_diff"] < 1e-4
    assert result["missing_keys"] == result["unexpected_keys"] == []
    return folder


def test_merged_folder_is_stock_and_scores_the_same(run: Path, merged: Path) -> None:
    assert [path.name for path in merged.glob("*.safetensors")] == ["model.safetensors"]
    assert not any("retrieval" in key for key in load_file(merged / "model.safetensors"))
    kept = load_file(merged / "retrieval" / "retrieval.safetensors")
    assert set(kept) == set(load_file(run / "retrieval.safetensors"))
    fresh = run_fresh(merged, dtype=torch.float32)
    assert fresh.answer["missing_keys"] == fresh.answer["unexpected_keys"] == []
    assert fresh.answer["lockadapt"] is False
    recorded = json.loads((merged / "lockadapt.json").read_text())["files"]
    assert set(recorded) == {"model.safetensors", "retrieval/retrieval.safetensors"}
    before = evaluate_folder(run, None, (), False, None, QUIET)
    after = evaluate_folder(merged, None, (), False, None, QUIET)
    assert before == after
    assert set(after) == {"vqa", "retrieval"}
    assert set(after["retrieval"]["text_to_image"]) == {"r1", "r5", "r10", "median_rank"}


def test_the_trained_query_tokens_are_in_the_embedding_table(run: Path, merged: Path) -> None:
    """With the rows of the untrained base, embeddings would differ: the proof compares what was trained."""
    base, folder = load_file(run / "base" / "model.safetensors"), load_file(merged / "model.safetensors")
    key = next(key for key in base if key.endswith("embed_tokens.weight"))
    moved = (base[key] != folder[key]).any(-1).nonzero().flatten().tolist()
    tokenizer = open_target(merged).processor.tokenizer
    assert moved == sorted(tokenizer.convert_tokens_to_ids([f"<query_{n}>" for n in (1, 2)]))


def test_embeddings_that_differ_fail_the_merge(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lockadapt.exports.merge as module

    def write_wrongly(run: Run, folder: Path, **given: Any) -> None:
        write_stock(run, folder, **given)
        file = folder / "retrieval" / "retrieval.safetensors"
        tensors = load_file(file)
        tensors["retrieval.embedding_proj_layer.weight"][0] *= 1.01
        save_file(tensors, file)

    monkeypatch.setattr(module, "write_stock", write_wrongly)
    with pytest.raises(VerificationError, match="embeddings of images differ"):
        merge_run(run, tmp_path / "merged", QUIET)
    assert list(tmp_path.iterdir()) == []


def test_a_merged_folder_without_its_retrieval_part_is_refused(merged: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(merged, copy)
    file = copy / "retrieval" / "retrieval.safetensors"
    tensors = load_file(file)
    save_file({**tensors, "retrieval.more": torch.zeros(1)}, file)
    with pytest.raises(VerificationError, match=r"retrieval\.more"):
        evaluate_folder(copy, None, (), False, None, QUIET)
    shutil.rmtree(copy / "retrieval")
    with pytest.raises(RecipeError, match="retrieval.safetensors is missing") as error:
        evaluate_folder(copy, None, (), False, None, QUIET)
    assert "lockadapt merge" in str(error.value.fix)
    (copy / "lockadapt.json").unlink()
    with pytest.raises(RecipeError, match="which recipe"):
        Embedder.open(open_target(copy))


@pytest.mark.slow
def test_answers_embeddings_and_drawings_from_one_body(tmp_path: Path) -> None:
    """A Janus that learned all three is merged: the same scores from the stock folder, and ColPali from the same weights."""
    tiny_llm("llama-tied", tmp_path / "llama")
    tiny_tower("siglip-vision", tmp_path / "clip-vision")
    recipe = embedding_recipe(tmp_path, tmp_path, "llama")
    recipe["model"]["image_tokenizer"] = str(tiny_image_tokenizer(tmp_path / "tokenizer"))
    rows = recipe["objectives"]["itc"]["train"]
    recipe["objectives"]["t2i"] = {"train": rows, "test": rows}
    run, merged = tmp_path / "run", tmp_path / "merged"
    train(load_recipe(None, (), recipe).recipe, run, QUIET)
    result = merge_run(run, merged, QUIET)
    assert result["model_class"] == "JanusForConditionalGeneration"
    assert max(result["max_abs_logit_diff"], result["max_abs_embedding_diff"]) < 1e-4
    assert result["missing_keys"] == result["unexpected_keys"] == []
    before = evaluate_folder(run, None, (), False, None, QUIET)
    after = evaluate_folder(merged, None, (), False, None, QUIET)
    assert set(before) == {"vqa", "retrieval", "t2i"}
    assert before.pop("t2i") == pytest.approx(after.pop("t2i"), rel=1e-5)
    assert before == after
    proof = export_run(run, "colpali", tmp_path / "colpali", QUIET)
    assert max(proof["text_difference"], proof["image_difference"]) < 1e-4
