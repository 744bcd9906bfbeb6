"""llama.cpp's sources, which the tests in this folder use on request."""

from __future__ import annotations

import os

import pytest

from lockadapt.exports.gguf import LlamaCpp, open_llama_cpp


@pytest.fixture(scope="module")
def llama_cpp() -> LlamaCpp:
    """llama.cpp's sources. Skips unless they are named."""
    if not (folder := os.environ.get("LOCKADAPT_LLAMA_CPP")):
        pytest.skip("LOCKADAPT_LLAMA_CPP does not name a folder with llama.cpp")
    return open_llama_cpp(folder)
