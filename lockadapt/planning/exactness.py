"""Tells rounding from mixing: whether an LLM computes the samples of a packed row as it computes each alone.

What is compared is what the LLM's last block gives, in float32 whatever the run's dtype, so that rounding
stays below 1e-5 and anything above it is a mistake. Weights are cast block by block and put back: casting up
is exact, so this is the very function that the run approximates, and no more than one block is held twice.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lockadapt.architectures import layout_of, llm_of
from lockadapt.architectures.base import unwrap_model
from lockadapt.architectures.blocks import blocks_path
from lockadapt.architectures.masks import learn_masks
from lockadapt.data.batch import Batch
from lockadapt.data.encode import Encoded
from lockadapt.errors import LockadaptError
from lockadapt.models.quiet import quiet
from lockadapt.objectives.answer_tokens import model_inputs
from lockadapt.objectives.head import head_input
from lockadapt.tuning.quantize import dequantized_weight, is_quantized

LEAK = 1e-5
"""Largest relative change of a token that does not see what was changed. Masked attention changes nothing;
experts multiply other numbers of tokens at a time, which rounds otherwise."""

SAME = 1e-4
"""Largest relative difference of a token packed and alone: sums over more keys round differently."""

UNTOUCHED = 2e-6
"""A difference of float32 that needs no comparison with the effect of wrong positions."""

Collate = Callable[[Sequence[Encoded], int | None], Batch]
"""Samples and the longest row, None for one row a sample -> batch on the model's device."""


@dataclass(frozen=True)
class Trial:
    """What was measured; all are largest relative L2 differences of a token's last hidden state.

    Attributes:
        failure: why the LLM cannot compute rows with a mask and positions of their own, if it cannot.
        leak: of tokens that do not see a branch, when that branch becomes noise; nan where no row has two
            branches.
        difference: of predicting tokens, packed and alone.
        wrong_positions: of predicting tokens, packed, when positions count along the row instead of along the
            branch.
    """

    leak: float
    difference: float
    wrong_positions: float
    failure: str | None = None

    @property
    def problem(self) -> str | None:
        """Why packing is not exact; None: it is.

        A small difference says little where positions matter little (small weights): it must also be small
        beside what wrong positions do.
        """
        if self.failure is not None:
            return self.failure
        if self.leak > LEAK:
            return (
                f"changing one sample changes others in its row by up to {self.leak:.1e}, "
                "so that they are mixed"
            )
        limit = min(SAME, max(UNTOUCHED, self.wrong_positions / 10))
        if not self.difference <= limit:
            return f"the same samples, packed and alone, differ by {self.difference:.1e} in float32"
        return None


@torch.no_grad()
def try_packing(model: nn.Module, items: Sequence[Encoded], collate: Collate, max_row_tokens: int) -> Trial:
    """Computes samples packed, alone, packed beside noise, and packed at wrong positions, in eval mode.

    First the model's attention masks are learned from the samples alone, and remembered (`learn_masks`).

    Args:
        model: a model whose architecture has `positions`, possibly wrapped by PEFT. Its weights are untouched
            afterwards.
        items: see `lockadapt.planning.packing.to_be_tried`.
        collate: makes the batches.
        max_row_tokens: longest packed row.

    Returns:
        What was measured.
    """
    training = model.training
    model.eval()
    nothing = float("nan")
    try:
        packed, alone = (collate(items, limit) for limit in (max_row_tokens, None))
        inputs = model_inputs(model, alone)
        if problem := learn_masks(model, inputs, alone["input_ids"], alone["attention_mask"]):
            return Trial(nothing, nothing, nothing, problem)
        (rows, kept), (single, taken) = (_llm_call(model, batch) for batch in (packed, alone))
        llm = llm_of(model)
        with in_float32(model):
            before, reference = _run(llm, rows), _run(llm, single)
            ours, theirs = _by_sample(before, kept, packed), _by_sample(reference, taken, alone)
            name = _positions_name(rows)
            counted = torch.arange(kept.shape[1], device=kept.device).expand(rows[name].shape)
            wrong = _by_sample(_run(llm, {**rows, name: counted}), kept, packed)
            noise, blind = _noise(rows["inputs_embeds"], packed["attention_mask"][:, 0])
            leak = torch.tensor(float("nan"))
            if blind.any():
                leak = _relative(_run(llm, {**rows, "inputs_embeds": noise})[blind], before[blind])
    except (torch.OutOfMemoryError, LockadaptError):
        raise
    # Forwards that were not written for such rows (GPT-1) fail in as many ways as there are.
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
        message = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        failure = f"the LLM cannot compute rows with a mask of their own ({message})"
        return Trial(nothing, nothing, nothing, failure)
    finally:
        model.train(training)
    return Trial(float(leak), float(_relative(ours, theirs)), float(_relative(wrong, ours)))


