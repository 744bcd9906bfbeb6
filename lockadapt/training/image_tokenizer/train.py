"""Trains a stock `JanusVQVAE` on images: first as a plain autoencoder, then with a codebook of directions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lockadapt.architectures.janus.image_tokenizer import encode_pixels
from lockadapt.errors import DataError, NonFiniteLossError, RecipeError
from lockadapt.training.image_tokenizer.codebook import Codebook, nearest, perplexity
from lockadapt.training.image_tokenizer.losses import Critic, Distance, hinge

KEPT_VECTORS = 20_000
"""Vectors of the last plain batches that the codebook is placed on."""

SETTLED = 0.9
"""Share of the steps after which no code restarts any more."""


@dataclass(frozen=True)
class TokenizerTraining:
    """How an image tokenizer is trained.

    Attributes:
        steps, batch_size, learning_rate: Adam with a one-cycle schedule.
        plain: share of the steps without codebook, with `noise` in its place.
        commitment: weight of the distance between what the encoder says and its code (arXiv 1711.00937,
            equation 3).
        decay: of the codebook's moving averages.
        perceptual, adversarial: weights of the optional terms.
        focus: how much more a pixel counts for each unit that it differs from its image's mean colour.
        seed: of batches, noise and codebook.
    """

    steps: int = 1000
    batch_size: int = 16
    learning_rate: float = 3e-3
    plain: float = 0.3
    noise: float = 0.05
    commitment: float = 0.25
    decay: float = 0.98
    perceptual: float = 1.0
    adversarial: float = 0.0
    focus: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for where, value, least, most in (
            ("--steps", self.steps, 1, 10_000_000),
            ("--batch-size", self.batch_size, 1, 65_536),
            ("--learning-rate", self.learning_rate, 1e-12, 1e3),
            ("--focus", self.focus, 0, 1e6),
            ("--adversarial", self.adversarial, 0, 1e6),
            ("--seed", self.seed, 0, 2**63 - 1),
        ):
            if not least <= value <= most:  # NaN is never in bounds
                raise RecipeError(f"{value} is out of bounds", where=where, fix=f"give {least:,} to {most:,}")


@dataclass(frozen=True)
class TokenizerScores:
    """How well images come back: mean absolute error (0 to 1), PSNR in dB, and the codebook's use."""

    l1: float
    psnr: float
    perplexity: float
    codes_used: float
    images: int


Report = Callable[[int, dict[str, float]], None]


