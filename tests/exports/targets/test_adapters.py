"""Bridge, adapter and adapter-full: what is in them, real clients that load them without lockadapt, refusals, failing proofs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from lockadapt.console import Reporter
from lockadapt.errors import RecipeError, VerificationError
from lockadapt.evaluation.evaluate import evaluate_folder
from lockadapt.exports import peft_folder, stock_folder
from lockadapt.exports.export import export_run
from lockadapt.exports.proofs.merged_folder import reference_answers
from lockadapt.models.four_bit import keep_as_trained
from lockadapt.recipe.read import load_recipe
from lockadapt.runs import run_folder
from lockadapt.runs.artifacts import PART_FILES
from lockadapt.runs.record import write_record
from lockadapt.runs.run import Run, load_run
from lockadapt.runs.run_folder import read_probe
from lockadapt.training.loop import train
from lockadapt.tuning.locks import ComponentRow
from tests.support.rows import embedding_recipe, pictures
from tests.support.runs import component, record, values
from tests.support.tiny import tiny_image_tokenizer, tiny_llm, tiny_tower

QUIET = Reporter(quiet=True)
CLIENT = Path(__file__).with_name("client.py")


def trained(recipe: dict[str, Any], folder: Path) -> Path:
    """The run folder of a recipe."""
    train(load_recipe(None, (), recipe).recipe, folder, QUIET)
    return folder


@pytest.fixture(scope="module")
def run(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Projector and LoRA, in float32. Tests must not change it."""
    folder = tmp_path_factory.mktemp("run")
    return trained(values(tiny, folder), folder / "colours")


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The run as `adapter` and `bridge` in one folder, and what exporting said. Tests must not change it."""
    folder = tmp_path_factory.mktemp("exported") / "out"
    return folder, export_run(run, "adapter", folder, QUIET)


@pytest.fixture(scope="module")
def full(run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The run as `adapter-full`. Tests must not change it."""
    folder = tmp_path_factory.mktemp("full") / "out"
    return folder, export_run(run, "adapter-full", folder, QUIET)


