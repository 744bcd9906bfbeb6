"""What encoding the rows of one objective and part came to, added up report by report."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from lockadapt.console import Reporter
from lockadapt.data.encode import Encoder, EncodeReport


@dataclass
class Tally:
    """Counts; of the rows themselves nothing is kept.

    Attributes:
        rows: by the position of their source.
        keys: of the distinct images of rows that are in memory.
        shown: how many images streamed rows show; which are the same is not known.
        cut, dropped, merged: longer rows, and answers that share their first token with the prompt.
    """

    rows: Counter[int] = field(default_factory=Counter)
    keys: set[str] = field(default_factory=set)
    shown: int = 0
    interleaved: int = 0
    tokens: int = 0
    learned: int = 0
    longest: int = 0
    cut: int = 0
    dropped: int = 0
    merged: int = 0
    first_merged: str = ""

    def add(self, report: EncodeReport, streamed: bool = False) -> None:
        """Counts what was encoded.

        Args:
            report: of some rows.
            streamed: whether they are not in memory.
        """
        self.rows.update(item.sample.source for item in report.encoded)
        if streamed:
            self.shown += sum(len(item.images) for item in report.encoded)
        else:
            self.keys.update(image.key for item in report.encoded for image in item.images)
        self.interleaved += sum(any(any(t.places) for t in item.sample.turns) for item in report.encoded)
        self.tokens += report.tokens
        self.learned += report.label_tokens
        self.longest = max([self.longest, *(len(item.input_ids) for item in report.encoded)])
        self.cut += len(report.cut)
        self.dropped += len(report.dropped)
        self.merged += len(report.merged_boundaries)
        self.first_merged = self.first_merged or next(iter(report.merged_boundaries), "")

    @property
    def images(self) -> int:
        """Distinct images of rows in memory, and all that streamed rows show."""
        return len(self.keys) + self.shown

    def told(self, heading: str, encoder: Encoder, reporter: Reporter) -> dict[str, Any]:
        """Says what was counted; also as values for JSON.

        Args:
            heading: objective and part.
            encoder: that made the rows.
            reporter: is told.

        Returns:
            `{"rows", "images", "interleaved", "tokens", …}`.
        """
        rows = self.rows.total()
        reporter.note(
            f"{heading}: {rows:,} rows, {self.images:,} images ({encoder.image_tokens} tokens each), "
            f"{self.tokens:,} tokens (longest {self.longest:,} of {encoder.max_length:,}), "
            f"{self.learned:,} learned, {self.cut} cut, {self.dropped} dropped"
        )
        if self.interleaved:
            reporter.note(f"  {self.interleaved:,} rows show images between or behind their texts")
        if self.merged:
            reporter.note(
                f"  {self.merged} answers share their first token with the prompt, e.g. "
                f"{self.first_merged}: generation will start differently from training"
            )
        return {
            "rows": rows,
            "images": self.images,
            "interleaved": self.interleaved,
            "tokens": self.tokens,
            "learned_tokens": self.learned,
            "longest": self.longest,
            "cut": self.cut,
            "dropped": self.dropped,
            "merged_boundaries": self.merged,
        }
