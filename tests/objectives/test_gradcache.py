"""Chunks give the loss and gradients of the whole batch, dropout and autocast replayed, whatever scales the loss."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lockadapt.errors import NoGradientError
from lockadapt.objectives.gradcache import embed_in_chunks
from lockadapt.objectives.similarity import Contrast, contrastive_loss
from lockadapt.objectives.temperature import Temperature

Embed = Callable[[list[Callable[[], Tensor]], list[Tensor]], Tensor]


class Model(nn.Module):
    """Two sides that share a layer, with dropout inside, and what the loss learns."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image, self.text, self.shared = nn.Linear(6, 12), nn.Linear(5, 12), nn.Linear(12, 8)
        self.dropout, self.temperature = nn.Dropout(dropout), Temperature("sigmoid", 9)

    def embed(self, rows: Tensor, first: nn.Module) -> Tensor:
        return F.normalize(self.shared(self.dropout(torch.tanh(first(rows)))), dim=-1)


IMAGES, TEXTS = (
    torch.randn(11, 6, generator=torch.Generator().manual_seed(1)),
    torch.randn(13, 5, generator=torch.Generator().manual_seed(2)),
)
KEYS = torch.arange(13)


def with_graph(chunks: list[Callable[[], Tensor]], _: list[Tensor]) -> Tensor:
    """The whole batch: every chunk's graph is kept. In chunks only so that dropout draws the same numbers."""
    return torch.cat([chunk() for chunk in chunks])


def loss_of(model: Model, embed: Embed, size: int) -> Tensor:
    trained = list(model.parameters())
    images = embed([lambda p=p: model.embed(p, model.image) for p in IMAGES.split(size)], trained)
    texts = embed([lambda p=p: model.embed(p, model.text) for p in TEXTS.split(size)], trained)
    scale, bias = model.temperature.scale(), model.temperature.bias()
    return contrastive_loss(images, texts, KEYS[:11], KEYS, Contrast(scale, bias, "sigmoid"), rows=4)


def gradients(model: Model) -> dict[str, Tensor]:
    return {
        name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None
    }


def same(ours: Model, theirs: Model, scale: float = 1.0) -> None:
    mine, reference = gradients(ours), gradients(theirs)
    assert set(mine) == set(reference) == {name for name, _ in theirs.named_parameters()}
    torch.testing.assert_close(mine, reference, rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize("size", [1, 4, 5, 12, 13])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_equals_the_whole_batch(size: int, dropout: float) -> None:
    ours, theirs = Model(dropout), Model(dropout)
    losses, after = [], []
    for model, embed in ((ours, embed_in_chunks), (theirs, with_graph)):
        torch.manual_seed(5)
        loss = loss_of(model, embed, size)
        torch.manual_seed(77)  # What happens between must not matter,
        torch.rand(3)
        loss.backward()
        after.append(torch.rand(3))  # nor may the replay matter to what follows.
        losses.append(loss)
    torch.testing.assert_close(losses[0], losses[1], rtol=0, atol=1e-6)
    assert torch.equal(after[0], after[1])
    same(ours, theirs)


def test_without_dropout_equals_one_forward_pass() -> None:
    ours, theirs = Model(0.0), Model(0.0)
    loss_of(ours, embed_in_chunks, 3).backward()
    loss_of(theirs, with_graph, 13).backward()
    same(ours, theirs)


def test_upstream_gradient_and_accumulation() -> None:
    ours, theirs = Model(0.4), Model(0.4)
    for model, embed in ((ours, embed_in_chunks), (theirs, with_graph)):
        torch.manual_seed(5)
        for factor in (0.25, 1024.0):
            (loss_of(model, embed, 4) * factor + model.shared.weight.square().sum()).backward()
    same(ours, theirs, scale=1024.0)  # terms of that size cancel


def test_gradients_can_be_asked_for() -> None:
    """`torch.autograd.grad` gets them, and `.grad` stays untouched: for gradient norms and cosines by objective."""
    model = Model(0.0)
    trained = list(model.parameters())
    actual = torch.autograd.grad(loss_of(model, embed_in_chunks, 4), trained)
    assert not gradients(model)
    torch.testing.assert_close(actual, torch.autograd.grad(loss_of(model, with_graph, 4), trained))


def test_a_parameter_is_finished_once() -> None:
    """As DDP's hooks need it."""
    model, finished = Model(0.0), []
    for name, parameter in model.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: finished.append(name))
    loss_of(model, embed_in_chunks, 2).backward()
    assert sorted(finished) == sorted(name for name, _ in model.named_parameters())


@pytest.mark.parametrize("backward_inside", [False, True])
def test_under_autocast(backward_inside: bool) -> None:
    ours, theirs = Model(0.4), Model(0.4)
    # Without its cache autocast casts a weight anew for each chunk, so that gradients are summed in float32.
    for model, embed, cache in ((ours, embed_in_chunks, True), (theirs, with_graph, False)):
        torch.manual_seed(5)
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=cache):
            loss = loss_of(model, embed, 4)
            if backward_inside:
                loss.backward()
        if not backward_inside:
            loss.backward()
    plain = Model(0.4)
    torch.manual_seed(5)
    loss_of(plain, with_graph, 4).backward()
    assert not torch.allclose(plain.shared.weight.grad, theirs.shared.weight.grad, rtol=1e-4)  # type: ignore[arg-type]
    same(ours, theirs)


def test_one_chunk_runs_once() -> None:
    runs, weight = [], torch.ones(2, 2, requires_grad=True)

    def chunk() -> Tensor:
        runs.append(1)
        return weight * 2

    embed_in_chunks([chunk], [weight]).sum().backward()
    assert len(runs) == 1
    with torch.no_grad():
        embed_in_chunks([chunk, chunk], [weight])
    assert len(runs) == 3
    embed_in_chunks([chunk, chunk], [weight]).sum().backward()
    assert len(runs) == 7


def test_a_forgotten_parameter_is_an_error() -> None:
    model = Model(0.0)
    chunks = [lambda: model.embed(IMAGES[:3], model.image), lambda: model.embed(IMAGES[3:], model.image)]
    embedded = embed_in_chunks(chunks, [*model.image.parameters()])
    with pytest.raises(NoGradientError, match="would get none"):
        embedded.sum().backward()


def test_a_frozen_side_has_no_graph() -> None:
    model = Model(0.0).requires_grad_(False)
    chunk = lambda: model.embed(IMAGES, model.image)  # noqa: E731
    assert not embed_in_chunks([chunk, chunk], list(model.parameters())).requires_grad
