"""What a run can learn: one file an objective, all of the shape in `base.py`."""

from typing import Any

# First, because Transformers imports bitsandbytes, which speaks to the terminal.
import lockadapt.models.bitsandbytes  # noqa: F401  # isort: skip
from lockadapt.objectives.base import Objective, Objectives
from lockadapt.objectives.caption import Caption
from lockadapt.objectives.dialogue import Dialogue
from lockadapt.objectives.grounding import Grounding
from lockadapt.objectives.itc import ImageText
from lockadapt.objectives.preference import Preference
from lockadapt.objectives.text import PlainText
from lockadapt.objectives.text_to_image import TextToImage
from lockadapt.objectives.vqa import Vqa

KINDS: dict[str, Any] = {
    "caption": Caption,
    "vqa": Vqa,
    "dialogue": Dialogue,
    "grounding": Grounding,
    "itc": ImageText,
    "t2i": TextToImage,
    "preference": Preference,
    "text": PlainText,
}
"""Recipe kind -> class; its dataclass fields are the recipe's keys of the same names."""

__all__ = [
    "KINDS",
    "Caption",
    "Dialogue",
    "Grounding",
    "ImageText",
    "Objective",
    "Objectives",
    "PlainText",
    "Preference",
    "TextToImage",
    "Vqa",
]
