"""An image that cannot be opened when it is drawn is an error that names its row, from a worker, too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader

from lockadapt.data.drawn import DrawnRows
from lockadapt.data.encode import Encoded
from lockadapt.data.failures import carrying_failures, naming_rows, raise_failure
from lockadapt.data.images import open_image
from lockadapt.data.mixture import MixedDataset
from lockadapt.data.sample import ImageRef, question_answer
from lockadapt.errors import DataError


def collate(items: Any) -> dict[str, Any]:
    rows = [row for _, row in items]
    with naming_rows(rows):
        open_image(rows[0].images[0], 10_000)
    return {}


class Unusable(DrawnRows):
    """Rows none of which can be used."""

    def __init__(self) -> None:
        pass

    def __len__(self) -> int:
        return 2

    def take(self, rows: Any) -> Any:
        raise DataError("is bad", where=f"rows.jsonl:{rows[0]}", fix="mend it")


@pytest.mark.parametrize("workers", [0, 1])
def test_rows_that_cannot_be_drawn(workers: int) -> None:
    collated = carrying_failures(collate)
    loader = DataLoader(
        MixedDataset({"vqa": Unusable()}), batch_sampler=[[1, 0]], collate_fn=collated, num_workers=workers
    )
    with pytest.raises(DataError) as raised:
        raise_failure(list(loader))
    assert (raised.value.where, raised.value.fix) == ("rows.jsonl:1", "mend it")


@pytest.mark.parametrize("workers", [0, 1])
def test_the_row_is_named(tmp_path: Path, workers: int) -> None:
    image, ids = ImageRef("absent", tmp_path / "absent.png"), np.zeros(1, np.int32)
    sample = question_answer("?", "a", [image], "rows.jsonl:7")
    items = [("vqa", Encoded(ids, ids, sample.images, sample))]
    with pytest.raises(DataError) as raised:
        raise_failure(list(DataLoader(items, collate_fn=carrying_failures(collate), num_workers=workers)))
    assert raised.value.where == "rows.jsonl:7"
    assert "absent.png" in raised.value.message
    assert raised.value.fix
