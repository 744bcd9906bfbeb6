"""A run that embeds is merged: a stock folder, what embeds beside it, and the same numbers from both."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lockadapt.errors import RecipeError, VerificationError
from lockadapt.evaluation.embedder import Embedder
from lockadapt.evaluation.evaluate import evaluate_folder
from lockadapt.evaluation.target import open_target
from lockadapt.export.merge import merge_run
from lockadapt.models.proof import run_fresh
from lockadapt.training.progress import Reporter
from tests.rows import train_to_embed

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


def test_embeddings_that_differ_fail_the_merge(run: Path, tmp_path: Path) -> None:
    import lockadapt.export.merge as module

    def put_beside(model: Any, folder: Path) -> None:
        with torch.no_grad():
            model.retrieval.embedding_proj_layer.weight[0] *= 1.01
        original(model, folder)

    original, module._put_beside = module._put_beside, put_beside
    try:
        with pytest.raises(VerificationError, match="embeddings of images differ"):
            merge_run(run, tmp_path / "merged", QUIET)
    finally:
        module._put_beside = original
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
