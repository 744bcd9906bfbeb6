"""Licences as sources' own files say them, in their order; nothing from names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lockadapt.architectures.assemble import assemble
from lockadapt.models.origins import UNKNOWN, Origin, inherited, read_origin, write_origins
from tests.support.tiny import tiny_llm, tiny_tower

CARD = (
    "---\nlicense: llama3.2\nlicense_name: Llama\nlicense_link: LICENSE.txt\n---\n# A model\nlicense: mit\n"
)


@pytest.mark.parametrize(
    ("files", "licence", "source"),
    [
        ({}, None, UNKNOWN),
        ({"README.md": CARD}, "llama3.2", "README.md: llama3.2, Llama, LICENSE.txt"),
        ({"README.md": "# No front matter\nlicense: mit"}, None, UNKNOWN),
        ({"README.md": "---\nlicense: [a\n---\n"}, None, UNKNOWN),
        ({"README.md": "---\nlicense: [mit, apache-2.0]\n---\n"}, None, "README.md: mit, apache-2.0"),
        (
            {"README.md": "---\ntags: [x]\n---\n", "LICENSE": "MIT License\n\nCopyright"},
            "mit",
            "LICENSE: MIT License",
        ),
        (
            {"LICENSE.txt": "\n     Apache License\n   Version 2.0, January 2004\n"},
            "apache-2.0",
            "LICENSE.txt: Apache License",
        ),
        ({"LICENCE": "SOME OTHER AGREEMENT\n"}, None, "LICENCE: SOME OTHER AGREEMENT"),
        ({"config.json": '{"license": "Apache-2.0"}'}, "apache-2.0", "config.json: Apache-2.0"),
        ({"config.json": "{}", "LICENSE": ""}, None, "LICENSE: empty"),
    ],
)
def test_what_a_folder_says(files: dict[str, str], licence: str | None, source: str, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert read_origin("LLM", str(tmp_path)) == Origin("LLM", tmp_path.name, None, licence, source)


def test_a_file_is_said_of_by_its_folder(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("")
    (tmp_path / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n")
    assert read_origin("data", str(tmp_path / "rows.jsonl")).licence == "cc-by-4.0"


def test_a_hub_id_by_its_cached_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked = []
    (tmp_path / "README.md").write_text(CARD)

    def download(repo: str, name: str, *, repo_type: str, etag_timeout: float, local_files_only: bool) -> str:
        asked.append((repo, name, repo_type))
        if repo == "org/gone":
            raise OSError("offline")
        return str(tmp_path / "README.md")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    origin = read_origin("LLM", "org/model")
    assert (origin.hub_id, origin.licence) == ("org/model", "llama3.2")
    assert read_origin("data", "org/gone", "dataset") == Origin("data", "org/gone", "org/gone", None, UNKNOWN)
    assert asked == [("org/model", "README.md", "model"), ("org/gone", "README.md", "dataset")]
    assert read_origin("data", "/gone/nowhere.jsonl") == Origin("data", "nowhere.jsonl", None, None, UNKNOWN)


def test_an_assembled_folder_says_what_it_is_made_of(tmp_path: Path) -> None:
    llm, tower = tiny_llm("llama-tied", tmp_path / "llm"), tiny_tower("clip-vision", tmp_path / "tower")
    (llm / "README.md").write_text(CARD)
    config = json.loads((llm / "config.json").read_text())
    del config["architectures"]
    (llm / "config.json").write_text(json.dumps(config))
    assemble(llm, tower, tmp_path / "out", dtype="float32", prove=False)
    origins = inherited(str(tmp_path / "out"))
    assert [(origin.part, origin.licence) for origin in origins] == [("LLM", "llama3.2"), ("tower", None)]
    text = json.loads((tmp_path / "out" / "config.json").read_text())["text_config"]
    assert text["architectures"] == ["LlamaForCausalLM"]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    origins = [Origin("LLM", "a/b", "a/b", "mit", "README.md: mit")]
    write_origins(tmp_path, origins)
    assert inherited(str(tmp_path)) == origins
    assert inherited(str(tmp_path / "none")) == []