@pytest.fixture(scope="module")
def second(exported: tuple[Path, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of LoRA alone, on the first run's bridge. Tests must not change it."""
    folder = tmp_path_factory.mktemp("second")
    recipe = values(folder, folder, stages=[{"name": "only", "train": ["lora"], "steps": 6}])
    recipe["model"] = {"vlm": str(exported[0] / "bridge"), "dtype": "float32"}
    recipe["training"]["seed"] = 3
    return trained(recipe, folder / "again")


def forward(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits without gradients."""
    with torch.no_grad():
        return model.eval()(**inputs).logits


def inputs_of(run: Path) -> dict[str, torch.Tensor]:
    """The first probe sample, as the stock class takes it."""
    loaded = load_run(run)
    tensors = reference_answers(loaded.model, loaded.processor, read_probe(run)[:1]).tensors
    case = "sample0."
    return {name.removeprefix(case): tensor for name, tensor in tensors.items() if name.startswith(case)}


def good(proof: dict[str, Any]) -> None:
    """What every proof must have said."""
    assert proof["max_abs_logit_diff"] < 1e-4
    assert proof["kl"] < 1e-8
    assert proof["top1_agreement"] == 1.0
    assert proof["missing_keys"] == proof["unexpected_keys"] == []
    assert proof["answers_equal"] == proof["answers"] > 0
    assert proof["prompts_equal"] is True


def test_proofs_say_what_was_compared(
    exported: tuple[Path, dict[str, Any]], full: tuple[Path, dict[str, Any]]
) -> None:
    for _, proof in (exported, full):
        good(proof)
        assert set(proof["clients"]) == {"peft", "load_adapter"}
    assert exported[1]["bridge"] == str(exported[0] / "bridge")
    assert exported[1]["adapter"] == str(exported[0] / "adapter")


def test_a_bridge_is_the_base_and_the_trained_projector(run: Path, exported: tuple[Path, Any]) -> None:
    base, bridge = load_file(run / "base" / "model.safetensors"), exported[0] / "bridge"
    stored = load_file(bridge / "model.safetensors")
    # The tower's keys are those that vLLM and llama.cpp look for.
    assert sum(name.startswith("vision_tower.vision_model.") for name in stored) > 10
    stored = as_in_the_base(stored)
    assert stored.keys() == base.keys()
    moved = {name for name in base if not torch.equal(base[name], stored[name])}
    projector = load_file(run / "projector.safetensors")
    assert moved == {name for name in base if "multi_modal_projector" in name}
    for name, tensor in projector.items():
        assert torch.equal(stored[next(key for key in moved if name.endswith(key))], tensor)
    config = json.loads((bridge / "config.json").read_text())
    assert config["text_config"]["architectures"] == ["LlamaForCausalLM"]
    assert {path.name for path in bridge.iterdir()} >= {"README.md", "lockadapt.json", "chat_template.jinja"}


def test_an_adapter_holds_lora_alone(run: Path, exported: tuple[Path, Any]) -> None:
    adapter = exported[0] / "adapter"
    names = {"adapter_config.json", "adapter_model.safetensors", "README.md", "lockadapt.json"}
    assert {path.name for path in adapter.iterdir()} == names
    with safe_open(adapter / "adapter_model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        keys = list(file.keys())
    assert all(key.endswith((".lora_A.weight", ".lora_B.weight")) for key in keys)
    assert "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.weight" in keys
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["modules_to_save"] is None
    assert config["trainable_token_indices"] is None
    assert Path(config["base_model_name_or_path"]).samefile(exported[0] / "bridge")
    settings = json.loads((adapter / "lockadapt.json").read_text())
    assert settings["base_fingerprint"] == json.loads((run / "run.json").read_text())["base_fingerprint"]
    assert set(settings["files"]) == {"adapter_model.safetensors"}
    umask = os.umask(0)
    os.umask(umask)
    for path in exported[0].rglob("*"):
        assert path.stat().st_mode & 0o444 == 0o444 & ~umask, path


def test_a_full_adapter_has_the_projector_as_peft_writes_it(run: Path, full: tuple[Path, Any]) -> None:
    config = json.loads((full[0] / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["model.multi_modal_projector"]
    assert config["base_model_name_or_path"] == str(run / "base")
    keys = load_file(full[0] / "adapter_model.safetensors")
    assert "base_model.model.model.multi_modal_projector.linear_1.weight" in keys
    assert not any("modules_to_save" in key or "default" in key for key in keys)
    answers = full[1]["servable"]
    assert "modules_to_save" in answers["vllm"]
    assert "modules_to_save" in answers["sglang"]


@pytest.mark.slow
def test_clients_load_them_without_lockadapt(
    run: Path,
    exported: tuple[Path, Any],
    full: tuple[Path, Any],
    second: Path,
    tmp_path: Path,
) -> None:
    export_run(run, "merged", tmp_path / "merged", QUIET)
    again = export_run(second, "adapter", tmp_path / "again", QUIET)
    good(again)
    assert again["bridge"] == str(exported[0] / "bridge")
    assert not (tmp_path / "again" / "bridge").exists()
    inputs = inputs_of(run)
    save_file(inputs, tmp_path / "inputs.safetensors")
    image = pictures(tmp_path / "pictures")["red"]
    request = {
        "merged": str(tmp_path / "merged"),
        "bridge": str(exported[0] / "bridge"),
        "adapter": str(exported[0] / "adapter"),
        "second": str(tmp_path / "again" / "adapter"),
        "base": str(run / "base"),
        "full": str(full[0]),
        "tensors": str(tmp_path / "inputs.safetensors"),
        "image": str(image),
        "question": "what color is the shape?",
        "output": str(tmp_path / "logits.safetensors"),
        "answer": str(tmp_path / "answer.json"),
    }
    (tmp_path / "request.json").write_text(json.dumps(request))
    surroundings = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(CLIENT), str(tmp_path / "request.json")]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=surroundings, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    logits = load_file(tmp_path / "logits.safetensors")
    answer = json.loads((tmp_path / "answer.json").read_text())
    assert answer["lockadapt"] == "absent"
    first, other = forward(load_run(run).model, inputs), forward(load_run(second).model, inputs)
    assert float((first - other).abs().max()) > 1e-2
    alone = logits.pop("bridge alone")
    assert float((first - alone).abs().max()) > 1e-2
    torch.testing.assert_close(logits.pop("load_adapter, disabled"), alone, rtol=0, atol=1e-6)
    for name, actual in logits.items():
        wanted = other if "second" in name else first
        torch.testing.assert_close(
            actual, wanted, rtol=0, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )
    assert len(logits) == 12
    assert answer["pipeline"].strip() == answer["peft"].strip() != ""


def test_the_cards_own_code_gives_the_trained_model(
    run: Path, exported: tuple[Path, Any], full: tuple[Path, Any]
) -> None:
    inputs = inputs_of(run)
    wanted = forward(load_run(run).model, inputs)
    places = {exported[0] / "adapter": exported[0] / "bridge", full[0]: run / "base"}
    for adapter, base in places.items():
        card = (adapter / "README.md").read_text()
        code = card.split("```python\n")[1].split("```")[0]
        scope: dict[str, Any] = {}
        exec(code.replace("BASE", str(base)).replace("PATH", str(adapter)), scope)
        torch.testing.assert_close(forward(scope["model"], inputs), wanted, rtol=0, atol=1e-4)
        assert "base_model_relation" not in card, "there is no base model on the Hub"
        assert "| LLM |" in card


def as_in_the_base(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tower's keys as today's Transformers writes them."""
    return {
        name.replace("vision_tower.vision_model.", "vision_tower."): tensor
        for name, tensor in tensors.items()
    }


def files_of_a_run(recipe: dict[str, Any], folder: Path, *components: ComponentRow) -> Path:
    """What refusals look at; there is nothing to load."""
    kept = record(components=components)
    run_folder.write_recipe(folder, load_recipe(None, (), recipe).recipe)
    write_record(folder, kept)
    (folder / "processor").mkdir()
    for part in PART_FILES.keys() & kept.components:
        save_file({"empty": torch.zeros(0)}, folder / PART_FILES[part])
    return folder


def test_refusals_come_before_any_work(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*given: Any, **named: Any) -> Any:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(Run, "load", load)
    bare = files_of_a_run(values(tiny, tmp_path, lora=None), tmp_path / "bare", component("projector"))
    for name in ("adapter", "adapter-full"):
        with pytest.raises(RecipeError, match="trained no LoRA") as error:
            export_run(bare, name, tmp_path / "out", QUIET)
        assert "can be written as: merged, bridge" in str(error.value.fix)
    recipe = embedding_recipe(tiny, tmp_path, "llama")
    del recipe["objectives"]["vqa"], recipe["objectives"]["itc"]["queries"]
    dual = files_of_a_run(recipe, tmp_path / "dual", component("retrieval"))
    for name in ("bridge", "adapter", "adapter-full", "merged"):
        with pytest.raises(RecipeError, match="dual encoder"):
            export_run(dual, name, tmp_path / "out", QUIET)
    assert not (tmp_path / "out").exists()


def test_a_bridge_that_differs_is_not_kept(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained_parts = stock_folder.trained_parts

    def bent(run: Run) -> dict[str, torch.Tensor]:
        tensors = trained_parts(run)
        tensors["model.multi_modal_projector.linear_2.weight"][0] *= 1.05
        return tensors

    monkeypatch.setattr(stock_folder, "trained_parts", bent)
    with pytest.raises(VerificationError, match="not the trained model: logits differ"):
        export_run(run, "adapter", tmp_path / "out", QUIET)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_an_adapter_that_lacks_a_tensor_is_not_kept(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete: Callable[..., dict[str, torch.Tensor]] = peft_folder._adapter

    def lacking(run: Any) -> dict[str, torch.Tensor]:
        tensors = complete(run)
        tensors.pop(sorted(tensors)[0])
        return tensors

    monkeypatch.setattr(peft_folder, "_adapter", lacking)
    with pytest.raises(VerificationError, match="missing keys"):
        export_run(run, "adapter-full", tmp_path / "out", QUIET)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_run_without_lora_is_its_bridge(tiny: Path, tmp_path: Path) -> None:
    run = trained(values(tiny, tmp_path, lora=None), tmp_path / "run")
    proof = export_run(run, "bridge", tmp_path / "bridge", QUIET)
    good(proof)
    assert set(proof["clients"]) == {"alone"}
    scores = [evaluate_folder(folder, None, (), False, None, QUIET) for folder in (run, tmp_path / "bridge")]
    assert scores[0] == scores[1]


@pytest.mark.slow
def test_a_quantized_run_keeps_the_original_base(tiny: Path, tmp_path: Path) -> None:
    recipe = values(tiny, tmp_path)
    recipe["model"]["quantization"] = "nf4"
    run = trained(recipe, tmp_path / "run")
    proof = export_run(run, "adapter", tmp_path / "out", QUIET)
    good(proof)
    base = load_file(run / "base" / "model.safetensors")
    stored = as_in_the_base(load_file(tmp_path / "out" / "bridge" / "model.safetensors"))
    assert {n for n in base if not torch.equal(base[n], stored[n])} == {n for n in base if "projector" in n}
    assert "nf4" in proof["servable"]["vllm"]
    assert proof["serve"] is None
    inputs, card = inputs_of(run), (tmp_path / "out" / "adapter" / "README.md").read_text()
    assert "load_in_4bit=True" in card
    scope: dict[str, Any] = {}
    code = card.split("```python\n")[1].split("```")[0]
    places = {"BASE": tmp_path / "out" / "bridge", "PATH": tmp_path / "out" / "adapter"}
    exec(code.replace("BASE", str(places["BASE"])).replace("PATH", str(places["PATH"])), scope)
    keep_as_trained(scope["model"])
    wanted = forward(load_run(run).model, inputs)
    torch.testing.assert_close(forward(scope["model"], inputs), wanted, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_trained_vocabulary_rows_go_into_the_bridge(embedding_run: Path, tmp_path: Path) -> None:
    good(export_run(embedding_run, "adapter", tmp_path / "out", QUIET))
    bridge = tmp_path / "out" / "bridge"
    base, stored = (
        load_file(embedding_run / "base" / "model.safetensors"),
        load_file(bridge / "model.safetensors"),
    )
    table = next(name for name in base if name.endswith("embed_tokens.weight"))
    moved = (base[table] != stored[table]).any(-1).nonzero().flatten().tolist()
    tokenizer = AutoProcessor.from_pretrained(bridge).tokenizer
    assert moved == sorted(tokenizer.convert_tokens_to_ids([f"<query_{n}>" for n in (1, 2)]))
    assert set(load_file(bridge / "retrieval" / "retrieval.safetensors"))
    keys = load_file(tmp_path / "out" / "adapter" / "adapter_model.safetensors")
    assert not any("trainable_tokens" in key for key in keys)
    good(export_run(embedding_run, "adapter-full", tmp_path / "full", QUIET))
    keys = load_file(tmp_path / "full" / "adapter_model.safetensors")
    assert any("trainable_tokens" in key for key in keys)
    assert (tmp_path / "full" / "retrieval" / "retrieval.safetensors").is_file()


@pytest.mark.slow
def test_a_model_that_draws(tmp_path: Path) -> None:
    tiny_llm("llama-tied", tmp_path / "llama")
    tiny_tower("siglip-vision", tmp_path / "clip-vision")
    recipe = embedding_recipe(tmp_path, tmp_path, "llama")
    recipe["model"]["image_tokenizer"] = str(tiny_image_tokenizer(tmp_path / "tokenizer"))
    del recipe["objectives"]["itc"]
    rows = recipe["objectives"]["vqa"]["train"]
    recipe["objectives"]["t2i"] = {"train": rows, "test": rows}
    run = trained(recipe, tmp_path / "run")
    good(export_run(run, "adapter", tmp_path / "out", QUIET))
    trained_head = load_file(run / "generation.safetensors")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out" / "bridge")
    parameters = dict(model.named_parameters())
    assert len(trained_head) > 3
    for name, tensor in trained_head.items():
        assert torch.equal(parameters[name], tensor), name
    good(export_run(run, "adapter-full", tmp_path / "full", QUIET))
    config = json.loads((tmp_path / "full" / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["model.aligner", "model.generation_aligner", "model.generation_head"]


@pytest.mark.slow
@pytest.mark.cold
def test_dora_is_for_peft_alone(tiny: Path, tmp_path: Path) -> None:
    run = trained(values(tiny, tmp_path, lora={"rank": 4, "dora": True}), tmp_path / "run")
    proof = export_run(run, "adapter", tmp_path / "out", QUIET)
    good(proof)
    assert set(proof["clients"]) == {"peft"}
    assert "DoRA" in proof["servable"]["load_adapter"]
    assert "load_adapter(" not in (tmp_path / "out" / "adapter" / "README.md").read_text()
    assert "DoRA" in proof["servable"]["vllm"]
    assert "DoRA" in proof["servable"]["sglang"]


@pytest.mark.slow
def test_a_copied_run_is_exported_too(run: Path, exported: tuple[Path, Any], tmp_path: Path) -> None:
    """Nothing in a bridge depends on where the run lies: its base goes with it."""
    shutil.copytree(run, tmp_path / "moved")
    export_run(tmp_path / "moved", "bridge", tmp_path / "bridge", QUIET)
    first, second = (folder / "model.safetensors" for folder in (exported[0] / "bridge", tmp_path / "bridge"))
    assert first.read_bytes() == second.read_bytes()
