"""`model.max_image_tokens`: a processor's own setting is lowered, measured, and kept in what is merged."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoProcessor

from lockadapt.architectures.generic.limits import limit_image_tokens, most_image_tokens, write_limits
from lockadapt.console import Reporter
from lockadapt.errors import RecipeError
from lockadapt.exports.merge import merge_run
from lockadapt.runs.run import open_run
from lockadapt.training.loop import train
from tests.support.existing_vlm import recipe_for, written

QUIET = Reporter(quiet=True)


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("qwen2_5_vl", 8),
        ("llava_next", 44),
        ("idefics3", 4),
        ("internvl", 8),
        ("pixtral", 32),
        ("lfm2_vl", 8),
        ("aya_vision", 8),
    ],
)
def test_no_image_takes_more(name: str, limit: int, tmp_path: Path) -> None:
    processor = AutoProcessor.from_pretrained(written(name, tmp_path / "vlm"))
    assert most_image_tokens(processor) > limit
    settings = limit_image_tokens(processor, limit)
    assert len(settings) == 1
    assert limit / 2 <= most_image_tokens(processor) <= limit
    assert limit_image_tokens(processor, limit) == {}
    write_limits(tmp_path / "vlm", settings)
    again = AutoProcessor.from_pretrained(tmp_path / "vlm")
    assert most_image_tokens(again) == most_image_tokens(processor)


def test_a_fixed_square_cannot_be_limited(tmp_path: Path) -> None:
    processor = AutoProcessor.from_pretrained(written("gemma3", tmp_path / "vlm"))
    before = processor.image_processor.to_dict()
    with pytest.raises(RecipeError, match="takes up to 4 tokens an image, and no setting"):
        limit_image_tokens(processor, 3)
    assert processor.image_processor.to_dict() == before


def test_a_run_trains_and_merges_with_it(tmp_path: Path) -> None:
    vlm = written("llava_next", tmp_path / "vlm")
    train(recipe_for(vlm, tmp_path, model={"max_image_tokens": 44}), tmp_path / "run", QUIET)
    assert most_image_tokens(open_run(tmp_path / "run").load().processor) == 44
    merge_run(tmp_path / "run", tmp_path / "merged", QUIET)
    assert most_image_tokens(AutoProcessor.from_pretrained(tmp_path / "merged")) == 44


def test_it_is_for_existing_models(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="set `image_size` instead"):
        recipe_for(tmp_path, tmp_path, model={"vlm": None, "llm": "a", "tower": "b", "max_image_tokens": 4})
