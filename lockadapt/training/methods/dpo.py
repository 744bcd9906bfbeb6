"""The stage `method: dpo`: TRL's DPOTrainer on encoded pairs, its reference log-probabilities precomputed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import load_file
from torch import nn
from trl import DPOConfig, DPOTrainer

from lockadapt.data.batch import Batch, collate, on_device
from lockadapt.data.encode import IGNORED, Encoded
from lockadapt.files import write_tensors
from lockadapt.objectives.answer_tokens import model_inputs, stock_forward
from lockadapt.objectives.preference import rejected_of
from lockadapt.training.methods.arguments import trl_arguments
from lockadapt.training.methods.locked import LockedStage, MethodSetup
from lockadapt.training.stored_state import reading_checkpoint
from lockadapt.tuning.locks import trained_digest

REFERENCE = "reference.safetensors"
"""Beside a stage's checkpoints: log-probabilities of its rows at its start."""
OWN = ("completion_mask", "ref_chosen_logps", "ref_rejected_logps")


class Reference(nn.Module):
    """Keeps TRL from copying the adapter for a reference: its log-probabilities are there already.

    Args:
        config: of the model.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    def forward(self, *given: Any, **named: Any) -> None:
        """Is never called."""
        raise NotImplementedError


class Pairs:
    """Makes the batch that TRL's loss takes of row numbers: chosen answers first, then rejected ones.

    Args:
        setup: of the stage.
        rows: pairs.
    """

    def __init__(self, setup: MethodSetup, rows: Sequence[Encoded]) -> None:
        self.setup, self.rows = setup, rows
        self.reference: torch.Tensor | None = None
        """Log-probabilities, float32 (2, rows); None: not computed yet."""

    def __call__(self, numbers: Sequence[int]) -> Batch:
        """The batch, on the CPU; `completion_mask` int64 (2 * pairs, tokens) marks the answers' tokens."""
        pairs = [self.rows[number] for number in numbers]
        items = [*pairs, *rejected_of(pairs)]
        made = collate(items, self.setup.images, self.setup.pad_id, self.setup.name)
        mask = torch.zeros_like(made["input_ids"])
        for row, item in enumerate(items):
            mask[row, : len(item.labels)] = torch.from_numpy((item.labels != IGNORED).astype("int64"))
        batch = {"input_ids": made.pop("input_ids"), "completion_mask": mask, **made}
        if self.reference is not None:
            chosen, rejected = self.reference[:, list(numbers)]
            batch |= {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
        return batch


class DpoStage(LockedStage, DPOTrainer):
    """TRL's DPOTrainer, given lockadapt's batches: frozen features where they are kept.

    Args:
        setup: of the stage.

    Raises:
        LockadaptError: as `LockedStage`.
    """

    reward_key = "rewards/margins"
    measure = "chosen answer likelier than the rejected one"

    def __init__(self, setup: MethodSetup) -> None:
        self.pairs = {"train": Pairs(setup, setup.train), "eval": Pairs(setup, setup.validation)}

        def make(given: Mapping[str, Any]) -> None:
            keywords = trl_arguments(setup.config, dict(setup.method.trl), best="eval_loss")
            arguments = DPOConfig(**keywords, precompute_ref_log_probs=True)
            DPOTrainer.__init__(
                self,
                ref_model=Reference(setup.model.config),  # type: ignore[arg-type]
                args=arguments,
                data_collator=self._collate,  # type: ignore[arg-type]
                train_dataset=_numbers("train", len(setup.train)),
                eval_dataset=_numbers("eval", len(setup.validation)) if setup.validation else None,
                **given,
            )

        LockedStage.__init__(self, setup, make)
        self._keep_reference(Path(self.args.output_dir or "."))

    def scored(self) -> list[float]:
        """1 for each validation row whose chosen answer is likelier than the rejected one, else 0."""
        chosen, rejected = self._log_probabilities(self.pairs["eval"])
        return (chosen > rejected).double().tolist()

    # --- data

    def _collate(self, examples: Sequence[Mapping[str, Any]]) -> Batch:
        return self.pairs[examples[0]["part"]]([example["row"] for example in examples])

    def _prepare_dataset(self, dataset: Any, *given: Any) -> Any:
        return dataset  # rows are encoded already

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        return dataset  # `_keep_reference`, once the model is as it trains

    def _prepare_inputs(self, inputs: Any) -> Any:
        return on_device(inputs, self.args.device)

    # --- reference

    def _keep_reference(self, folder: Path) -> None:
        """Computes log-probabilities of all answers as the stage begins, or reads them where it was begun."""
        file, begin = folder / REFERENCE, trained_digest(self.setup.model)
        kept: dict[str, torch.Tensor] = {}
        if file.is_file():
            with reading_checkpoint(folder):
                kept = load_file(file)
        for part, pairs in self.pairs.items():
            values = kept.get(f"{part}.{begin}")
            if values is None or values.shape != (2, len(pairs.rows)):
                values = self._log_probabilities(pairs)
            pairs.reference = values
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(file, {f"{part}.{begin}": pairs.reference for part, pairs in self.pairs.items()})  # type: ignore[misc]

    @torch.no_grad()
    def _log_probabilities(self, pairs: Pairs) -> torch.Tensor:
        """Float32 (2, rows) of chosen and rejected answers."""
        reference, pairs.reference = pairs.reference, None
        self.setup.model.eval()
        size, parts = self.args.per_device_train_batch_size, [torch.zeros(2, 0)]
        for start in range(0, len(pairs.rows), size):
            batch = self._prepare_inputs(pairs(range(start, min(start + size, len(pairs.rows)))))
            both = self.compute_ref_log_probs(self.setup.model, self._shown(batch))
            parts.append(torch.stack([values.float().cpu() for values in both]))
        pairs.reference = reference
        return torch.cat(parts, 1)

    # --- loss

    def _compute_loss(self, model: Any, inputs: Any, return_outputs: bool) -> Any:
        with stock_forward(self.setup.model):
            return super()._compute_loss(model, self._shown(inputs), return_outputs)

    def _shown(self, batch: Batch) -> dict[str, Any]:
        """The arguments of forward, with gradient to the projector, and what TRL needs beside them."""
        shown = model_inputs(self.setup.model, batch)
        return {**shown, **{name: batch[name] for name in OWN if name in batch}}


def _numbers(part: str, count: int) -> Dataset:
    return Dataset.from_dict({"part": [part] * count, "row": list(range(count))})
