"""Time to encode a row, and whether the quick way gives what the plain one does, bit for bit.

    python benchmarks/encoding.py [--rows 100000] [--llm FOLDER] [--json]

Rows of three formats (questions in JSON lines, LLaVA's dialogues, COCO captions) about images of 576 tokens
are read and encoded twice: as training encodes them, and with every row rendered by the chat template and
labelled by itself. The token ids are compared with a third way too: Transformers' own template and tokenizer.
CPU time of one thread.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from cases import COLOURS, PLACES, THINGS
from transformers import AutoTokenizer, CLIPImageProcessorPil, LlavaProcessor

from lockadapt.data.encode import Encoder
from lockadapt.data.readers import Source, read_samples
from lockadapt.data.sample import Sample
from lockadapt.models.chat_template import chat_template
from lockadapt.quickstart.tour import ASSETS

SIDE, PATCH = 336, 14
"""Pixels of an image and of a patch: 576 tokens, as CLIP-L/14 at 336 pixels."""


@dataclass(frozen=True)
class Encoding:
    """What `--json` prints of each format.

    Attributes:
        format: of the rows.
        rows: how many samples.
        image_tokens: of an image.
        tokens: of a row, on average.
        microseconds: CPU time to encode a row.
        plain_microseconds: the same where each row goes through the template.
        different: rows whose ids or labels differ between the two, or whose ids differ from Transformers'.
    """

    format: str
    rows: int
    image_tokens: int
    tokens: float
    microseconds: float
    plain_microseconds: float
    different: int


def main() -> None:
    """Measures, and prints what was measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=100_000, help="of all three formats together")
    parser.add_argument("--llm", type=Path, default=ASSETS / "llm", help="whose tokenizer and template")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sources = write_rows(given.rows // 3, Path(folder))
        results = [measure(name, read_samples(name, source), given.llm) for name, source in sources.items()]
    if given.json:
        print(json.dumps({"encodings": [asdict(result) for result in results]}))
        return
    for result in results:
        print(result)


def write_rows(count: int, folder: Path) -> dict[str, Source]:
    """Write `count` samples in each of the three formats; the images are only named."""
    draw = Random(0)
    names = [f"{number:06d}.jpg" for number in range(max(1, count // 5))]
    questions = [
        {"image": draw.choice(names), "question": _question(draw), "answer": draw.choice(COLOURS)}
        for _ in range(count)
    ]
    talks = [
        {
            "id": number,
            "image": draw.choice(names),
            "conversations": [
                {"from": "human", "value": f"<image>\n{_question(draw)}"},
                {"from": "gpt", "value": _sentence(draw)},
                {"from": "human", "value": _question(draw)},
                {"from": "gpt", "value": _sentence(draw)},
            ],
        }
        for number in range(count)
    ]
    captions = {
        "images": [{"id": number, "file_name": name} for number, name in enumerate(names)],
        "annotations": [
            {"id": number, "image_id": number % len(names), "caption": _sentence(draw)}
            for number in range(count)
        ],
    }
    (folder / "jsonl.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    (folder / "llava.json").write_text(json.dumps(talks))
    (folder / "coco.json").write_text(json.dumps(captions))
    return {
        "jsonl": Source(str(folder / "jsonl.jsonl"), "vqa"),
        "llava": Source(str(folder / "llava.json"), "dialogue"),
        "coco": Source(str(folder / "coco.json"), "caption", prompt="Describe the image."),
    }


def _question(draw: Random) -> str:
    return f"What colour is the {draw.choice(THINGS)} {draw.choice(PLACES)}, number {draw.randint(1, 999)}?"


def _sentence(draw: Random) -> str:
    things = [f"a {draw.choice(COLOURS)} {draw.choice(THINGS)} {draw.choice(PLACES)}" for _ in range(2)]
    return f"There is {things[0]}, and {things[1]}."


def processor_of(llm: Path) -> LlavaProcessor:
    """A stock processor that writes 576 image tokens, with the LLM's tokenizer and template."""
    tokenizer = AutoTokenizer.from_pretrained(llm)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    square = {"height": SIDE, "width": SIDE}
    return LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=square),
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        chat_template=chat_template(tokenizer, marked=True)[0],
        num_additional_image_tokens=1,
    )


def measure(name: str, samples: list[Sample], llm: Path) -> Encoding:
    """Encode the samples of a format both ways, and compare."""
    quick, plain = Encoder(processor_of(llm), 4096), Encoder(processor_of(llm), 4096)
    plain.quick.write = lambda sample: None  # type: ignore[method-assign]  # every row by the template
    quick.encode(samples[:100])  # proofs of the first rows, which a run pays once
    seconds, report = _timed(quick, samples)
    plain_seconds, expected = _timed(plain, samples)
    different = sum(
        not (
            np.array_equal(mine.input_ids, theirs.input_ids)
            and np.array_equal(mine.labels, theirs.labels)
            and mine.input_ids.tolist() == transformers_ids(plain.processor, sample)
        )
        for mine, theirs, sample in zip(report.encoded, expected.encoded, samples, strict=True)
    )
    per_row = 1e6 / len(samples)
    return Encoding(
        format=name,
        rows=len(samples),
        image_tokens=quick.image_tokens,
        tokens=round(report.tokens / len(samples), 1),
        microseconds=round(seconds * per_row, 1),
        plain_microseconds=round(plain_seconds * per_row, 1),
        different=different,
    )


def transformers_ids(processor: LlavaProcessor, sample: Sample) -> list[int]:
    """The ids of a conversation as Transformers alone makes them, its image tokens written out."""
    messages: list[dict[str, Any]] = []
    for turn in sample.turns:
        parts: list[dict[str, str]] = [{"type": "image"}] * turn.images
        messages.append({"role": turn.role, "content": [*parts, {"type": "text", "text": turn.text}]})
    text = processor.apply_chat_template(messages, tokenize=False)
    text = text.replace("<image>", "<image>" * (SIDE // PATCH) ** 2)
    return list(processor.tokenizer(text, add_special_tokens=False)["input_ids"])


def _timed(encoder: Encoder, samples: list[Sample]) -> tuple[float, Any]:
    began = time.process_time()
    report = encoder.encode(samples)
    return time.process_time() - began, report


if __name__ == "__main__":
    main()
