"""Image tokenizers: the stock `JanusVQVAE`, which turns images into a grid of tokens and back."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoConfig, JanusImageProcessorPil, JanusVQVAE, JanusVQVAEConfig

from lockadapt.architectures.base import ImageCodec
from lockadapt.errors import AssemblyError, RecipeError
from lockadapt.models.quiet import quiet
from lockadapt.models.sources import Source, find, loading, some

CHANNEL_STEP = 32
"""The stock class normalises in 32 groups, so that every width is a multiple of it."""


@dataclass(frozen=True)
class TokenizerShape:
    """What a new image tokenizer looks like.

    Attributes:
        size: side of its images in pixels; `grid`: side of its square of image tokens; `size / grid` is a
            power of two.
        codebook_size: entries of the codebook; `code_size`: numbers in each.
        width: channels at full resolution, a multiple of 32. The stock class normalises in 32 groups: with
            only one channel in each, a picture's mean colours are lost on the way.
        multipliers: of `width` at each resolution, from full resolution down to the grid.
        blocks: residual blocks at each resolution (the stock decoder has one more).
        latent: channels between the two halves and the codebook.
    """

    size: int
    grid: int
    codebook_size: int = 1024
    code_size: int = 8
    width: int = 64
    multipliers: tuple[int, ...] | None = None
    blocks: int = 1
    latent: int = 64

    def widths(self) -> tuple[int, ...]:
        """Gives the multipliers; by default they double from 1 up to 4, or stay 1 without blocks.

        Returns:
            A multiplier for each resolution.

        Raises:
            RecipeError: `size / grid` is no power of two; there are more or fewer multipliers than
                resolutions, or widths change without blocks, which alone change them; `width` is no multiple
                of 32.
        """
        for where, value, least, most in (
            ("--size", self.size, 8, 1024),
            ("--grid", self.grid, 1, 256),
            ("--codebook-size", self.codebook_size, 2, 1_048_576),
            ("--width", self.width, CHANNEL_STEP, 1024),
            ("--blocks", self.blocks, 0, 16),
        ):
            if not least <= value <= most:
                raise RecipeError(f"{value} is out of bounds", where=where, fix=f"give {least:,} to {most:,}")
        if self.width % CHANNEL_STEP:
            raise RecipeError(
                f"a width of {self.width} cannot be normalised in {CHANNEL_STEP} groups",
                where="--width",
                fix=f"give a multiple of {CHANNEL_STEP}",
            )
        ratio = self.size // max(self.grid, 1)
        levels = ratio.bit_length()
        if ratio < 1 or self.grid * ratio != self.size or 1 << (levels - 1) != ratio:
            raise RecipeError(
                f"an image of {self.size} pixels cannot be halved down to a grid of {self.grid}",
                where="--size, --grid",
                fix="choose a size that is the grid times a power of two",
            )
        if self.multipliers is None:
            doubled = tuple(min(4, 1 << max(0, level - levels // 2)) for level in range(levels))
            return doubled if self.blocks else (1,) * levels
        if not self.blocks and set(self.multipliers) != {1}:
            raise RecipeError(
                "without residual blocks the width stays what it is",
                where="--multipliers",
                fix="give blocks, or leave the multipliers out",
            )
        if len(self.multipliers) != levels:
            raise RecipeError(
                f"{len(self.multipliers)} multipliers for {levels} resolutions",
                where="--multipliers",
                fix=f"give {levels}, from {self.size} pixels down to {self.grid}",
            )
        return self.multipliers


@dataclass(frozen=True)
class ImageTokenizer:
    """A stock `JanusVQVAE` in evaluation mode, frozen, codebook rows of length 1; image processor or None."""

    model: Any
    image_processor: Any
    name: str

    @property
    def side(self) -> int:
        """Pixels on a side."""
        return image_side(self.model.config)


def new_image_tokenizer(shape: TokenizerShape, seed: int = 0) -> tuple[Any, Any]:
    """Makes a fresh `JanusVQVAE` with unit codebook rows, and its image processor (-1 to 1).

    Args:
        shape: of the tokenizer.
        seed: of the weights.

    Returns:
        Model and image processor.

    Raises:
        RecipeError: as `TokenizerShape.widths`.
    """
    widths = shape.widths()
    config = JanusVQVAEConfig(
        embed_dim=shape.code_size,
        num_embeddings=shape.codebook_size,
        latent_channels=shape.latent,
        num_patches=shape.grid,
        base_channels=shape.width,
        channel_multiplier=list(widths),
        num_res_blocks=shape.blocks,
    )
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(seed)
        model = JanusVQVAE(config)
    _quiet_branches(model)
    unit_codebook(model)
    return model, janus_image_processor(shape.size)


def janus_image_processor(side: int, **settings: Any) -> Any:
    """Janus's stock image processor for squares of `side` pixels, from -1 to 1 unless `settings` differ."""
    half = [0.5, 0.5, 0.5]
    values = {"image_mean": half, "image_std": half, "do_convert_rgb": True, **settings}
    # Its smallest side, 14 by default, would otherwise blow up smaller images.
    return JanusImageProcessorPil(size={"height": side, "width": side}, min_size=min(14, side), **values)


