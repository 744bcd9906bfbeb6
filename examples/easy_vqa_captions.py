"""Captions such as "a blue rectangle" for easy-VQA's images, derived from its questions and answers.

    python examples/easy_vqa_captions.py ../shared/real/data/easy-vqa --output data/easy-vqa-captions

Writes `captions_train.jsonl` and `captions_test.jsonl` with the rows {"image", "caption"}; image names are
relative to the folder of easy-VQA's split, so give that as `images`. Images whose questions do not tell both
colour and shape are left out, and counted.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
SHAPES = ("circle", "rectangle", "triangle")


def main() -> None:
    """Write both splits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("easy_vqa", type=Path, help="folder with train/ and test/")
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        questions = json.loads((given.easy_vqa / split / "questions.json").read_text(encoding="utf-8"))
        captions_of = captions(questions)
        images = {row[2] for row in questions}
        lines = [
            json.dumps({"image": f"{image}.png", "caption": caption})
            for image, caption in sorted(captions_of.items())
        ]
        file = given.output / f"captions_{split}.jsonl"
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{file}: {len(captions_of):,} captions, {len(images) - len(captions_of):,} images left out")


def captions(questions: list[list[object]]) -> dict[int, str]:
    """Return image id -> caption where [question, answer, image id] rows state both colour and shape."""
    known: dict[int, dict[str, str]] = {}
    for question, answer, image in questions:
        facts = known.setdefault(int(str(image)), {})
        facts.update(told(str(question), str(answer)))
    return {
        image: f"a {facts['colour']} {facts['shape']}"
        for image, facts in known.items()
        if "colour" in facts and "shape" in facts
    }


def told(question: str, answer: str) -> dict[str, str]:
    """Return what a question and its answer state about the only shape in the image."""
    words = set(re.findall(r"[a-z]+", question.lower()))
    facts = {"colour": words & set(COLOURS), "shape": words & set(SHAPES)}
    if answer in ("yes", "no"):
        # "is there not a circle?" — "no" means that there is one.
        if (answer == "yes") == bool(words & {"no", "not"}):
            return {}
    else:
        facts["colour" if answer in COLOURS else "shape"] = {answer}
    return {name: values.pop() for name, values in facts.items() if len(values) == 1}


if __name__ == "__main__":
    main()
