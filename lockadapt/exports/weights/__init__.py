"""Merging from safetensors shards to shards, tensor by tensor, never with a whole model in memory."""

from __future__ import annotations

from lockadapt.exports.weights.merge_weights import WeightsReport, merge_weights
from lockadapt.exports.weights.shards import Layout, read_layout

__all__ = ["Layout", "WeightsReport", "merge_weights", "read_layout"]
