"""Image-text contrastive learning: equal to a plain loss on plain forwards, in chunks, and trained whole."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from lockadapt.architectures.assemble import assemble
from lockadapt.architectures.load import load_model
from lockadapt.data.batch import collate
from lockadapt.data.encode import Encoder
from lockadapt.data.pixels import PixelInputs
from lockadapt.data.sample import ImageRef, question_answer
from lockadapt.errors import AdapterError, DataError
from lockadapt.evaluation.context import PredictionContext
from lockadapt.features.in_memory import FeatureInputs
from lockadapt.features.tower import tower_outputs
from lockadapt.models.query_tokens import query_token_ids
from lockadapt.objectives import ImageText, Vqa
from lockadapt.objectives.itc import IMAGES
from lockadapt.objectives.retrieval import retrieval_of
from lockadapt.tuning.adapters import LoraSettings, attach_adapters, set_trainable
from tests.support.rows import pair_samples, vqa_samples


@pytest.fixture(scope="module", params=["clip-vision", "mobilenet-v2"])
def base(request: pytest.FixtureRequest, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("itc") / request.param
    assemble(tiny / "llama-tied", tiny / request.param, folder, dtype="float32", prove=False, query_tokens=2)
    return folder


def adapted(base: Path, objective: ImageText, dropout: float = 0.0) -> tuple[Any, Any]:
    model, processor = load_model(base, torch.float32)
    ids = query_token_ids(processor.tokenizer, objective.query_tokens)
    model = attach_adapters(model, LoraSettings(rank=2, dropout=dropout, init="gaussian"), ids)
    objective.prepare(model)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name or "trainable_tokens_delta" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    set_trainable(model, ["projector", "lora", "retrieval"])
    return model, processor


def batch_of(objective: ImageText, processor: Any, folder: Path) -> dict[str, Any]:
    items = objective.encode(Encoder(processor, 128), pair_samples(folder)).encoded
    return objective.collate(items, PixelInputs(processor.image_processor, 10**6), 2, "itc")


def plain_loss(model: Any, batch: dict[str, Any], objective: ImageText) -> torch.Tensor:
    """One forward a sequence, an embedding a pair, and the loss written out."""
    stock = model.get_base_model()
    head = retrieval_of(model)

    def embed(**inputs: torch.Tensor) -> torch.Tensor:
        hidden = stock.model(**inputs).last_hidden_state[0]
        state = hidden[-1] if objective.pooling == "last" else hidden.mean(0)
        vector = head.embedding_proj_layer(state)
        return vector / vector.norm()

    images = [
        embed(input_ids=batch["image_ids"], pixel_values=batch["pixel_values"][i : i + 1])
        for i in batch["image_of"]
    ]
    texts = []
    for number in batch["text_of"].tolist():
        length = int(batch["text_mask"][number].sum())
        texts.append(embed(input_ids=batch["text_ids"][number : number + 1, :length]))
    logits = torch.stack(images) @ torch.stack(texts).T * head.temperature.logit_scale.exp()
    keys = batch["keys"]
    jointly = ((keys[:, None, 0] == keys[None, :, 0]) | (keys[:, None, 1] == keys[None, :, 1])).float()
    if objective.contrast == "sigmoid":
        signs = 2 * jointly - 1
        return -F.logsigmoid(signs * (logits + head.temperature.logit_bias)).sum() / len(logits)
    rows = -(logits.log_softmax(1) * jointly / jointly.sum(1, keepdim=True)).sum(1).mean()
    columns = -(logits.log_softmax(0) * jointly / jointly.sum(0, keepdim=True)).sum(0).mean()
    return (rows + columns) / 2


@pytest.mark.parametrize("chunk", [1, 2, 64])
@pytest.mark.parametrize(("contrast", "pooling"), [("infonce", "last"), ("sigmoid", "mean")])
def test_equals_a_plain_loss_forward_and_backward(
    base: Path, tmp_path: Path, chunk: int, contrast: Any, pooling: Any
) -> None:
    objective = ImageText(
        contrast=contrast, pooling=pooling, queries=2, chunk=chunk, batch_size=5, dimension=8
    )
    model, processor = adapted(base, objective)
    batch = batch_of(objective, processor, tmp_path)
    # In float64 up to the last step, as features of a random CNN are so uneven that float32 sums differ.
    model, batch["pixel_values"] = model.double(), batch["pixel_values"].double()
    assert len(batch["pixel_values"]) == 4
    assert len(batch["text_ids"]) == 4
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    plain = plain_loss(model, batch, objective)
    expected = dict(zip(trained, torch.autograd.grad(plain * 3, list(trained.values())), strict=True))
    loss, report = objective.loss(model, batch)
    (loss * 3).backward()
    assert float(loss.detach()) == pytest.approx(float(plain.detach()), abs=1e-5)
    assert int(report["tokens"]) == 5
    for name, parameter in trained.items():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-5)
    kinds = (
        "lora_",
        "trainable_tokens_delta",
        "embedding_proj_layer",
        "logit_scale",
        "multi_modal_projector",
    )
    assert all(any(kind in name for name in trained) for kind in kinds)


def test_chunks_replay_dropout(base: Path, tmp_path: Path) -> None:
    """Two runs from one seed: gradients of the loss that was reported, not of one with other dropped values."""
    objective = ImageText(chunk=2, batch_size=5, dimension=8)
    model, processor = adapted(base, objective, dropout=0.5)
    model.train()
    batch = batch_of(objective, processor, tmp_path)
    layer = retrieval_of(model).embedding_proj_layer
    torch.manual_seed(3)
    objective.loss(model, batch)[0].backward()
    torch.manual_seed(3)
    nudged = layer.bias.grad.clone()
    before = float(objective.loss(model, batch)[0].detach())
    with torch.no_grad():
        layer.bias -= 1e-3 * nudged / nudged.norm()
    torch.manual_seed(3)
    after = float(objective.loss(model, batch)[0].detach())
    assert (before - after) / 1e-3 == pytest.approx(float(nudged.norm()), rel=0.05)


def test_answers_beside_it_see_the_trained_rows(base: Path, tmp_path: Path) -> None:
    """The tied head has the query tokens' trained rows: the answers' loss is the stock class's, and so is its gradient."""
    model, processor = adapted(base, ImageText(queries=2))
    items = Encoder(processor, 128).encode(vqa_samples(tmp_path)).encoded
    batch = collate(items, PixelInputs(processor.image_processor, 10**6), 2, "vqa")
    shared = [p for n, p in model.named_parameters() if "lora_" in n and p.requires_grad]
    loss, _ = Vqa().loss(model, batch)
    ours = torch.autograd.grad(loss, shared)
    logits = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        pixel_values=batch["pixel_values"],
    ).logits
    plain = F.cross_entropy(logits[batch["predicting"]][batch["logit_index"]], batch["targets"])
    assert float(loss.detach()) == pytest.approx(float(plain.detach()), rel=1e-5)
    for actual, other in zip(ours, torch.autograd.grad(plain, shared), strict=True):
        torch.testing.assert_close(actual, other, rtol=1e-3, atol=1e-6)


