"""The two files appear together or not at all; refusals come before any weight is read. The converter is a stand-in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lockadapt.architectures.assemble import assemble
from lockadapt.errors import RecipeError, SetupError, VerificationError
from lockadapt.exports.gguf import LlamaCpp, gguf_refusal, open_llama_cpp, write_gguf
from lockadapt.exports.gguf import llama_cpp as module
from tests.support.stand_in import arguments_of, stand_in
from tests.support.tiny import tiny_llm, tiny_tower

pytest.importorskip("gguf", reason="needs the gguf package (pip install 'lockadapt[gguf]')")


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("siglip")
    sources = tiny_llm("llama", folder / "llm"), tiny_tower("siglip-vision", folder / "tower")
    assemble(*sources, folder / "merged", dtype="bfloat16", prove=False)
    return folder / "merged"


def test_both_files_in_the_dtype_of_the_folder(siglip: Path, tmp_path: Path) -> None:
    seen: list[tuple[list[str], Any]] = []
    report = write_gguf(
        siglip,
        tmp_path / "out",
        stand_in(tmp_path / "llama.cpp"),
        finish=lambda folder, result: seen.append((sorted(path.name for path in folder.iterdir()), result)),
    )
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "mmproj-model-bf16.gguf",
        "model-bf16.gguf",
    ]
    assert arguments_of(tmp_path / "out" / report["model"]) == "--outtype bf16"
    assert report["tensors"] == report["compared"] > 0
    assert report["llm_class"] == "LlamaForCausalLM"
    assert report["projector"] == "mlp"
    assert report["notes"] == []
    assert seen == [(["mmproj-model-bf16.gguf", "model-bf16.gguf"], report)]


def test_refusal_of_the_converter_comes_before_the_work(siglip: Path, tmp_path: Path) -> None:
    words = 'sys.exit("NotImplementedError: BPE pre-tokenizer was not recognized")'
    llama_cpp = stand_in(tmp_path / "llama.cpp", vocabulary=words, weights='raise AssertionError("worked")')
    with pytest.raises(
        RecipeError, match="does not take this LLM: NotImplementedError: BPE pre-tokenizer"
    ) as caught:
        write_gguf(siglip, tmp_path / "out", llama_cpp)
    assert caught.value.where == "--to"
    assert not (tmp_path / "out").exists()


def test_an_exception_without_words_is_told_by_its_code(siglip: Path, tmp_path: Path) -> None:
    llama_cpp = stand_in(tmp_path / "llama.cpp", vocabulary="assert not arguments")
    assert str(gguf_refusal(siglip, llama_cpp)).endswith("this LLM: AssertionError: assert not arguments")


def test_failure_leaves_nothing(siglip: Path, tmp_path: Path) -> None:
    llama_cpp = stand_in(tmp_path / "llama.cpp", weights='sys.exit("KeyError: unheard of")')
    with pytest.raises(VerificationError, match="converter failed: KeyError: unheard of"):
        write_gguf(siglip, tmp_path / "out", llama_cpp)
    assert [path.name for path in tmp_path.iterdir()] == ["llama.cpp"]


def test_feature_maps_and_drawing_are_refused_at_once(assembled: Any, drawing: Any, tmp_path: Path) -> None:
    nothing = LlamaCpp(tmp_path)  # never asked
    assert "cannot generate images" in str(gguf_refusal(drawing.folder, nothing))
    if type(assembled.model).__name__ == "FastVlmForConditionalGeneration":
        assert "CNN tower" in str(gguf_refusal(assembled.folder, nothing))


@pytest.mark.parametrize(
    ("line", "refused"),
    [
        ("        inp = ggml_concat(ctx0, inp, model.class_embedding, 1);", True),
        ("        inp = ggml_concat(ctx0, model.class_embedding, inp, 1);", False),
    ],
)
def test_clip_depends_on_the_order_in_llama_cpp(line: str, refused: bool, tiny: Path, tmp_path: Path) -> None:
    merged = tmp_path / "merged"
    assemble(tiny / "llama-tied", tiny / "clip-vision", merged, dtype="float32", prove=False)
    llama_cpp = stand_in(tmp_path / "llama.cpp")
    graph = tmp_path / "llama.cpp" / "tools" / "mtmd" / "models" / "llava.cpp"
    graph.parent.mkdir(parents=True)
    graph.write_text(line)
    reason = gguf_refusal(merged, llama_cpp)
    assert ("issues/25814" in str(reason)) == refused
    assert (reason is None) != refused


def test_output_and_type_are_checked_first(siglip: Path, tmp_path: Path) -> None:
    llama_cpp = stand_in(tmp_path / "llama.cpp")
    with pytest.raises(RecipeError, match="no outtype 'q4'"):
        write_gguf(siglip, tmp_path / "out", llama_cpp, outtype="q4")
    with pytest.raises(RecipeError, match="not empty"):
        write_gguf(siglip, tmp_path / "llama.cpp", llama_cpp)


def test_what_is_no_llama_cpp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SetupError, match="there is no convert_hf_to_gguf.py"):
        open_llama_cpp(tmp_path)
    (tmp_path / "convert_hf_to_gguf.py").write_text("import no_such_package")
    with pytest.raises(SetupError, match="No module named 'no_such_package'"):
        _ = open_llama_cpp(tmp_path).classes
    monkeypatch.setattr(module, "PACKAGES", {"no_such_package.inside": "no-such-package"})
    with pytest.raises(SetupError, match="need no-such-package, which is not installed"):
        open_llama_cpp(tmp_path)


def test_classes_of_the_converter(tmp_path: Path) -> None:
    text, mmproj = stand_in(tmp_path / "llama.cpp").classes
    assert text == {"LlamaForCausalLM"}
    assert mmproj == {"Idefics3ForConditionalGeneration"}
