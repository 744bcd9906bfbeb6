"""Traces the largest moments of a recipe's stages, as they are and with single changes, without weights."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from lockadapt.architectures import inputs_of
from lockadapt.architectures.blueprint import Blueprint, assembled_blueprint, stock_blueprint
from lockadapt.architectures.choose import USUAL
from lockadapt.architectures.suggest import holdings, only_fusion
from lockadapt.building.experiment import build_experiment, feature_settings
from lockadapt.building.model import limited
from lockadapt.building.stages import Stage
from lockadapt.console import Reporter
from lockadapt.data.encode import IGNORED, Encoded
from lockadapt.data.mixture import Draws
from lockadapt.data.pixels import pixel_inputs
from lockadapt.errors import AssemblyError, LockadaptError, RecipeError
from lockadapt.features.inputs import why_nothing_is_kept
from lockadapt.features.policy import ImagePolicy, Store, choose_store
from lockadapt.models.sources import resolve_dtype
from lockadapt.planning.largest_batches import largest_batches
from lockadapt.planning.packing import (
    NOTHING_PACKS,
    Packing,
    PackingTrial,
    PackingWish,
    choose_packing,
    samples_per_image,
    why_not_exact,
)
from lockadapt.planning.rows import PlannedRows, planned_rows, shortened
from lockadapt.planning.sizes import Size
from lockadapt.planning.trace import MicroBatch, Traced, traced
from lockadapt.recipe.schema import Recipe
from lockadapt.tuning.quantize import Quantization


@dataclass(frozen=True)
class Choice:
    """What decides about memory and may be changed: `divide` divides the micro-batches, `limit` cuts rows."""

    dtype: torch.dtype
    quantization: Quantization
    checkpointing: bool
    divide: int = 1
    limit: int | None = None


@dataclass(frozen=True)
class Peak:
    """The largest moment of a run in bytes: model by component, and what comes and goes."""

    total: int
    sizes: tuple[Size, ...]
    parts: dict[str, int]
    batch: dict[str, Any]


class Planner:
    """Plans one recipe; remembers what it traced, so that changes can be tried.

    Args:
        recipe: checked already.
        reporter: is told about long work.
        processes: that train together.

    Raises:
        LockadaptError: a config is not to be had, rows are wrong, LoRA has no target …
    """

    def __init__(self, recipe: Recipe, reporter: Reporter, processes: int = 1) -> None:
        self.recipe, self.experiment, self.reporter = recipe, build_experiment(recipe), reporter
        self.objectives, self.processes = self.experiment.objectives, processes
        if not any(objective.plannable for objective in self.objectives.values()):
            raise RecipeError(
                "no objective can be planned without weights",
                where="objectives",
                fix="start `lockadapt train`: it tries its largest micro-batch before step 1",
            )
        section = recipe.model
        self.choice = Choice(
            resolve_dtype(section.dtype), section.quantization, recipe.training.gradient_checkpointing
        )
        self._models: dict[tuple[torch.dtype, Quantization], Traced] = {}
        self._peaks: dict[Any, Peak] = {}
        self._traces: dict[Any, tuple[int, dict[str, int], int]] = {}
        trace = self.model(self.choice)
        self.rows: PlannedRows = planned_rows(self.experiment, trace.model, trace.processor, reporter)
        # A stage over rows that are not here is planned for one step.
        counts = {name: count or 1 for name, count in self.rows.counts.items()}
        self.stages = self.experiment.stages(counts, processes)
        self._packing: dict[str, Packing] = {}
        self.nothing_kept = self._why_nothing_is_kept(trace)
        """Why features are not kept, where the recipe would keep them."""
        self.features = self._kept_features(trace)
        self.cached = self.features != "none"

    def model(self, choice: Choice) -> Traced:
        """The model without weights for a choice; built once for a dtype and a quantization."""
        key = (choice.dtype, choice.quantization)
        if key not in self._models:
            section = self.recipe.model
            if section.vlm is not None:
                blueprint = stock_blueprint(section.vlm, choice.dtype)
                if self._models:  # limits are measured, which takes a while: once is enough
                    processor = next(iter(self._models.values())).processor
                    blueprint = replace(blueprint, processor=processor)
                else:
                    limited(blueprint.processor, section.max_image_tokens)
            else:
                blueprint = self._assembled(choice.dtype)
            self._models[key] = traced(
                blueprint,
                choice.quantization,
                choice.dtype,
                self.experiment.lora,
                self.objectives,
                section.lock_text,
            )
            if not self.experiment.projector_trains:
                self._models[key].images.keep_projected()
        return self._models[key]

    def _assembled(self, dtype: torch.dtype) -> Blueprint:
        """What `assemble` would make of the recipe, as far as structure tells which fusion that is."""
        section = self.recipe.model
        try:
            return self._with_fusion(section.fusion or USUAL, dtype)
        except AssemblyError as error:
            if section.fusion is not None or section.image_tokenizer is not None:
                raise
            assert section.llm is not None
            assert section.tower is not None
            entries = holdings(
                section.llm,
                section.tower,
                image_size=section.image_size,
                feature_layer=section.feature_layer,
                measured=False,
            )
            return self._with_fusion(only_fusion(entries, error), dtype)

    def _with_fusion(self, fusion: str, dtype: torch.dtype) -> Blueprint:
        section = self.recipe.model
        assert section.llm is not None
        assert section.tower is not None
        return assembled_blueprint(
            section.llm,
            section.tower,
            dtype,
            fusion_name=fusion,
            image_size=section.image_size,
            feature_layer=section.feature_layer,
            query_tokens=self.experiment.query_tokens,
            image_tokenizer=section.image_tokenizer,
            factor=section.factor,
            grid=section.tile_grid,
            max_tiles=section.max_tiles,
            queries=section.queries,
        )

    def peak(self, choice: Choice, like: Peak | None = None) -> Peak:
        """Finds the largest moment of all stages with a choice, on the device, without the host's bytes.

        Args:
            choice: what is changed.
            like: look at the stage and the objective of this one only, which were the largest before a
                change.

        Returns:
            The moment's bytes and their parts.
        """
        key = (choice, like and (like.batch["stage"], like.batch["objective"]))
        if key not in self._peaks:
            stages = [stage for stage in self.stages if like is None or stage.name == like.batch["stage"]]
            only = like.batch["objective"] if like else None
            peaks = [peak for stage in stages for peak in self._stage_peaks(stage, choice, only)]
            self._peaks[key] = max(peaks, key=lambda peak: peak.total)
        return self._peaks[key]

    def batches(self, stage: Stage, choice: Choice) -> list[tuple[str, list[Encoded]]]:
        """The largest micro-batches of a stage."""
        rows = {name: self.rows.train[name] for name in stage.objectives if self.objectives[name].plannable}
        if not rows:
            return []
        known = self.rows.whole and all(self.rows.counts[name] for name in stage.objectives)
        size = micro_batch(stage.batch_size, choice.divide)
        every = stage.steps * stage.accumulation * self.processes
        micro = every * (stage.batch_size // size) if known else 0
        sampling_weights = {name: self.objectives[name].sampling_weight for name in rows}
        batches = []
        packing, seed = self.packing(stage), self.recipe.training.seed
        sizes = {name: self.objectives[name].batch_size or size for name in rows}
        most = {name: packing.max_samples_per_image if self.objectives[name].packs else 1 for name in rows}
        sources = {name: self.objectives[name].sources for name in rows}
        draws = Draws(sampling_weights, sizes, micro, seed, most, self.processes, sources)
        for name, items in largest_batches(rows, draws, packing.max_row_tokens):
            repeated = list(itertools.islice(itertools.cycle(items), sizes[name])) if not known else items
            batches.append((name, shortened(repeated, choice.limit) if choice.limit else repeated))
        return batches

    def packing(self, stage: Stage) -> Packing:
        """As the trainer decides it, but for the trial on the model, which needs its weights."""
        if stage.name not in self._packing:
            self._packing[stage.name] = self._choose_packing(stage)
        return self._packing[stage.name]

    def _choose_packing(self, stage: Stage) -> Packing:
        if not any(self.objectives[name].packs for name in stage.objectives):
            return NOTHING_PACKS
        data, model = self.recipe.data, self.model(self.choice).model
        step = stage.batch_size * stage.accumulation
        most = samples_per_image(data.max_samples_per_image, step, stage.batch_size)
        return choose_packing(
            {name: self.rows.train[name] for name in stage.objectives if self.objectives[name].packs},
            PackingWish(data.packing, data.max_row_tokens, most, stage.batch_size),
            PackingTrial(lambda longest: why_not_exact(model, longest), mistake=lambda: None),
        )

    def host(self) -> int:
        """Bytes of features that are kept in the host's memory."""
        return self._in_memory(self.model(self.choice)) if self.features == "memory" else 0

    def on_disk(self) -> int:
        """Bytes of all features in a cache on disk, in the dtype that the recipe stores; 0: none are kept."""
        if self.nothing_kept is not None:
            return 0
        images = self.model(self.choice).images
        return images.disk_bytes(list(self.rows.images.values()), self.recipe.data.feature_dtype)

    def _in_memory(self, trace: Traced) -> int:
        return trace.images.memory_bytes(list(self.rows.images.values()))

    def _why_nothing_is_kept(self, trace: Traced) -> str | None:
        """As far as structure and sizes tell: the run and `check` measure it on real rows."""
        data, settings = self.recipe.data, self.experiment.features
        if self.rows.streamed:
            return "rows are streamed"
        if not inputs_of(trace.processor).stock or settings.choice == "none" or not self.rows.images:
            return None
        pixels = pixel_inputs(trace.processor, data.max_pixels)
        policy = ImagePolicy(settings, data.max_pixels)
        together = [item.images for items in self.rows.train.values() for item in items]
        if (reason := why_nothing_is_kept(trace.model, pixels, policy, together)) is not None:
            return reason
        try:
            self._in_memory(trace)
        except LockadaptError as error:
            return error.message
        # Forwards that cannot be cut fail in as many ways as there are, as in a run's trial.
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, KeyError) as error:
            return f"its tower cannot be traced ({type(error).__name__})"
        return None

    def _kept_features(self, trace: Traced) -> Store:
        """Where features are kept: as in a run, but for a full disk."""
        if self.nothing_kept is not None:
            return "none"
        settings, distinct = feature_settings(self.recipe.data), len(self.rows.images)
        store, _ = choose_store(
            settings,
            distinct,
            reused=sum(stage.samples for stage in self.stages) > distinct,
            memory_bytes=lambda: self._in_memory(trace),
            disk_refusal=lambda: None if self.on_disk() <= settings.disk_gib * 2**30 else "too large",
        )
        return store

    def _stage_peaks(self, stage: Stage, choice: Choice, only: str | None) -> Iterator[Peak]:
        trace = self.model(choice)
        accumulation = stage.accumulation * (stage.batch_size // micro_batch(stage.batch_size, choice.divide))
        eight_bit = self.recipe.training.optimizer != "adamw"
        gradients, moments = trace.state(stage.train, eight_bit)
        sizes = tuple(trace.sizes(stage.train))
        weights = sum(size.bytes for size in sizes)
        for name, items in self.batches(stage, choice):
            if only not in (None, name):
                continue
            # What a batch looks like to the memory: rows that are assumed are alike in several objectives.
            shape = tuple((len(i.input_ids), int((i.labels != IGNORED).sum()), len(i.images)) for i in items)
            alike = (choice, stage.train, self.objectives[name].kind, shape, accumulation > 1)
            if alike not in self._traces:
                self.reporter.note(
                    f"tracing stage {stage.name}: {len(items)} rows of {name}, {choice_text(choice)}"
                )
                step = MicroBatch(
                    name,
                    self.objectives[name],
                    items,
                    stage.train,
                    cached=self.cached,
                    checkpointing=choice.checkpointing,
                    accumulate=accumulation > 1,
                    max_row_tokens=self.packing(stage).max_row_tokens,
                )
                self._traces[alike] = trace.peak(step)
            peak, parts, batch = self._traces[alike]
            if peak < weights + gradients:
                peak, parts = weights + gradients, {"weights": weights, "gradients": gradients}
            # All micro-batches of a step are fetched before it, and one ahead.
            waiting = batch * (accumulation + 1)
            # What the sizes do not say of the weights at that moment are casts of them.
            held = {
                "gradients": parts.get("gradients", 0),
                "optimizer": moments,
                "activations": parts.get("activations", 0) + parts.get("weights", 0) - weights,
                "logits": parts.get("logits", 0),
                "batches": waiting,
            }
            longest = max(len(item.input_ids) for item in items)
            learned = sum(int((item.labels != IGNORED).sum()) for item in items)
            yield Peak(
                peak + moments + waiting,
                sizes,
                held,
                {
                    "stage": stage.name,
                    "objective": name,
                    "rows": len(items),
                    "longest": longest,
                    "learned_tokens": learned,
                },
            )


def micro_batch(size: int, divide: int) -> int:
    """The largest divisor of a micro-batch that is no larger than `size / divide`."""
    return next(n for n in range(max(size // divide, 1), 0, -1) if size % n == 0)


def choice_text(choice: Choice) -> str:
    """In a few words."""
    parts = [str(choice.dtype).removeprefix("torch."), choice.quantization]
    parts += ["checkpointing"] if choice.checkpointing else []
    parts += [f"rows cut to {choice.limit}"] if choice.limit else []
    return ", ".join(part for part in parts if part != "none")


def changes(planner: Planner, start: Choice) -> Iterator[tuple[str, Choice]]:
    """Single changes that save memory, those that change the least about the result first, as overrides."""
    if not start.checkpointing:
        yield "training.gradient_checkpointing=true", replace(start, checkpointing=True)
    largest = max(stage.batch_size for stage in planner.stages)
    divide = 2
    while micro_batch(largest, divide // 2) > 1:
        yield _batch_overrides(planner, divide), replace(start, divide=divide)
        divide *= 2
    if start.quantization == "none":
        yield "model.quantization=nf4", replace(start, quantization="nf4")
    longest = max(len(item.input_ids) for rows in planner.rows.train.values() for item in rows)
    for limit in (longest * 3 // 4, longest // 2):
        cut = shortened([item for rows in planner.rows.train.values() for item in rows], limit)
        if all(len(item.input_ids) <= limit for item in cut):
            yield f"data.max_length={limit}", replace(start, limit=limit)


def _batch_overrides(planner: Planner, divide: int) -> str:
    """Halved micro-batches with the accumulation that keeps the samples of a step."""
    training = planner.recipe.training
    parts = []
    sections: list[tuple[str, Any]] = [
        (f"stages.{number}", section) for number, section in enumerate(planner.recipe.stages)
    ]
    own = [(path, section) for path, section in sections if section.batch_size or section.accumulation]
    if not sections or any(not section.batch_size for _, section in sections):
        size = micro_batch(training.batch_size, divide)
        parts.append(f"training.batch_size={size}")
        parts.append(f"training.accumulation={training.accumulation * (training.batch_size // size)}")
    for path, section in own:
        before = section.batch_size or training.batch_size
        size = micro_batch(before, divide)
        if section.batch_size:
            parts.append(f"{path}.batch_size={size}")
        accumulation = (section.accumulation or training.accumulation) * (before // size)
        parts.append(f"{path}.accumulation={accumulation}")
    return " ".join(parts)
