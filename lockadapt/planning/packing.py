"""Decides whether a run packs: what it saves, counted on rows; whether it is exact, tried on the model."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from torch import nn

from lockadapt.architectures import answers_apart, architecture_of, class_name, layout_of, llm_of
from lockadapt.architectures.base import unwrap_model
from lockadapt.architectures.masks import sliding_window
from lockadapt.data.encode import Encoded
from lockadapt.data.pack import count_tokens, groups
from lockadapt.errors import RecipeError
from lockadapt.models.llms import beside_attention

WORTH = 0.9
"""`auto` packs if that leaves at most this share of the tokens that padded rows have."""

TRIED = 3
"""Samples that are computed both ways before step 1."""

MASKED = ("eager", "sdpa")
"""Implementations of attention that take a mask of their own for every row."""


@dataclass(frozen=True)
class Packing:
    """How a run makes its rows.

    Attributes:
        max_row_tokens: longest row, or None: one row a sample.
        max_samples_per_image: the most samples of one image that are drawn together.
        tokens: of an epoch, as it is run.
        plain_tokens: of an epoch in padded rows of one sample each.
        why: one sentence for the user.
    """

    max_row_tokens: int | None
    max_samples_per_image: int
    tokens: int
    plain_tokens: int
    why: str

    def to_dict(self) -> dict[str, Any]:
        """As `run.json` has it."""
        return {
            "row_tokens": self.max_row_tokens,
            "together": self.max_samples_per_image,
            "tokens": self.tokens,
            "plain_tokens": self.plain_tokens,
            "why": self.why,
        }


NOTHING_PACKS = Packing(None, 1, 0, 0, "packing: none, as no objective packs")


@dataclass(frozen=True)
class PackingWish:
    """What a run asks for.

    Attributes:
        choice: `shared`, `none` or `auto`.
        max_row_tokens: longest packed row.
        max_samples_per_image: the most samples of one image that are drawn together.
        batch_size: samples in a micro-batch.
    """

    choice: str
    max_row_tokens: int
    max_samples_per_image: int
    batch_size: int


@dataclass(frozen=True)
class PackingTrial:
    """How it is found out whether packing is exact with a model.

    Attributes:
        obstacle: longest sample in tokens -> why this LLM cannot pack, see `why_not_exact`.
        mistake: computes samples packed and alone, and says why the results are not the same, see
            `lockadapt.planning.exactness.Trial.problem`; called only if packing would be used.
    """

    obstacle: Callable[[int], str | None]
    mistake: Callable[[], str | None]

    def problem(self, rows: Mapping[str, Sequence[Encoded]]) -> str | None:
        """Why these rows cannot be packed exactly; None: they can."""
        longest = max(len(item.input_ids) for items in rows.values() for item in items)
        return self.obstacle(longest) or self.mistake()


def choose_packing(
    rows: Mapping[str, Sequence[Encoded]],
    wish: PackingWish,
    trial: PackingTrial,
    shares: Mapping[str, float] | None = None,
) -> Packing:
    """Decides whether the rows of a run are packed.

    Args:
        rows: training rows by objective.
        wish: what is asked for.
        trial: whether it is exact; tried only if packing would be used.
        shares: how many rows of the epoch each of these stands for, by objective; None: one.

    Returns:
        How rows are made, and why.

    Raises:
        RecipeError: `shared` is asked for and is not exact with this LLM.
    """

    def counted(tokens: Callable[[Sequence[Encoded]], int]) -> int:
        return sum(round((shares or {}).get(name, 1.0) * tokens(items)) for name, items in rows.items())

    plain = counted(lambda items: padded_tokens(items, wish.batch_size))
    if wish.choice == "none":
        return Packing(None, 1, plain, plain, "packing: none, as asked")
    packed = counted(lambda items: packed_tokens(items, wish.max_samples_per_image))
    if wish.choice == "auto" and packed > WORTH * plain:
        why = f"packing: none, as it would save only {_saved(packed, plain)} of the tokens"
        return Packing(None, 1, plain, plain, why)
    problem = trial.problem(rows)
    if problem and wish.choice == "shared":
        raise RecipeError(
            f"cannot be exact: {problem}", where="data.packing: shared", fix="use packing: none, or auto"
        )
    if problem:
        return Packing(None, 1, plain, plain, f"packing: none, as it cannot be exact: {problem}")
    why = f"packing: {packed:,} tokens an epoch instead of {plain:,} ({_saved(packed, plain)} saved)"
    return Packing(wish.max_row_tokens, wish.max_samples_per_image, packed, plain, why)


def samples_per_image(wanted: int | None, step: int, batch_size: int) -> int:
    """The most samples of one image drawn together: as wanted, or a quarter of a step's; at most a batch."""
    return max(1, min(wanted or step // 4, batch_size))


def padded_tokens(items: Sequence[Encoded], batch_size: int, trials: int = 64) -> int:
    """Tokens of an epoch in rows padded to the longest of a random batch; estimated on seeded draws."""
    lengths = np.array([len(item.input_ids) for item in items])
    draws = np.random.default_rng(0).choice(lengths, (trials, min(batch_size, len(lengths))))
    return round(float(draws.max(1).mean()) * len(lengths))


def packed_tokens(items: Sequence[Encoded], max_samples_per_image: int) -> int:
    """Tokens of an epoch when up to `max_samples_per_image` samples of an image share a row."""
    total = 0
    for group in groups(items):
        count = -(-len(group) // max_samples_per_image)
        total += sum(count_tokens([items[n] for n in group[part::count]])[1] for part in range(count))
    return total


def why_not_exact(model: nn.Module, longest: int) -> str | None:
    """Why this LLM cannot compute samples of up to `longest` tokens in one row; None: nothing forbids it."""
    llm = llm_of(model)
    if architecture_of(model).positions is None:
        return f"{class_name(unwrap_model(model))} has rows of one sample only"
    if answers_apart(model):
        return (
            f"the encoder of {type(llm).__name__} reads prompts in both directions, so that what samples "
            "have in common differs with what follows it"
        )
    if "cross_attention_mask" in inspect.signature(unwrap_model(model).forward).parameters:
        return f"{class_name(unwrap_model(model))} looks at its images by a mask of whole rows"
    own = layout_of(model).blocks  # some classes keep their tower inside the LLM's body
    layer = beside_attention(llm, unwrap_model(model).get_submodule(own[0]) if own else None)
    if layer is not None:
        return (
            f"{type(llm).__name__} has {layer}, which mix a token with whatever stands before it in the row"
        )
    takes_positions = "position_ids" in inspect.signature(llm.forward).parameters
    if not takes_positions or getattr(llm.config, "alibi", False):
        return f"{type(llm).__name__} takes no positions (ALiBi)"
    implementation = llm.config._attn_implementation
    if implementation not in MASKED:
        return f"{implementation} takes no mask that says which tokens see each other"
    chunk = attention_chunk(llm.config)
    if chunk is not None and longest > chunk:
        return (
            f"{type(llm).__name__} looks at chunks of {chunk} tokens, whose borders lie elsewhere in a "
            f"packed row (the longest sample has {longest})"
        )
    return None


def why_not_shared(model: nn.Module, longest: int) -> str | None:
    """Why one reading of an image cannot serve several questions in generation; None: nothing forbids it.

    Beside what forbids packing: a window counts places in the cache, where shorter questions are padded.

    Args:
        model: a Transformers model, possibly wrapped.
        longest: of all prompts with what is generated, in tokens.

    Returns:
        The reason, or None.
    """
    llm = llm_of(model)
    window = sliding_window(llm.config)
    if window is not None and longest > window:
        return f"{type(llm).__name__} looks back {window} tokens, the longest text has {longest}"
    return why_not_exact(model, longest)


def attention_chunk(config: Any) -> int | None:
    """How long the chunks are that some layers look at, in tokens, by an LLM's config; None: it has none."""
    kinds = getattr(config, "layer_types", None) or ["chunked_attention"]
    chunk = getattr(config, "attention_chunk_size", None) if "chunked_attention" in kinds else None
    return int(chunk) if chunk else None


def to_be_tried(rows: Mapping[str, Sequence[Encoded]]) -> list[Encoded]:
    """A few samples whose packed form differs most from standing alone: the longest of the largest group."""
    best: list[Encoded] = []
    for items in rows.values():
        largest = max(groups(items), key=len)
        group = set(largest)
        longest_first = sorted((items[n] for n in group), key=lambda item: -len(item.input_ids))
        chosen = longest_first[:1]
        # Of equal samples, or one that another goes on from, all tokens would be shared: they show nothing.
        chosen += [item for item in longest_first if _part_ways(item, chosen[0])][: TRIED - 2]
        # The longest of another image: so that trees in one row are tried too, and the longest of all is.
        others = [item for number, item in enumerate(items) if number not in group] or longest_first
        others = [item for item in others if not any(item is taken for taken in chosen)]
        chosen += sorted(others, key=lambda item: -len(item.input_ids))[: TRIED - len(chosen)]
        best = max(best, chosen, key=lambda some: sum(len(item.input_ids) for item in some))
    return with_a_sibling(best)


def with_a_sibling(items: Sequence[Encoded]) -> list[Encoded]:
    """Samples; where no two of one image part ways, the first once more with its text reversed.

    Without two branches behind one prefix, a trial would not see what one branch does to the other.
    """
    pairs = (pair for group in groups(items) for pair in combinations(group, 2))
    if any(_part_ways(items[a], items[b]) for a, b in pairs):
        return list(items)
    ids, end = items[0].input_ids.copy(), items[0].image_end
    ids[end:] = ids[end:][::-1]
    return [*items, dataclasses.replace(items[0], input_ids=ids)]


def _part_ways(first: Encoded, second: Encoded) -> bool:
    """Whether two samples differ before the end of the shorter one."""
    length = min(len(first.input_ids), len(second.input_ids))
    return bool((first.input_ids[:length] != second.input_ids[:length]).any())


def _saved(packed: int, plain: int) -> str:
    return f"{max(0.0, 1 - packed / plain):.0%}"
