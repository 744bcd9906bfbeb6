"""What a resumed training loop goes on from beside weights and optimizer: sums, counts, seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from transformers import (
    EarlyStoppingCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_callback import ExportableState

from lockadapt import processes
from lockadapt.files import write_json, write_tensors
from lockadapt.training.stored_state import LoopPosition, Progress, reading_checkpoint, require_like

if TYPE_CHECKING:
    from lockadapt.training.methods.locked import LockedStage
    from lockadapt.training.trainer import GroundingTrainer

PROGRESS = "progress"


class LoopState(TrainerCallback):
    """Keeps in checkpoints what makes the outputs of a resumed run those of an uninterrupted one.

    Hugging Face's Trainer starts its sum of losses, and early stopping its patience, anew when it resumes.

    Args:
        trainer: whose loop it is.
    """

    def __init__(self, trainer: GroundingTrainer | LockedStage) -> None:
        self.trainer = trainer
        self.resumed: Path | None = None
        """The checkpoint that the next loop goes on from."""
        self.begun = False
        """Whether a step was begun."""

    def save(self, folder: Path) -> None:
        """Writes it into a checkpoint folder; all processes must call, and the first one writes.

        Args:
            folder: of the checkpoint.

        Raises:
            DiskError: the disk is full.
        """
        trainer = self.trainer
        tensors, counts = trainer.measures.state()
        losses = processes.gather_numbers(float(trainer._tr_loss))
        if not (trainer.args.should_save and folder.exists()):
            return
        write_tensors(folder / f"{PROGRESS}.safetensors", {**tensors, "losses": losses})
        kept = {
            "measures": counts,
            "total_loss": trainer._total_loss_scalar,
            "last_logged": trainer._globalstep_last_logged,
            "image_sensitivity": trainer.image_sensitivity,
            "patience": [callback.early_stopping_patience_counter for callback in self._stoppers()],
        }
        write_json(folder / f"{PROGRESS}.json", kept)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Goes on from `resumed`; checkpoints of older versions have nothing to go on from."""
        if self.resumed is None or not (self.resumed / f"{PROGRESS}.json").is_file():
            return
        with reading_checkpoint(self.resumed):
            self._restore(self.resumed, args)
        self.resumed = None

    def _restore(self, folder: Path, args: TrainingArguments) -> None:
        trainer = self.trainer
        tensors = load_file(folder / f"{PROGRESS}.safetensors")
        text = (folder / f"{PROGRESS}.json").read_text(encoding="utf-8")
        Progress.model_validate_json(text)
        kept = json.loads(text)
        trainer._tr_loss = _own_loss(tensors, args)
        trainer._total_loss_scalar = kept["total_loss"]
        trainer._globalstep_last_logged = kept["last_logged"]
        trainer._initial_global_step = 0  # the mean loss is of all steps
        trainer.image_sensitivity.update(kept["image_sensitivity"])
        trainer.measures.restore(
            {name: tensor.to(args.device) for name, tensor in tensors.items()}, kept["measures"]
        )
        for callback, patience in zip(self._stoppers(), kept["patience"], strict=True):
            callback.early_stopping_patience_counter = patience

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Notes that all that a checkpoint holds was taken in."""
        self.begun = True

    def _stoppers(self) -> list[EarlyStoppingCallback]:
        return [
            callback
            for callback in self.trainer.callback_handler.callbacks
            if isinstance(callback, EarlyStoppingCallback)
        ]


def train_from(trainer: GroundingTrainer | LockedStage, last: Path | None) -> Any:
    """Trains, from a checkpoint or from the start.

    Args:
        trainer: of the stage.
        last: the checkpoint to go on from; None: none.

    Returns:
        What the Trainer returns.

    Raises:
        VerificationError: the checkpoint is damaged, which is also said of all that a library raises before
            the first step.
    """
    if last is None:
        return trainer.train()
    with reading_checkpoint(last):
        position = LoopPosition.model_validate_json((last / "trainer_state.json").read_bytes())
        exported = [trainer.control, *trainer.callback_handler.callbacks]
        for callback in (item for item in exported if isinstance(item, ExportableState)):
            name = type(callback).__name__
            require_like(callback.state(), position.stateful_callbacks[name], f"stateful_callbacks.{name}")
    try:
        return trainer.train(resume_from_checkpoint=str(last))
    except Exception:
        if trainer.loop_state.begun:
            raise
        with reading_checkpoint(last):
            raise


def _own_loss(tensors: dict[str, torch.Tensor], args: TrainingArguments) -> torch.Tensor:
    """This process's sum of losses since the last line of metrics, float32; taken out of `tensors`.

    A checkpoint of another number of processes gives each the mean, which is what is logged.
    """
    losses = tensors.pop("losses") if "losses" in tensors else tensors.pop("loss").reshape(1)
    same = len(losses) == args.world_size
    own = losses[args.process_index] if same else losses.mean()
    return own.float().to(args.device)