@contextlib.contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """A block in which the LLM's body (not the whole model) computes in float32, fed with float32 embeddings.

    Each block's weights are float32 while it runs; quantized layers multiply with what they stand for.
    """
    base = unwrap_model(model)
    llm, blocks = llm_of(base), base.get_submodule(blocks_path(base))
    table = llm.get_input_embeddings()
    inside = {id(module) for module in blocks.modules()}
    around = [module for module in llm.modules() if id(module) not in inside and module is not table]
    kept: dict[int, list[Callable[[], None]]] = {}
    handles = []

    def widen(block: nn.Module, *_: Any) -> None:
        kept[id(block)] = _widen(block.modules())

    def narrow(block: nn.Module, *_: Any) -> None:
        for undo in kept.pop(id(block)):
            undo()

    for block in blocks:
        handles += [block.register_forward_pre_hook(widen), block.register_forward_hook(narrow)]
        handles += [
            module.register_forward_hook(_exact_product) for module in block.modules() if is_quantized(module)
        ]
    kept[0] = _widen(around)
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with quiet(), torch.autocast(next(base.parameters()).device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
        for undo in (undo for undos in kept.values() for undo in undos):
            undo()
        for handle in handles:
            handle.remove()


def _widen(modules: Any) -> list[Callable[[], None]]:
    """Makes the 16-bit tensors of modules float32; what undoes it puts the old storage back, unrounded."""
    undo: list[Callable[[], None]] = []
    for module in modules:
        for parameter in module.parameters(recurse=False):
            if parameter.dtype in (torch.float16, torch.bfloat16):
                old, parameter.data = parameter.data, parameter.data.float()
                undo.append(lambda parameter=parameter, old=old: setattr(parameter, "data", old))  # type: ignore[misc]
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.dtype in (torch.float16, torch.bfloat16):
                module._buffers[name] = buffer.float()
                undo.append(
                    lambda module=module, name=name, old=buffer: module._buffers.__setitem__(name, old)  # type: ignore[misc]
                )
    return undo


def _exact_product(layer: Any, arguments: tuple[Any, ...], _: Any) -> Tensor:
    value, bias = arguments[0], layer.bias
    weight = dequantized_weight(layer, value.dtype)
    return F.linear(value, weight, None if bias is None else bias.to(value.dtype))


def _llm_call(model: nn.Module, batch: Batch) -> tuple[dict[str, Any], Tensor]:
    """What the stock class calls its LLM with, embeddings and masks in float32, and `batch["predicting"]`."""
    seen: list[dict[str, Any]] = []
    base = unwrap_model(model)
    names = inspect.signature(llm_of(base).forward)
    head = base.get_submodule(layout_of(model).head)
    handle = llm_of(base).register_forward_pre_hook(
        lambda _, given, named: seen.append(dict(named) | names.bind_partial(*given).arguments),
        with_kwargs=True,
    )
    try:
        head_input(model, head, model_inputs(model, batch), batch["predicting"])
    finally:
        handle.remove()
    given = dict(seen[0])
    if given.get("inputs_embeds") is None:  # classes whose images stand beside the text hand the ids on
        table: Any = llm_of(base).get_input_embeddings()
        given["inputs_embeds"] = table(given.pop("input_ids"))
    call = {name: _float32(value) for name, value in given.items()}
    return call, batch["predicting"]


def _float32(value: Any) -> Any:
    """A call's argument with all of its floating-point tensors in float32."""
    if isinstance(value, dict):
        return {name: _float32(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_float32(part) for part in value)
    wide = torch.is_tensor(value) and value.is_floating_point()
    return value.float() if wide else value


def _positions_name(call: dict[str, Any]) -> str:
    return next(name for name in ("position_ids", "decoder_position_ids") if call.get(name) is not None)


def _run(llm: Any, call: dict[str, Any]) -> Tensor:
    """Last hidden states, float32 (rows, tokens, hidden)."""
    states: Tensor = llm(**{**call, "use_cache": False}).last_hidden_state
    return states.float()


def _by_sample(hidden: Tensor, predicting: Tensor, batch: Batch) -> Tensor:
    """Hidden states that predict labels, ordered by sample and then by place in it, (labels, hidden)."""
    order = torch.argsort(batch["owners"], stable=True)
    return hidden[predicting][batch["logit_index"]][order]


def _noise(embeddings: Tensor, sees: Tensor) -> tuple[Tensor, Tensor]:
    """Embeddings in which the first branch of each row is noise, and the tokens that see nothing of it.

    Args:
        embeddings: float32 (rows, tokens, hidden).
        sees: bool (rows, tokens, tokens).

    Returns:
        The same with noise, three times as large so that a leak shows; bool (rows, tokens), False for
        padding.
    """
    changed, blind = embeddings.clone(), torch.zeros(sees.shape[:2], dtype=torch.bool, device=sees.device)
    chance = torch.Generator().manual_seed(0)
    for row, mask in enumerate(sees):
        # A branch ends where the next token does not see it; nothing behind sees what is only of this branch.
        real = mask.sum(-1) + mask.sum(-2) > 2
        ends = (~mask.diagonal(-1) & real[1:]).nonzero()
        if not len(ends):
            continue
        end = int(ends[0])
        branch = mask[end] & ~mask[end + 1 :].any(0)
        blind[row] = ~mask[:, branch].any(-1) & real
        noise = torch.randn((int(branch.sum()), embeddings.shape[-1]), generator=chance).to(embeddings.device)
        changed[row, branch] = noise * 3 * embeddings[row].pow(2).mean().sqrt()
    return changed, blind


def _relative(states: Tensor, reference: Tensor) -> Tensor:
    return ((states - reference).norm(dim=-1) / reference.norm(dim=-1).clamp(min=1e-12)).max()
