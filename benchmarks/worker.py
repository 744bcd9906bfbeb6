"""One task of a benchmark in its own process, for its own peak memory: JSON job in, JSON result out.

    python benchmarks/worker.py JOB.json RESULT.json

Started by throughput.py. Both sides get the same stock folder, the same `Dataset`, the same LoRA and
optimiser.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Image, List
from ideal_flops import count, flops, gemm_peak
from shapes import build, build_easy_vqa, build_idefics3
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lockadapt import GroundingConfig, GroundingTrainer
from lockadapt.architectures import layout_of
from lockadapt.architectures.blocks import context_length
from lockadapt.architectures.load import load_model
from lockadapt.data.encode import Encoded, Encoder, distinct_images
from lockadapt.data.pixels import pixel_inputs
from lockadapt.features.inputs import memory_features
from lockadapt.files import write_json
from lockadapt.objectives import KINDS
from lockadapt.runs.run_folder import versions
from lockadapt.training.datasets import encoded_rows
from lockadapt.tuning.adapters import LoraSettings, lora_config

LORA = LoraSettings(rank=16)
TRL_TARGETS = r"model\.(language_model|text_model)\.layers\..*_proj"
"""Every linear layer of a Llama's blocks, which is what `LORA` resolves to; a run fails if it is not."""
LEARNING_RATE = 2e-4
MAX_PIXELS = 50_000_000
MIB = 2**20


@dataclass(frozen=True)
class Job:
    """What a worker does. `order` arranges the rows (as lockadapt draws them); None: as they are.

    `compare`: also compute the loss of the first batch, whose rows are `first`, before training; TRL's side
    writes its tokens to this file, lockadapt's reads them there. `together`: the most samples of one image
    that lockadapt draws together (None: its default).
    """

    task: str
    folder: str
    model: str = ""
    shape: str = ""
    real: str = ""
    rows: str = ""
    order: list[int] | None = None
    batch: int = 1
    steps: int = 1
    dtype: str = "float32"
    device: str = "cpu"
    packing: str = "auto"
    together: int | None = None
    checkpointing: bool = False
    compare: str = ""
    first: list[int] | None = None


class Stopwatch(TrainerCallback):
    """Times every step from the end of the one before, fetching its batch included.

    The first step warms up. Training stops one step before its planned end, so that every timed step has
    fetched the batch that follows it.
    """

    def __init__(self, steps: int, device: str) -> None:
        self.steps, self.device, self.ends = steps, device, [0.0]

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Starts."""
        self.ends = [self._now()]

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Notes the time; stops after the warm-up step and `steps` more."""
        self.ends.append(self._now())
        if len(self.ends) == self.steps + 2:
            control.should_training_stop = True

    def seconds(self) -> list[float]:
        """Of the warm-up step and of every timed one."""
        return [after - before for before, after in zip(self.ends, self.ends[1:], strict=False)]

    def _now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def plan(job: Job) -> dict[str, Any]:
    """How lockadapt draws the rows, what an average timed batch needs, and what this machine can do.

    Writes the stock folder that all tasks load first, if it is not there.
    """
    if not Path(job.model).exists():
        if job.real:
            build_easy_vqa(Path(job.real), Path(job.model))
        else:
            kind, _, shape = job.shape.rpartition("-")
            (build_idefics3 if kind == "idefics3" else build)(shape, Path(job.model))
    model, processor, rows, encoder = _prepared(job)
    items = rows["dialogue"]
    trainer = _grounding(job, model, processor, items, pixel_inputs(processor, MAX_PIXELS))
    batches = [list(batch) for batch in trainer.get_train_dataloader().batch_sampler]
    counts = [count([items[i] for i in batch], encoder.image_tokens) for batch in batches[1 : job.steps + 1]]
    totals = {
        field.name: sum(getattr(c, field.name) for c in counts) / len(counts)
        for field in dataclasses.fields(counts[0])
    }
    images = sum(len(distinct_images([items[i] for i in batch])) for batch in batches[1 : job.steps + 1])
    return {
        "order": [index for batch in batches for index in batch],
        "packing": trainer.packing.why,
        "tokens": totals,
        "flops": sum(flops(trainer.model, c) for c in counts) / len(counts),
        "images": images / len(counts),
        "rows": len(items),
        "distinct_images": len(distinct_images(items)),
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "gemm_flops_per_second": gemm_peak(getattr(torch, job.dtype), job.device),
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }


