"""What is laid out for a terminal."""

from __future__ import annotations

import pytest

from lockadapt.console import Reporter, table_text


def test_a_table_is_aligned_plain_text() -> None:
    rows = [("[bold]tower", "1,234", "-"), ("llm", "7", "x" * 300)]
    assert table_text(("component", "parameters", "state"), rows, right=(1,)).splitlines() == [
        "component    parameters  state",
        "[bold]tower       1,234  -",
        f"llm                   7  {'x' * 300}",
    ]


def test_counted_work_says_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 5.0, 20.0, 3700.0, 9000.0])
    monkeypatch.setattr("lockadapt.console.time.monotonic", lambda: next(now))
    lines: list[str] = []
    reporter = Reporter(quiet=True)
    monkeypatch.setattr(reporter, "note", lines.append)
    told = reporter.counted("opening")
    for done in (1, 100, 200, 1000):
        told(done, 1000)
    assert lines == [
        "opening: 100 of 1,000, about 3 min left",
        "opening: 200 of 1,000, about 4 h left",
        "opening: 1,000 of 1,000",
    ]