def test_features_do_as_pixels(base: Path, tmp_path: Path) -> None:
    objective = ImageText(dimension=8)
    model, processor = adapted(base, objective)
    pixels = PixelInputs(processor.image_processor, 10**6)
    stock = model.get_base_model()
    kept = FeatureInputs(pixels, lambda values: tower_outputs(stock, values))
    items = objective.encode(Encoder(processor, 128), pair_samples(tmp_path)).encoded
    losses = [
        objective.loss(model, objective.collate(items, images, 2, "itc"))[0].detach()
        for images in (pixels, kept)
    ]
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-6)


def test_scores_and_zero_shot(base: Path, tmp_path: Path) -> None:
    objective = dataclasses.replace(ImageText(dimension=8), templates=("{}", "a {} thing"))
    model, processor = adapted(base, objective)
    pixels = PixelInputs(processor.image_processor, 10**6)
    context = PredictionContext(model, Encoder(processor, 128), pixels, 3, None)
    scores, rows = objective.evaluate(context, pair_samples(tmp_path))
    ways = {"text_to_image", "image_to_text", "text_to_text", "image_to_image"}
    assert set(scores) == {*ways, "n", "zero_shot"}
    assert scores["n"] == 5
    assert set(scores["text_to_image"]) == {"r1", "r5", "r10", "median_rank"}
    assert scores["text_to_image"]["r5"] == 1.0  # four images
    assert [row["question"] for row in rows] == ["a red shape", "green", "a blue one", "it is red"]
    assert set(rows[1]["truth"]) == {"green.png", "yellow.png"}
    assert scores["zero_shot"]["n"] == 5
    embedding = objective.image_embeddings(
        context, [sample.images[0] for sample in pair_samples(tmp_path)[:1]]
    )
    torch.testing.assert_close(embedding.norm(dim=-1), torch.ones(1))


def test_what_cannot_be_embedded_is_said(base: Path, tiny: Path, tmp_path: Path) -> None:
    _, processor = load_model(base, torch.float32)
    objective, encoder = ImageText(), Encoder(processor, 30)
    blank = ImageRef("x", picture=Image.new("RGB", (8, 8)))
    for images, text, message in (
        ([], "red", "0 images"),
        ([blank, blank], "red", "2 images"),
        ([blank], "red " * 40, "the limit is 30"),
        ([blank], "a <query_1>", "marker"),
        ([blank], "an <image>", "marker"),
    ):
        with pytest.raises(DataError, match=message):
            objective.encode(encoder, [question_answer("q", text, images, "rows:1")])
    with pytest.raises(AdapterError, match="query_3"):
        ImageText(queries=3).encode(encoder, pair_samples(tmp_path))


def test_batches_name_what_the_sight_check_swaps(base: Path, tmp_path: Path) -> None:
    objective = ImageText(dimension=8)
    model, processor = adapted(base, objective)
    batch = batch_of(objective, processor, tmp_path)
    (name,) = [name for name in IMAGES if name in batch]
    with torch.no_grad():
        first, other = (
            float(objective.loss(model, {**batch, name: images})[0])
            for images in (batch[name], batch[name].roll(1, 0))
        )
    assert first != other