def run_lockadapt(job: Job) -> dict[str, Any]:
    """`GroundingTrainer`, tower outputs kept in memory; filling them is timed by itself."""
    model, processor, rows, _ = _prepared(job)
    loaded, items = _memory(job, "VmRSS"), rows["dialogue"]
    start = time.perf_counter()
    images = memory_features(model, pixel_inputs(processor, MAX_PIXELS))
    images.fill(distinct_images(items).values())
    filling = time.perf_counter() - start
    trainer = _grounding(job, model, processor, items, images)
    compared: dict[str, Any] = {}
    if job.compare and job.first is not None:
        if job.first != next(iter(trainer.get_train_dataloader().batch_sampler)):
            raise RuntimeError("lockadapt draws other rows than it planned: TRL would not see the same")
        own = [items[index] for index in job.first]
        theirs = json.loads(Path(job.compare).read_text(encoding="utf-8"))
        compared = {
            "loss": _loss(trainer, trainer.data_collator([("dialogue", i) for i in _as_tokens(own, theirs)])),
            "loss_with_own_tokens": _loss(trainer, trainer.data_collator([("dialogue", i) for i in own])),
            "rows_tokenised_differently": sum(
                item.input_ids.tolist() != tokens["input_ids"]
                for item, tokens in zip(own, theirs, strict=True)
            ),
        }
    return {
        **compared,
        **_train(job, trainer),
        "loaded_mib": loaded,
        "filling_seconds": filling,
        "filled_images": len(distinct_images(items)),
    }


def run_trl(job: Job) -> dict[str, Any]:
    """TRL's `SFTTrainer` as documented for a VLM: prompts, completions, PIL images, nothing truncated."""
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    model, processor = load_model(job.model, job.dtype)
    dataset = _dataset(job)
    loaded = _memory(job, "VmRSS")
    own = lora_config(model, LORA)
    config = SFTConfig(
        f"{job.folder}/trl",
        max_length=None,
        train_sampling_strategy="sequential",
        **_common_arguments(job),
    )
    peft = LoraConfig(
        r=own.r,
        lora_alpha=own.lora_alpha,
        lora_dropout=own.lora_dropout,
        bias="none",
        target_modules=TRL_TARGETS,
        modules_to_save=[path.rpartition(".")[2] for path in layout_of(model).projector],
    )
    trainer = SFTTrainer(model, config, train_dataset=dataset, processing_class=processor, peft_config=peft)
    adapted = {name.split(".lora_A")[0] for name, _ in trainer.model.named_modules() if ".lora_A" in name}
    if len(adapted) != len(own.target_modules):
        raise RuntimeError(f"TRL adapted {len(adapted)} layers, lockadapt {len(own.target_modules)}")
    compared: dict[str, Any] = {}
    if job.compare:
        batch = next(iter(trainer.get_train_dataloader()))
        compared = {"loss": _loss(trainer, batch)}
        write_json(Path(job.compare), _tokens(batch))
    return {**compared, **_train(job, trainer), "loaded_mib": loaded}


TASKS: dict[str, Callable[[Job], dict[str, Any]]] = {
    "plan": plan,
    "lockadapt": run_lockadapt,
    "trl": run_trl,
}


