"""Shared-prefix packing: samples about the same images share a row that holds each prefix once.

A row is a tree of tokens written down in depth-first order. A token sees its ancestors and itself, and its
position is its depth, so that every sample is computed as if it stood alone: same loss, same gradients, fewer
tokens. Several trees share a row where they fit; they do not see each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from lockadapt.data.encode import IGNORED, Encoded
from lockadapt.data.sample import ImageRef


@dataclass(frozen=True, eq=False)
class Tree:
    """Samples about the same images, merged where they begin alike.

    Attributes:
        items: positions of the samples in what was packed, in the order in which they were merged.
        tokens, positions: int32 (tokens,): the tree in depth-first order, and the depth of each token.
        paths: for every item the places of its tokens in `tokens`, int32 (length of the item,).
        shared: for every item how many of its tokens stood there already.
        images: the images that the tree's image tokens stand for, in order.
    """

    items: tuple[int, ...]
    tokens: np.ndarray
    positions: np.ndarray
    paths: tuple[np.ndarray, ...]
    shared: tuple[int, ...]
    images: tuple[ImageRef, ...]

    def write_mask(self, mask: np.ndarray) -> None:
        """Fills `mask`, bool (tokens, tokens), False before: row i is True at what token i sees."""
        for path, shared in zip(self.paths, self.shared, strict=True):
            new = path[shared:]
            if len(new):
                begin, end = new[0], new[-1] + 1
                mask[begin:end, begin:end] = np.tri(len(new), dtype=bool)
                mask[begin:end, path[:shared]] = True


@dataclass(frozen=True, eq=False)
class Packed:
    """A batch as arrays; see `lockadapt.data.batch.Batch` for what they are called there.

    Attributes:
        input_ids, position_ids: int64 (rows, tokens).
        attention_mask: bool (rows, 1, tokens, tokens); padding sees itself alone, so that no row of it is
            empty.
        predicting: bool (rows, tokens): positions whose logits are needed.
        logit_index, targets, owners: int64 (labels,): for every learned token which of the needed logits (in
            reading order) predicts it, its id, and the sample that it belongs to.
        trees: int64 (rows, tokens): the number of the tree that a token stands in, -1 for padding.
        stems: int64 (trees, tokens): the places of each tree's first sample in `input_ids` read row by row;
            -1 behind its end.
        images: of each tree: one entry an image span, or an image beside its row.
        tree_rows: int64 (trees,): the row of each.
    """

    input_ids: np.ndarray
    position_ids: np.ndarray
    attention_mask: np.ndarray
    predicting: np.ndarray
    logit_index: np.ndarray
    targets: np.ndarray
    owners: np.ndarray
    trees: np.ndarray
    stems: np.ndarray
    images: tuple[tuple[ImageRef, ...], ...]
    tree_rows: np.ndarray


def pack(items: Sequence[Encoded], pad_id: int, max_row_tokens: int) -> Packed:
    """Pack samples into rows by best fit decreasing.

    Where images are shown beside the text, all tokens of a row see all of its images: a row is one tree.

    Args:
        items: encoded samples.
        pad_id: fills the end of rows.
        max_row_tokens: a tree that would be longer is divided (a single sample never is). Rows are as long as
            the longest tree, so that the mask, which grows with the square of a row, stays small.

    Returns:
        The rows' tokens, positions and mask, and where each sample's labels lie.
    """
    trees = [tree for group in groups(items) for tree in _grow(items, group, max_row_tokens)]
    rows = _rows([len(tree.tokens) for tree in trees], items)
    longest = max(len(tree.tokens) for tree in trees)
    input_ids = np.full((len(rows), longest), pad_id, np.int64)
    position_ids = np.zeros((len(rows), longest), np.int64)
    mask = np.zeros((len(rows), longest, longest), bool)
    mask[:, np.arange(longest), np.arange(longest)] = True
    numbers = np.full((len(rows), longest), -1, np.int64)
    stems = np.full((len(trees), longest), -1, np.int64)
    positions, targets, owners = [], [], []
    images: list[tuple[ImageRef, ...]] = []
    tree_rows: list[int] = []
    for row, members in enumerate(rows):
        start = 0
        for tree in (trees[member] for member in members):
            end = start + len(tree.tokens)
            input_ids[row, start:end], position_ids[row, start:end] = tree.tokens, tree.positions
            tree.write_mask(mask[row, start:end, start:end])
            numbers[row, start:end] = len(images)
            stems[len(images), : len(tree.paths[0])] = row * longest + start + tree.paths[0]
            images.append(tree.images)
            tree_rows.append(row)
            for number, path in zip(tree.items, tree.paths, strict=True):
                learned = np.flatnonzero(items[number].labels[1:] != IGNORED)
                positions.append(row * longest + start + path[learned])
                targets.append(items[number].labels[1:][learned])
                owners.append(np.full(len(learned), number, np.int64))
            start = end
    needed, logit_index = np.unique(np.concatenate(positions), return_inverse=True)
    predicting = np.zeros(len(rows) * longest, bool)
    predicting[needed] = True
    return Packed(
        input_ids,
        position_ids,
        mask[:, None],
        predicting.reshape(len(rows), longest),
        logit_index.astype(np.int64),
        np.concatenate(targets).astype(np.int64),
        np.concatenate(owners),
        numbers,
        stems[:, : (stems >= 0).sum(1).max()],
        tuple(images),
        np.array(tree_rows, np.int64),
    )


def groups(items: Sequence[Encoded]) -> list[list[int]]:
    """Group the positions of samples that show the same images behind the same text, in order."""
    members: dict[tuple[object, ...], list[int]] = {}
    for number, item in enumerate(items):
        key = (tuple(image.key for image in item.images), item.input_ids[: item.image_end].tobytes())
        members.setdefault(key, []).append(number)
    return list(members.values())


def count_tokens(items: Sequence[Encoded]) -> tuple[int, int]:
    """Count the tokens of samples one by one, and of their trees when all samples of an image are packed."""
    alone = sum(len(item.input_ids) for item in items)
    shared = 0
    for group in groups(items):
        ordered = _ordered(items, group)
        shared += sum(len(items[n].input_ids) for n in ordered)
        shared -= sum(_common(items[a].input_ids, items[b].input_ids) for a, b in pairwise(ordered))
    return alone, shared


def packed_area(items: Sequence[Encoded], max_row_tokens: int | None) -> int:
    """Count a batch's tokens, padding included; with None for `max_row_tokens` it is not packed."""
    if max_row_tokens is None:
        return len(items) * max(len(item.input_ids) for item in items)
    sizes = [len(tree.tokens) for group in groups(items) for tree in _grow(items, group, max_row_tokens)]
    return len(_rows(sizes, items)) * max(sizes)


