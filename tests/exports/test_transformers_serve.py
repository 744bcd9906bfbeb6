"""`transformers serve` on a merged folder, asked by the official `openai` client: the same answers as ours."""

from __future__ import annotations

import base64
import io
import json
import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from lockadapt import Predictor, merge, train
from tests.support.runs import values

pytestmark = pytest.mark.slow
SERVE = "import torch; torch.set_num_threads(1); from transformers.cli.transformers import main; main()"
QUESTIONS = ("what color is the shape?", "is there a red shape?")


@pytest.fixture(scope="module")
def merged(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    recipe = values(tiny, folder)
    recipe["training"] |= {"steps": 60, "learning_rate": 3e-3, "projector_learning_rate": 3e-3}
    train(recipe, output=folder / "run", quiet=True)
    merge(folder / "run", folder / "merged", quiet=True)
    return folder / "merged"


@pytest.fixture(scope="module")
def address(merged: Path) -> Iterator[str]:
    """Where the server answers; it may not reach the network, and lockadapt cannot be imported in it."""
    for package in ("openai", "fastapi", "uvicorn"):
        pytest.importorskip(package, reason=f"needs transformers[serving] and openai: {package}")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = ["serve", str(merged), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, *arguments, "--log-level", "info"],
        stderr=subprocess.PIPE,
        text=True,
        cwd=merged.parent,
        env=environment | {"HF_HUB_OFFLINE": "1"},
    )
    try:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if "running on" in line:
                break
        else:
            raise AssertionError("".join(lines))
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.communicate(timeout=60)


def test_answers_are_ours(merged: Path, address: str) -> None:
    import openai

    client = openai.OpenAI(base_url=address, api_key="none", timeout=300)
    predictor = Predictor(merged)
    ours, theirs = [], []
    for name in ("red", "blue"):
        file = merged.parent / "pictures" / f"{name}.png"
        picture = base64.b64encode(file.read_bytes()).decode()
        for question in QUESTIONS:
            content = [
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}},
                {"type": "text", "text": question},
            ]
            reply = client.chat.completions.create(
                model=str(merged),
                messages=[{"role": "user", "content": content}],  # type: ignore[misc,list-item]
                max_tokens=8,
                temperature=0,
            )
            theirs.append((reply.choices[0].message.content or "").strip())
            ours.append(predictor.answer(file, question, max_new_tokens=8))
    assert theirs == ours
    assert len(set(ours)) > 1, "answers that do not depend on what is asked compare nothing"


def test_requests_of_vlmevalkit_are_answered(merged: Path, address: str) -> None:
    """As its `OpenAIWrapper` posts them: a JPEG as data URI with `detail`, `n`, and temperature 0."""
    answers = []
    with Image.open(merged.parent / "pictures" / "red.png") as picture:
        coded = io.BytesIO()
        picture.convert("RGB").save(coded, format="JPEG")
    url = f"data:image/jpeg;base64,{base64.b64encode(coded.getvalue()).decode()}"
    for question in QUESTIONS:
        content = [
            {"type": "image_url", "image_url": {"url": url, "detail": "high"}},
            {"type": "text", "text": question},
        ]
        payload = {"model": str(merged), "messages": [{"role": "user", "content": content}]}
        request = urllib.request.Request(
            f"{address}/chat/completions",
            json.dumps({**payload, "n": 1, "temperature": 0, "max_tokens": 8}).encode(),
            {"Content-Type": "application/json", "Authorization": "Bearer sk-none"},
        )
        with urllib.request.urlopen(request, timeout=300) as reply:
            answers.append(json.load(reply)["choices"][0]["message"]["content"].strip())
    shown = Image.open(io.BytesIO(coded.getvalue()))
    predictor = Predictor(merged)
    assert answers == [predictor.answer(shown, question, max_new_tokens=8) for question in QUESTIONS]
