"""What every stage by a TRL trainer has of lockadapt: locks, checks, checkpoints without pickle, measures."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import PrinterCallback, Trainer, TrainerCallback

from lockadapt.architectures import architecture_of
from lockadapt.architectures.base import unwrap_model
from lockadapt.building.stages import MethodSettings
from lockadapt.data.encode import Encoded
from lockadapt.data.pixels import ImageInputs
from lockadapt.errors import RecipeError
from lockadapt.metrics.intervals import paired_change
from lockadapt.models.four_bit import keep_as_trained
from lockadapt.objectives import Objective
from lockadapt.planning.packing import Packing
from lockadapt.training import checkpoint
from lockadapt.training.checks import LearningCheck, check_finite, check_image_sensitivity, freeze_unreached
from lockadapt.training.config import GroundingConfig
from lockadapt.training.methods.guard import RewardGuard
from lockadapt.training.methods.measures import TIMES, MethodMeasures
from lockadapt.training.methods.perplexity import text_perplexity
from lockadapt.training.optimizer import learning_rates, parameter_groups
from lockadapt.training.resuming import LoopState
from lockadapt.tuning.adapters import set_trainable
from lockadapt.tuning.freeze_tower_mode import keep_tower_still
from lockadapt.tuning.locks import frozen_digests, prove_locked


@dataclass(frozen=True)
class MethodSetup:
    """What a stage with a method is made from.

    Attributes:
        name: of its objective.
        objective: what its rows are.
        model: with its adapters; this one trains.
        processor: the model's.
        train, validation: encoded rows.
        images: give their images.
        config: of the stage, as a supervised one would have it.
        method: the recipe's keys.
        callbacks: of the trainer.
        texts: without images, int64 (tokens,) each, whose perplexity is compared.
    """

    name: str
    objective: Objective
    model: Any
    processor: Any
    train: Sequence[Encoded]
    validation: Sequence[Encoded]
    images: ImageInputs
    config: GroundingConfig
    method: MethodSettings
    callbacks: Sequence[TrainerCallback]
    texts: Sequence[torch.Tensor] = ()

    @property
    def pad_id(self) -> int:
        """Fills the end of rows."""
        return self.processor.tokenizer.pad_token_id

    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device


class StartValues:
    """The values that the trained tensors of a stage began with: the reference, in the same model.

    Args:
        model: with `requires_grad` where it trains.
    """

    def __init__(self, model: nn.Module) -> None:
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._values = {name: p.detach().float().clone() for name, p in self._parameters.items()}

    def restore(self) -> None:
        """Brings the values back into the model, in float32."""
        for name, parameter in self._parameters.items():
            parameter.data = self._values[name].clone()

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Within the block the model is what it was when the stage began."""
        trained = {name: parameter.data for name, parameter in self._parameters.items()}
        try:
            for name, parameter in self._parameters.items():
                parameter.data = self._values[name]
            yield
        finally:
            for name, parameter in self._parameters.items():
                parameter.data = trained[name]