def _grow(items: Sequence[Encoded], group: list[int], limit: int) -> Iterable[Tree]:
    """Trees of one group, none longer than `limit` unless a single sample is.

    Sorted by their tokens, each sample has its longest common beginning with the one before it.
    """
    chosen: list[int] = []
    paths: list[np.ndarray] = []
    shared: list[int] = []
    size = 0
    for number in _ordered(items, group):
        ids = items[number].input_ids
        common = _common(items[chosen[-1]].input_ids, ids) if chosen else 0
        if chosen and size + len(ids) - common > limit:
            yield _tree(items, chosen, paths, shared, size)
            chosen, paths, shared, size, common = [], [], [], 0, 0
        new = np.arange(size, size + len(ids) - common, dtype=np.int32)
        paths.append(np.concatenate([paths[-1][:common], new]) if chosen else new)
        shared.append(common)
        chosen.append(number)
        size += len(new)
    yield _tree(items, chosen, paths, shared, size)


def _tree(
    items: Sequence[Encoded], chosen: list[int], paths: list[np.ndarray], shared: list[int], size: int
) -> Tree:
    tokens, positions = np.empty(size, np.int32), np.empty(size, np.int32)
    for number, path, common in zip(chosen, paths, shared, strict=True):
        tokens[path[common:]] = items[number].input_ids[common:]
        positions[path[common:]] = np.arange(common, len(path))
    return Tree(tuple(chosen), tokens, positions, tuple(paths), tuple(shared), items[chosen[0]].images)


def _ordered(items: Sequence[Encoded], group: list[int]) -> list[int]:
    # Any order of bytes will do: all that matters is that equal beginnings come to stand side by side.
    return sorted(group, key=lambda number: items[number].input_ids.tobytes())


def _common(first: np.ndarray, second: np.ndarray) -> int:
    """Length of the common beginning."""
    length = min(len(first), len(second))
    different = np.flatnonzero(first[:length] != second[:length])
    return int(different[0]) if len(different) else length


def _rows(sizes: Sequence[int], items: Sequence[Encoded]) -> list[list[int]]:
    """Which trees of these sizes share a row."""
    beside = any(item.images and not item.image_end for item in items)
    return [[number] for number in range(len(sizes))] if beside else _best_fit(sizes)


def _best_fit(sizes: Sequence[int]) -> list[list[int]]:
    """Pack sizes into rows by best fit decreasing, with the rows in stable order."""
    capacity = max(sizes)
    rows: list[list[int]] = []
    free: list[int] = []
    for number in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        fitting = [row for row in range(len(rows)) if free[row] >= sizes[number]]
        if fitting:
            best = min(fitting, key=lambda row: free[row])
        else:
            best = len(rows)
            rows.append([])
            free.append(capacity)
        rows[best].append(number)
        free[best] -= sizes[number]
    return rows
