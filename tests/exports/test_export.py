"""`export` from a run folder: refusals before any work, folders proved and described, embeddings those of the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from PIL import Image

from lockadapt.console import Reporter
from lockadapt.errors import RecipeError, VerificationError
from lockadapt.evaluation.embedder import Embedder
from lockadapt.evaluation.evaluate import evaluate_folder
from lockadapt.evaluation.search import Queries, search
from lockadapt.evaluation.target import open_target
from lockadapt.exports.export import export_run
from lockadapt.exports.merge import merge_run
from lockadapt.exports.targets import TARGETS
from lockadapt.exports.targets import merged as merged_target
from lockadapt.recipe.read import load_recipe
from lockadapt.runs.run import open_run
from lockadapt.training.loop import train
from tests.support.rows import CAPTIONS, embedding_recipe, pictures
from tests.support.runs import values
from tests.support.tiny import COMMON, tiny_tokenizer

QUIET = Reporter(quiet=True)
TEXTS = ["a red shape", "blue"]


@pytest.fixture(scope="module")
def dual_run(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT with a pooler beside a CLIP tower, trained to retrieve."""
    folder = tmp_path_factory.mktemp("dual")
    torch.manual_seed(0)
    hf.BertModel(hf.BertConfig(**COMMON)).save_pretrained(folder / "bert")
    tiny_tokenizer().save_pretrained(folder / "bert")
    recipe = embedding_recipe(tiny, folder, "llama")
    recipe["model"]["llm"] = str(folder / "bert")
    del recipe["objectives"]["vqa"], recipe["objectives"]["itc"]["queries"]
    recipe["objectives"]["itc"]["text_prompt"] = "{caption}"
    train(load_recipe(None, (), recipe).recipe, folder / "run", QUIET)
    return folder / "run"


def own(run: Path, folder: Path) -> tuple[torch.Tensor, torch.Tensor, list[Image.Image]]:
    """Texts and images as the run itself embeds them, and the images."""
    from lockadapt.data.sample import ImageRef

    embedder = Embedder.open(open_target(run))
    paths = list(pictures(folder).values())
    images = embedder.images([ImageRef(str(path), path=path) for path in paths])
    return embedder.texts(TEXTS), images, [Image.open(path).convert("RGB") for path in paths]


def test_colpali_folder_embeds_as_the_run(embedding_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "colpali"
    proof = export_run(embedding_run, "colpali", folder, QUIET)
    assert proof["model_class"] == "ColPaliForRetrieval"
    assert max(proof["text_difference"], proof["image_difference"]) < 1e-4
    card = (folder / "README.md").read_text()
    lines = card.split("```python\n")[1].split("```")[0].splitlines()
    scope: dict[str, Any] = {}
    texts, images, shown = own(embedding_run, tmp_path / "pictures")
    # The card's own code, of another text and image.
    code = "\n".join(lines).replace("PATH", str(folder)).replace("a text", TEXTS[0])
    shown[0].save(tmp_path / "image.png")
    exec(code.replace("image.png", str(tmp_path / "image.png")), scope)
    expected, seen = scope["embeddings"]
    torch.testing.assert_close(expected[0].float(), texts[0], rtol=0, atol=1e-4)
    torch.testing.assert_close(seen[0].float(), images[0], rtol=0, atol=1e-4)
    assert json.loads((folder / "lockadapt.json").read_text())["files"]


def test_dual_folder_embeds_as_the_run_and_can_be_searched(dual_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "dual"
    proof = export_run(dual_run, "dual", folder, QUIET)
    assert proof["model_class"] == "VisionTextDualEncoderModel"
    texts, images, shown = own(dual_run, tmp_path / "pictures")
    model = hf.VisionTextDualEncoderModel.from_pretrained(folder).eval()
    processor = hf.AutoProcessor.from_pretrained(folder)
    with torch.no_grad():
        outputs = model(**processor(text=TEXTS, images=shown, padding=True, return_tensors="pt"))
    torch.testing.assert_close(outputs.text_embeds, texts, rtol=0, atol=1e-4)
    torch.testing.assert_close(outputs.image_embeds, images, rtol=0, atol=1e-4)
    assert "VisionTextDualEncoderModel.from_pretrained" in (folder / "README.md").read_text()
    before = evaluate_folder(dual_run, None, (), False, None, QUIET)
    assert set(before) == {"retrieval"}
    assert evaluate_folder(folder, None, (), False, None, QUIET) == before
    hits = [
        search(
            target, tmp_path / "pictures", Queries([CAPTIONS["red"]]), tmp_path / f"index{number}", 4, QUIET
        )
        for number, target in enumerate((dual_run, folder))
    ]
    assert hits[0]["searches"] == [
        {
            **search,
            "results": [{**hit, "score": pytest.approx(hit["score"], abs=1e-4)} for hit in search["results"]],
        }
        for search in hits[1]["searches"]
    ]
    with pytest.raises(RecipeError, match="dual encoder") as error:
        merge_run(dual_run, tmp_path / "merged", QUIET)
    assert "--to dual" in str(error.value.fix)


def test_merged_is_a_target(embedding_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merged_target, "merge_run", lambda *given: {"given": given})
    report = export_run(embedding_run, "merged", tmp_path / "out", QUIET)
    assert report["given"] == (open_run(embedding_run), tmp_path / "out", QUIET)
    assert report["target"] == "merged"
    assert {"merged", "bridge", "adapter", "adapter-full", "dual", "sentence-transformers", "colpali"} <= set(
        TARGETS
    )


def test_refusals_come_before_any_work(
    tiny: Path, embedding_run: Path, dual_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, run, message in (
        ("dual", embedding_run, "go through one model"),
        ("colpali", dual_run, "one model for images and texts"),
    ):
        with pytest.raises(RecipeError, match=message):
            export_run(run, name, tmp_path / "out", QUIET)
    answering = tmp_path / "answering"
    train(load_recipe(None, (), values(tiny, tmp_path)).recipe, answering, QUIET)

    def load(*given: Any, **named: Any) -> Any:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("lockadapt.runs.run.Run.load", load)
    with pytest.raises(RecipeError, match="not trained to embed"):
        export_run(answering, "colpali", tmp_path / "out", QUIET)
    with pytest.raises(RecipeError, match="no target 'colpalli'") as error:
        export_run(embedding_run, "colpalli", tmp_path / "out", QUIET)
    assert "did you mean colpali" in str(error.value.fix)
    with pytest.raises(RecipeError, match="no run folder"):
        export_run(tmp_path, "dual", tmp_path / "out", QUIET)
    with pytest.raises(RecipeError, match="not empty"):
        export_run(embedding_run, "colpali", tmp_path, QUIET)
    assert not (tmp_path / "out").exists()


def test_frames_that_training_did_not_use_fail(
    embedding_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lockadapt.objectives import ImageText

    frames = ImageText.frames
    monkeypatch.setattr(ImageText, "frames", lambda *given: (f"x{frames(*given)[0]}", *frames(*given)[1:]))
    with pytest.raises(VerificationError, match="embeddings of texts differ"):
        export_run(embedding_run, "colpali", tmp_path / "out", QUIET)
    assert list(tmp_path.iterdir()) == []
