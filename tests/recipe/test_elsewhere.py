"""Recipes of the repository, run from a folder that is not the repository, their paths given by `key=value`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support import command
from tests.support.rows import pictures

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
NUMBERS = ("red", "green", "blue", "yellow")


def write_data(folder: Path) -> None:
    """Rows in the formats of the recipes, about four pictures, and a model folder to go on from."""
    files = [path.name for path in pictures(folder / "images").values()]
    question, pairs = "what color is it?", list(zip(files, NUMBERS, strict=True))
    (folder / "numbered").mkdir()
    for number, name in enumerate(files):
        (folder / "numbered" / f"{number}.png").write_bytes((folder / "images" / name).read_bytes())
    (folder / "questions.json").write_text(json.dumps([[question, c, n] for n, c in enumerate(NUMBERS)]))
    (folder / "answers.txt").write_text("\n".join(NUMBERS))
    lines = [{"file_name": f"images/{name}", "name": colour} for name, colour in pairs]
    (folder / "emoji.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    lines = [{"image": f"images/{name}", "captions": [f"a {c} thing", f"{c} things"]} for name, c in pairs]
    (folder / "photos.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    dialogues = [
        [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": colour}]
        for _, colour in pairs
    ]
    rows = [
        {"id": name, "image": name, "conversations": turns}
        for (name, _), turns in zip(pairs, dialogues, strict=True)
    ]
    (folder / "llava.json").write_text(json.dumps(rows))


def halves(objective: str, *names: str, **values: str) -> list[str]:
    return [f"objectives.{objective}.{half}.{key}={value}" for half in names for key, value in values.items()]


BOTH, ALL = ("train", "test"), ("train", "validation", "test")
SHORT = ["training.steps=2", "training.log_every=1"]
GIVEN: dict[str, list[str]] = {
    "easy-vqa": [*SHORT, *halves("vqa", *BOTH, path="questions.json", images="numbered"), "objectives.vqa.answers=answers.txt"],
    "emoji-retrieval": [*SHORT, *halves("itc", *BOTH, path="emoji.jsonl"), "objectives.itc.batch_size=4"],
    "photos-smollm2": [*SHORT, *halves("caption", *ALL, path="photos.jsonl"), "training.batch_size=4"],
    "photos-retrieval": [*halves("itc", *ALL, path="photos.jsonl"), "training.epochs=1", "objectives.itc.batch_size=4"],
    "llava-lora": [*halves("dialogue", *ALL, path="llava.json", images="images"), "model.vlm=base", "model.quantization=none"],
}  # fmt: skip


@pytest.mark.parametrize("name", GIVEN)
def test_runs_from_another_folder(name: str, tiny: Path, tmp_path: Path) -> None:
    write_data(tmp_path)
    given = list(GIVEN[name])
    if name == "llava-lora":
        parts = ("--llm", tiny / "llama", "--tower", tiny / "clip-vision", "--output", "base")
        assert command.lockadapt("assemble", *parts, cwd=tmp_path).returncode == 0
        given += ["data.workers=0", "training.accumulation=1"]
    else:
        given += [
            f"model.llm={tiny / 'llama'}",
            f"model.tower={tiny / 'clip-vision'}",
            "model.image_size=null",
        ]
    given += ["data.cache=cache"]
    done = command.lockadapt("train", RECIPES / f"{name}.yaml", "-o", "run", "-q", *given, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    scored = command.lockadapt("eval", "run", "--json", "-q", cwd=tmp_path)
    assert scored.returncode == 0, scored.stderr
    assert next(iter(json.loads(scored.stdout).values()))["n"] >= 4
