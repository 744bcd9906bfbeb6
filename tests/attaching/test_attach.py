"""An adapter on a live model computes what was trained; taken off, nothing is left of it; what does not fit is refused."""

from __future__ import annotations

import copy
import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.functional import set_adapter
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

import lockadapt
from lockadapt.architectures import layout_of
from lockadapt.architectures.assemble import Assembled
from lockadapt.architectures.load import load_model
from lockadapt.attaching.graft import active
from lockadapt.console import Reporter
from lockadapt.errors import AdapterError, LockadaptError, RecipeError, SetupError, VerificationError
from lockadapt.exports.proofs.embeddings import embed_probe
from lockadapt.models.four_bit import keep_as_trained, switches
from lockadapt.recipe.read import load_recipe
from lockadapt.runs.artifacts import load_parts
from lockadapt.runs.run import load_adapter, load_run
from lockadapt.training.loop import train
from lockadapt.tuning.adapters import resolve_targets
from lockadapt.tuning.base_identity import part_digest, tensors_digest
from lockadapt.tuning.quantize import load_quantized
from tests.support.live import state
from tests.support.runs import values

QUIET = Reporter(quiet=True)
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
SKIP = ["model.vision_tower", "model.multi_modal_projector", "lm_head"]


@pytest.fixture(scope="module")
def run(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the untied Llama with the token tower. Tests must not change it."""
    folder = tmp_path_factory.mktemp("run")
    train(load_recipe(None, (), values(tiny, folder)).recipe, folder / "run", QUIET)
    return folder / "run"


def live(base: Path, **given: Any) -> Any:
    """The model as a user loads it."""
    return AutoModelForImageTextToText.from_pretrained(base, **{"dtype": torch.float32, **given}).eval()


@torch.no_grad()
def logits(model: Any) -> Tensor:
    """Of one image and some text."""
    ids = torch.tensor([[0] + [model.config.image_token_id] * 16 + [5, 6, 7]])
    generator = torch.Generator().manual_seed(3)
    values = torch.randn(1, 3, 32, 32, generator=generator).to(model.get_input_embeddings().weight.dtype)
    return model(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=values).logits.float()


def parts_folder(model: Any, folder: Path, seed: int, *, lora: bool = True, **changes: Any) -> Path:
    """Adapter and projector of random values as `GroundingTrainer.save_model` writes them; it says nothing of the base."""
    torch.manual_seed(seed)
    folder.mkdir()
    layout = layout_of(model)
    parts = {"projector": layout.projector, "generation": layout.generation}
    for part, paths in parts.items():
        tensors = {
            f"{path}.{name}": torch.randn_like(p.float()) * 0.1
            for path in paths
            for name, p in model.get_submodule(path).named_parameters()
        }
        if tensors:
            save_file(tensors, folder / f"{part}.safetensors")
    if lora:
        config = LoraConfig(r=3, target_modules=resolve_targets(model, "attention")[0], **changes)
        wrapped = get_peft_model(copy.deepcopy(model), config)
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=0.3)
        wrapped.save_pretrained(folder / "adapter")
    return folder


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "nf4", "nf4-everywhere", "int8"])
def test_computes_what_was_trained_and_leaves_no_trace(run: Path, kind: str) -> None:
    base, given = run / "base", {}
    if kind == "bfloat16":
        given["dtype"] = torch.bfloat16
    elif kind.startswith(
        "nf4"
    ):  # "everywhere": what Transformers does by default, tower and projector included
        skip = SKIP if kind == "nf4" else None
        given["quantization_config"] = BitsAndBytesConfig(
            **NF4, bnb_4bit_compute_dtype=torch.float32, llm_int8_skip_modules=skip
        )
    elif kind == "int8":
        given["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=SKIP)
    model = live(base, **given)
    keep_as_trained(model)  # attaching does; the model is evaluated before that here
    before_logits = logits(model)
    before = state(model)
    attached = lockadapt.attach(model, run)
    assert attached.fit.base == attached.fit.tokenizer == ()
    assert not any(parameter.requires_grad for n, parameter in model.named_parameters() if "lora_" in n)
    assert not any(module.training for module in model.modules())
    actual = logits(model)
    reference, _ = load_quantized(
        base,
        "nf4" if "nf4" in kind else "int8" if kind == "int8" else "none",
        given.get("dtype", torch.float32),
    )
    reference = load_adapter(reference, run / "adapter")
    load_parts(reference, run)
    close = kind != "nf4-everywhere"  # the tower is another there
    expected = logits(reference.eval())
    assert torch.equal(actual, expected) or not close
    assert float((actual - expected).abs().max()) < 0.1 * float((before_logits - expected).abs().max())
    attached.detach()
    assert state(model) == before
    assert torch.equal(logits(model), before_logits)


def nf4_where_layers_repack(base: Path) -> Any:
    """A user's NF4 model as on a processor with AVX512-BF16, whatever this one is."""
    config = BitsAndBytesConfig(**NF4, bnb_4bit_compute_dtype=torch.float32, llm_int8_skip_modules=SKIP)
    model = live(base, quantization_config=config)
    keep_as_trained(model)
    logits(model)  # a first forward leaves attributes of Transformers' own
    for layer, _ in switches(model):
        layer.support_avx512bf16_for_cpu = True
    return model


def test_a_processor_that_repacks_does_not_while_something_is_attached(run: Path) -> None:
    model = nf4_where_layers_repack(run / "base")
    before, count = state(model), len(switches(model))
    assert count == 14
    attached = lockadapt.attach(model, run)
    assert not any(may for _, may in switches(model))
    logits(model)
    attached.detach()
    assert state(model) == before
    assert [may for _, may in switches(model)] == [True] * count


def test_a_model_repacked_by_its_first_forward_is_refused_and_left_as_it_was(run: Path) -> None:
    model = nf4_where_layers_repack(run / "base")
    layer = model.model.language_model.layers[1].self_attn.q_proj
    layer.weight.quant_state.packing_format_for_cpu = True
    before = state(model)
    with pytest.raises(
        VerificationError, match=r"(?s)layers\.1\.self_attn\.q_proj: .*load the model again"
    ) as refused:
        lockadapt.attach(model, run)
    assert "rounded its scales to bfloat16" in str(refused.value)
    assert state(model) == before
    assert all(may for _, may in switches(model))


def test_modes_and_flags(run: Path) -> None:
    model = live(run / "base").train()
    model.model.vision_tower.eval().requires_grad_(False)
    before, flags = state(model), {n: p.requires_grad for n, p in model.named_parameters()}
    attached = lockadapt.attach(model, run)
    layer = model.model.language_model.layers[0].self_attn.q_proj
    assert layer.training
    assert not model.model.vision_tower.training
    plain = {
        n.replace(".base_layer", "").replace(".original_module", ""): p for n, p in model.named_parameters()
    }
    assert {n: p.requires_grad for n, p in plain.items() if n in flags} == flags
    attached.detach()
    assert state(model) == before


def test_several_by_name_each_with_its_projector(run: Path, tmp_path: Path) -> None:
    model = live(run / "base")
    logits(model)  # a first forward leaves attributes of Transformers' own
    before = state(model)
    folders = {
        "run": run,
        "other": parts_folder(model, tmp_path / "other", 1),
        "projector": parts_folder(model, tmp_path / "projector", 2, lora=False),
    }
    alone: dict[str, Tensor] = {}
    for name, folder in folders.items():
        attached = lockadapt.attach(model, folder, force_base=True)
        alone[name] = logits(model)
        attached.detach()
        assert state(model) == before
    handles = {
        name: lockadapt.attach(model, folder, name=name, force_base=True) for name, folder in folders.items()
    }
    assert active(model) == "projector"
    for switch in (handles["run"].use, lambda n: set_adapter(model, n), _transformers_switch(model)):
        for name in ("run", "other", "projector", "run"):
            switch(name)
            assert torch.equal(logits(model), alone[name]), name
    with pytest.raises(AdapterError, match="attached already"):
        lockadapt.attach(model, run, name="other")
    with pytest.raises(AdapterError, match="no adapter 'nobody'"):
        handles["run"].use("nobody")
    handles["other"].use()
    handles["run"].detach()
    assert torch.equal(logits(model), alone["other"])
    handles["other"].detach()
    assert torch.equal(logits(model), alone["projector"])
    with pytest.raises(AdapterError, match="not attached any more"):
        handles["run"].detach()
    lockadapt.attach(model, run, name="run")
    assert torch.equal(logits(model), alone["run"])
    handles["projector"].detach()
    handles["run"].detach()
    assert state(model) == before
    with pytest.raises(AdapterError, match="nothing is attached"):
        handles["run"].use()


def _transformers_switch(model: Any) -> Callable[[str], None]:
    """Transformers' own `set_adapter`; 5.24 refuses PEFT before 0.22, and there PEFT's stands in."""

    def switch(name: str) -> None:
        try:
            model.set_adapter(name)
        except ValueError as error:
            if "version of PEFT" not in str(error):
                raise
            set_adapter(model, name)

    return switch


def test_another_base_is_refused(run: Path, assembled: Assembled, tiny: Path, tmp_path: Path) -> None:
    model = live(run / "base")
    with torch.no_grad():
        model.model.language_model.layers[0].mlp.up_proj.weight[0, 0] += 1
    before = state(model)
    with pytest.raises(VerificationError, match="llm has other weights in its linear layers") as error:
        lockadapt.attach(model, run)
    assert error.value.exit_code == 8
    assert state(model) == before
    lockadapt.attach(model, run, force_base=True).detach()
    assert state(model) == before
    other = live(assembled.folder)
    expected = "head is absent" if "Llava" in assembled.report.model_class else "trained on LlavaFor"
    for forced in (False, True):
        kind: type[LockadaptError] = VerificationError
        if not forced and "Llava" not in assembled.report.model_class:
            kind = AdapterError
        if forced and "Llava" in assembled.report.model_class:
            continue
        with pytest.raises((kind, AdapterError), match=expected):
            lockadapt.attach(other, run, force_base=forced)


def test_another_tokenizer_is_refused(run: Path) -> None:
    model, processor = load_model(run / "base", "float32")
    processor.tokenizer.add_tokens(["unheard-of"])
    with pytest.raises(VerificationError, match="another vocabulary"):
        lockadapt.attach(model, run, tokenizer=processor)
    model.name_or_path = model.config._name_or_path = ""
    with pytest.warns(UserWarning, match="not compared"):
        attached = lockadapt.attach(model, run)
    assert attached.fit.not_compared == ("tokenizer (not at hand now)",)


@pytest.mark.parametrize("second", [False, True])
def test_a_tensor_too_few_too_many_or_of_another_shape(run: Path, tmp_path: Path, second: bool) -> None:
    model = live(run / "base")
    if second:
        first = lockadapt.attach(model, run, name="first")
    expected = logits(model)
    before = state(model)
    for number, (damaged, change, words) in enumerate(
        (
            (
                "adapter/adapter_model.safetensors",
                lambda t: t.pop(min(t)),
                "it lacks base_model|it lacks model",
            ),
            ("projector.safetensors", lambda t: t.pop(min(t)), "lacks model.multi_modal_projector"),
            ("projector.safetensors", lambda t: t.update(extra=torch.zeros(1)), "no place for extra"),
            ("projector.safetensors", lambda t: t.update({min(t): torch.zeros(3)}), "the model wants"),
            (
                "adapter/adapter_model.safetensors",
                lambda t: t.update({min(t): torch.zeros(3)}),
                "the model wants",
            ),
        )
    ):
        broken = tmp_path / str(number)
        shutil.copytree(run, broken, ignore=shutil.ignore_patterns("base"))
        # As an older version wrote it: without digests, which would say that it is not the run before this does.
        record = json.loads((broken / "run.json").read_text())
        (broken / "run.json").write_text(json.dumps({**record, "artifacts": None}))
        tensors = load_file(broken / damaged)
        change(tensors)
        save_file(tensors, broken / damaged)
        with pytest.raises(VerificationError, match=words):
            lockadapt.attach(model, broken, name="second")
        if not second:
            assert state(model) == before
        assert torch.equal(logits(model), expected)
        assert ["first"] * second == list(getattr(model, "peft_config", {}))
    if second:
        lockadapt.attach(model, run, name="second").detach()
        first.detach()
        assert not hasattr(model, "peft_config")


def test_folders_that_are_none(run: Path, tmp_path: Path) -> None:
    model = live(run / "base")
    with pytest.raises(SetupError, match="does not exist"):
        lockadapt.attach(model, tmp_path / "nowhere")
    with pytest.raises(RecipeError, match="neither a run nor"):
        lockadapt.attach(model, tmp_path)
    shutil.copy(run / "recipe.yaml", tmp_path)
    with pytest.raises(RecipeError, match="not finished"):
        lockadapt.attach(model, tmp_path)
    broken = tmp_path / "broken"
    shutil.copytree(run, broken, ignore=shutil.ignore_patterns("base"))
    file = broken / "projector.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(VerificationError, match="missing at its end"):
        lockadapt.attach(model, broken)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"peft_type": "LOHA"}, "of the kind LOHA"),
        ({"init_lora_weights": "pissa"}, "changes the base"),
        ({"megatron_config": {"a": 1}}, "megatron_config"),
    ],
)
def test_configs_that_ask_for_more(run: Path, tmp_path: Path, changes: dict[str, Any], error: str) -> None:
    copied = tmp_path / "copy"
    shutil.copytree(run / "adapter", copied)
    file = copied / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    with pytest.raises(AdapterError, match=error):
        lockadapt.attach(live(run / "base"), copied)


