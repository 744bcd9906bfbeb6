"""`lockadapt generate`: pictures for prompts from a folder, the same for the same seed."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from lockadapt.architectures.assemble import Assembled
from lockadapt.errors import RecipeError
from lockadapt.evaluation.generate import generate_pictures
from lockadapt.objectives.image_generation import ImageGenerationConfig


def test_pictures_and_grid(drawing: Assembled, tmp_path: Path) -> None:
    assert drawing.folder is not None
    settings = ImageGenerationConfig(seed=3)
    first = generate_pictures(drawing.folder, ["a red one", "a blue one"], tmp_path / "a", settings, 2)
    generate_pictures(drawing.folder, ["a red one", "a blue one"], tmp_path / "b", settings, 2)
    assert [row["prompt"] for row in first["images"]] == [
        "a red one",
        "a red one",
        "a blue one",
        "a blue one",
    ]
    for row in first["images"]:
        pixels = [Image.open(tmp_path / part / row["file"]).tobytes() for part in "ab"]
        assert pixels[0] == pixels[1]
    assert (tmp_path / "a" / "grid.png").is_file()
    with pytest.raises(RecipeError, match="not empty"):
        generate_pictures(drawing.folder, ["a red one"], tmp_path / "a", settings, 1)


def test_a_model_that_does_not_draw(assembled: Assembled, tmp_path: Path) -> None:
    assert assembled.folder is not None
    with pytest.raises(RecipeError, match="does not generate images"):
        generate_pictures(assembled.folder, ["a red one"], tmp_path / "a", ImageGenerationConfig(), 1)
