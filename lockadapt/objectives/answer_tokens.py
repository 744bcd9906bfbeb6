"""The cross-entropy of answer tokens, which captioning, VQA and dialogue share.

The head runs on those tokens only.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import nn

from lockadapt.architectures import (
    answers_apart,
    architecture_of,
    class_name,
    layout_of,
    llm_of,
    tower_of,
)
from lockadapt.architectures.base import Positions, unwrap_model
from lockadapt.architectures.features import beside_text, image_arguments
from lockadapt.architectures.masks import tree_masks
from lockadapt.data.batch import Batch
from lockadapt.data.sample import Sample
from lockadapt.errors import AssemblyError, memory_ran_out
from lockadapt.objectives.base import EvaluationContext, Objective, Report, Row, prediction_row
from lockadapt.objectives.head import (
    FrozenHead,
    chunked_cross_entropy,
    head_input,
    head_is_last,
    own_cross_entropy,
)
from lockadapt.tuning.query_rows import head_rows


@dataclass(frozen=True)
class AnswerObjective(Objective):
    """What captioning, VQA and dialogue have in common; each adds its kind and its score.

    Attributes:
        answers: closed list of answers, which evaluation ranks.
        max_new_tokens: longest answer that evaluation generates.
    """

    packs: ClassVar[bool] = True
    plannable: ClassVar[bool] = True

    answers: tuple[str, ...] | None = None
    max_new_tokens: int = 32

    def loss(self, model: nn.Module, batch: Batch) -> tuple[torch.Tensor, Report]:
        """See `answer_loss`."""
        return answer_loss(model, batch)

    @abstractmethod
    def score(self, samples: Sequence[Sample], predictions: Sequence[str]) -> dict[str, Any]:
        """Metrics of predicted answers."""

    def evaluate(
        self, context: EvaluationContext, samples: Sequence[Sample]
    ) -> tuple[dict[str, Any], list[Row]]:
        """See `Objective.evaluate`."""
        answers = context.answers(samples, self.answers, self.max_new_tokens)
        rows = [prediction_row(sample, answer) for sample, answer in zip(samples, answers, strict=True)]
        return self.score(samples, answers), rows


def answer_loss(model: nn.Module, batch: Batch) -> tuple[torch.Tensor, Report]:
    """Mean negative log-likelihood of a batch's labelled tokens: what the stock class computes from `labels`.

    Args:
        model: a stock LLaVA, FastVLM or Janus, possibly wrapped by PEFT or DDP.
        batch: see `lockadapt.data.batch.Batch`.

    Returns:
        The loss (scalar, float32, with graph); a report with `tokens` and `token_accuracy`.

    Raises:
        AssemblyError: the class's own forward fails on the batch.
    """
    with stock_forward(model):
        loss, losses, correct = _token_losses(model, batch)
    tokens = torch.tensor(float(len(losses)))
    return loss, {"tokens": tokens, "token_accuracy": correct.float() / len(losses)}


@contextmanager
def stock_forward(model: nn.Module) -> Iterator[None]:
    """Names the class whose forward fails, as some of Transformers' do on pictures of a single token."""
    try:
        yield
    except (AttributeError, TypeError, ValueError, RuntimeError, IndexError) as error:
        if not architecture_of(model).inputs.stock or memory_ran_out(error):
            raise
        raise AssemblyError(
            f"the forward of {class_name(unwrap_model(model))} fails: {type(error).__name__}: {error}",
            fix="leave out rows with unusual pictures, such as tiny ones, or start from another class",
        ) from error


@torch.no_grad()
def sample_losses(model: nn.Module, batch: Batch, samples: int) -> torch.Tensor:
    """Negative log-likelihood of each sample's labelled tokens, summed: float32 (samples,), without graph."""
    _, losses, _ = _token_losses(model, batch)
    sums = torch.zeros(samples, dtype=torch.float32, device=losses.device)
    return sums.index_add_(0, batch["owners"].to(losses.device), losses)


