"""Writes a merged stock folder for llama.cpp: the LLM as one GGUF file, tower and projector as another."""

from __future__ import annotations

from lockadapt.exports.gguf.llama_cpp import LlamaCpp, open_llama_cpp
from lockadapt.exports.gguf.refusal import gguf_refusal
from lockadapt.exports.gguf.write import OUTTYPES, write_gguf

__all__ = ["OUTTYPES", "LlamaCpp", "gguf_refusal", "open_llama_cpp", "write_gguf"]
