"""Boxes are learned as plain Transformers would learn their text, and an evaluation scores what is generated."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tokenizers import AddedToken, Regex, normalizers

from lockadapt.architectures.assemble import Assembled
from lockadapt.architectures.load import load_model
from lockadapt.console import Reporter
from lockadapt.data.boxes import LOC_TOKENS, BoxRules
from lockadapt.data.encode import IGNORED, Encoder
from lockadapt.data.pixels import pixel_inputs
from lockadapt.data.readers.rows import row_to_samples
from lockadapt.data.readers.source import Source
from lockadapt.data.whole_image import check_whole_image
from lockadapt.errors import AssemblyError, RecipeError
from lockadapt.evaluation.evaluate import evaluate_folder
from lockadapt.objectives import Grounding
from lockadapt.recipe.read import load_recipe
from lockadapt.training.loop import train
from tests.support.rows import pictures

ROW = {"image": "red.png", "phrase": "the red shape", "box": [4, 6, 16, 18]}


def samples(folder: Path, **row: Any) -> Any:
    pictures(folder)
    source = Source("rows", "grounding", images=folder, boxes=BoxRules("plain"))
    return row_to_samples({**ROW, **row}, source, "row 0")


def test_labels_and_loss_are_those_of_the_text(assembled: Assembled, tmp_path: Path) -> None:
    model, processor = load_model(assembled.folder, torch.float32)
    objective = Grounding(box_format="plain")
    (item,) = objective.encode(Encoder(processor, 512), samples(tmp_path)).encoded
    learned = item.labels[item.labels != IGNORED].tolist()
    answer = item.sample.answer
    assert answer.count(",") == 3
    assert processor.tokenizer.decode(learned, skip_special_tokens=True).replace(" ", "") == answer.replace(
        " ", ""
    )
    batch = objective.collate(
        [item], pixel_inputs(processor, 10**6), processor.tokenizer.pad_token_id, "grounding"
    )
    mine, _ = objective.loss(model, batch)
    mine.backward()
    trained = dict(model.model.multi_modal_projector.named_parameters())
    gradients = {name: parameter.grad.clone() for name, parameter in trained.items()}
    model.zero_grad()
    theirs = model(
        input_ids=torch.tensor(item.input_ids[None], dtype=torch.long),
        attention_mask=torch.ones(1, len(item.input_ids), dtype=torch.long),
        labels=torch.tensor(item.labels[None], dtype=torch.long),
        pixel_values=processor.image_processor(
            images=[Image.open(tmp_path / "red.png").convert("RGB")], return_tensors="pt"
        )["pixel_values"],
    ).loss
    theirs.backward()
    torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
    assert gradients
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, trained[name].grad, atol=1e-6, rtol=1e-4)


def test_paligemma_needs_the_tokens(assembled: Assembled, tmp_path: Path) -> None:
    _, processor = load_model(assembled.folder, torch.float32)
    objective = Grounding(box_format="paligemma")
    source = Source("rows", "grounding", images=tmp_path, boxes=BoxRules("paligemma"))
    pictures(tmp_path)
    rows = row_to_samples(ROW, source, "row 0")
    with pytest.raises(RecipeError, match="no token <loc0000>"):
        objective.encode(Encoder(processor, 512), rows)
    processor.tokenizer.add_tokens([AddedToken(token, special=False) for token in LOC_TOKENS])
    (item,) = objective.encode(Encoder(processor, 512), rows).encoded
    learned = processor.tokenizer.convert_ids_to_tokens(item.labels[item.labels != IGNORED].tolist())
    assert len([token for token in learned if token in LOC_TOKENS]) == 4


def test_special_location_tokens_are_refused(assembled: Assembled) -> None:
    _, processor = load_model(assembled.folder, torch.float32)
    processor.tokenizer.add_tokens(
        [AddedToken(token, special=True) for token in LOC_TOKENS], special_tokens=True
    )
    with pytest.raises(RecipeError, match="are special"):
        Grounding(box_format="paligemma").encode(Encoder(processor, 512), [])


def test_processors_that_do_not_show_whole_images_are_refused(assembled: Assembled) -> None:
    _, processor = load_model(assembled.folder, torch.float32)
    check_whole_image(processor)
    own = processor.image_processor
    side = own.size["height"]
    own.size, own.do_center_crop, own.crop_size = (
        {"shortest_edge": side},
        True,
        {"height": side, "width": side},
    )
    with pytest.raises(AssemblyError, match="cuts off an edge"):
        check_whole_image(processor)


def test_padding_is_refused(assembled: Assembled, monkeypatch: pytest.MonkeyPatch) -> None:
    _, processor = load_model(assembled.folder, torch.float32)
    own = type(processor.image_processor)
    resize = own.preprocess

    def padded(self: Any, images: Any, *arguments: Any, **options: Any) -> Any:
        squares = []
        for image in images:
            square = Image.new("RGB", (max(image.size), max(image.size)), "grey")
            square.paste(image)
            squares.append(square)
        return resize(self, squares, *arguments, **options)

    monkeypatch.setattr(own, "preprocess", padded)
    with pytest.raises(AssemblyError, match="pads"):
        check_whole_image(processor)


class Answering:
    """An evaluation that gives written answers."""

    def __init__(self, encoder: Encoder, answers: list[str]) -> None:
        self.encoder, self.given = encoder, answers

    def answers(self, samples: Any, closed: Any, max_new_tokens: int) -> list[str]:
        assert (closed, max_new_tokens) == (None, 9)
        return self.given


def test_scores(assembled: Assembled, tmp_path: Path) -> None:
    _, processor = load_model(assembled.folder, torch.float32)
    (sample,) = samples(tmp_path)
    context: Any = Answering(Encoder(processor, 512), [sample.answer, "I do not know"])
    scores, rows = Grounding(box_format="plain", max_new_tokens=9).evaluate(context, [sample, sample])
    assert scores == {"iou50": 0.5, "mean_iou": pytest.approx(0.5, abs=0.02), "n": 2, "unparsed": 1}
    assert [row["boxes"] for row in rows] == [[json.loads(sample.answer)], []]
    two = replace(sample, boxes=(sample.boxes[0], (0.9, 0.9, 1.0, 1.0)))
    scores, _ = Grounding(box_format="plain", max_new_tokens=9).evaluate(
        Answering(context.encoder, [sample.answer]),
        [two],  # type: ignore[arg-type]
    )
    assert (scores["precision50"], scores["recall50"]) == (1, 0.5)


def test_a_run_trains_and_is_evaluated(tiny: Path, tmp_path: Path) -> None:
    names = pictures(tmp_path)
    rows = [{**ROW, "image": path.name, "phrase": name} for name, path in names.items()]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows_of = {"format": "jsonl", "path": str(tmp_path / "rows.jsonl")}
    values = {
        "model": {"llm": str(tiny / "llama"), "tower": str(tiny / "clip-vision"), "dtype": "float32"},
        "lora": {"rank": 4},
        "objectives": {
            "grounding": {
                **{"train": rows_of, "test": rows_of, "box_format": "plain", "flip": True},
                "max_new_tokens": 12,
            }
        },
        "training": {"steps": 6, "batch_size": 4, "learning_rate": 1e-2, "projector_learning_rate": 1e-2},
    }
    train(load_recipe(None, (), values).recipe, tmp_path / "run", Reporter(quiet=True))
    scores = evaluate_folder(tmp_path / "run", None, (), False, tmp_path / "out.jsonl", Reporter(quiet=True))
    assert set(scores["grounding"]) == {"iou50", "mean_iou", "n", "unparsed"}
    assert scores["grounding"]["n"] == 4
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert all({"boxes", "iou", "truth"} <= set(line) for line in lines)


def test_a_tokenizer_that_loses_brackets_is_refused(assembled: Assembled) -> None:
    _, processor = load_model(assembled.folder, torch.float32)
    processor.tokenizer.backend_tokenizer.normalizer = normalizers.Replace(Regex(r"[\[\]]"), "")
    with pytest.raises(RecipeError, match="in which no box can be read"):
        Grounding(box_format="plain").encode(Encoder(processor, 512), [])