def train_image_tokenizer(
    model: Any,
    images: Tensor,
    settings: TokenizerTraining,
    *,
    distance: Distance | None = None,
    report: Report | None = None,
) -> None:
    """Train in place; the model is in evaluation mode afterwards, its codebook rows of length 1.

    The encoder's outputs and the codebook live on the unit sphere, so that the stock `encode` (nearest row)
    and `decode` (which normalises rows) mean the same code.

    Args:
        model: from `new_image_tokenizer`.
        images: uint8 (images, 3, side, side).
        settings: how.
        distance: the perceptual term (`TowerDistance`), or None.
        report: called with the step and its losses, every step.

    Raises:
        DataError: no images.
        NonFiniteLossError: the loss is no number.
    """
    if not len(images):
        raise DataError("no image to train on", where="--images", fix="name a folder with images")
    device, table = next(model.parameters()).device, model.quantize.embedding.weight
    generator = torch.Generator().manual_seed(settings.seed)
    trained = [parameter for parameter in model.parameters() if parameter is not table]
    model.train().requires_grad_(True)
    table.requires_grad_(False)
    optimizer = torch.optim.Adam(trained, settings.learning_rate, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.learning_rate, total_steps=settings.steps + 1, pct_start=0.05
    )
    rival = _Rival(settings, device) if settings.adversarial else None
    codebook, plain = Codebook(table, generator, settings.decay), int(settings.plain * settings.steps)
    kept: list[Tensor] = []
    for step, batch in enumerate(_batches(images, settings, generator)):
        real = scaled(batch.to(device))
        states = model.quant_conv(model.encoder(real)).permute(0, 2, 3, 1)
        directions = F.normalize(states, dim=-1)
        vectors = directions.detach().reshape(-1, directions.shape[-1])
        losses: dict[str, Tensor] = {}
        if step < plain:
            kept = [*kept, vectors][-max(1, KEPT_VECTORS // len(vectors)) :]
            noise = torch.randn(directions.shape, generator=generator).to(device)
            passed = directions + settings.noise * noise
        else:
            if step == plain:
                codebook.start(torch.cat([*kept, vectors]))
            token_ids = nearest(vectors, table)
            chosen = table[token_ids].view_as(directions)
            codebook.update(vectors, token_ids, revive=step < SETTLED * settings.steps)
            losses["commitment"] = settings.commitment * (chosen - directions).square().sum(-1).mean()
            # Straight through: the gradient of the code is that of what the encoder said.
            passed = directions + (chosen - directions).detach()
        made = model.decoder(model.post_quant_conv(passed.permute(0, 3, 1, 2)))
        losses["reconstruction"] = _reconstruction(made, real, settings.focus)
        if distance is not None:
            losses["perceptual"] = settings.perceptual * distance(made, real)
        if rival is not None and step >= plain:
            losses["adversarial"] = settings.adversarial * rival.step(made, real)
        loss = torch.stack(list(losses.values())).sum()
        if not bool(torch.isfinite(loss)):
            raise NonFiniteLossError(
                f"the loss is {loss.item()} at step {step}", fix="use a smaller --learning-rate"
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        if report:
            report(step + 1, {name: float(value.detach()) for name, value in losses.items()})
    model.eval().requires_grad_(False)


@torch.no_grad()
def score_image_tokenizer(model: Any, images: Tensor, batch_size: int = 64) -> tuple[TokenizerScores, Tensor]:
    """Scores a tokenizer by the stock `encode` and `decode`.

    Args:
        model: a stock `JanusVQVAE`.
        images: uint8 (images, 3, side, side).
        batch_size: images at a time.

    Returns:
        The scores, and the reconstructions in the shape of `images`.

    Raises:
        DataError: no images.
    """
    if not len(images):
        raise DataError("no image to score", where="--held-out", fix="hold out at least one")
    counts = torch.zeros(model.config.num_embeddings)
    back, wrong, psnr = [], 0.0, 0.0
    for part in images.split(batch_size):
        token_ids = encode_pixels(model, scaled(part))
        counts += torch.bincount(token_ids.flatten(), minlength=len(counts))
        made = ((model.decode(token_ids.to(model.device)).float().cpu().clamp(-1, 1) + 1) * 127.5).round()
        error = (made - part) / 255
        wrong += float(error.abs().mean(dim=(1, 2, 3)).sum())
        # The error of rounding, so that an image that comes back exactly has a number.
        psnr += float(-10 * error.square().mean(dim=(1, 2, 3)).clamp_min(1e-6).log10().sum())
        back.append(made.to(torch.uint8))
    number = len(images)
    used = float((counts > 0).float().mean())
    return TokenizerScores(wrong / number, psnr / number, perplexity(counts), used, number), torch.cat(back)


def scaled(images: Tensor) -> Tensor:
    """Bytes -> values from -1 to 1, as the image processor of a new tokenizer makes them."""
    return images.float() / 127.5 - 1


class _Rival:
    """The critic and its optimiser."""

    def __init__(self, settings: TokenizerTraining, device: torch.device) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.critic = Critic().to(device)
        self.optimizer = torch.optim.Adam(
            self.critic.parameters(), settings.learning_rate / 4, betas=(0.5, 0.9)
        )

    def step(self, made: Tensor, real: Tensor) -> Tensor:
        """One step of the critic; what the tokenizer is told, a scalar with graph to `made`."""
        self.critic.requires_grad_(True)
        self.optimizer.zero_grad(set_to_none=True)
        hinge(self.critic(real), self.critic(made.detach())).backward()
        self.optimizer.step()
        self.critic.requires_grad_(False)
        return -self.critic(made).mean()


def _reconstruction(made: Tensor, real: Tensor, focus: float) -> Tensor:
    """Mean absolute plus mean squared error; pixels unlike their image's mean weigh more with `focus`."""
    error = (made - real).abs()
    terms = error + error.square()
    if focus:
        unlike = (real - real.mean(dim=(2, 3), keepdim=True)).abs().mean(dim=1, keepdim=True)
        weight = 1 + focus * unlike
        terms = terms * (weight / weight.mean())
    return terms.mean()


def _batches(images: Tensor, settings: TokenizerTraining, generator: torch.Generator) -> Iterator[Tensor]:
    """As many batches as steps: every image once in an epoch, in a new order each."""
    order = torch.empty(0, dtype=torch.long)
    size = min(settings.batch_size, len(images))
    for _ in range(settings.steps):
        if len(order) < size:
            order = torch.cat([order, torch.randperm(len(images), generator=generator)])
        yield images[order[:size]]
        order = order[size:]
