"""Packing: every sample keeps its tokens, positions and sight; common beginnings stand once; rows respect the budget."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockadapt.data.encode import IGNORED, Encoded
from lockadapt.data.pack import Packed, count_tokens, groups, pack
from lockadapt.data.sample import ImageRef
from tests.support.rows import IMAGE_TOKEN, encoded


@st.composite
def some_items(draw: st.DrawFn) -> list[Encoded]:
    """Up to three images with up to six samples each; few different tokens, so that beginnings are often alike."""
    items = []
    for image in range(draw(st.integers(1, 3))):
        prefix = draw(st.lists(st.integers(3, 4), min_size=0, max_size=4))
        for _ in range(draw(st.integers(1, 6))):
            question = draw(st.lists(st.integers(3, 5), min_size=1, max_size=6))
            answer = draw(st.lists(st.integers(3, 5), min_size=1, max_size=4))
            items.append(encoded(f"image-{image}", prefix, question, answer))
    order = draw(st.permutations(range(len(items))))
    return [items[n] for n in order]


def seen_by(packed: Packed, row: int, position: int) -> tuple[list[int], list[int]]:
    """Tokens and positions that a place sees, in order of position."""
    places = np.flatnonzero(packed.attention_mask[row, 0, position])
    places = places[np.argsort(packed.position_ids[row, places])]
    return packed.input_ids[row, places].tolist(), packed.position_ids[row, places].tolist()


@given(some_items(), st.integers(1, 60))
def test_every_label_sees_exactly_its_own_sample(items: list[Encoded], max_row_tokens: int) -> None:
    packed = pack(items, 0, max_row_tokens)
    rows, columns = np.nonzero(packed.predicting)
    actual: dict[int, list[tuple[list[int], int]]] = {n: [] for n in range(len(items))}
    for index, target, owner in zip(packed.logit_index, packed.targets, packed.owners, strict=True):
        seen, positions = seen_by(packed, rows[index], columns[index])
        assert positions == list(range(len(seen)))
        actual[int(owner)].append((seen, int(target)))
    for number, item in enumerate(items):
        learned = np.flatnonzero(item.labels[1:] != IGNORED)
        truth = [(item.input_ids[: n + 1].tolist(), int(item.labels[n + 1])) for n in learned]
        assert sorted(actual[number]) == sorted(truth)


@given(some_items(), st.integers(1, 60))
def test_rows_keep_to_the_budget_and_images_to_their_spans(items: list[Encoded], max_row_tokens: int) -> None:
    packed = pack(items, 0, max_row_tokens)
    longest = max(len(item.input_ids) for item in items)
    assert packed.input_ids.shape[1] <= max(max_row_tokens, longest)
    spans = int((packed.input_ids == IMAGE_TOKEN).sum())
    assert spans == len(packed.images)
    places = [int(image.key.removeprefix("image-")) for (image,) in packed.images]
    assert set(places) == {int(item.images[0].key.removeprefix("image-")) for item in items}


@given(some_items(), st.integers(1, 60))
def test_each_tree_knows_its_first_sample_and_its_images(items: list[Encoded], max_row_tokens: int) -> None:
    packed = pack(items, 0, max_row_tokens)
    assert len(packed.stems) == len(packed.images) == packed.trees.max() + 1
    flat, every = packed.input_ids.ravel(), {item.input_ids.tobytes() for item in items}
    for number, (stem, images) in enumerate(zip(packed.stems, packed.images, strict=True)):
        places = stem[stem >= 0]
        assert flat[places].astype(np.int32).tobytes() in every
        assert (packed.trees.ravel()[places] == number).all()
        assert packed.position_ids.ravel()[places].tolist() == list(range(len(places)))
        assert len(images) == int((flat[packed.trees.ravel() == number] == IMAGE_TOKEN).sum())


@given(some_items())
def test_one_big_budget_stores_every_common_beginning_once(items: list[Encoded]) -> None:
    packed = pack(items, 0, 10_000)
    stored = int((packed.input_ids != 0).sum())
    alone, packed_rows = count_tokens(items)
    assert alone == sum(len(item.input_ids) for item in items)
    assert stored == packed_rows
    beginnings = {
        (item.images[0].key, item.input_ids[: item.image_end].tobytes(), item.input_ids[:end].tobytes())
        for item in items
        for end in range(1, len(item.input_ids) + 1)
    }
    assert packed_rows == len(beginnings)


def test_different_images_never_share_even_with_equal_tokens() -> None:
    items = [encoded(f"image-{n}", [], [3, 3], [4]) for n in (0, 1)]
    assert len(groups(items)) == 2
    assert len(pack(items, 0, 1000).images) == 2


def test_samples_without_images_share_their_text() -> None:
    first, second = encoded(None, [3, 3], [4], [5]), encoded(None, [3, 3], [4], [3])
    assert count_tokens([first, second]) == (8, 5)


def test_a_label_that_is_shared_counts_once_for_each_sample() -> None:
    items = [encoded("image-0", [], [3], [4, 5]), encoded("image-0", [], [3], [4, 3])]
    packed = pack(items, 0, 1000)
    assert packed.predicting.sum() == 2  # the last question token, and the shared first answer token
    assert sorted(packed.targets.tolist()) == [3, 4, 4, 5]


@pytest.mark.parametrize("count", [1, 7])
def test_too_many_samples_of_one_image_are_divided(count: int) -> None:
    items = [encoded("image-0", [3] * 4, [3, n + 10], [4]) for n in range(count)]
    packed = pack(items, 0, 12)
    assert packed.input_ids.shape[1] <= 12
    assert len(packed.images) == -(-count // 3)
    assert isinstance(packed.images[0][0], ImageRef)
