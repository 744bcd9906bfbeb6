"""Texts and images in any order: read as they stand, encoded as the stock processor does it, packed exactly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lockadapt.architectures.assemble import Assembled, assemble
from lockadapt.architectures.load import load_model
from lockadapt.data.batch import collate
from lockadapt.data.encode import IGNORED, Encoder
from lockadapt.data.pixels import pixel_inputs
from lockadapt.data.readers import Source, read_samples
from lockadapt.data.sample import ImageRef, Sample, Turn, message
from lockadapt.errors import DataError
from lockadapt.features.inputs import memory_features
from lockadapt.models.chat_template import adds_special_tokens
from tests.data.templates.corpus import LLAVA15
from tests.support.packing import adapted_model, gradients
from tests.support.rows import pictures
from tests.support.tiny import tiny_llm
from tests.support.zoo import entry_of

CHAT = (
    "{% for message in messages %}{{ message['role'] }}:\n{{ message['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:\n{% endif %}"
)
SHOWN = {"type": "image"}
COLOURS = ("red", "green", "blue", "yellow")


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def conversations() -> list[tuple[list[str], list[dict[str, Any]]]]:
    """Twenty rows: images and messages of five shapes, each about four choices of colours."""
    rows: list[tuple[list[str], list[dict[str, Any]]]] = []
    for number in range(4):
        a, b, c = (f"{COLOURS[(number + step) % 4]}.png" for step in range(3))
        answer = {"role": "assistant", "content": [text("yes")]}
        shapes: list[tuple[list[str], list[list[dict[str, str]]]]] = [
            ([a, b], [[text("is the shape in "), SHOWN, text(" red or is it "), SHOWN, text("?")]]),
            ([a, b], [[SHOWN, text(" blue\nand "), SHOWN, text("\ngreen?")]]),
            ([a], [[text("what color is the shape? "), SHOWN]]),
            ([a, b, c], [[SHOWN, SHOWN, text("once upon a time "), SHOWN]]),
            (
                [a, b, c],
                [[text("a square "), SHOWN, text(", "), SHOWN], [text("a dog in "), SHOWN, text(" ?")]],
            ),
        ]
        for images, asked in shapes:
            messages = [m for content in asked for m in ({"role": "user", "content": content}, answer)]
            rows.append((images, messages))
    return rows


def read(folder: Path) -> list[Sample]:
    pictures(folder)
    lines = [json.dumps({"images": images, "messages": messages}) for images, messages in conversations()]
    (folder / "rows.jsonl").write_text("\n".join(lines))
    return list(read_samples("jsonl", Source(path=folder / "rows.jsonl", kind="dialogue")))


def theirs(processor: Any, images: list[str], messages: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    """Ids, labels and pixels by the stock processor alone: labels from the lengths of its prompts."""

    def made(part: list[dict[str, Any]], ask: bool) -> Any:
        words = processor.apply_chat_template(part, add_generation_prompt=ask, tokenize=False)
        count = sum(p["type"] == "image" for m in part for p in m["content"])
        shown = [Image.open(folder / name).convert("RGB") for name in images[:count]]
        special = adds_special_tokens(processor.tokenizer, words)
        return processor(text=[words], images=[shown], add_special_tokens=special, return_tensors="pt")

    whole = made(messages, False)
    ids = whole["input_ids"][0].tolist()
    labels = [IGNORED] * len(ids)
    for number, turn in enumerate(messages):
        if turn["role"] == "assistant":
            begin = len(made(messages[:number], True)["input_ids"][0])
            end = len(made(messages[: number + 1], False)["input_ids"][0])
            labels[begin:end] = ids[begin:end]
    return {"ids": ids, "labels": labels, "pixels": whole["pixel_values"]}


def chat_model(folder: Path, tiny: Path) -> Assembled:
    llm = tiny_llm("llama-tied", folder / "llm", chat_template=CHAT)
    return assemble(llm, tiny / "clip-vision", folder / "model", dtype="float32", prove=False)


@pytest.mark.parametrize("kind", ["plain", "chat", "idefics3"])
def test_as_the_stock_processor(kind: str, tiny: Path, tmp_path: Path) -> None:
    if kind == "idefics3":
        processor = entry_of("idefics3").build()[1]
    elif kind == "chat":
        processor = chat_model(tmp_path, tiny).processor
    else:
        processor = assemble(
            tiny / "llama-tied", tiny / "clip-vision", tmp_path / "model", dtype="float32", prove=False
        ).processor
    items = Encoder(processor, 4096).encode(read(tmp_path / "data")).encoded
    inputs = pixel_inputs(processor, 10**6)
    assert len(items) == 20
    for item, (images, messages) in zip(items, conversations(), strict=True):
        expected = theirs(processor, images, messages, tmp_path / "data")
        newline = processor.tokenizer("\n", add_special_tokens=False)["input_ids"]
        ids, labels = expected["ids"], expected["labels"]
        assert item.input_ids.tolist() == ids
        # The line break behind an end-of-turn marker is not learned.
        learned = [n for n, label in enumerate(labels) if label != IGNORED and ids[n] not in newline]
        assert np.flatnonzero(item.labels != IGNORED).tolist() == learned
        assert item.labels[learned].tolist() == [ids[n] for n in learned]
        pixels = collate([item], inputs, 0, "dialogue")["pixel_values"]
        torch.testing.assert_close(pixels, expected["pixels"].reshape(pixels.shape), rtol=0, atol=0)


def test_packed_and_kept_as_plain(tiny: Path, tmp_path: Path) -> None:
    """Questions behind the same texts and images share them, and nothing changes in losses and gradients."""
    chat_model(tmp_path, tiny)
    folder = tmp_path / "model"
    model, processor = adapted_model(folder, "none", False)
    rows = read(tmp_path / "data")
    again = (Turn("user", "sure?"), Turn("assistant", "no"))
    rows += [Sample(sample.images, (*sample.turns, *again), "again") for sample in rows]
    items = Encoder(processor, 4096).encode(rows).encoded
    pixels = pixel_inputs(processor, 10**6)
    kept = memory_features(model, pixels)
    plain, packed = collate(items, pixels, 2, "dialogue"), collate(items, kept, 2, "dialogue", 500)
    assert packed["input_ids"].numel() < 0.6 * plain["input_ids"].numel()
    (alone, mine), (shared, yours) = gradients(model, plain), gradients(model, packed)
    torch.testing.assert_close(shared, alone, rtol=1e-5, atol=1e-5)
    for name, gradient in mine.items():
        torch.testing.assert_close(yours[name], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()))


def test_the_place_of_an_image_is_seen(tiny: Path, tmp_path: Path) -> None:
    """The same words with the pictures elsewhere make another loss."""
    chat_model(tmp_path, tiny)
    folder = tmp_path / "model"
    model, processor = load_model(folder, dtype=torch.float32)
    images = read(tmp_path / "data")[0].images
    rows = [
        Sample(images, (Turn("user", "red blue", 2, places), Turn("assistant", "yes")), "row")
        for places in ((), (0, 4), (4, 8))
    ]
    items = Encoder(processor, 4096).encode(rows).encoded
    assert len({item.input_ids.tobytes() for item in items}) == 3
    batch = collate(items, pixel_inputs(processor, 10**6), 2, "dialogue")
    with torch.no_grad():
        names = ("input_ids", "attention_mask", "pixel_values")
        logits = model(**{name: batch[name] for name in names}).logits[:, -2]
    assert min(float((logits[a] - logits[b]).abs().max()) for a, b in ((0, 1), (0, 2), (1, 2))) > 1e-4


def test_markers_of_llava(tmp_path: Path) -> None:
    cases = {
        "Compare <image> with <image>.": Turn("user", "Compare  with .", 2, (8, 14)),
        "<image>\nWhat is this?": Turn("user", "What is this?", 1),
        "What is this?\n<image>": Turn("user", "What is this?", 1),
        "Look at <image> now": Turn("user", "Look at  now", 1, (8,)),
        "<image>\n a <image>\n": Turn("user", "\n a ", 2, (0, 4)),
        "<image><image>\nBoth?": Turn("user", "Both?", 2),
    }
    rows = [
        {
            "image": [f"{n}.png" for n in range(words.count("<image>"))],
            "conversations": [{"from": "human", "value": words}, {"from": "gpt", "value": "yes"}],
        }
        for words in cases
    ]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    samples = list(read_samples("llava", Source(path=tmp_path / "a.json", kind="dialogue")))
    assert [sample.turns[0] for sample in samples] == list(cases.values())


def test_parts_of_a_turn() -> None:
    turn = Turn("user", "ab", 3, (0, 1, 2))
    assert (turn.segments, turn.gaps) == (("a", "b"), (1, 1, 1))
    assert message(turn)["content"] == [SHOWN, text("a"), SHOWN, text("b"), SHOWN]
    assert turn.said(("xyz", "w")) == Turn("user", "xyzw", 3, (0, 3, 4))
    assert Turn("user", "", 2).said(("x",)) == Turn("user", "x", 2)


def test_a_template_that_moves_images_is_refused(tiny: Path, tmp_path: Path) -> None:
    processor = chat_model(tmp_path, tiny).processor
    processor.chat_template = LLAVA15
    image = ImageRef("a", picture=Image.new("RGB", (8, 8)))
    rows = [
        Sample((image,), (Turn("user", "a b", 1, places), Turn("assistant", "c")), "rows:1")
        for places in ((3,), (1,))
    ]
    encoder = Encoder(processor, 4096)
    assert len(encoder.encode(rows[:1]).encoded) == 1  # one text: nothing stands between
    with pytest.raises(DataError, match="images between its texts, but the chat template shows all images"):
        encoder.encode(rows[1:])


def test_pictures_in_answers_are_refused(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "draw"}, {"role": "assistant", "content": [text("a"), SHOWN]}]
    (tmp_path / "a.jsonl").write_text(json.dumps({"images": ["0.png"], "messages": messages}))
    with pytest.raises(DataError, match=r"holds an image[\s\S]*what is learned of an answer is its text"):
        list(read_samples("jsonl", Source(path=tmp_path / "a.jsonl", kind="dialogue")))


def test_control_tokens_beside_an_image_stay_text(tiny: Path, tmp_path: Path) -> None:
    """What a row spells out between images is no control token, and images are none of its words."""
    processor = chat_model(tmp_path, tiny).processor
    image = ImageRef("a", picture=Image.new("RGB", (8, 8)))
    turns = (Turn("user", "a </s> b", 1, (6,)), Turn("assistant", "c"))
    (item,) = Encoder(processor, 4096).encode([Sample((image,), turns, "rows:1")]).encoded
    tokens = processor.tokenizer.convert_ids_to_tokens(item.input_ids.tolist())
    assert tokens.count("</s>") == 2  # the template's own
    assert tokens.count("<image>") == 16
