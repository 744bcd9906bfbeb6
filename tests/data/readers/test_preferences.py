"""Preferences in the formats that people publish them in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lockadapt.data.readers import Source, read_samples
from lockadapt.data.readers.rows import row_to_samples
from lockadapt.data.sample import Sample, Turn
from lockadapt.errors import DataError, RecipeError

MESSAGE = {"role": "assistant", "content": "red"}
OTHER = {"role": "assistant", "content": "blue"}
ASKED = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}


def sample(row: dict[str, Any]) -> Sample:
    [made] = row_to_samples(row, Source("rows", "preference", images="."), "row 1")
    return made


@pytest.mark.parametrize(
    "row",
    [
        {"question": "What?", "chosen": "red", "rejected": "blue"},  # RLAIF-V
        {"prompt": "What?", "chosen": "red", "rejected": "blue"},
        {"prompt": [{"role": "user", "content": "What?"}], "chosen": [MESSAGE], "rejected": [OTHER]},  # TRL
        {"prompt": [ASKED], "chosen": [MESSAGE], "rejected": [OTHER]},
        {"chosen": [ASKED, MESSAGE], "rejected": [ASKED, OTHER]},  # TRL, with an implicit prompt
    ],
)
def test_the_same_preference(row: dict[str, Any]) -> None:
    made = sample({"image": "0.png", "id": 3, **row})
    assert made.turns == (Turn("user", "What?", 1), Turn("assistant", "red"))
    assert (made.answer, made.rejected, made.sample_id, len(made.images)) == ("red", "blue", "3", 1)


def test_longer_prompts() -> None:
    before = [ASKED, {"role": "assistant", "content": "A thing."}, {"role": "user", "content": "Its colour?"}]
    made = sample({"image": "0.png", "prompt": before, "chosen": "red", "rejected": "blue"})
    assert [turn.role for turn in made.turns] == ["user", "assistant", "user", "assistant"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "What?", "chosen": "red"}, "no column 'rejected'"),
        ({"question": "What?", "chosen": "red", "rejected": " red"}, "are the same"),
        ({"question": "What?", "chosen": "red", "rejected": ""}, "rejected is empty"),
        ({"chosen": "red", "rejected": "blue"}, "neither a question nor a prompt"),
        ({"prompt": "What?", "chosen": [MESSAGE, OTHER], "rejected": "blue"}, "2 messages behind the prompt"),
        ({"prompt": "What?", "chosen": [ASKED], "rejected": "blue"}, "not by the assistant"),
    ],
)
def test_what_is_no_preference(row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        sample({"image": "0.png", **row})


def test_llava_rlhf(tmp_path: Path) -> None:
    asked = [{"from": "human", "value": "<image>\nWhat?"}]
    outputs = {"output_1": {"from": "llava", "value": "blue"}, "output_2": {"from": "llava", "value": "red"}}
    rows = [
        {"id": "7", "image": "7.jpg", "conversations": asked, **outputs, "preference": 2},
        {
            "id": "8",
            "image": "8.jpg",
            "conversations": asked,
            **outputs,
            "preference": 1,
            "hallucination": True,
        },
    ]
    file = tmp_path / "preference.json"
    file.write_text(json.dumps(rows))
    first, second = read_samples("llava-rlhf", Source(file, "preference"))
    assert (first.turns[0].text, first.answer, first.rejected) == ("What?", "red", "blue")
    assert (second.answer, second.rejected, second.sample_id) == ("blue", "red", "8")
    assert second.images[0].path == tmp_path / "8.jpg"
    file.write_text(json.dumps([{**rows[0], "preference": 3}]))
    with pytest.raises(DataError, match="the preference is 3"):
        read_samples("llava-rlhf", Source(file, "preference"))
    with pytest.raises(RecipeError, match="holds rows of the kind preference"):
        read_samples("llava-rlhf", Source(file, "vqa"))
