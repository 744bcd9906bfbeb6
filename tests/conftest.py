"""Fixtures that all tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lockadapt.architectures.assemble import Assembled, assemble
from lockadapt.console import Reporter
from lockadapt.exports.merge import merge_run
from lockadapt.models import proof
from tests import ON_GPU
from tests.support.rows import train_to_embed
from tests.support.tiny import tiny_image_tokenizer, tiny_llm, tiny_tower
from tests.support.warm import Warm

COLD = proof.run_python


@pytest.fixture(scope="session")
def real() -> Path:
    """Folder of the real models and data: `../shared/real`, or `LOCKADAPT_REAL`. Skips where there is none."""
    beside = Path(__file__).resolve().parents[1] / ".." / "shared" / "real"
    folder = Path(os.environ.get("LOCKADAPT_REAL", beside)).resolve()
    if not folder.is_dir():
        pytest.skip(f"no real models and data at {folder}")
    return folder


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Tiny models are faster without threads that wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="session")
def warm() -> Iterator[Warm]:
    """Proofs are forks of a warm process, but for the tests that are marked `cold`, and on a GPU, which no fork can use."""
    warm = Warm()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proof, "run_python", COLD if ON_GPU else warm)
        yield warm
    warm.close()


@pytest.fixture(autouse=True)
def cold(request: pytest.FixtureRequest, warm: Warm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Marked tests get the fresh process that users get."""
    if request.node.get_closest_marker("cold"):
        monkeypatch.setattr(proof, "run_python", COLD)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source LLMs `llama-tied` and `llama`, and the towers `clip-vision` and `mobilenet-v2`."""
    folder = tmp_path_factory.mktemp("tiny")
    for kind in ("llama-tied", "llama"):
        tiny_llm(kind, folder / kind)
    for kind in ("clip-vision", "mobilenet-v2"):
        tiny_tower(kind, folder / kind)
    return folder


@pytest.fixture(scope="session", params=["clip-vision", "mobilenet-v2"])
def assembled(
    request: pytest.FixtureRequest, tiny: Path, tmp_path_factory: pytest.TempPathFactory
) -> Assembled:
    """The tied Llama with a token tower (LLaVA) and with a feature-map tower (FastVLM). Tests must not change it."""
    output = tmp_path_factory.mktemp("stock") / "model"
    return assemble(tiny / "llama-tied", tiny / request.param, output, dtype="float32", prove=False)


@pytest.fixture(scope="session")
def embedding_run(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the tied Llama that answers and embeds. Tests must not change it."""
    return train_to_embed(tiny, tmp_path_factory.mktemp("embedding"), "llama-tied")


@pytest.fixture(scope="session")
def embedding_merged(embedding_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder merged from it. Tests must not change it."""
    folder = tmp_path_factory.mktemp("embedding") / "merged"
    merge_run(embedding_run, folder, Reporter(quiet=True))
    return folder


@pytest.fixture(scope="session")
def drawing(tmp_path_factory: pytest.TempPathFactory) -> Assembled:
    """The tied Llama with a SigLIP tower and an image tokenizer of 4 x 4 codes (Janus). Tests must not change it."""
    folder = tmp_path_factory.mktemp("drawing")
    llm, tower = tiny_llm("llama-tied", folder / "llm"), tiny_tower("siglip-vision", folder / "tower")
    tokenizer = tiny_image_tokenizer(folder / "image-tokenizer")
    return assemble(llm, tower, folder / "model", image_tokenizer=tokenizer, dtype="float32", prove=False)