def model_inputs(model: nn.Module, batch: Batch) -> dict[str, Any]:
    """The stock forward's arguments: tokens, mask, positions, and images as pixels or remembered features."""
    architecture = architecture_of(model)
    names = ("input_ids", "attention_mask", *architecture.inputs.extra)
    inputs: dict[str, Any] = {name: batch[name] for name in names if name in batch}
    if "decoder_labels" in batch:
        llm = llm_of(model)
        inputs["decoder_input_ids"] = llm.prepare_decoder_input_ids_from_labels(batch["decoder_labels"])
    if "position_ids" in batch:  # only packed rows say where their tokens stand
        packed = architecture.positions or Positions()
        sees, depths = inputs.pop("attention_mask"), batch["position_ids"]
        inputs[packed.mask] = tree_masks(model, sees, depths, batch["input_ids"])
        inputs[packed.positions] = packed.follow(model, batch)
    inputs |= {name: batch[name] for name in batch.get("token_keys", ())}
    if "image_features" in batch:
        inputs |= {name: batch[name] for name in batch.get("processor_keys", ())}
        inputs |= image_arguments(model, batch["image_features"], batch.get("image_scales"))
    elif "processor_keys" in batch:
        dtype = next(tower_of(model).parameters()).dtype
        shown = {name: batch[name] for name in batch["processor_keys"]}
        inputs |= {
            name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in shown.items()
        }
    elif "pixel_values" in batch:
        # Most towers cast pixels themselves; those that begin with a bare convolution do not (MobileNet).
        values = batch["pixel_values"].to(next(tower_of(model).parameters()).dtype)
        inputs |= architecture.inputs.shown(values)
    elif architecture.inputs.no_image is not None:
        inputs |= architecture.inputs.no_image(unwrap_model(model))
    return beside_text(model, inputs, batch.get("image_rows"))


def writer_of(model: nn.Module, inputs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """What `generate` is called on, and with what; see `Architecture.writer`.

    Args:
        model: a Transformers model, possibly wrapped.
        inputs: see `model_inputs`.

    Returns:
        The model and these arguments, unless its class says otherwise.
    """
    writer = architecture_of(model).writer
    return (model, inputs) if writer is None else writer(unwrap_model(model), inputs)


def answer_start(model: nn.Module, prompt_length: int) -> int:
    """Where answers begin in what `generate` returns: behind the prompt, or behind what starts each."""
    return 1 if answers_apart(model) else prompt_length


_ENDS: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
"""Measured once a model."""


def take_head_as_last(model: nn.Module, last: bool = True) -> None:
    """Says of a model without weights, which cannot be measured, whether its head gives its logits."""
    _ENDS[unwrap_model(model)] = last


def ends_with_its_head(model: nn.Module, inputs: dict[str, Any], predicting: torch.Tensor) -> bool:
    """Whether logits are what the head computes.

    Measured where the class has no description of its own, or holds an LLM with whatever head it has.

    Args:
        model: a Transformers model, possibly wrapped.
        inputs: see `model_inputs`.
        predicting: bool (rows, tokens), the positions that are looked at.

    Returns:
        True if they are.
    """
    base = unwrap_model(model)
    architecture = architecture_of(base)
    if not architecture.inputs.stock and not architecture.whole_llm:
        return True
    if base not in _ENDS:
        head = base.get_submodule(layout_of(base).head)
        _ENDS[base] = head_is_last(model, head, inputs, predicting)
    return _ENDS[base]


def _token_losses(model: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    head = unwrap_model(model).get_submodule(layout_of(model).head)
    inputs, predicting = model_inputs(model, batch), batch["predicting"]
    index, targets, rows = batch["logit_index"], batch["targets"], head_rows(model)
    if not ends_with_its_head(model, inputs, predicting):
        return own_cross_entropy(model, inputs, predicting, index, targets)
    hidden = head_input(model, head, inputs, predicting)
    # A head that PEFT wraps for query tokens says nothing of a bias; those that can be wrapped have none.
    bias = getattr(head, "bias", None)
    return chunked_cross_entropy(hidden, FrozenHead(head.weight, bias, rows), index, targets)