def test_models_that_cannot_take_one(run: Path) -> None:
    model = live(run / "base")
    wrapped = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(AdapterError, match="not a supported Transformers model"):
        lockadapt.attach(wrapped, run)
    with pytest.raises(AdapterError, match="did not attach"):
        lockadapt.attach(model, run)


def test_a_run_of_an_older_version(run: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(run, old, ignore=shutil.ignore_patterns("base"))
    facts = json.loads((old / "run.json").read_text())
    del facts["base_identity"]
    (old / "run.json").write_text(json.dumps(facts))
    model = live(run / "base")
    with pytest.raises(VerificationError, match="nothing in the folder says which base") as error:
        lockadapt.attach(model, old)
    assert "force_base" in str(error.value)
    lockadapt.attach(model, old, force_base=True)


def sidecar(run: Path, folder: Path, **more: Any) -> None:
    facts = json.loads((run / "run.json").read_text())
    (folder / "lockadapt.json").write_text(json.dumps({"base_identity": facts["base_identity"], **more}))


def test_exported_adapter_folders(run: Path, tmp_path: Path) -> None:
    """`adapter-full` brings the projector inside PEFT's file; `adapter` wants a bridge that has it."""
    model = live(run / "base")
    attached = lockadapt.attach(model, run)
    expected = logits(model)
    attached.detach()
    full, thin = tmp_path / "full", tmp_path / "thin"
    shutil.copytree(run / "adapter", thin)
    shutil.copytree(run / "adapter", full)
    projector = load_file(run / "projector.safetensors")
    inside = {f"base_model.model.{name}": tensor for name, tensor in projector.items()}
    save_file(
        {**load_file(run / "adapter" / "adapter_model.safetensors"), **inside},
        full / "adapter_model.safetensors",
    )
    config = json.loads((full / "adapter_config.json").read_text())
    config["modules_to_save"] = ["multi_modal_projector"]
    (full / "adapter_config.json").write_text(json.dumps(config))
    sidecar(run, full)
    attached = lockadapt.attach(model, full)
    assert torch.equal(logits(model), expected)
    attached.detach()

    sidecar(run, thin)
    with pytest.raises(VerificationError, match="brings no projector"):
        lockadapt.attach(model, thin)
    bridge = live(run / "base")
    load_parts(bridge, run)
    digest = tensors_digest(projector)
    assert digest == part_digest(bridge, "projector")
    sidecar(run, thin, projector_digest=digest)
    with pytest.raises(VerificationError, match="the projector is not the trained one"):
        lockadapt.attach(model, thin)
    attached = lockadapt.attach(bridge, thin)
    assert torch.equal(logits(bridge), expected)
    attached.detach()
    (tmp_path / "whole").mkdir()
    thin.rename(tmp_path / "whole" / "adapter")  # as the export leaves it, beside `bridge`
    lockadapt.attach(bridge, tmp_path / "whole")
    assert torch.equal(logits(bridge), expected)


def test_janus_draws_with_the_adapters_parts(drawing: Assembled, tmp_path: Path) -> None:
    model = copy.deepcopy(drawing.model)
    folder = parts_folder(model, tmp_path / "parts", 4)
    before = state(model)
    head, hidden = model.model.generation_head, torch.randn(2, 32)
    untrained = head(hidden)
    attached = lockadapt.attach(model, folder, force_base=True)
    actual = model.model.generation_head(hidden)
    weights = load_file(folder / "generation.safetensors")
    assert not torch.equal(actual, untrained)
    own = dict(model.model.generation_head.modules_to_save["default"].named_parameters())
    for name, tensor in own.items():
        assert torch.equal(tensor, weights[f"model.generation_head.{name}"])
    attached.detach()
    assert state(model) == before


def test_retrieval_and_query_tokens(embedding_run: Path, tmp_path: Path) -> None:
    """Tied embeddings, trained rows, LoRA and a module that no stock class has; beside an adapter without them."""
    trained = load_run(embedding_run)
    samples = trained.run.probe()
    expected = embed_probe(trained.run, trained.model, trained.processor, samples)
    model = live(embedding_run / "base")
    logits(model)
    before = state(model)
    other = parts_folder(model, tmp_path / "other", 5)
    plain = lockadapt.attach(model, other, name="plain", force_base=True)
    reference = logits(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        embeds = lockadapt.attach(model, embedding_run, name="embeds")
    actual = embed_probe(trained.run, model, trained.processor, samples)
    assert expected is not None
    assert actual is not None
    assert torch.equal(actual.images, expected.images)
    assert torch.equal(actual.texts, expected.texts)
    answers = logits(model)
    assert torch.equal(answers, logits(trained.model))
    plain.use()
    assert torch.equal(logits(model), reference)
    with pytest.raises(VerificationError, match="not trained to embed"):
        embed_probe(trained.run, model, trained.processor, samples)
    embeds.use()
    assert torch.equal(logits(model), answers)
    plain.detach()
    actual = embed_probe(trained.run, model, trained.processor, samples)
    assert actual is not None
    assert torch.equal(actual.images, expected.images)
    lockadapt.attach(model, other, name="plain", force_base=True)
    assert torch.equal(logits(model), reference)
    plain.detach()
    embeds.detach()
    assert state(model) == before


def test_the_name_is_a_function_also_the_second_time() -> None:
    assert callable(lockadapt.attach)
    assert callable(lockadapt.attach)
