"""Late interaction: scores and losses beside plain references, and a run from training to search and export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import ColPaliProcessor

import lockadapt
from lockadapt.building.objectives import build_objectives
from lockadapt.errors import DataError, RecipeError
from lockadapt.metrics.late_interaction import maxsim
from lockadapt.metrics.retrieval import retrieval_scores
from lockadapt.objectives.late_interaction import late_loss, stacked
from lockadapt.objectives.similarity import Contrast
from tests.support import command
from tests.support.rows import pictures
from tests.support.runs import values


def tokens(rows: int, most: int, size: int = 8, seed: int = 0) -> tuple[Tensor, list[int]]:
    """Normalised embeddings of tokens, of every length up to the longest, padded with zeros."""
    made = F.normalize(torch.randn(rows, most, size, generator=torch.Generator().manual_seed(seed)), dim=-1)
    lengths = [most - row % most for row in range(rows)]
    mask = torch.arange(most) < torch.tensor(lengths)[:, None]
    return made * mask[..., None], lengths


def test_scores_are_those_of_colpali_over_the_tokens_of_the_query(monkeypatch: pytest.MonkeyPatch) -> None:
    texts, lengths = tokens(5, 4)
    images, _ = tokens(3, 6, seed=1)
    images[:] = F.normalize(torch.randn(images.shape, generator=torch.Generator().manual_seed(2)), dim=-1)
    official = ColPaliProcessor.score_retrieval(None, texts, images)  # type: ignore[arg-type]
    assert torch.allclose(maxsim(texts, images), official / torch.tensor(lengths)[:, None], atol=1e-6)
    monkeypatch.setattr("lockadapt.metrics.late_interaction.BLOCK_BYTES", 1)  # a candidate at a time
    assert torch.allclose(maxsim(texts, images), official / torch.tensor(lengths)[:, None], atol=1e-6)
    # Padding of a candidate is no token of it, however bad the others are.
    query = torch.tensor([[[1.0, 0.0]]])
    padded = torch.tensor([[[-1.0, 0.0], [0.0, 0.0]]])
    assert maxsim(query, padded).item() == -1.0


def reference(
    images: Tensor, texts: Tensor, positive: Tensor, contrast: Contrast, lengths: list[int]
) -> Tensor:
    """Every text with every image, token by token, in plain torch."""
    rows = []
    for text, length in zip(texts, lengths, strict=True):
        rows.append(torch.stack([(text[:length] @ image.T).amax(1).mean() for image in images]))
    logits = torch.stack(rows).T * contrast.scale
    if contrast.kind == "sigmoid":
        assert contrast.bias is not None
        sign = torch.where(positive, 1.0, -1.0)
        return F.softplus(-sign * (logits + contrast.bias)).sum() / max(logits.shape)
    losses = []
    for scores, own in ((logits, positive), (logits.T, positive.T)):
        each = [
            F.cross_entropy(row, right.float() / right.sum())
            for row, right in zip(scores, own, strict=True)
            if right.any()
        ]
        losses.append(torch.stack(each).mean())
    return (losses[0] + losses[1]) / 2


@pytest.mark.parametrize("kind", ["infonce", "sigmoid"])
def test_loss_and_gradients_are_the_plain_ones(kind: Any) -> None:
    given: dict[str, list[Tensor]] = {}
    values_of: dict[str, Tensor] = {}
    for way in ("ours", "plain"):
        images = tokens(4, 6, seed=3)[0].requires_grad_()
        made, lengths = tokens(6, 5, seed=4)
        texts, scale, bias = (
            made.requires_grad_(),
            torch.tensor(7.0, requires_grad=True),
            torch.tensor(-2.0, requires_grad=True),
        )
        image_keys, text_keys = (
            torch.tensor([[0], [1], [2], [3]]),
            torch.tensor([[0], [1], [2], [3], [0], [-1]]),
        )
        contrast = Contrast(scale, bias if kind == "sigmoid" else None, kind)
        if way == "ours":
            loss = late_loss(images, texts, image_keys, text_keys, contrast)
        else:
            real = [image[image.abs().amax(-1) > 0] for image in images]
            loss = reference(real, texts, image_keys == text_keys.T, contrast, lengths)  # type: ignore[arg-type]
        loss.backward()
        learned = [images, texts, scale, *([bias] if kind == "sigmoid" else [])]
        given[way], values_of[way] = [tensor.grad for tensor in learned], loss.detach()  # type: ignore[misc]
    assert torch.allclose(values_of["ours"], values_of["plain"], atol=1e-6)
    for ours, plain in zip(given["ours"], given["plain"], strict=True):
        assert torch.allclose(ours, plain, atol=1e-6)
        assert plain.abs().max() > 1e-3
    with pytest.raises(DataError, match="no image belongs"):
        late_loss(images, texts, torch.tensor([[8]] * 4), text_keys, contrast)


def test_ranks_are_those_of_the_scores() -> None:
    images, texts = tokens(6, 4, seed=5)[0], tokens(6, 3, seed=6)[0]
    close = maxsim(texts, images)
    pairs = torch.stack([close.argmax(1), torch.arange(6)], 1)
    scores = retrieval_scores(images, texts, pairs)
    assert scores["text_to_image"]["r1"] == 1.0
    owners = close.argmax(1).unique()
    hits = [any(pairs[t, 0] == i for t in [int(close[:, i].argmax())]) for i in owners.tolist()]
    assert scores["image_to_text"]["r1"] == pytest.approx(sum(hits) / len(owners))


def test_parts_are_padded_to_the_longest() -> None:
    parts = [torch.ones(2, 3, 4), torch.ones(1, 5, 4)]
    assert stacked(parts).shape == (3, 5, 4)
    assert float(stacked(parts).sum()) == 2 * 3 * 4 + 5 * 4


@pytest.fixture(scope="module")
def run(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("late")
    recipe = values(tiny, folder)
    shown = pictures(folder / "shown")
    lines = [
        {"image": path.name, "caption": f"a {name} shape"[: 8 + number]}
        for number, (name, path) in enumerate(shown.items())
    ]
    (folder / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = {"format": "jsonl", "path": str(folder / "captions.jsonl"), "images": str(folder / "shown")}
    recipe["objectives"] = {
        "itc": {"mode": "vlm", "pooling": "tokens", "dimension": 8, "chunk": 3, "train": rows, "test": rows}
    }
    recipe["training"] |= {"steps": 60, "batch_size": 4}
    return lockadapt.train(recipe, output=folder / "run", quiet=True).output


def test_a_run_learns_is_scored_and_searches(run: Path, tmp_path: Path) -> None:
    scores = lockadapt.evaluate(run, quiet=True).scores["retrieval"]
    assert scores["text_to_image"]["r1"] == 1.0
    given = (
        "search",
        run,
        "--images",
        run.parent / "shown",
        "--query",
        "a red shape",
        "--index",
        tmp_path / "index",
    )
    done = command.lockadapt(*given, "--json", "-q")
    assert done.returncode == 0, done.stderr
    first = json.loads(done.stdout)
    assert first["index"]["embedded"] == 4
    again = json.loads(command.lockadapt(*given, "--json", "-q").stdout)
    assert again["index"]["embedded"] == 0
    assert again["results"] == first["results"]
    assert -1 <= first["results"][-1]["score"] < first["results"][0]["score"] <= 1
    by_image = command.lockadapt(
        *given[:4], "--image", run.parent / "shown" / first["results"][0]["file"], *given[6:], "--json", "-q"
    )
    assert json.loads(by_image.stdout)["results"][0]["file"] == first["results"][0]["file"]


def test_colpali_holds_it_and_gives_the_same_scores(run: Path, tmp_path: Path) -> None:
    result = lockadapt.export(run, to="colpali", output=tmp_path / "colpali", quiet=True).to_json()
    assert result["model_class"] == "ColPaliForRetrieval"
    assert max(result["text_difference"], result["image_difference"]) < 1e-4
    assert "amax(-1).sum(-1)" in (tmp_path / "colpali" / "README.md").read_text()
    with pytest.raises(RecipeError, match="one vector a text"):
        lockadapt.export(run, to="sentence-transformers", output=tmp_path / "st", quiet=True)


def test_what_has_one_vector_is_refused(run: Path, tiny: Path, tmp_path: Path) -> None:
    recipe = values(tiny, tmp_path)
    rows = recipe["objectives"]["vqa"]["train"]
    recipe["objectives"] = {"itc": {"mode": "dual", "pooling": "tokens", "train": rows}}
    with pytest.raises(RecipeError, match="one vector a side"):
        build_objectives(lockadapt.load_recipe(recipe).recipe)
    recipe["objectives"] = {"itc": {"mode": "vlm", "pooling": "tokens", "templates": ["a {}"], "train": rows}}
    with pytest.raises(RecipeError, match="mean of vectors"):
        lockadapt.load_recipe(recipe)
