"""Training an image tokenizer: it learns, its codes mean the same to the stock class, and what it writes loads there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from torch.nn import functional as F
from transformers import JanusImageProcessorPil, JanusVQVAE

from lockadapt.architectures.janus.image_tokenizer import (
    TokenizerShape,
    load_image_tokenizer,
    new_image_tokenizer,
)
from lockadapt.console import Reporter
from lockadapt.errors import DataError, LockadaptError, NonFiniteLossError, RecipeError, SafetyError
from lockadapt.training.image_tokenizer.codebook import Codebook, nearest, perplexity
from lockadapt.training.image_tokenizer.folder import find_images, train_folder
from lockadapt.training.image_tokenizer.losses import Critic, TowerDistance, hinge
from lockadapt.training.image_tokenizer.train import (
    TokenizerTraining,
    scaled,
    score_image_tokenizer,
    train_image_tokenizer,
)
from tests.support.tiny import tiny_tower

SHAPE = TokenizerShape(8, 4, codebook_size=12, code_size=4, width=32, blocks=0, latent=8)


def halves(number: int) -> torch.Tensor:
    """Pictures whose left and right halves are black or white."""
    generator = torch.Generator().manual_seed(0)
    sides = torch.randint(0, 2, (number, 1, 1, 2), generator=generator) * 255
    return sides.repeat_interleave(4, 3).expand(number, 3, 8, 8).to(torch.uint8).contiguous()


def test_learns_and_is_what_the_stock_class_does() -> None:
    model, _ = new_image_tokenizer(SHAPE)
    images = halves(64)
    before, _ = score_image_tokenizer(model, images)
    seen: list[dict[str, float]] = []
    train_image_tokenizer(
        model, images, TokenizerTraining(steps=60, batch_size=8), report=lambda _, losses: seen.append(losses)
    )
    after, back = score_image_tokenizer(model, images)
    assert after.l1 < 0.5 * before.l1
    assert after.psnr > before.psnr + 3
    assert 1 < after.perplexity <= 12
    assert 0 < after.codes_used <= 1
    assert "commitment" not in seen[0]
    assert "commitment" in seen[-1]
    assert len(seen) == 60
    rows = model.quantize.embedding.weight.norm(dim=1)
    torch.testing.assert_close(rows, torch.ones(12))
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    with torch.no_grad():
        states = model.quant_conv(model.encoder(scaled(images))).permute(0, 2, 3, 1)
        directions = F.normalize(states, dim=-1).reshape(-1, 4)
        assert torch.equal(
            nearest(directions, model.quantize.embedding.weight), model.encode(scaled(images)).image_tokens
        )
        stock = model(scaled(images)).decoded_pixel_values
    expected = ((stock.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    assert torch.equal(back, expected)
    assert after.l1 == pytest.approx(float((expected.float() - images).abs().mean() / 255), abs=1e-6)


def test_a_seed_says_everything() -> None:
    def train(seed: int) -> torch.Tensor:
        model, _ = new_image_tokenizer(SHAPE, seed)
        train_image_tokenizer(model, halves(16), TokenizerTraining(steps=6, batch_size=4, seed=seed))
        return model.post_quant_conv.weight

    assert torch.equal(train(1), train(1))
    assert not torch.equal(train(1), train(2))


def test_optional_terms(tmp_path: Path) -> None:
    tower = tiny_tower("mobilenet-v2", tmp_path / "tower")
    distance, seen = TowerDistance(tower, 8), list[dict[str, float]]()
    images = halves(8)
    assert float(distance(scaled(images), scaled(images))) == pytest.approx(0, abs=1e-6)
    assert float(distance(scaled(images), -scaled(images))) > 0.01
    model, _ = new_image_tokenizer(SHAPE)
    wanted = TokenizerTraining(steps=4, batch_size=4, adversarial=0.1, focus=2.0)
    train_image_tokenizer(
        model, images, wanted, distance=distance, report=lambda _, losses: seen.append(losses)
    )
    assert set(seen[-1]) == {"commitment", "reconstruction", "perceptual", "adversarial"}


def test_tower_sees_what_its_image_processor_makes(tmp_path: Path) -> None:
    from lockadapt.models.preprocessing import pixels, square_processor
    from lockadapt.models.towers import load_tower

    folder = tiny_tower("clip-vision", tmp_path / "tower")
    square, side = square_processor(load_tower(folder, torch.float32).image_processor, None, "")
    distance = TowerDistance(folder, side)
    image = Image.new("RGB", (side, side), (200, 30, 90))
    values = torch.tensor([200, 30, 90]).view(1, 3, 1, 1).expand(1, 3, side, side).to(torch.uint8)
    actual = scaled(values) * distance.scale + distance.shift
    torch.testing.assert_close(actual, pixels(square, [image]), atol=1e-4, rtol=1e-4)


def test_hinge_and_critic() -> None:
    assert float(hinge(torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 0.0]))) == pytest.approx(
        0.5 * (0.25 + 0.5)
    )
    assert Critic()(torch.zeros(2, 3, 16, 16)).shape == (2, 1, 4, 4)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 6), st.integers(2, 5), st.integers(0, 5))
def test_codebook_follows_its_vectors(groups: int, width: int, seed: int) -> None:
    """Vectors that sit on a few directions: every direction gets a code, and a code drifts to where its vectors go."""
    generator = torch.Generator().manual_seed(seed)
    points = F.normalize(torch.randn(groups, width, generator=generator), dim=1)
    vectors = points.repeat(20, 1)
    table = F.normalize(torch.randn(32, width, generator=generator), dim=1)
    codebook = Codebook(table, generator)
    codebook.start(vectors)
    assert float((points @ table.T).amax(1).min()) > 0.999
    for _ in range(5):
        codebook.update(vectors, nearest(vectors, table), revive=True)
    torch.testing.assert_close(table.norm(dim=1), torch.ones(32))
    assert float((points @ table.T).amax(1).min()) > 0.999


def test_moving_averages_and_restarts() -> None:
    table = F.normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]), dim=1)
    codebook = Codebook(table, torch.Generator().manual_seed(0), decay=0.5)
    codebook.sums, codebook.counts = table.clone(), torch.tensor([1.0, 1.0, 0.001])
    vectors = F.normalize(torch.tensor([[1.0, 1.0], [0.0, 1.0]]), dim=1)
    assert codebook.update(vectors, torch.tensor([0, 1]), revive=True) == 1
    expected = F.normalize(0.5 * torch.tensor([1.0, 0.0]) + 0.5 * vectors[0], dim=0)
    torch.testing.assert_close(table[0], expected)
    assert any(torch.allclose(table[2], vector) for vector in vectors)
    assert float(codebook.counts[2]) == 1.0


def test_perplexity() -> None:
    assert perplexity(torch.tensor([5, 5, 0, 5])) == pytest.approx(3)
    assert perplexity(torch.tensor([7, 0])) == pytest.approx(1)


def test_nonsense_is_refused() -> None:
    model, _ = new_image_tokenizer(SHAPE)
    with pytest.raises(DataError):
        train_image_tokenizer(model, halves(4)[:0], TokenizerTraining())
    model.post_quant_conv.weight.data.fill_(float("nan"))
    with pytest.raises(NonFiniteLossError, match="step 0"):
        train_image_tokenizer(model, halves(4), TokenizerTraining(steps=2))


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        (TokenizerShape(64, 5), "cannot be halved"),
        (TokenizerShape(60, 5), "cannot be halved"),
        (TokenizerShape(64, 8, multipliers=(1, 2)), "2 multipliers for 4"),
        (TokenizerShape(64, 8, width=48), "32 groups"),
        (TokenizerShape(64, 8, blocks=0, multipliers=(1, 1, 1, 2)), "residual blocks"),
    ],
)
def test_shapes_that_cannot_be(shape: TokenizerShape, text: str) -> None:
    with pytest.raises(RecipeError, match=text):
        shape.widths()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    for number in range(12):
        path = folder / ("a" if number % 2 else "b") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.new("RGB", (20, 12), "white")
        ImageDraw.Draw(image).rectangle((number, 2, number + 5, 9), fill="red")
        image.save(path)
    (folder / "notes.txt").write_text("no image")
    return folder


def train(images: Path, output: Path) -> dict[str, Any]:
    plan = TokenizerTraining(steps=3, batch_size=4)
    return train_folder(images, output, SHAPE, plan, Reporter(quiet=True), held_out=0.25, device="cpu")


def test_folder(pictures: Path, tmp_path: Path) -> None:
    result = train(pictures, tmp_path / "vq")
    assert result["images"] == 3
    assert result["trained_on"] == 9
    assert result["size"] == 8
    assert json.loads((tmp_path / "vq" / "report.json").read_text())["psnr"] == result["psnr"]
    model, info = JanusVQVAE.from_pretrained(tmp_path / "vq", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert JanusImageProcessorPil.from_pretrained(tmp_path / "vq").size["height"] == 8
    loaded = load_image_tokenizer(tmp_path / "vq")
    assert loaded.side == 8
    assert loaded.image_processor is not None
    torch.testing.assert_close(loaded.model.quantize.embedding.weight, model.quantize.embedding.weight)
    with Image.open(tmp_path / "vq" / "reconstructions.png") as picture:
        assert picture.size == (24, 16)


def test_rows_name_images(pictures: Path, tmp_path: Path) -> None:
    rows = [{"image": "a/1.png"}, {"images": ["a/3.png", "b/2.png"]}, {"image": "a/1.png"}]
    file = pictures / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    assert [image.path.name for image in find_images(file) if image.path] == ["1.png", "3.png", "2.png"]
    file.write_text(json.dumps({"image": "../secret.png"}))
    with pytest.raises(SafetyError):
        find_images(file)


def test_nothing_is_left_of_a_failure(pictures: Path, tmp_path: Path) -> None:
    (pictures / "a" / "broken.png").write_bytes(b"not an image")
    with pytest.raises(LockadaptError, match=r"broken\.png"):
        train(pictures, tmp_path / "vq")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pictures"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no images"):
        train(tmp_path / "empty", tmp_path / "vq")


def test_command(pictures: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from lockadapt.cli import app

    command = [
        "tokenizer",
        "train",
        "--images",
        str(pictures),
        "--output",
        str(tmp_path / "vq"),
        "--json",
        "-q",
    ]
    small = [
        "--size",
        "16",
        "--grid",
        "4",
        "--codebook-size",
        "8",
        "--width",
        "32",
        "--blocks",
        "0",
        "--steps",
        "2",
    ]
    result = CliRunner().invoke(app, [*command, *small, "--batch-size", "2", "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["grid"] == 4
    assert load_image_tokenizer(tmp_path / "vq").model.config.num_embeddings == 8
    assert json.loads(result.stdout)["codes"] == 8


def test_the_former_name_of_the_codebook_size_is_read_with_a_notice(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from lockadapt.cli import app

    command = ["tokenizer", "train", "--images", str(tmp_path), "--output", str(tmp_path / "vq")]
    result = CliRunner().invoke(app, [*command, "--codes", "1"])
    assert "--codes is now called --codebook-size" in result.output
    assert isinstance(result.exception, RecipeError)
    assert result.exception.where == "--codebook-size"
