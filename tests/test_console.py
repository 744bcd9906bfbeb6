"""What is laid out for a terminal."""

from __future__ import annotations

from lockadapt.console import table_text


def test_a_table_is_aligned_plain_text() -> None:
    rows = [("[bold]tower", "1,234", "-"), ("llm", "7", "x" * 300)]
    assert table_text(("component", "parameters", "state"), rows, right=(1,)).splitlines() == [
        "component    parameters  state",
        "[bold]tower       1,234  -",
        f"llm                   7  {'x' * 300}",
    ]
