"""Compares what `lockadapt plan` predicts with what torch's allocator counts while the same recipe trains.

On the GPU where there is one (more cases, of the sizes that people train, are tried there), else on the CPU.

Models have random weights and are made on the spot. Run it as `python benchmarks/plan_accuracy.py [CASE …]`;
the table that it prints is the one in docs/plan.md.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from PIL import Image
from torch.profiler import ProfilerActivity, profile

import lockadapt.quickstart
from lockadapt.building.experiment import build_experiment
from lockadapt.building.model import build_model
from lockadapt.console import Reporter
from lockadapt.models.sources import resolve_dtype
from lockadapt.planning.plan import plan_recipe
from lockadapt.planning.sizes import named_tensors
from lockadapt.recipe.read import load_recipe
from lockadapt.training.arguments import grounding_config
from lockadapt.training.rows import encode_rows, image_policy, load_samples
from lockadapt.training.trainer import GroundingTrainer
from lockadapt.tuning.adapters import attach_lora, lora_config

TOKENIZER = Path(lockadapt.quickstart.__file__).parent / "assets" / "llm"
QUIET = Reporter(quiet=True)
IMAGES, STEPS = 24, 2


@dataclasses.dataclass(frozen=True)
class Case:
    """A recipe: how its LLM and tower are made, the side of an image, and what its keys are set to."""

    llm: Callable[[], Any]
    tower: Callable[[], Any]
    side: int
    overrides: tuple[str, ...]
    large: bool = False


def llama(hidden: int, layers: int, heads: int, key_heads: int, wide: int, rows: int) -> Any:
    """A Llama with random weights and a tied head."""
    return hf.LlamaForCausalLM(
        hf.LlamaConfig(
            vocab_size=rows,
            hidden_size=hidden,
            intermediate_size=wide,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=key_heads,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
        )
    )


def qwen3(hidden: int, layers: int, heads: int, key_heads: int, wide: int) -> Any:
    """A Qwen3 of a published size with random weights and its whole vocabulary, in bfloat16 for speed."""
    return hf.Qwen3ForCausalLM._from_config(
        hf.Qwen3Config(
            hidden_size=hidden,
            intermediate_size=wide,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=key_heads,
            head_dim=128,
            tie_word_embeddings=True,
        ),
        dtype=torch.bfloat16,
    )


def vit(kind: str, hidden: int, layers: int, side: int, patch: int) -> Any:
    """A vision transformer with random weights."""
    common = {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": hidden // 64}
    sizes = {"image_size": side, "patch_size": patch}
    if kind == "dinov2":
        return hf.Dinov2Model(hf.Dinov2Config(**common, **sizes))
    return hf.SiglipVisionModel(hf.SiglipVisionConfig(**common, **sizes, intermediate_size=4 * hidden))


CASES = {
    "llama-tiny, CNN, cached": Case(
        lambda: llama(128, 2, 8, 4, 384, 2048),
        lambda: hf.MobileNetV2Model(hf.MobileNetV2Config(image_size=128)),
        128,
        ("training.batch_size=32", "data.features=memory"),
    ),
    "qwen3, SigLIP, pixels": Case(
        lambda: hf.Qwen3ForCausalLM(
            hf.Qwen3Config(
                vocab_size=8192,
                hidden_size=256,
                intermediate_size=768,
                num_hidden_layers=4,
                num_attention_heads=4,
                num_key_value_heads=2,
                head_dim=64,
                tie_word_embeddings=True,
            )
        ),
        lambda: vit("siglip", 192, 4, 112, 16),
        112,
        ("training.batch_size=16", "data.features=none"),
    ),
    "gpt2, DINOv2, linear, accumulated": Case(
        lambda: hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=8192, n_embd=256, n_layer=6, n_head=4)),
        lambda: vit("dinov2", 192, 4, 112, 16),
        112,
        ("training.batch_size=8", "training.accumulation=2", "model.fusion=linear", "data.features=memory"),
    ),
    "llama, NF4, cached": Case(
        lambda: llama(512, 8, 8, 4, 1408, 16384),
        lambda: vit("siglip", 192, 4, 112, 16),
        112,
        ("training.batch_size=8", "model.quantization=nf4", "data.features=memory"),
    ),
    "llama, NF4, checkpointing, pixels": Case(
        lambda: llama(512, 8, 8, 4, 1408, 16384),
        lambda: vit("siglip", 192, 4, 112, 16),
        112,
        (
            "training.batch_size=16",
            "model.quantization=nf4",
            "training.gradient_checkpointing=true",
            "data.features=none",
        ),
    ),
    "135M Llama, SigLIP-base, cached": Case(
        lambda: llama(576, 30, 9, 3, 1536, 49152),
        lambda: vit("siglip", 768, 2, 224, 16),
        224,
        ("training.batch_size=2", "data.features=memory"),
    ),
    "Qwen3-0.6B, SigLIP-base, bf16, checkpointing": Case(
        lambda: qwen3(1024, 28, 16, 8, 3072),
        lambda: vit("siglip", 768, 12, 256, 16),
        256,
        (
            "model.dtype=bfloat16",
            "training.batch_size=4",
            "training.gradient_checkpointing=true",
            "lora.rank=64",
        ),
        large=True,
    ),
    "Qwen3-1.7B, SigLIP-base, NF4": Case(
        lambda: qwen3(2048, 28, 16, 8, 6144),
        lambda: vit("siglip", 768, 12, 256, 16),
        256,
        ("model.dtype=bfloat16", "model.quantization=nf4", "training.batch_size=4", "lora.rank=64"),
        large=True,
    ),
}


def recipe_values(case: Case, folder: Path) -> dict[str, Any]:
    """Makes models, pictures and rows of uneven length in `folder`."""
    torch.manual_seed(0)
    case.llm().save_pretrained(folder / "llm")
    hf.AutoTokenizer.from_pretrained(TOKENIZER).save_pretrained(folder / "llm")
    case.tower().save_pretrained(folder / "tower")
    size = {"height": case.side, "width": case.side}
    hf.ViTImageProcessorPil(size=size).save_pretrained(folder / "tower")
    lines = []
    for number in range(IMAGES):
        Image.new("RGB", (64, 64), (number * 10, 90, 200)).save(folder / f"{number}.png")
        words = "what color is the shape in the image? " * (1 + number % 3)
        answer = "the shape is red and it is large " * (1 + number % 4)
        lines.append(json.dumps({"image": f"{number}.png", "question": words, "answer": answer}))
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    return {
        "model": {"llm": str(folder / "llm"), "tower": str(folder / "tower"), "dtype": "float32"},
        "objectives": {"vqa": {"train": {"format": "jsonl", "path": str(folder / "rows.jsonl")}}},
        "training": {"steps": STEPS},
    }


def measured(recipe: Any, folder: Path) -> dict[str, float]:
    """Trains a few steps; the largest number of bytes that torch had allocated."""
    folder.mkdir()
    experiment = build_experiment(recipe)
    samples = load_samples(experiment, QUIET)
    model, processor = build_model(experiment, folder / "base", samples["train"]["vqa"], QUIET)
    model = attach_lora(model, lora_config(model, experiment.lora))
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        model = model.to("cuda")
    rows = encode_rows(experiment, model, processor, samples, image_policy(experiment, QUIET))
    stage = experiment.stages({"vqa": len(rows.train["vqa"])})[0]
    trainer = GroundingTrainer(
        model,
        grounding_config(experiment, stage, folder / "out", resolve_dtype(recipe.model.dtype), False),
        rows.train,
        None,
        processor,
        objectives=experiment.objectives,
        image_inputs=rows.images,
    )
    trainer.args.save_strategy = "no"
    _ = trainer.packing  # decided before a run, on a few samples
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        trainer.train()
        free, total = torch.cuda.mem_get_info()
        return {"bytes": torch.cuda.max_memory_allocated(), "card": total - free}
    storages = {}
    for _, tensor in named_tensors(model):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    before = sum(storages.values())
    store = getattr(next(iter(rows.images.values())), "_store", None)
    before += store.nbytes if store is not None else 0
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        trainer.train()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return {"bytes": before + peak}


def compared(names: list[str]) -> Iterator[dict[str, Any]]:
    """Planned and measured for every case."""
    for name in names:
        case = CASES[name]
        with tempfile.TemporaryDirectory() as scratch:
            recipe = load_recipe(None, case.overrides, recipe_values(case, Path(scratch))).recipe
            planned = plan_recipe(recipe, QUIET)
            real = measured(recipe, Path(scratch) / "run")
        yield {
            "name": name,
            "planned": planned["peak_bytes"],
            "card_planned": planned["card_peak_bytes"],
            **real,
        }


def main() -> None:
    """Prints the table."""
    hf.logging.set_verbosity_error()
    hf.logging.disable_progress_bar()
    torch.set_num_threads(1)
    on_gpu = torch.cuda.is_available()
    names = sys.argv[1:] or [name for name, case in CASES.items() if on_gpu or not case.large]
    if len(names) > 1:
        card = " card, planned, MB | card, measured, MB |" if on_gpu else ""
        print(f"| recipe | planned, MB | measured, MB | difference |{card}")
        print("| --- | --- | --- | --- |" + " --- | --- |" * on_gpu, flush=True)
        # The profiler remembers blocks of earlier profiles in the same process, and counts their end in later
        # ones.
        for name in names:
            subprocess.run([sys.executable, __file__, name], check=True)
        return
    for row in compared(names):
        error = row["planned"] / row["bytes"] - 1
        card = f" {row['card_planned'] / 1e6:.0f} | {row['card'] / 1e6:.0f} |" if "card" in row else ""
        print(
            f"| {row['name']} | {row['planned'] / 1e6:.1f} | {row['bytes'] / 1e6:.1f} | {error:+.1%} |{card}",
            flush=True,
        )


if __name__ == "__main__":
    main()