class LockedStage(Trainer):
    """Stands before a trainer of TRL: `class DpoStage(LockedStage, DPOTrainer)`.

    Args:
        setup: of the stage.
        make: calls TRL's `__init__`, given what all its trainers take.

    Raises:
        RecipeError: TRL refuses its arguments.
        LockadaptError: the stage cannot learn.
    """

    reward_key: ClassVar[str]
    """Of the reward in lines of metrics."""
    measure: ClassVar[str]
    """What `scored` says of a row."""
    setup: MethodSetup

    def __init__(self, setup: MethodSetup, make: Callable[[Mapping[str, Any]], None]) -> None:
        self.setup, model = setup, setup.model
        keep_as_trained(model)
        self._undo = _changes_of_trl(model)
        set_trainable(model, setup.config.train_parts or [], lock_text=setup.config.lock_text)
        self.start = StartValues(model)
        self.guard = RewardGuard(self)
        given = {
            "model": model,
            "processing_class": setup.processor,
            "callbacks": [LearningCheck(setup.config.check_steps, self.waits), self.guard, *setup.callbacks],
        }
        try:
            make(given)
        except (ValueError, TypeError, NotImplementedError) as error:
            text = " ".join(str(error).split())
            raise RecipeError(f"TRL refuses: {text}", where="stages.….trl", fix="correct the keys") from error
        # TRL makes trained tensors of quantized models bfloat16, in which small steps vanish.
        set_trainable(model, setup.config.train_parts or [], lock_text=setup.config.lock_text)
        self.start.restore()
        self._still = keep_tower_still(model)
        self.remove_callback(PrinterCallback)
        self.unreached: list[str] = []
        if architecture_of(model).inputs.stock:
            self.unreached = freeze_unreached(model, self._some_loss)
        self.locked = frozen_digests(model)
        self._closing: dict[str, Any] = {}
        self._perplexity = text_perplexity(model, setup.texts)
        self.measures = MethodMeasures(self)
        self.image_sensitivity = {setup.name: self._look()}
        self.loop_state = LoopState(self)
        self.add_callback(self.loop_state)

    # --- what `run_stage` asks of a trainer

    @property
    def packing(self) -> Packing:
        """How rows are made."""
        return Packing(
            None, 1, 0, 0, f"method: {self.setup.method.name}, by TRL's {type(self).__mro__[2].__name__}"
        )

    def prove_locked(self) -> int:
        """The lock proof: number of frozen tensors compared; raises LockError if one changed."""
        return prove_locked(self.setup.model, self.locked)

    def check_same(self) -> None:
        """A stage with a method trains in one process."""

    def waits(self) -> bool:
        """Whether too few steps had a signal to judge whether everything learns."""
        return self.guard.signals < self.setup.config.check_steps

    def scored(self) -> list[float]:
        """A score of each validation row, with the model as it is; none by default."""
        return []

    def outcome(self) -> dict[str, Any]:
        """What `run.json` says of the stage beside what every stage has; see `_closed`."""
        return self._closing

    def _closed(self) -> dict[str, Any]:
        """Numbers of a stage that ended, while the model is as TRL wants it.

        Returns:
            `reward` of the first and the last line of metrics and of the last validation, None where there is
            none; `held_out_change`, see `paired_change`; `text_perplexity`, before and after.
        """
        key, model = self.reward_key, self.setup.model
        after = self.scored()
        with self.start.in_place():
            before = self.scored()
        lines = self.state.log_history
        trained = [line[key] for line in lines if line.get(key) is not None]
        held_out = [line[f"eval_{key}"] for line in lines if line.get(f"eval_{key}") is not None]
        first, last = (trained[0], trained[-1]) if trained else (None, None)
        return {
            "reward": {"first": first, "last": last, "held_out": held_out[-1] if held_out else None},
            "held_out_change": {"measure": self.measure, **paired_change(before, after)} if after else None,
            "text_perplexity": {
                "before": self._perplexity,
                "after": text_perplexity(model, self.setup.texts),
            },
        }

    def release(self) -> None:
        """Takes back what TRL and this trainer changed of the model beside its trained tensors."""
        self._still.remove()
        self._undo()

    # --- training

    def train(self, *given: Any, **named: Any) -> Any:
        """Trains, and gives the model back as other stages expect it."""
        # What is validated before the first step was so before an interruption.
        if named.get("resume_from_checkpoint"):
            self.args.eval_on_start = False
        try:
            result = super().train(*given, **named)
            self._closing = self._closed()
            return result
        finally:
            self.release()

    def training_step(self, *given: Any, **named: Any) -> torch.Tensor:
        """Counts what was seen, and refuses a loss that is not finite."""
        loss = super().training_step(*given, **named)
        check_finite(loss.detach(), self.setup.name, self.state.global_step + 1)
        self.measures.note(self.args.per_device_train_batch_size)
        return loss

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Groups with a rate each, as in supervised stages."""
        if self.optimizer is None:
            kind, settings = self.get_optimizer_cls_and_kwargs(self.args, self.model)  # type: ignore[arg-type]
            groups = parameter_groups(model or self.setup.model, self.setup.config)
            self.optimizer = kind(groups, **settings)
        return self.optimizer

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the rates, speed and the objective's loss by its name; TRL adds its own numbers."""
        name = self.setup.name
        for key in TIMES:
            self._metrics["train"].pop(key, None)  # type: ignore[attr-defined]
        if "loss" in logs:
            logs[f"{name}/loss"] = logs["loss"]
            logs.update(learning_rates(self.optimizer.param_groups))  # type: ignore[union-attr]
            logs.update(self.measures.take(self.state.global_step))
        if "eval_loss" in logs:
            logs[f"eval_{name}_loss"] = logs["eval_loss"]
        if "train_runtime" in logs:
            logs["train_runtime"] = round(self.measures.seconds, 4)
        super().log(logs, start_time)

    def _look(self) -> float:
        """Whether the images of some rows reach the loss of their answers."""
        shown = [row for row in self.setup.train if row.images][: self.args.per_device_train_batch_size]
        if not shown or self.setup.config.blind:
            return math.nan
        objective = self.setup.objective
        batch = objective.collate(shown, self.setup.images, self.setup.pad_id, self.setup.name)
        batch = Trainer._prepare_inputs(self, batch)  # type: ignore[assignment]
        with self.compute_loss_context_manager():
            return check_image_sensitivity(
                self.setup.model, lambda part: objective.loss(self.setup.model, part)[0], batch
            )

    def _some_loss(self) -> Iterator[torch.Tensor]:
        row = next((row for row in self.setup.train if row.images), self.setup.train[0])
        batch = self.setup.objective.collate([row], self.setup.images, self.setup.pad_id, self.setup.name)
        batch = Trainer._prepare_inputs(self, batch)  # type: ignore[assignment]
        with self.compute_loss_context_manager():
            yield self.setup.objective.loss(self.setup.model, batch)[0]

    # --- TRL's own ways that a run does without

    def _send_telemetry(self) -> None:
        """No request to anywhere."""

    # --- checkpoints

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The tensors that train; `training/finish.py` writes the run."""
        checkpoint.save_trainable(self.setup.model, Path(output_dir or self.args.output_dir or "."))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        # Hugging Face's own, without TRL's card; old checkpoints go once the new one is whole.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            Trainer._save_checkpoint(self, model, trial)
        finally:
            self.args.save_total_limit = limit
        folder = Path(self.args.output_dir or ".") / f"checkpoint-{self.state.global_step}"
        self.loop_state.save(folder)
        checkpoint.seal(folder)
        checkpoint.remove_old(folder.parent, limit, self.state.best_model_checkpoint)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        checkpoint.save_optimizer(self.optimizer, self.lr_scheduler, Path(output_dir))

    def _load_optimizer_and_scheduler(self, checkpoint_folder: str | None) -> None:
        if checkpoint_folder is not None:
            checkpoint.load_optimizer(self.optimizer, self.lr_scheduler, Path(checkpoint_folder))
            self.loop_state.resumed = Path(checkpoint_folder)

    def _save_rng_state(self, output_dir: str) -> None:
        checkpoint.save_rng(Path(output_dir))

    def _load_rng_state(self, checkpoint_folder: str | None) -> None:
        if checkpoint_folder is not None:
            checkpoint.load_rng(Path(checkpoint_folder))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        checkpoint.load_trainable(self.setup.model, Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        best = Path(self.state.best_model_checkpoint).name  # type: ignore[arg-type]
        checkpoint.load_trainable(self.setup.model, Path(self.args.output_dir or ".") / best)


def _changes_of_trl(model: nn.Module) -> Callable[[], None]:
    """Gives what undoes TRL's changes of a model: its forward, dropout, and ids in its configs."""
    base = unwrap_model(model)
    forward = vars(base).get("forward")
    dropouts = [(module, module.p) for module in model.modules() if isinstance(module, nn.Dropout)]
    text = base.config.get_text_config()  # type: ignore[union-attr, operator]
    ids = [(held, held.pad_token_id) for held in (text, base.generation_config)]  # type: ignore[union-attr]

    def undo() -> None:
        vars(base).pop("forward", None)
        if forward is not None:
            vars(base)["forward"] = forward
        for module, p in dropouts:
            module.p = p
        for held, value in ids:
            held.pad_token_id = value

    return undo
