"""Attention masks of packed rows, by rules that are fitted to the masks which a class makes of plain ones."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lockadapt.architectures import llm_of
from lockadapt.architectures.base import unwrap_model
from lockadapt.architectures.blocks import blocks_path


@dataclass(frozen=True)
class MaskRule:
    """What a token sees beside its ancestors, or does not see of them.

    Attributes:
        window: a token sees the last `window` tokens of its branch, itself among them; None: all.
        both_ways: ids of the tokens whose runs see each other forwards too (images in Gemma 3).
        runs_limited: whether the window also limits what the tokens of a run see of each other.
    """

    window: int | None = None
    both_ways: tuple[int, ...] = ()
    runs_limited: bool = False

    def mask(self, ancestors: Tensor, depths: Tensor, input_ids: Tensor) -> Tensor:
        """Writes the mask of rows.

        Args:
            ancestors: bool (rows, tokens, tokens), True where a row's token i has token j in front of it in
                its branch, or is it.
            depths: int64 (rows, tokens), each token's place in its branch.
            input_ids: int64 (rows, tokens).

        Returns:
            Bool (rows, tokens, tokens), True at what a token sees.
        """
        back = depths[:, :, None] - depths[:, None, :]
        near = None if self.window is None else back < self.window
        sees = ancestors
        if near is not None and not self.runs_limited:
            sees = sees & near
        if self.both_ways:
            sees = sees | (_same_run(input_ids, self.both_ways) & (ancestors | ancestors.mT))
        if near is not None and self.runs_limited:
            sees = sees & near
        return sees


@dataclass(frozen=True)
class Masks:
    """The rules of a model's layers.

    Attributes:
        rules: by kind of layer, as the LLM's config names it.
        problem: why there is no rule for some layer; None: there is one for each.
    """

    rules: Mapping[str, MaskRule]
    problem: str | None = None


PLAIN = Masks({"": MaskRule()})
"""A token sees its ancestors."""

_LEARNED: WeakKeyDictionary[nn.Module, Masks] = WeakKeyDictionary()


@torch.no_grad()
def learn_masks(model: nn.Module, inputs: Mapping[str, Any], input_ids: Tensor, valid: Tensor) -> str | None:
    """Fits rules to the masks that each kind of layer is given for plain rows, and remembers them.

    The masks are read with eager attention, which takes them whole. A window that no row is long enough to
    show is the config's. Layers that are given no mask are left to the trial of
    `lockadapt.planning.exactness`.

    Args:
        model: a Transformers model, possibly wrapped, in eval mode.
        inputs: of its forward, for plain rows.
        input_ids: int64 (rows, tokens), what is read.
        valid: (rows, tokens), not zero where there is no padding.

    Returns:
        Why some layers' masks follow no rule, so that packed rows would be computed wrongly; None: all do.
    """
    base = unwrap_model(model)
    given = _given_masks(model, inputs)
    rules: dict[str, MaskRule] = {}
    problem = None
    for kind, masks in given.items():
        samples = []
        for row, there in enumerate(valid.bool()):
            visible = masks[min(row, len(masks) - 1), 0][there][:, there]
            samples.append((visible if visible.dtype == torch.bool else visible == 0, input_ids[row][there]))
        rule = fit(samples)
        if rule is None:
            problem = problem or _misfit(base, kind, samples)
            continue
        rules[kind] = _as_configured(rule, llm_of(base).config, kind)
    _LEARNED[base] = Masks(rules or PLAIN.rules, problem)
    return problem


def learned_masks(model: nn.Module) -> Masks:
    """What `learn_masks` found of a model, possibly wrapped; before it, that tokens see their ancestors."""
    return _LEARNED.get(unwrap_model(model), PLAIN)


def tree_masks(
    model: nn.Module, ancestors: Tensor, depths: Tensor, input_ids: Tensor
) -> Tensor | dict[str, Tensor]:
    """The attention mask of packed rows, as the stock forward takes it.

    Args:
        model: a Transformers model, possibly wrapped.
        ancestors: bool (rows, 1, tokens, tokens), see `MaskRule.mask`.
        depths: int64 (rows, tokens).
        input_ids: int64 (rows, tokens).

    Returns:
        One mask (rows, 1, tokens, tokens), or, where kinds of layers differ, one by kind: bool, or for eager
        attention of the model's dtype, to be added to scores.
    """
    base = unwrap_model(model)
    rules = learned_masks(base).rules
    written = {
        rule: _for_attention(base, rule.mask(ancestors[:, 0], depths, input_ids)[:, None])
        for rule in set(rules.values())
    }
    if len(written) == 1:
        return next(iter(written.values()))
    return {kind: written[rule] for kind, rule in rules.items()}


def _for_attention(base: Any, sees: Tensor) -> Tensor:
    """Eager attention adds a mask to scores, where True would be 1."""
    if llm_of(base).config._attn_implementation != "eager":
        return sees
    nothing = torch.zeros(sees.shape, dtype=base.dtype, device=sees.device)
    return nothing.masked_fill_(~sees, torch.finfo(base.dtype).min)


def _given_masks(model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """Masks (rows or 1, 1, tokens, tokens) by kind of layer, each taken from the first layer of its kind."""
    base = unwrap_model(model)
    blocks: Any = base.get_submodule(blocks_path(base))
    listed = getattr(llm_of(base).config, "layer_types", None)
    kinds = listed if listed and len(listed) == len(blocks) else [""] * len(blocks)
    given: dict[str, Tensor] = {}
    handles = []
    for kind, block in zip(kinds, blocks, strict=True):
        signature = inspect.signature(block.forward)

        def note(_: nn.Module, places: Any, names: Any, kind: str = kind, signature: Any = signature) -> None:
            mask = signature.bind_partial(*places, **names).arguments.get("attention_mask")
            mask = names.get("attention_mask") if mask is None else mask
            if isinstance(mask, Tensor) and mask.dim() == 4:
                given.setdefault(kind, mask)

        handles.append(block.register_forward_pre_hook(note, with_kwargs=True))
    try:
        with _eager(llm_of(base).config):
            model(**inputs, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return given


@contextlib.contextmanager
def _eager(config: Any) -> Iterator[None]:
    before = config._attn_implementation
    config._attn_implementation = "eager"
    try:
        yield
    finally:
        config._attn_implementation = before


def fit(samples: Sequence[tuple[Tensor, Tensor]]) -> MaskRule | None:
    """Finds the rule that explains what the tokens of samples see.

    Args:
        samples: of each, bool (tokens, tokens), True at what a token sees; and the tokens' ids (tokens,).

    Returns:
        The rule, or None: no window and no runs of tokens explain all of it.
    """
    forwards: set[int] = set()
    reach, longest = 0, max(len(ids) for _, ids in samples)
    for visible, ids in samples:
        ahead = visible.triu(1)
        forwards |= set(ids[ahead.any(0) | ahead.any(1)].tolist())
    both_ways = tuple(sorted(forwards))
    for visible, ids in samples:
        alone = visible & ~_same_run(ids[None], both_ways)[0]
        after, before = alone.nonzero(as_tuple=True)
        reach = max(reach, int((after - before).max()) + 1 if len(after) else 1)
    window = None if reach >= longest else reach
    for runs_limited in (False, True):
        rule = MaskRule(window, both_ways, runs_limited and window is not None and bool(both_ways))
        if all(torch.equal(_plain_mask(rule, ids), visible) for visible, ids in samples):
            return rule
    return None


def _plain_mask(rule: MaskRule, ids: Tensor) -> Tensor:
    depths = torch.arange(len(ids), device=ids.device)[None]
    ancestors = depths[:, :, None] >= depths[:, None, :]
    return rule.mask(ancestors, depths, ids[None])[0]


def _same_run(input_ids: Tensor, chosen: Sequence[int]) -> Tensor:
    """Bool (rows, tokens, tokens): both tokens lie in one unbroken run of chosen ids."""
    inside = torch.isin(input_ids, torch.tensor(chosen, dtype=input_ids.dtype, device=input_ids.device))
    starts = inside.clone()
    starts[:, 1:] &= ~inside[:, :-1]
    number = starts.cumsum(1)
    return (number[:, :, None] == number[:, None, :]) & inside[:, :, None] & inside[:, None, :]


def _as_configured(rule: MaskRule, config: Any, kind: str) -> MaskRule:
    """A rule with the config's window, where no sample was long enough to show one."""
    slides = kind == "sliding_attention" or (not kind and not getattr(config, "layer_types", None))
    if rule.window is not None or not slides:
        return rule
    return MaskRule(sliding_window(config), rule.both_ways, rule.runs_limited)


def sliding_window(config: Any) -> int | None:
    """How far back the sliding layers of an LLM look, in tokens, by its config; None: it has none."""
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"]
    if "sliding_attention" not in kinds or not getattr(config, "use_sliding_window", True):
        return None
    return int(getattr(config, "sliding_window", None) or 0) or None


def _misfit(base: Any, kind: str, samples: Sequence[tuple[Tensor, Tensor]]) -> str:
    name = type(base).__name__
    layers = f"{kind} layers" if kind else "layers"
    if any(bool(visible.triu(1).any()) for visible, _ in samples):
        return (
            f"the {layers} of {name} read prompts in both directions, so that what samples have in common "
            "differs with what follows it"
        )
    return f"what the {layers} of {name} see follows neither a window nor runs of image tokens"
