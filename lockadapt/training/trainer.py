"""GroundingTrainer: Hugging Face's Trainer over objectives, with locks, checks, pickle-free checkpoints."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, set_seed
from transformers.training_args import ParallelMode

from lockadapt import processes
from lockadapt.architectures import architecture_of, tower_of
from lockadapt.architectures.load import load_model
from lockadapt.building.cache_trial import measured_policy
from lockadapt.data.batch import on_device
from lockadapt.data.encode import Encoded
from lockadapt.data.failures import carrying_failures, naming_rows, raise_failure
from lockadapt.data.mixture import Draws, MixedDataset, MixtureSampler, OwnBatches
from lockadapt.data.model_encoder import model_encoder
from lockadapt.data.pixels import ImageInputs
from lockadapt.errors import RecipeError, VerificationError
from lockadapt.features.inputs import inputs_by_objective
from lockadapt.models.four_bit import keep_as_trained
from lockadapt.objectives import KINDS, Objective
from lockadapt.objectives.gather import sum_gradients
from lockadapt.planning.packing import Packing
from lockadapt.runs.artifacts import save_artifacts
from lockadapt.training import checkpoint
from lockadapt.training.checks import (
    AfterStep,
    LearningCheck,
    check_finite,
    check_image_sensitivity,
    freeze_unreached,
)
from lockadapt.training.config import GroundingConfig
from lockadapt.training.datasets import encoded_rows
from lockadapt.training.metrics import TrainingMetrics
from lockadapt.training.optimizer import learning_rates, parameter_groups
from lockadapt.training.packing import decide_packing
from lockadapt.training.resuming import LoopState
from lockadapt.training.sharded import shard_model
from lockadapt.training.shared_random import SharedRandom
from lockadapt.training.shares import WHOLE, give_shares, pieces_of, step_terms
from lockadapt.training.validation import validation_loss
from lockadapt.tuning.adapters import attach_lora, default_parts, set_trainable
from lockadapt.tuning.locks import frozen_digests, prove_locked, trained_digest
from lockadapt.tuning.sharding import is_sharded, is_shared


class GroundingTrainer(Trainer):
    """Trains projector, LoRA and heads of a LLaVA, FastVLM, Janus or dual encoder on objectives.

    Args:
        model:
            What `lockadapt.assemble` returns, or any stock LLaVA, FastVLM or Janus model or folder, wrapped
            by PEFT or not.
        args:
            Arguments of this trainer.
        train_dataset:
            [`~datasets.Dataset`] in TRL's formats (`messages` + `images`, or `prompt` + `completion` +
            `images`), a list of `Sample`, a list of `Encoded`, or a mapping from objective names to any of
            these.
        eval_dataset:
            The same.
        processing_class:
            The model's processor; loaded with the model if that is a path.
        peft_config:
            LoRA on the LLM; use `lockadapt.lora_config` to resolve its targets.
        objectives:
            What to learn, by name; defaults to dialogue.
        image_inputs:
            Where pixels, features or image tokens come from, for all objectives or by name; defaults to what
            `args.features` says.
        callbacks:
            As in [`~transformers.Trainer`].
        optimizers:
            As in [`~transformers.Trainer`].

    Raises:
        LockadaptError: children name a row, tensor or key; see `lockadapt.errors`.
    """

    _tag_names = ("lockadapt", "locked-image-tuning")

    def __init__(
        self,
        model: Any,
        args: GroundingConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        peft_config: LoraConfig | None = None,
        objectives: Mapping[str, Objective] | None = None,
        image_inputs: ImageInputs | Mapping[str, ImageInputs] | None = None,
        callbacks: Sequence[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
    ) -> None:
        args = args or GroundingConfig("grounding")
        # One process drives one device: DataParallel would copy the frozen model at every step.
        args._n_gpu = min(args.n_gpu, 1)
        if isinstance(model, str):
            model, processor = load_model(model, torch.float32)
            processing_class = processing_class or processor
        if processing_class is None:
            raise RecipeError("processing_class is missing", fix="pass the model's processor")
        keep_as_trained(model)
        set_seed(args.seed)
        if peft_config is not None:
            model = attach_lora(model, peft_config)
        self.objectives = dict(objectives or {"dialogue": KINDS["dialogue"]()})
        for objective in self.objectives.values():
            objective.prepare(model)
        set_trainable(
            model,
            args.train_parts or default_parts(model, [o.parts for o in self.objectives.values()]),
            lock_text=args.lock_text,
        )
        _train_in_float32(model)
        self.encoder = model_encoder(model, processing_class, args.max_length, args.allow_special_tokens)
        train, self.encode_reports = encoded_rows(train_dataset, self.objectives, self.encoder)
        evaluation, _ = encoded_rows(eval_dataset, self.objectives, self.encoder)
        if image_inputs is None:
            frozen = {name: objective.frozen for name, objective in self.objectives.items()}
            rows = {name: [*train.get(name, ()), *evaluation.get(name, ())] for name in frozen}
            parts = args.train_parts or default_parts(model, [o.parts for o in self.objectives.values()])
            policy = replace(args.image_policy(), projector_trains="projector" in parts)
            first = [row for name, items in rows.items() if frozen[name] == "tower" for row in items]
            policy = measured_policy(policy, model, processing_class, first)
            for part in (train, evaluation):
                part.update({n: self.objectives[n].keep(model, items, policy) for n, items in part.items()})
            image_inputs = inputs_by_objective(model, processing_class, frozen, rows, policy)
        elif not isinstance(image_inputs, Mapping):
            image_inputs = dict.fromkeys(self.objectives, image_inputs)
        self.image_inputs = dict(image_inputs)
        super().__init__(
            model=model,
            args=args,
            train_dataset=MixedDataset(train) if train else None,
            eval_dataset=evaluation or None,  # type: ignore[arg-type]
            processing_class=processing_class,
            data_collator=carrying_failures(self._collate),
            callbacks=[
                LearningCheck(args.check_steps, self._some_are_new),
                AfterStep(self.objectives),
                *(callbacks or ()),
            ],
            optimizers=optimizers,
        )
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise RecipeError(
                "Accelerate's settings ask for FSDP or DeepSpeed, with which runs are not proved",
                where="accelerate launch",
                fix="launch without --use_fsdp and --use_deepspeed; see docs/scale.md",
            )
        self.model_accepts_loss_kwargs = False
        # The loss is normalised here, by the terms of the step: see `lockadapt.training.shares`.
        self.loss_is_scaled_for_ga = True
        self.shared_random = SharedRandom()
        self.rows_at_once: dict[str, int] = {}
        """Rows that go through the model together, of objectives whose micro-batch does not fit."""
        self.unreached: list[str] = []
        if architecture_of(model).inputs.stock and train:
            self.unreached = freeze_unreached(model, self._some_losses)
        self.locked = frozen_digests(model)
        self.image_sensitivity: dict[str, float] = {}
        self.measures = TrainingMetrics()
        self.loop_state = LoopState(self)
        self.add_callback(self.loop_state)

    # --- data

    def _collate(self, items: Sequence[tuple[str, Encoded]]) -> dict[str, Any]:
        name, rows = items[0][0], [item for _, item in items]
        size = self.rows_at_once.get(name, len(rows))
        pieces = []
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            pieces.append({**self.collate(name, part, self.packing.max_row_tokens), "rows": len(part)})
        return pieces[0] if len(pieces) == 1 else {"objective": name, "pieces": pieces}

    def collate_whole(self, items: Sequence[tuple[str, Encoded]]) -> dict[str, Any]:
        """Makes a batch of named rows of one objective, in one piece."""
        return self.collate(items[0][0], [item for _, item in items], self.packing.max_row_tokens)

    def collate(self, name: str, items: Sequence[Encoded], max_row_tokens: int | None) -> dict[str, Any]:
        """Makes an objective's batch from rows, packed into rows of up to `max_row_tokens` if given."""
        pad = self.processing_class.tokenizer.pad_token_id  # type: ignore[union-attr]
        with naming_rows(items):
            return self.objectives[name].collate(items, self.image_inputs[name], pad, name, max_row_tokens)

    def _some_losses(self) -> Iterator[torch.Tensor]:
        """The loss of a row of each objective, one with an image where there is one."""
        for name, rows in self.train_dataset.rows.items():  # type: ignore[union-attr]
            row = next((candidate for candidate in rows if candidate.images), rows[0])
            device = next(self.model.parameters()).device  # type: ignore[union-attr]
            batch = on_device(self.collate(name, [row], None), device)
            with self.compute_loss_context_manager(), processes.alone():
                yield self.objectives[name].loss(self.model, batch)[0]  # type: ignore[arg-type]

    @cached_property
    def packing(self) -> Packing:
        """How rows are made: decided once, on training rows and model; see `lockadapt.planning.packing`."""
        packing = decide_packing(self)
        if others := processes.other_ranks(str(packing.to_dict())):
            raise VerificationError(
                f"processes {others} would pack rows otherwise than process 0",
                where="data.packing",
                fix="use the same kind of device everywhere, or packing: none",
            )
        return packing

    def get_train_dataloader(self) -> DataLoader[Any]:
        """This process's micro-batches of the whole run, of one objective each, drawn by sampling weight."""
        dataset = self.train_dataset
        if not isinstance(dataset, MixedDataset):
            raise RecipeError("train_dataset is missing", fix="pass rows to train on")
        # Not prepared by Accelerate, which would deal batches of different objectives to the processes.
        return DataLoader(
            dataset,
            batch_sampler=OwnBatches(MixtureSampler(dataset, self.draws()), self.args.process_index),
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory and torch.cuda.is_available(),
            persistent_workers=self.args.dataloader_num_workers > 0,
        )

    def _some_are_new(self) -> bool:
        """Whether an objective has been drawn less than twice."""
        sizes = {name: size * self.args.world_size for name, size in self.micro_batches().items()}
        return any(self.measures.seen[name] < 2 * sizes[name] for name in self.train_dataset.rows)  # type: ignore[union-attr]

    def micro_batches(self) -> dict[str, int]:
        """Samples in a micro-batch, by objective."""
        size = self._train_batch_size
        return {name: objective.batch_size or size for name, objective in self.objectives.items()}

    def draws(self) -> Draws:
        """How the run draws its micro-batches, as many as all its steps take over all processes."""
        most = self.packing.max_samples_per_image
        return Draws(
            {name: objective.sampling_weight for name, objective in self.objectives.items()},
            self.micro_batches(),
            self.planned_steps() * self.args.gradient_accumulation_steps * self.args.world_size,
            self.args.seed,
            {name: most if objective.packs else 1 for name, objective in self.objectives.items()},
            self.args.world_size,
            {name: objective.sources for name, objective in self.objectives.items()},
            self.args.dataloader_num_workers,
        )

    def planned_steps(self) -> int:
        """Optimiser steps of the run: `max_steps`, or as many as `num_train_epochs` passes over rows take."""
        if self.args.max_steps > 0:
            return self.args.max_steps
        per_step = self._train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return max(1, math.ceil(self.args.num_train_epochs * len(self.train_dataset) / per_step))  # type: ignore[arg-type]

    def set_initial_training_values(self, args: Any, dataloader: DataLoader[Any]) -> Any:
        """The data loader holds all epochs already, so the run is one pass of `planned_steps`."""
        steps = self.planned_steps()
        per_step = self._train_batch_size * args.gradient_accumulation_steps * args.world_size
        micro = steps * args.gradient_accumulation_steps
        return 1, steps, len(self.train_dataset), steps * per_step, per_step, micro, steps  # type: ignore[arg-type]

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], None]:
        """Fetches micro-batches, and measures the time that training waits for data."""
        with self.measures.waiting():
            batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        raise_failure(batches)
        self.measures.begin_step()
        give_shares(batches, self.objectives, processes.add_up(step_terms(batches, self.objectives)))
        return batches, None

    # --- loss

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """What a batch adds to the step's loss; towers stay in eval mode (BatchNorm would move)."""
        name = inputs["objective"]
        objective = self.objectives[name]
        if model.training and name not in self.image_sensitivity and not self.args.blind:  # type: ignore[attr-defined]
            with processes.alone():
                self.image_sensitivity[name] = check_image_sensitivity(
                    model, lambda batch: objective.loss(model, batch)[0], inputs
                )
        tower_of(model).eval()
        loss, report = objective.loss(model, inputs)
        check_finite(loss.detach(), name, self.state.global_step + 1)
        share = inputs.get("share", WHOLE)
        rows = inputs.get("rows", self.micro_batches()[name])
        self.measures.note(name, rows * self.args.world_size, {"loss": loss.detach(), **report}, share)
        loss = loss * (objective.weight * share.loss)
        return (loss, None) if return_outputs else loss

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Forward and backward of a drawn micro-batch, in as many pieces as fit.

        Also measures, once an objective between two lines of metrics, its gradient on shared parts.
        """
        name = inputs["objective"]
        compared = len(self.objectives) > 1 and self.measures.gradients.wants(name)
        before = self.measures.gradients.snapshot(model) if compared else None
        losses = [super(GroundingTrainer, self).training_step(model, piece) for piece in self._drawn(inputs)]
        if before is not None:
            self.measures.gradients.note(name, model, before)
        if self.accelerator.sync_gradients and self.args.world_size > 1:
            parameters = self.model.parameters()  # type: ignore[union-attr]
            sum_gradients([p for p in parameters if p.requires_grad and not is_shared(p)])
        # What is logged is the mean over processes, and the loss of a step is the sum of their shares.
        loss = losses[0] if len(losses) == 1 else torch.stack(losses).sum()
        return loss * self.args.world_size if self.args.world_size > 1 else loss

    def _drawn(self, inputs: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The pieces of a micro-batch, each with its rows of the random numbers drawn for all of it."""
        pieces, objective = pieces_of(inputs), self.objectives[inputs["objective"]]
        rows = sum(piece.get("rows", 0) for piece in pieces)
        numbers: dict[str, Any] = {}
        if rows:
            with self.shared_random.drawing(self.args.seed):
                numbers = objective.random_numbers(self.model, pieces[0], rows * self.args.world_size)  # type: ignore[arg-type]
        start = rows * self.args.process_index
        for piece in pieces:
            end = start + piece.get("rows", 0)
            yield {**piece, **{name: drawn[start:end] for name, drawn in numbers.items()}}
            start = end

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Hugging Face's estimate for a micro-batch, 6 operations a token and parameter, without the tower.

        A resumed run may not load its tower, and must count the same.
        """
        ids = [piece["input_ids"] for piece in pieces_of(inputs) if "input_ids" in piece]
        return 6 * self._counted_parameters * sum(int(tokens.numel()) for tokens in ids)

    @cached_property
    def _counted_parameters(self) -> int:
        """Those outside the tower; to go through all takes longer than much of a small model's step."""
        model: Any = self.model
        tower = sum(parameter.numel() for parameter in tower_of(model).parameters())
        return sum(parameter.numel() for parameter in model.parameters()) - tower

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Validation loss by objective (mean over answer tokens), and `eval_loss`, their weighted mean."""
        sets: Mapping[str, Sequence[Encoded]] = self.eval_dataset  # type: ignore[assignment]
        if eval_dataset is not None:
            sets, _ = encoded_rows(eval_dataset, self.objectives, self.encoder)
        if not sets:
            raise RecipeError("eval_dataset is missing", fix="pass rows to validate on")
        metrics = {
            f"{metric_key_prefix}_{name}_loss": validation_loss(self, name, rows)
            for name, rows in sets.items()
        }
        weights = {name: self.objectives[name].weight for name in sets}
        total = sum(weights[name] * metrics[f"{metric_key_prefix}_{name}_loss"] for name in sets)
        metrics[f"{metric_key_prefix}_loss"] = total / sum(weights.values())
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # --- optimiser and metrics

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Groups with a rate each, made once.

        LoRA's A (and what DoRA adds) and B, whose rates differ by the LoRA+ ratio, projector, retrieval,
        generation; and the temperature, which weight decay would pull to 1.
        """
        if self.optimizer is None:
            kind, settings = self.get_optimizer_cls_and_kwargs(self.args, self.model)  # type: ignore[arg-type]
            self.optimizer = kind(parameter_groups(model or self.model, self.args), **settings)  # type: ignore[arg-type]
        return self.optimizer

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds each objective's own numbers, the projector's rate, samples a second, the data's time."""
        if "loss" in logs:
            logs.update(learning_rates(self.optimizer.param_groups))  # type: ignore[union-attr]
            logs.update(self.measures.take(self.state.global_step))
        if "train_runtime" in logs:
            # Hugging Face's Trainer counts from where it was resumed.
            share = logs["train_runtime"] / max(self.measures.seconds, 1e-9)
            logs["train_runtime"] = round(self.measures.seconds, 4)
            for rate in ("train_samples_per_second", "train_steps_per_second"):
                logs[rate] = round(logs[rate] * share, 3)
        super().log(logs, start_time)

    def prove_locked(self) -> int:
        """The lock proof: number of frozen tensors compared; raises LockError if one changed."""
        return prove_locked(self.model, self.locked)  # type: ignore[arg-type]

    # --- several processes

    def shard(self) -> str | None:
        """Shares the LLM among processes, where `args` ask for it and it is not: one line on it."""
        if not self.args.shards or is_sharded(self.model):  # type: ignore[attr-defined, arg-type]
            return None
        return shard_model(self)

    def _prepare_for_training(self, *given: Any, **named: Any) -> Any:
        self.shard()
        # Transformers' own way for models that nothing shall wrap: chunks that run twice and objectives that
        # leave parameters unused need gradients that are added up once a step, not DDP's hooks.
        # Launched alone, a model would be wrapped as well.
        self.is_distributed_loading_by_transformers = self.args.parallel_mode == ParallelMode.DISTRIBUTED
        return super()._prepare_for_training(*given, **named)

    def _sync_replicated_trainable_parameters(self, model: nn.Module) -> None:
        """All processes start from the first one's weights."""
        for parameter in model.parameters():
            if parameter.requires_grad and not is_shared(parameter):
                processes.share_first(parameter)

    def check_same(self) -> None:
        """Compares what trains over all processes.

        Raises:
            VerificationError: on every process, if one has other weights than the first.
        """
        if self.args.world_size == 1:
            return
        if others := processes.other_ranks(trained_digest(self.model)):  # type: ignore[arg-type]
            raise VerificationError(
                f"what trains differs between processes: {others} have other weights than process 0",
                where=f"step {self.state.global_step}",
                fix="do not use this run; report it, with its recipe",
            )

    # --- saving

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """A checkpoint's tensors when called by the training loop; else adapter, projector and processor."""
        folder = Path(output_dir or self.args.output_dir)  # type: ignore[arg-type]
        if _internal_call:
            checkpoint.save_trainable(self.model, folder)  # type: ignore[arg-type]
        elif self.args.should_save:
            save_artifacts(self.model, self.processing_class, folder)  # type: ignore[arg-type]

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self.check_same()
        # Hugging Face's Trainer would remove old checkpoints before the new one is whole.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"  # type: ignore[arg-type]
        self.loop_state.save(folder)
        processes.wait()
        if self.args.should_save and folder.exists():
            checkpoint.seal(folder)
            checkpoint.remove_old(folder.parent, limit, self.state.best_model_checkpoint)
        processes.wait()

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        checkpoint.save_optimizer(self.optimizer, self.lr_scheduler, Path(output_dir))

    def _load_optimizer_and_scheduler(self, checkpoint_folder: str | None) -> None:
        if checkpoint_folder is not None:
            checkpoint.load_optimizer(self.optimizer, self.lr_scheduler, Path(checkpoint_folder))
            self.loop_state.resumed = Path(checkpoint_folder)

    def _save_rng_state(self, output_dir: str) -> None:
        shared = self.shared_random.state
        checkpoint.save_rng(Path(output_dir), self.args.process_index, self.args.world_size, shared)

    def _load_rng_state(self, checkpoint_folder: str | None) -> None:
        if checkpoint_folder is not None:
            number, count = self.args.process_index, self.args.world_size
            self.shared_random.state = checkpoint.load_rng(Path(checkpoint_folder), number, count)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        checkpoint.load_trainable(model or self.model, Path(resume_from_checkpoint))  # type: ignore[arg-type]

    def _load_best_model(self) -> None:
        # By its name only: the run folder may have been moved since, and no path in a file leads out of it.
        best = Path(self.state.best_model_checkpoint).name  # type: ignore[arg-type]
        checkpoint.load_trainable(self.model, Path(self.args.output_dir) / best)  # type: ignore[arg-type]


def _train_in_float32(model: nn.Module) -> None:
    """What trains is kept in float32 (autocast does the arithmetic): small steps vanish in 16 bits."""
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            parameter.data = parameter.data.float()
