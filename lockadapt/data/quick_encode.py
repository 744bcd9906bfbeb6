"""The encoder's quick way: rows whose template only copies them are rendered once a shape, then tokenised.

A row takes it if its texts hold nothing that the chat template looks for and no control token. The template
is then rendered for the first rows of every shape of conversation only, conversations are tokenised in
segments, and images are put between their tokens. Some rows of every shape go both ways, and have to come out
equal.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from lockadapt.data.dialogue import Dialogue
from lockadapt.data.image_ids import ImageIds, ImageTokens
from lockadapt.data.quick_row import QuickRow
from lockadapt.data.sample import Sample
from lockadapt.data.segments import Segment, SegmentTokenizer, TurnSegment
from lockadapt.models.chat_template import adds_special_tokens
from lockadapt.models.template_strings import template_strings

AUDITED = 8
"""Rows of every shape that go both ways, from the first."""

AUDITED_EVERY = 256
"""Of the rows of a shape, one in so many goes both ways as well."""


class QuickText(NamedTuple):
    """A row before it is tokenised.

    Attributes:
        parts: of all rows of its shape.
        texts: what is said in its turns.
        images: what stands for each image.
        audited: whether the row has to go the long way as well.
    """

    parts: Sequence[Segment | TurnSegment]
    texts: tuple[str, ...]
    images: Sequence[ImageIds]
    audited: bool


@dataclass
class _Plan:
    """How rows of one shape are tokenised, and how many were."""

    parts: Sequence[Segment | TurnSegment]
    rows: int = 0


class QuickEncoder:
    """Writes and tokenises rows that the template only copies.

    Args:
        dialogue: the chat template.
        image_token_id: of the image token; -1: there is none.
        controls: tokens that no text of a row may forge.
        image_texts: what stands for each image of a sample.
    """

    def __init__(
        self,
        dialogue: Dialogue,
        image_token_id: int,
        controls: Sequence[str],
        image_texts: Callable[[Sample], Sequence[str]],
    ) -> None:
        self.dialogue, self.image_texts, self.refused = dialogue, image_texts, 0
        self.segments = SegmentTokenizer(dialogue.tokenizer, image_token_id)
        self.images = ImageTokens(dialogue.tokenizer, dialogue.image_token, image_token_id)
        self._plans: dict[Any, _Plan | None] = {}
        strings = template_strings(dialogue.template)
        self._whole = frozenset[str]() if strings is None else strings.whole
        self._looked_for: Callable[[str], Any] | None = None
        if strings is not None:
            marks = {
                *strings.within,
                *controls,
                dialogue.image_token,
                str(dialogue.tokenizer.bos_token or ""),
            }
            self._looked_for = re.compile("|".join(re.escape(mark) for mark in sorted(marks) if mark)).search

    def write(self, sample: Sample) -> QuickText | None:
        """Write a row.

        Args:
            sample: a conversation.

        Returns:
            Its text; None: it has to go the long way.

        Raises:
            DataError, SafetyError: as `Encoder.image_texts`.
        """
        looked_for, whole = self._looked_for, self._whole
        if looked_for is None:
            return None
        shape = _shape(sample)
        plan = self._plans.get(shape) or self._plan(shape, sample)
        if plan is None:
            return None
        texts = tuple([turn.text for turn in sample.turns])
        for text in texts:
            if not text or text != text.strip() or text in whole or looked_for(text):
                return None
        images: Sequence[ImageIds] | None = ()
        if sample.images and self.dialogue.image_token:
            images = self.images.of(tuple(self.image_texts(sample)))
        if images is None:
            return None
        plan.rows += 1
        audited = plan.rows <= AUDITED or plan.rows % AUDITED_EVERY == 0
        return QuickText(plan.parts, texts, images, audited)

    def refuse(self, sample: Sample) -> None:
        """Let all rows of a sample's shape go the long way from now on; counted in `refused`."""
        self.refused += 1
        self._plans[_shape(sample)] = None

    def rows(self, texts: Sequence[QuickText]) -> list[QuickRow | None]:
        """Tokenise rows, and find their labels.

        Args:
            texts: from `write`.

        Returns:
            The rows; None for one whose text has other image tokens than the row has images.
        """
        return self.segments.rows(
            [text.parts for text in texts], [text.texts for text in texts], [text.images for text in texts]
        )

    def _plan(self, shape: Any, sample: Sample) -> _Plan | None:
        """Of a shape of which a row went the long way already, and whose rows did not come out otherwise."""
        if shape in self._plans or (copied := self.dialogue.copied(sample)) is None:
            return None
        if any(turn.places or (turn.images and turn.role == "assistant") for turn in sample.turns):
            self._plans[shape] = None  # texts between images; or what frames an image would be learned
            return None
        text, _ = copied.write([turn.text for turn in sample.turns])
        special = adds_special_tokens(self.dialogue.tokenizer, text)
        plan = self._plans[shape] = _Plan(self.segments.parts(copied, special))
        return plan


def _shape(sample: Sample) -> Any:
    """As `shape_of`, of conversations whose images stand before texts; some others are apart from them."""
    return tuple([(turn.role, turn.images, bool(turn.places)) for turn in sample.turns])
