"""Classes without a description of their own: found by structure, labelled as stock, trained with locks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lockadapt.architectures import architecture_of
from lockadapt.architectures.load import load_model
from lockadapt.building.experiment import build_experiment
from lockadapt.console import Reporter
from lockadapt.data.batch import collate
from lockadapt.data.encode import IGNORED, Encoder
from lockadapt.data.pixels import pixel_inputs
from lockadapt.errors import AssemblyError, LockadaptError
from lockadapt.exports.merge import merge_run
from lockadapt.exports.verify import verify_folder
from lockadapt.objectives.answer_tokens import answer_loss, model_inputs
from lockadapt.planning.admission import check_vlm
from lockadapt.runs.run import open_run
from lockadapt.training.loop import train
from tests.support.existing_vlm import recipe_for, written

QUIET = Reporter(quiet=True)
PLAIN = ("gemma3", "idefics3", "llava_next", "aya_vision", "deepseek_vl", "ovis2", "paddleocr_vl", "aria")
TORCHVISION = (
    *("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "mistral3", "llava_onevision", "gemma4", "glm4v"),
    *("pixtral", "cohere2_vision", "perception_lm", "lfm2_vl", "qwen3_5", "video_llama_3"),
)
NAMES = (*PLAIN, *TORCHVISION, "granite4_vision", "smolvlm")
TRAINED = ("gemma3", "idefics3", "llava_next", "qwen3_vl", "granite4_vision", "video_llama_3", "gemma4")


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_is_the_stock_forwards(name: str, tmp_path: Path) -> None:
    vlm = written(name, tmp_path / "vlm")
    samples = build_experiment(recipe_for(vlm, tmp_path)).samples("train")["vqa"][:4]
    model, processor = load_model(vlm, torch.float32)
    rows = Encoder(processor, 4096).encode(samples).encoded
    batch = collate(rows, pixel_inputs(processor, 10**6), processor.tokenizer.pad_token_id, "vqa")
    labels = torch.full_like(batch["input_ids"], IGNORED)
    for row, item in enumerate(rows):
        labels[row, : len(item.labels)] = torch.from_numpy(item.labels.astype("int64"))
        learned = processor.tokenizer.decode(item.labels[item.labels != IGNORED]).strip()
        assert learned.startswith(item.sample.answer)
    with torch.no_grad():
        theirs = model(**model_inputs(model, batch), labels=labels).loss
        ours = answer_loss(model, batch)[0]
    assert abs(float(ours - theirs)) < 1e-5
    assert set(batch["processor_keys"]) >= {"pixel_values"}


@pytest.mark.parametrize("name", TRAINED)
def test_a_run_trains_connector_and_lora_and_proves_the_lock(name: str, tmp_path: Path) -> None:
    vlm = written(name, tmp_path / "vlm")
    train(recipe_for(vlm, tmp_path), tmp_path / "run", QUIET)
    record = open_run(tmp_path / "run").record
    assert {finding["probe"] for finding in record.admission or ()} >= {"parts", "labels", "images", "tail"}
    assert record.locked
    states = {(row.component, row.state) for row in record.stages[0].components}
    assert {("projector", "trained"), ("lora", "trained"), ("tower", "frozen"), ("llm", "frozen")} <= states


@pytest.mark.parametrize(
    ("name", "projector"),
    [
        ("llava_next", ("model.multi_modal_projector", "model.image_newline")),
        ("idefics3", ("model.connector",)),
        ("qwen2_5_vl", ("model.visual.merger",)),
        ("qwen3_vl", ("model.visual.merger", "model.visual.deepstack_merger_list")),
        ("glm4v", ("model.visual.merger", "model.visual.downsample")),
    ],
)
def test_the_connector_is_all_that_is_left_or_the_merger_in_the_tower(
    name: str, projector: tuple[str, ...], tmp_path: Path
) -> None:
    model, _ = load_model(written(name, tmp_path), torch.float32)
    assert architecture_of(model).layout.projector == projector


@pytest.mark.parametrize("name", ["blip2", "kosmos2", "florence2"])
def test_what_would_be_trained_wrongly_is_refused(name: str, tmp_path: Path) -> None:
    vlm = written(name, tmp_path / "vlm")
    with pytest.raises(LockadaptError) as error:
        train(recipe_for(vlm, tmp_path), tmp_path / "run", QUIET)
    assert error.value.fix


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gemma3", "idefics3", "llava_next", "qwen2_5_vl", "internvl"])
def test_a_merge_keeps_the_bases_keys_and_is_proved(name: str, tmp_path: Path) -> None:
    vlm, run, merged = written(name, tmp_path / "vlm"), tmp_path / "run", tmp_path / "merged"
    train(recipe_for(vlm, tmp_path), run, QUIET)
    proof = merge_run(run, merged, QUIET)
    assert proof["missing_keys"] == proof["unexpected_keys"] == []
    assert proof["max_abs_logit_diff"] < 1e-4
    assert load_file(merged / "model.safetensors").keys() == load_file(vlm / "model.safetensors").keys()
    assert verify_folder(merged, run, QUIET)["answers_equal"] == proof["answers"]
    assert verify_folder(merged, None, QUIET)["image_effect"] > 0


@pytest.mark.parametrize("name", ["gemma3", "idefics3", "qwen2_5_vl"])
def test_a_checkpoint_alone_is_measured(name: str, tmp_path: Path) -> None:
    measured = check_vlm(str(written(name, tmp_path)), QUIET)
    results = {finding["probe"]: (finding["result"], finding["detail"]) for finding in measured["findings"]}
    assert "red and round" in results["labels"][1]
    assert results["images"][0] == results["answers"][0] == "ok"
    assert results["packing"] == ("exact", "")
    assert results["cache"][0] == "exact"
    assert 0.5 < float(results["nf4"][0]) < 0.7


def test_a_forward_that_fails_is_an_error_of_the_class(tmp_path: Path) -> None:
    with pytest.raises(AssemblyError, match="forward of Llama4ForConditionalGeneration fails"):
        check_vlm(str(written("llama4", tmp_path)), QUIET)
