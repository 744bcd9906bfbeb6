"""Clients that a contrastive run can be exported to, one file each."""

from __future__ import annotations

from lockadapt.export.targets.base import Frames, Target, Trained, export
from lockadapt.export.targets.colpali import COLPALI
from lockadapt.export.targets.dual import DUAL
from lockadapt.export.targets.sentence_transformers import SENTENCE_TRANSFORMERS

TARGETS: dict[str, Target] = {target.name: target for target in (DUAL, SENTENCE_TRANSFORMERS, COLPALI)}

__all__ = ["TARGETS", "Frames", "Target", "Trained", "export"]
