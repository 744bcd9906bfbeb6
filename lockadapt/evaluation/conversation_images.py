"""Images of conversations: what the frozen parts make of one is kept for the questions that follow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from lockadapt.architectures.base import unwrap_model
from lockadapt.building.cache_trial import try_cache
from lockadapt.data.encode import Encoder
from lockadapt.data.pixels import ImageInputs, PixelInputs, ProcessorInputs
from lockadapt.data.sample import Sample
from lockadapt.errors import LockadaptError
from lockadapt.features.in_memory import FeatureInputs
from lockadapt.features.inputs import memory_features, why_nothing_is_kept
from lockadapt.features.policy import FeatureSettings, ImagePolicy
from lockadapt.planning.admission import drawn_samples

MOST_IMAGES = 256
"""Images that are kept at a time; then all are forgotten, as whoever asks about so many seldom comes back."""


@dataclass
class ConversationImages:
    """Where the images of questions come from: kept features where those are exact, else pixels every time.

    Only what the tower gives is kept: a projector may be trained on, or exchanged, between two questions.

    Attributes:
        model: a Transformers model in eval mode, possibly wrapped by PEFT.
        encoder: of the model's processor.
        pixels: how pictures are preprocessed.
        note: told why nothing is kept; None: nobody is.
    """

    model: nn.Module
    encoder: Encoder
    pixels: PixelInputs | ProcessorInputs
    note: Callable[[str], None] | None = None
    _kept: FeatureInputs | None = None
    _problem: str | None = None
    _tried: bool = False
    _asked: set[str] = field(default_factory=set)

    def of(self, samples: Sequence[Sample]) -> ImageInputs:
        """The image inputs for samples.

        Args:
            samples: that will be asked about.

        Returns:
            Pixels where all images are new, as many are asked about once; from the second time on kept
            features, but where those would not be the same.
        """
        images = {image.key for sample in samples for image in sample.images}
        new = images - self._asked
        self._asked |= new
        if new == images:
            return self.pixels
        if not self._tried:
            self._tried, self._problem = True, self._why_not()
            if self._problem is not None and self.note is not None:
                self.note(f"images are read anew for every question, as {self._problem}")
        if self._problem is not None or not self._alone(samples):
            return self.pixels
        if self._kept is None or len(self._kept) > MOST_IMAGES:
            self._asked = set(images)
            self._kept = memory_features(unwrap_model(self.model), self.pixels)
        return self._kept

    def _alone(self, samples: Sequence[Sample]) -> bool:
        """Whether images beside others give the tokens that they give alone."""
        if not isinstance(self.pixels, ProcessorInputs):
            return True
        return all(self.pixels.as_alone(sample.images) for sample in samples)

    def _why_not(self) -> str | None:
        """As a run finds it out, on drawn pictures where the class is not known."""
        processor, limit = self.encoder.processor, self.pixels.max_pixels
        refused = None
        if isinstance(self.pixels, ProcessorInputs):
            try:
                rows = self.encoder.encode(drawn_samples()).encoded
            except LockadaptError as error:
                return error.message
            refused = try_cache(self.model, processor, rows, True, limit).problem
        policy = ImagePolicy(FeatureSettings(), limit, refused=refused)
        return why_nothing_is_kept(self.model, self.pixels, policy, ())


def file_key(path: Path) -> str:
    """The key of a file as it is now: one that was replaced between two questions is another image."""
    try:
        state = path.stat()
    except OSError:  # whoever opens it says so
        return str(path)
    return f"{path} {state.st_size} {state.st_mtime_ns}"
