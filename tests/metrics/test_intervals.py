"""The interval of a paired change: bounds that paper and pencil give."""

from __future__ import annotations

import pytest

from lockadapt.errors import DataError
from lockadapt.metrics.intervals import paired_change


def test_a_change_of_every_item_is_certain() -> None:
    change = paired_change([0.0, 1.0, 2.0], [0.5, 1.5, 2.5])
    assert (change["before"], change["after"], change["n"]) == (1.0, 1.5, 3)
    assert (change["low"], change["high"]) == (0.5, 0.5)


def test_the_interval_is_the_normal_one_where_there_are_many() -> None:
    before = [0.0] * 1000
    after = [1.0] * 100 + [0.0] * 900  # mean 0.1, standard error sqrt(0.09 / 1000)
    change = paired_change(before, after)
    error = 1.96 * (0.1 * 0.9 / 1000) ** 0.5
    assert change["low"] == pytest.approx(0.1 - error, abs=2e-3)
    assert change["high"] == pytest.approx(0.1 + error, abs=2e-3)


def test_lengths_must_agree() -> None:
    with pytest.raises(DataError, match="2 scores before and 1 after"):
        paired_change([0.0, 1.0], [1.0])
