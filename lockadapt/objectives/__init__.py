"""What a run can learn: one file an objective, all of the shape in `base.py`."""

from collections.abc import Callable

from lockadapt.objectives.base import Objective, Objectives
from lockadapt.objectives.caption import Caption
from lockadapt.objectives.dialogue import Dialogue
from lockadapt.objectives.vqa import Vqa

KINDS: dict[str, Callable[..., Objective]] = {"caption": Caption, "vqa": Vqa, "dialogue": Dialogue}
"""Recipe kind -> class."""

__all__ = ["KINDS", "Caption", "Dialogue", "Objective", "Objectives", "Vqa"]
