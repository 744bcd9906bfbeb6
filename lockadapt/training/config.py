"""GroundingConfig: TRL-style arguments of a GroundingTrainer."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from transformers import TrainingArguments

from lockadapt.features.policy import FeatureSettings, ImagePolicy


@dataclass
class GroundingConfig(TrainingArguments):
    r"""Arguments of [`GroundingTrainer`]: those of [`~transformers.TrainingArguments`] and the following.

    > Parameters that control what trains and how fast

    Args:
        train_parts (`list[str]`, *optional*):
            What trains: of `"projector"`, `"lora"`, `"retrieval"`, `"generation"`; defaults to what the
            objectives need, and LoRA if there is any. Everything else is locked, and proved to be.
        lock_text (`bool`, *optional*, defaults to `False`):
            Also freeze what texts without an image go through, where a class can (gated cross-attention).
        projector_learning_rate (`float`, *optional*, defaults to `2e-5`):
            Learning rate of the projector; `learning_rate` is that of the LoRA adapters.
        retrieval_learning_rate (`float`, *optional*):
            Learning rate of query tokens, embedding projections, temperature and bias; defaults to the
            projector's.
        generation_learning_rate (`float`, *optional*):
            Learning rate of the image-generation head; default: projector_learning_rate.
        lora_plus_ratio (`float`, *optional*, defaults to `1.0`):
            Learning rate of LoRA's B over that of A (LoRA+, arXiv 2402.12354).

        sharding (`str`, *optional*, defaults to `"none"`):
            `"fsdp"`: several processes share the blocks of the LLM (`torch.distributed.fsdp.fully_shard`).

    > Parameters that control the data

    Args:
        max_length (`int` or `None`, *optional*):
            Longest sample in tokens, defaults to the LLM's context. Text is cut, images never are.
        allow_special_tokens (`bool`, *optional*, defaults to `False`):
            Let control tokens that a row's text spells out become control tokens; else they stay plain text.
        max_pixels (`int`, *optional*, defaults to `50_000_000`):
            Larger images are refused before they are decoded.
        feature_memory_gib (`float`, *optional*, defaults to `2.0`):
            Frozen tower outputs are kept in memory if they fit in so many GiB.
        features (`str`, *optional*, defaults to `"auto"`):
            Where they are kept: `"memory"`, `"disk"`, `"none"` (the tower runs at every step), or `"auto"`:
            in memory or else on disk, where they fit.
        feature_disk_gib (`float`, *optional*, defaults to `0.0`):
            The most disk for them in GiB; with `0`, `"auto"` writes none.
        feature_dtype (`str`, *optional*, defaults to `"bfloat16"`):
            How they are stored on disk: `"bfloat16"`, `"float32"` or `"int8"`.
        feature_cache (`str`, *optional*, defaults to `"~/.cache/lockadapt/features"`):
            The folder on disk.
        packing (`str`, *optional*, defaults to `"auto"`):
            `"shared"`: samples about the same images share a row in which common beginnings stand once;
            exact, checked on the model before step 1. `"none"`: one row a sample. `"auto"`: shared where it
            is exact and saves a tenth of the tokens.
        max_row_tokens (`int`, *optional*, defaults to `2048`):
            Longest packed row; more samples of one image are divided.
        max_samples_per_image (`int` or `None`, *optional*):
            Maximum number of samples of one image drawn together for packing; defaults to a quarter of an
            optimiser step's samples, so that a step sees four images or more.
        blind (`bool`, *optional*, defaults to `False`):
            Replace every image by the mean image, to measure how much can be answered from the text alone.

    > Parameters that control the checks against wasted runs

    Args:
        check_steps (`int`, *optional*, defaults to `5`):
            After so many optimiser steps, every tensor that should train must have had a gradient and have
            moved.

    > [!NOTE]
    > Defaults that differ from `TrainingArguments`: `learning_rate` 2e-4, `weight_decay` 0,
    > `logging_nan_inf_filter` False, `remove_unused_columns` False, `lr_scheduler_type` cosine,
    > `warmup_steps` 0.03, `report_to` "none", `save_strategy` "no", `disable_tqdm` True.
    """

    learning_rate: float = field(default=2e-4, metadata={"help": "Learning rate of the LoRA adapters."})
    weight_decay: float = field(default=0.0, metadata={"help": "Weight decay."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Never hide a non-finite loss."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Batches are made here."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Schedule."})  # type: ignore[assignment]
    warmup_steps: float = field(default=0.03, metadata={"help": "Steps, or share of the steps if below 1."})
    report_to: str | list[str] | None = field(
        default="none", metadata={"help": "trackio, wandb, tensorboard."}
    )
    save_strategy: str = field(default="no", metadata={"help": "When to write checkpoints."})  # type: ignore[assignment]
    disable_tqdm: bool | None = field(default=True, metadata={"help": "Progress is shown by lockadapt."})

    train_parts: list[str] | None = field(default=None, metadata={"help": "What trains: projector, lora."})
    lock_text: bool = field(default=False, metadata={"help": "Keep what the LLM makes of texts alone."})
    projector_learning_rate: float = field(default=2e-5, metadata={"help": "Learning rate of the projector."})
    retrieval_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of what embeds images and texts."}
    )
    generation_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the image-generation head."}
    )
    lora_plus_ratio: float = field(default=1.0, metadata={"help": "Learning rate of B over that of A."})
    max_length: int | None = field(default=None, metadata={"help": "Longest sample in tokens."})
    allow_special_tokens: bool = field(
        default=False, metadata={"help": "Let texts of rows write control tokens."}
    )
    max_pixels: int = field(default=50_000_000, metadata={"help": "Largest image in pixels."})
    feature_memory_gib: float = field(
        default=2.0, metadata={"help": "Memory for frozen tower outputs, in GiB."}
    )
    packing: str = field(default="auto", metadata={"help": "Share rows between samples of an image."})
    max_row_tokens: int = field(default=2048, metadata={"help": "Longest packed row in tokens."})
    max_samples_per_image: int | None = field(
        default=None, metadata={"help": "Maximum number of samples of one image drawn together."}
    )
    features: str = field(default="auto", metadata={"help": "Where they are kept."})
    feature_disk_gib: float = field(default=0.0, metadata={"help": "Disk for them, in GiB."})
    feature_dtype: str = field(default="bfloat16", metadata={"help": "How they are stored on disk."})
    feature_cache: str = field(
        default="~/.cache/lockadapt/features", metadata={"help": "Where on disk they are kept."}
    )
    sharding: str = field(default="none", metadata={"help": "Share the LLM among processes: fsdp."})
    blind: bool = field(default=False, metadata={"help": "Replace every image by the mean image."})
    check_steps: int = field(default=5, metadata={"help": "Steps after which every tensor must have moved."})

    @property
    def shards(self) -> bool:
        """Whether processes share the LLM: one alone has all of it."""
        return self.sharding == "fsdp" and self.world_size > 1

    @property
    def place_model_on_device(self) -> bool | None:  # type: ignore[override]
        """Whether the Trainer moves the model to its device (None: it decides): never one to be shared."""
        return False if self.shards else None

    def image_policy(self) -> ImagePolicy:
        """How images become inputs of batches."""
        settings = FeatureSettings(
            self.features,  # type: ignore[arg-type]
            self.feature_memory_gib,
            self.feature_disk_gib,
            self.feature_dtype,
            Path(self.feature_cache),
            self.dataloader_num_workers,
        )
        return ImagePolicy(settings, self.max_pixels, self.blind)
