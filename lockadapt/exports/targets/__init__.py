"""What a run can be exported as, one file each."""

from __future__ import annotations

from lockadapt.exports.targets.adapter import ADAPTER
from lockadapt.exports.targets.adapter_full import ADAPTER_FULL
from lockadapt.exports.targets.base import ExportTarget
from lockadapt.exports.targets.bridge import BRIDGE
from lockadapt.exports.targets.colpali import COLPALI
from lockadapt.exports.targets.dual import DUAL
from lockadapt.exports.targets.merged import MERGED
from lockadapt.exports.targets.sentence_transformers import SENTENCE_TRANSFORMERS

TARGETS: dict[str, ExportTarget] = {
    target.name: target
    for target in (MERGED, BRIDGE, ADAPTER, ADAPTER_FULL, DUAL, SENTENCE_TRANSFORMERS, COLPALI)
}

__all__ = ["TARGETS", "ExportTarget"]
