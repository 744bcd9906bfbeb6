"""Micro-batches of one objective each, by sampling weight, reproducible, every row once a pass."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockadapt.data.encode import Encoded
from lockadapt.data.mixture import Draws, MixedDataset, MixtureSampler
from lockadapt.data.sample import question_answer


def dataset(**sizes: int) -> MixedDataset:
    sample = question_answer("q", "a", [], "rows:1")
    empty = np.zeros(1, np.int32)
    return MixedDataset(
        {name: [Encoded(empty, empty, (), sample) for _ in range(n)] for name, n in sizes.items()}
    )


def draws(sampling_weights: dict[str, float], size: int, batches: int, seed: int) -> Draws:
    return Draws(
        sampling_weights,
        dict.fromkeys(sampling_weights, size),
        batches,
        seed,
        dict.fromkeys(sampling_weights, 1),
    )


def names(data: MixedDataset, batches: list[list[int]]) -> list[set[str]]:
    return [{data[i][0] for i in batch} for batch in batches]


@given(
    st.lists(st.integers(1, 20), min_size=1, max_size=4),
    st.lists(st.floats(0.1, 10), min_size=4, max_size=4),
    st.integers(1, 5),
    st.integers(0, 3),
)
def test_one_objective_a_batch_and_shares_within_one(
    sizes: list[int], sampling_weights: list[float], size: int, seed: int
) -> None:
    data = dataset(**{f"o{i}": n for i, n in enumerate(sizes)})
    weights = {f"o{i}": sampling_weights[i] for i in range(len(sizes))}
    batches = list(MixtureSampler(data, draws(weights, size, 40, seed)))
    seen = names(data, batches)
    assert all(len(s) == 1 for s in seen)
    assert all(len(batch) == size for batch in batches)
    for count in range(1, 41):
        drawn = Counter(next(iter(s)) for s in seen[:count])
        for name, weight in weights.items():
            assert abs(drawn[name] - count * weight / sum(weights.values())) < len(weights)


def test_every_row_once_before_any_twice() -> None:
    data = dataset(a=7)
    flat = [i for batch in MixtureSampler(data, draws({"a": 1.0}, 3, 7, 0)) for i in batch]
    assert sorted(flat[:7]) == sorted(flat[7:14]) == sorted(flat[14:]) == list(range(7))
    assert flat[:7] != flat[7:14]


def test_seed_decides_the_order() -> None:
    data = dataset(a=50, b=50)
    sampling_weights = {"a": 1.0, "b": 2.0}
    first, again, other = (
        list(MixtureSampler(data, draws(sampling_weights, 4, 20, seed))) for seed in (0, 0, 1)
    )
    assert first == again != other


@pytest.mark.parametrize("index", [0, 2, 3, 5])
def test_rows_behind_one_index(index: int) -> None:
    data = dataset(a=3, b=3)
    assert data[index][0] == ("a" if index < 3 else "b")
    assert len(data) == 6


def test_an_objective_may_have_a_batch_of_its_own() -> None:
    data = dataset(a=10, b=10)
    own = Draws({"a": 1.0, "b": 1.0}, {"a": 2, "b": 7}, 6, 0, {"a": 1, "b": 1})
    batches = list(MixtureSampler(data, own))
    assert Counter((data[batch[0]][0], len(batch)) for batch in batches) == {("a", 2): 3, ("b", 7): 3}
