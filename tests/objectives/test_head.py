"""The chunked head equals cross-entropy on all logits, forward and backward, for any chunk."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from lockadapt.objectives.head import FrozenHead, chunked_cross_entropy


@pytest.mark.parametrize("chunk", [1, 3, 7, 8, None])
@pytest.mark.parametrize("biased", [False, True])
def test_equals_cross_entropy(chunk: int | None, biased: bool) -> None:
    made = torch.Generator().manual_seed(0)
    weight = torch.randn(50, 16, generator=made)
    bias = torch.randn(50, generator=made) if biased else None
    hidden = torch.randn(7, 16, generator=made)
    # Two targets of one position, a position twice with the same target, and an order that is not the positions'.
    index = torch.tensor([3, 0, 1, 3, 2, 6, 5, 5, 4])
    targets = torch.randint(50, (9,), generator=made)
    targets[7] = targets[6]
    ours, plain = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    loss, each, correct = chunked_cross_entropy(ours, FrozenHead(weight, bias), index, targets, chunk)
    logits = F.linear(plain, weight, bias)[index]
    reference = F.cross_entropy(logits, targets, reduction="none")
    (loss * 3).backward()
    (reference.mean() * 3).backward()
    torch.testing.assert_close(loss, reference.mean())
    torch.testing.assert_close(each, reference.detach())
    assert int(correct) == int((logits.argmax(-1) == targets).sum())
    torch.testing.assert_close(ours.grad, plain.grad)


def test_bfloat16_stays_near_float32() -> None:
    made = torch.Generator().manual_seed(0)
    weight, hidden = torch.randn(64, 32, generator=made), torch.randn(5, 32, generator=made)
    index, targets = torch.arange(5), torch.arange(5)
    exact, small = hidden.clone().requires_grad_(), hidden.bfloat16().requires_grad_()
    chunked_cross_entropy(exact, FrozenHead(weight), index, targets)[0].backward()
    chunked_cross_entropy(small, FrozenHead(weight.bfloat16()), index, targets)[0].backward()
    assert small.grad is not None
    assert small.grad.dtype == torch.bfloat16
    torch.testing.assert_close(small.grad.float(), exact.grad, rtol=5e-2, atol=5e-3)


def test_nothing_is_kept_without_gradient() -> None:
    with torch.no_grad():
        loss, _, _ = chunked_cross_entropy(
            torch.zeros(2, 4), FrozenHead(torch.zeros(8, 4)), torch.arange(2), torch.arange(2)
        )
    assert loss.requires_grad is False