def _dataset(job: Job) -> Dataset:
    rows = json.loads(Path(job.rows).read_text(encoding="utf-8"))
    if job.order is not None:
        rows = [rows[index] for index in job.order]
    dataset = Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": row["question"]}],
                "completion": [{"role": "assistant", "content": row["answer"]}],
                "images": [row["image"]],
            }
            for row in rows
        ]
    )
    return dataset.cast_column("images", List(Image()))


def _prepared(job: Job) -> tuple[Any, Any, dict[str, Any], Encoder]:
    model, processor = load_model(job.model, job.dtype)
    encoder = Encoder(processor, context_length(model))
    rows, reports = encoded_rows(_dataset(job), {"dialogue": KINDS["dialogue"]()}, encoder)
    report = reports["dialogue"]
    if report.cut or report.dropped:
        raise RuntimeError("a row is longer than the LLM's context: both sides would not see the same")
    return model.to(job.device), processor, rows, encoder


def _grounding(job: Job, model: Any, processor: Any, items: Any, images: Any) -> GroundingTrainer:
    config = GroundingConfig(
        f"{job.folder}/lockadapt",
        projector_learning_rate=LEARNING_RATE,
        packing=job.packing,
        max_samples_per_image=job.together,
        **_common_arguments(job),
    )
    return GroundingTrainer(
        model,
        config,
        items,
        processing_class=processor,
        peft_config=lora_config(model, LORA),
        image_inputs=images,
    )


def _common_arguments(job: Job) -> dict[str, Any]:
    return {
        "max_steps": job.steps + 2,
        "per_device_train_batch_size": job.batch,
        "learning_rate": LEARNING_RATE,
        "weight_decay": 0.0,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "optim": "adamw_torch_fused",
        "bf16": job.dtype == "bfloat16",
        "gradient_checkpointing": job.checkpointing,
        "logging_steps": 1,
        "use_cpu": job.device == "cpu",
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }


def _train(job: Job, trainer: Any) -> dict[str, Any]:
    stopwatch = Stopwatch(job.steps, job.device)
    trainer.add_callback(stopwatch)
    trainer.train()
    warm_up, *seconds = stopwatch.seconds()
    return {
        "training_loss": next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry),
        "warm_up_seconds": warm_up,
        "seconds": seconds,
        "peak_mib": _memory(job, "VmHWM"),
    }


@torch.no_grad()
def _loss(trainer: Any, batch: Any) -> float:
    """Return the loss in evaluation mode.

    TRL trains with the frozen tower's BatchNorm layers in training mode, which changes it.
    """
    trainer.model.eval()
    with trainer.compute_loss_context_manager():
        return float(trainer.compute_loss(trainer.model, trainer._prepare_inputs(dict(batch))))


def _tokens(batch: Any) -> list[dict[str, list[int]]]:
    rows = zip(batch["input_ids"], batch["labels"], batch["attention_mask"].bool(), strict=True)
    return [{"input_ids": ids[real].tolist(), "labels": labels[real].tolist()} for ids, labels, real in rows]


def _as_tokens(items: list[Encoded], tokens: list[dict[str, list[int]]]) -> list[Encoded]:
    """The same rows with TRL's tokens.

    TRL tokenises prompt and completion separately, which some tokenizers do not support.
    """
    return [
        dataclasses.replace(item, **{name: np.asarray(values, np.int32) for name, values in fields.items()})
        for item, fields in zip(items, tokens, strict=True)
    ]


def _memory(job: Job, field: str) -> float:
    """Resident memory of this process in MiB, now (VmRSS) or peak (VmHWM); on a GPU torch's allocation.

    `getrusage` would start from the peak of the process that started this one.
    """
    if job.device == "cuda":
        now = torch.cuda.memory_allocated() if field == "VmRSS" else torch.cuda.max_memory_allocated()
        return now / MIB
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def main() -> None:
    """Does the job and writes its result."""
    source, target = (Path(argument) for argument in sys.argv[1:])
    job = Job(**json.loads(source.read_text(encoding="utf-8")))
    write_json(target, TASKS[job.task](job))


if __name__ == "__main__":
    main()
