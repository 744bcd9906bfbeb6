"""What a run can be exported as, one file each."""

from __future__ import annotations

from lockadapt.export.targets.adapter import ADAPTER
from lockadapt.export.targets.adapter_full import ADAPTER_FULL
from lockadapt.export.targets.base import Target
from lockadapt.export.targets.bridge import BRIDGE
from lockadapt.export.targets.colpali import COLPALI
from lockadapt.export.targets.dual import DUAL
from lockadapt.export.targets.merged import MERGED
from lockadapt.export.targets.sentence_transformers import SENTENCE_TRANSFORMERS

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (MERGED, BRIDGE, ADAPTER, ADAPTER_FULL, DUAL, SENTENCE_TRANSFORMERS, COLPALI)
}

__all__ = ["TARGETS", "Target"]
