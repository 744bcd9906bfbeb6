"""Query tokens: new vocabulary rows, trained by PEFT, at which embeddings are read (SLQ, 2604.13710)."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from lockadapt.errors import AdapterError


def query_token(number: int) -> str:
    """The text of the query token of that number, from 1."""
    return f"<query_{number}>"


def add_query_tokens(tokenizer: PreTrainedTokenizerBase, count: int) -> None:
    """Makes `count` query tokens special tokens of the tokenizer; those that are there stay."""
    known = tokenizer.get_vocab()
    new = [query_token(number) for number in range(1, count + 1) if query_token(number) not in known]
    if new:
        # Beside `<image>` and others, not in their place.
        tokenizer.add_special_tokens({"additional_special_tokens": new}, replace_extra_special_tokens=False)


def query_token_ids(tokenizer: PreTrainedTokenizerBase, count: int) -> list[int]:
    """Looks up the query tokens' ids.

    Args:
        tokenizer: one that has them.
        count: of query tokens.

    Returns:
        The ids, in order.

    Raises:
        AdapterError: the tokenizer lacks one.
    """
    known = tokenizer.get_vocab()
    wanted = [query_token(number) for number in range(1, count + 1)]
    missing = [token for token in wanted if token not in known]
    if missing:
        raise AdapterError(
            f"the tokenizer has no {missing[0]}",
            where="objectives.….query_tokens",
            fix="let lockadapt assemble the model, or start from a run's base",
        )
    return [known[token] for token in wanted]
