"""Ranks by hand, by sorting, and by what must not score: constant, tied or broken embeddings."""

from __future__ import annotations

import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lockadapt.errors import DataError
from lockadapt.metrics.retrieval import candidates, ranks, retrieval_scores

# Cosines are then the coordinates: unit vectors of the plane, by degrees.
DEGREES = torch.tensor([0.0, 10, 25, 45, 90])


def on_circle(degrees: torch.Tensor) -> torch.Tensor:
    radians = degrees.deg2rad()
    return torch.stack([radians.cos(), radians.sin()], dim=1)


def test_best_right_candidate_counts() -> None:
    candidates = on_circle(DEGREES)
    query = on_circle(torch.tensor([1.0]))
    # From near to far: 0, 1, 2, 3, 4.
    assert ranks(query, candidates, torch.tensor([[0, 3]])).tolist() == [4]
    assert ranks(query, candidates, torch.tensor([[0, 4], [0, 2]])).tolist() == [3]
    # Other right candidates do not stand before the best one.
    assert ranks(query, candidates, torch.tensor([[0, 0], [0, 1]])).tolist() == [1]


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 999),
    st.integers(1, 9),
    st.sets(st.tuples(st.integers(0, 5), st.integers(0, 7)), min_size=1),
)
def test_equals_sorting(seed: int, rows: int, pairs: set[tuple[int, int]]) -> None:
    made = torch.Generator().manual_seed(seed)
    queries, candidate_embeddings = torch.randn(6, 5, generator=made), torch.randn(8, 5, generator=made)
    scores = torch.cosine_similarity(queries[:, None].double(), candidate_embeddings[None].double(), dim=-1)
    expected = []
    for query in sorted({query for query, _ in pairs}):
        right = {candidate for other, candidate in pairs if other == query}
        order = scores[query].argsort(descending=True).tolist()
        expected.append(1 + min(order.index(candidate) for candidate in right))
    given_pairs = torch.tensor(sorted(pairs, key=lambda pair: (pair[1], -pair[0])))
    assert ranks(queries, candidate_embeddings, given_pairs, rows).tolist() == expected


def test_shape_and_means() -> None:
    texts, images = on_circle(DEGREES), on_circle(torch.tensor([0.0, 44]))
    # Image 0 has texts 0 and 4, image 1 has texts 1, 2 and 3.
    pairs = torch.tensor([[0, 0], [0, 4], [1, 1], [1, 2], [1, 3]])
    scores = retrieval_scores(images, texts, pairs)
    assert scores["image_to_text"] == {"r1": 1.0, "r5": 1.0, "r10": 1.0, "median_rank": 1.0}
    # Text 1 (10 degrees) is nearer to image 0, text 2 (25) to image 1, text 4 (90) to image 1.
    by_text = [1, 2, 1, 1, 2]
    assert scores["text_to_image"] == {
        "r1": pytest.approx(3 / 5),
        "r5": 1.0,
        "r10": 1.0,
        "median_rank": statistics.median(by_text),
    }
    assert scores["n"] == 5


def test_even_number_of_ranks_has_a_median_between() -> None:
    candidates = on_circle(DEGREES)
    queries = on_circle(torch.tensor([1.0, 1.0]))
    scores = retrieval_scores(queries, candidates, torch.tensor([[0, 0], [1, 3]]))
    assert scores["image_to_text"]["median_rank"] == 2.5


@pytest.mark.parametrize("rows", [1, 7, None])
def test_constant_embeddings_do_not_score(rows: int | None) -> None:
    same = torch.randn(1, 33, generator=torch.Generator().manual_seed(0)).repeat(50, 1)
    pairs = torch.arange(50)[:, None].repeat(1, 2)
    scores = retrieval_scores(same, same, pairs, rows)
    for way in ("text_to_image", "image_to_text"):
        assert scores[way] == {"r1": 0.0, "r5": 0.0, "r10": 0.0, "median_rank": 50.0}


def test_perfect_embeddings_score() -> None:
    scores = retrieval_scores(
        torch.eye(20), torch.eye(20) * 3, torch.arange(20)[:, None].repeat(1, 2), rows=6
    )
    assert scores["text_to_image"] == {"r1": 1.0, "r5": 1.0, "r10": 1.0, "median_rank": 1.0}


def test_same_texts_are_one_candidate() -> None:
    pool = candidates(["a.png", "b.png", "a.png", "b.png"], ["red ", "red", "a circle", "red"])
    assert pool.images == ("a.png", "b.png")
    assert pool.texts == ("red", "a circle")
    assert pool.pairs.tolist() == [[0, 0], [0, 1], [1, 0]]


def test_refuses() -> None:
    pairs = torch.tensor([[0, 0]])
    with pytest.raises(DataError, match="not finite") as caught:
        retrieval_scores(torch.tensor([[1.0, 0], [1, float("nan")]]), torch.eye(2), pairs)
    assert "row 1" in str(caught.value)
    with pytest.raises(DataError, match="nothing belongs"):
        retrieval_scores(torch.eye(2), torch.eye(2), pairs[:0])
    with pytest.raises(DataError, match="pairs reach"):
        retrieval_scores(torch.eye(2), torch.eye(2), pairs + 2)
    with pytest.raises(DataError, match="1 images for 2 texts"):
        candidates(["a"], ["x", "y"])


def test_among_texts_and_among_images() -> None:
    """Three texts of image 0, one of images 1 and 2, one of image 1 alone; a plain reference over all others."""
    generator = torch.Generator().manual_seed(5)
    images, texts = torch.randn(3, 6, generator=generator), torch.randn(5, 6, generator=generator)
    pairs = torch.tensor([[0, 0], [0, 1], [0, 2], [1, 3], [1, 4], [2, 3]])
    scores = retrieval_scores(images, texts, pairs)
    related = {"text_to_text": ({0, 1, 2}, {3, 4}), "image_to_image": ({1, 2},)}
    for name, rows in (("text_to_text", texts), ("image_to_image", images)):
        unit = torch.nn.functional.normalize(rows, dim=-1)
        first = []
        for group in related[name]:
            for query in group:
                others = sorted(set(range(len(rows))) - {query}, key=lambda n: -float(unit[query] @ unit[n]))
                first.append(1 + min(others.index(right) for right in group - {query}))
        assert scores[name]["r1"] == pytest.approx(sum(rank == 1 for rank in first) / len(first))
        assert scores[name]["median_rank"] == float(torch.tensor(first).double().quantile(0.5))
    assert "text_to_text" not in retrieval_scores(images, texts[:3], torch.tensor([[0, 0], [1, 1], [2, 2]]))