def load_image_tokenizer(
    folder: str | Path, dtype: torch.dtype = torch.float32, *, meta: bool = False
) -> ImageTokenizer:
    """Loads a `JanusVQVAE` from a folder or Hub id, its codebook rows brought to length 1.

    The stock `encode` compares what it sees with the rows as they are, `decode` normalises them first: only
    with rows of length 1 do both mean the same (and nearest is then the same as most alike). With `meta` no
    weight is read.

    Args:
        folder: or a Hub id.
        dtype: of the weights.
        meta: read no weight.

    Returns:
        The tokenizer, frozen.

    Raises:
        SetupError: it does not exist or cannot be read.
        AssemblyError: it is another class, or weights are missing or left over.
    """
    source = find(folder, "image tokenizer")
    with loading(source, "image tokenizer"):
        config = AutoConfig.from_pretrained(source.name, **source.arguments)
    if not isinstance(config, JanusVQVAEConfig):
        raise AssemblyError(
            f"{config.model_type} is no image tokenizer that Janus can hold",
            where=source.name,
            fix="give a JanusVQVAE folder, such as `lockadapt tokenizer train` writes",
        )
    processor = _image_processor(source)
    if meta:
        with torch.device("meta"), quiet():
            return ImageTokenizer(JanusVQVAE._from_config(config, dtype=dtype).eval(), processor, source.name)
    with loading(source, "image tokenizer"):
        loaded: Any = JanusVQVAE.from_pretrained(
            source.name, dtype=dtype, use_safetensors=True, output_loading_info=True, **source.arguments
        )
    model, info = loaded
    for kind, keys in (("lacks", info["missing_keys"]), ("has no place for", info["unexpected_keys"])):
        if keys:
            raise AssemblyError(f"the image tokenizer {kind} {some(keys)}", where=source.name)
    unit_codebook(model)
    return ImageTokenizer(model.eval().requires_grad_(False), processor, source.name)


def _image_processor(source: Source) -> Any:
    if source.local and not (Path(source.name) / "preprocessor_config.json").is_file():
        return None
    with loading(source, "image tokenizer's image processor"):
        return JanusImageProcessorPil.from_pretrained(source.name, **source.arguments)


def image_side(config: Any) -> int:
    """Pixels a side that a `JanusVQVAE` of this config decodes: its grid, doubled between resolutions."""
    return int(config.num_patches * 2 ** (len(config.channel_multiplier) - 1))


@torch.no_grad()
def unit_codebook(model: Any) -> float:
    """Bring the rows of a `JanusVQVAE`'s codebook to length 1, in place; return how far the longest step was.

    A row of zeros, which has no direction, stays.
    """
    table = model.quantize.embedding.weight
    rows = F.normalize(table.double(), dim=-1).to(table.dtype)
    moved = float((rows - table).abs().max())
    table.copy_(rows)
    return moved


@torch.no_grad()
def _quiet_branches(model: Any) -> None:
    """Lets residual branches add nothing at first, which learns faster (arXiv 1706.02677, section 5.1)."""
    for name, module in model.named_modules():
        if name.endswith((".conv2", ".proj_out")):
            module.weight.zero_()
            module.bias.zero_()


@torch.no_grad()
def image_codec(model: Any) -> ImageCodec:
    """How a `JanusVQVAE` turns images into image tokens and back."""
    return ImageCodec(
        image_side(model.config),
        model.config.num_embeddings,
        lambda values: encode_pixels(model, values),
        # Channels first, as Pillow's Janus processor wants them; `decode_image_tokens` puts them last.
        lambda ids: model.decode(ids.to(model.quantize.embedding.weight.device)),
        lambda: tokenizer_digest(model),
    )


def encode_pixels(model: Any, values: Tensor) -> Tensor:
    """Pixels (images, 3, side, side) -> image token ids int64 (images, grid squared), by rows, on the CPU."""
    weight = model.quantize.embedding.weight
    image_token_ids = model.encode(values.to(weight.device, weight.dtype)).image_tokens
    return image_token_ids.view(values.shape[0], -1).long().cpu()


def tokenizer_digest(model: Any) -> str:
    """Digests a `JanusVQVAE`'s weights and shape: whatever has the same digest gives the same tokens."""
    digest = hashlib.sha256(str(image_side(model.config)).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
