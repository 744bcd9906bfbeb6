"""What a resumed training loop goes on from beside weights and optimizer: sums, counts, seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file
from transformers import (
    EarlyStoppingCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from lockadapt.files import write_json, write_tensors

if TYPE_CHECKING:
    from lockadapt.training.trainer import GroundingTrainer

PROGRESS = "progress"


class LoopState(TrainerCallback):
    """Keeps in checkpoints what makes the outputs of a resumed run those of an uninterrupted one.

    Hugging Face's Trainer starts its sum of losses, and early stopping its patience, anew when it resumes.

    Args:
        trainer: whose loop it is.
    """

    def __init__(self, trainer: GroundingTrainer) -> None:
        self.trainer = trainer
        self.resumed: Path | None = None
        """The checkpoint that the next loop goes on from."""

    def save(self, folder: Path) -> None:
        """Writes it into a checkpoint folder.

        Args:
            folder: of the checkpoint.

        Raises:
            DiskError: the disk is full.
        """
        trainer = self.trainer
        tensors, counts = trainer.measures.state()
        write_tensors(
            folder / f"{PROGRESS}.safetensors", {**tensors, "loss": trainer._tr_loss.detach().cpu()}
        )
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
        trainer = self.trainer
        tensors = load_file(self.resumed / f"{PROGRESS}.safetensors")
        kept = json.loads((self.resumed / f"{PROGRESS}.json").read_text(encoding="utf-8"))
        trainer._tr_loss = tensors.pop("loss").to(args.device)
        trainer._total_loss_scalar = kept["total_loss"]
        trainer._globalstep_last_logged = kept["last_logged"]
        trainer._initial_global_step = 0  # the mean loss is of all steps
        trainer.image_sensitivity.update(kept["image_sensitivity"])
        trainer.measures.restore(
            {name: tensor.to(args.device) for name, tensor in tensors.items()}, kept["measures"]
        )
        for callback, patience in zip(self._stoppers(), kept["patience"], strict=True):
            callback.early_stopping_patience_counter = patience
        self.resumed = None

    def _stoppers(self) -> list[EarlyStoppingCallback]:
        return [
            callback
            for callback in self.trainer.callback_handler.callbacks
            if isinstance(callback, EarlyStoppingCallback)
        ]
