"""Folds adapters, weighted, into a stock folder, whoever trained them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftConfig, PeftModel, PeftType
from peft.tuners.lora import LoraLayer
from PIL import Image

from lockadapt.architectures.load import load_model
from lockadapt.console import Reporter
from lockadapt.data.sample import ImageRef, Sample, question_answer
from lockadapt.errors import RecipeError, VerificationError
from lockadapt.exports.proofs.merged_folder import prove_merge, record, reference_answers
from lockadapt.exports.proofs.stored_folder import read_json
from lockadapt.exports.stock_folder import copy_configs, local_folder, trained_parts
from lockadapt.exports.weights import merge_weights
from lockadapt.exports.weights.key_layouts import client_keys
from lockadapt.exports.weights.merge_weights import Weighted, all_changes
from lockadapt.exports.weights.names import meta_model, read_names
from lockadapt.exports.weights.shards import read_layout
from lockadapt.files import new_folder, ordinary_permissions, require_new, sha256_of, write_json
from lockadapt.models.origins import SIDECAR
from lockadapt.models.quiet import quiet
from lockadapt.models.settled_folder import settle_folder
from lockadapt.runs.artifacts import ADAPTER
from lockadapt.runs.integrity import check_base
from lockadapt.runs.run import open_run
from lockadapt.runs.run_folder import is_run, read_probe, versions
from lockadapt.tuning.base_identity import BaseIdentity

PROBES = 4
"""Made-up samples that a stack is proved on where no run has kept real ones."""


def parse_adapter(text: str) -> Weighted:
    """Parses `DIR` or `DIR:WEIGHT` of a PEFT folder or a run.

    Args:
        text: as the command line has it.

    Returns:
        The adapter and its weight, 1 by default.

    Raises:
        RecipeError: there is no such folder, or the weight is no number.
    """
    name, colon, number = text.rpartition(":")
    if not colon or Path(text).is_dir():
        name, number = text, "1"
    try:
        weight = float(number)
    except ValueError as error:
        raise RecipeError(
            f"{number!r} is no weight", where=f"--adapter {text}", fix="write DIR:0.7"
        ) from error
    folder = Path(name)
    if not folder.is_dir() or not np.isfinite(weight) or weight == 0:
        problem = "there is no such folder" if not folder.is_dir() else f"a weight of {weight} adds nothing"
        raise RecipeError(problem, where=f"--adapter {text}", fix="name a PEFT folder or a run, and a weight")
    if not is_run(folder):
        return Weighted(folder, weight, identity=_exported_identity(folder))
    run = open_run(folder)
    inner = folder / ADAPTER if run.adapter is not None else None
    return Weighted(inner, weight, trained_parts(run), run.record.base_identity)


def merge_stack(
    base: str, adapters: Sequence[Weighted], output: Path, reporter: Reporter, *, force_base: bool = False
) -> dict[str, Any]:
    """Writes a stock folder: base plus every adapter times its weight, summed in float32, rounded once.

    Trained tensors, such as two projectors, are mixed as `W + sum of w_i (T_i - W)`.

    Args:
        base: stock folder or Hub id of a class that lockadapt trains.
        adapters: from `parse_adapter`.
        output: a new folder; it appears only when every check has passed.
        reporter: told of progress.
        force_base: accept another base than the one that an adapter was trained on.

    Returns:
        As `merge_run`.

    Raises:
        LockadaptError: as `merge_weights`.
        VerificationError: an adapter was trained on another base, or the reloaded folder differs from
            PEFT's own merge, or where PEFT cannot mix them from the sum computed in memory.
    """
    require_new(output, what="merging")
    source = local_folder(base)
    model, processor = load_model(source, torch.float32)
    for adapter in () if force_base else adapters:
        check_base(
            adapter.identity,
            model,
            processor.tokenizer,
            f"{base} under {adapter.folder or 'a run'}",
            fix=_FORCE,
        )
    reference = reference_answers(_expected(model, source, adapters), processor, _probe(adapters))
    del model
    with new_folder(output, what="merging") as folder:
        reporter.note("merging")
        meta = meta_model(source)
        names = read_names(meta, read_layout(source).by_key(), str(source))
        merge_weights(source, folder, adapters, rename=client_keys(meta, names))
        copy_configs(source, folder)
        settle_folder(folder)
        ordinary_permissions(folder)
        write_json(folder / SIDECAR, _origin(source, adapters, folder))
        reporter.note("proving in a fresh process")
        proof = prove_merge(folder, reference, stored_dtype(folder))
        record(folder, proof)
    return {"output": str(output), **proof}


def _expected(model: Any, source: Path, adapters: Sequence[Weighted]) -> Any:
    """What the merged folder must equal: PEFT's own merge of all adapters that PEFT can weigh and sum.

    What was trained beside them, such as a projector, is mixed into it. PEFT mixes neither layers that are
    kept whole (`modules_to_save`) nor DoRA with a weight: such stacks are compared with the plain sum.
    """
    folders = [adapter for adapter in adapters if adapter.folder is not None]
    alone = len(folders) == 1 and folders[0].weight == 1
    if not folders or not (alone or all(_is_sum(adapter) for adapter in folders)):
        return added(model, source, adapters)
    all_changes(source, adapters, {})  # refuses with its own reasons before PEFT reads the folders
    merged = _merged_by_peft(model, folders)
    return added(merged, source, [replace(adapter, folder=None) for adapter in adapters if adapter.parts])


def _is_sum(adapter: Weighted) -> bool:
    """Whether PEFT can weigh an adapter and merge it beside others."""
    config: Any = PeftConfig.from_pretrained(str(adapter.folder))
    whole = ("modules_to_save", "trainable_token_indices", "target_parameters", "use_dora")
    return config.peft_type == PeftType.LORA and not any(getattr(config, key, None) for key in whole)


def _merged_by_peft(model: Any, adapters: Sequence[Weighted]) -> Any:
    names = [str(number) for number in range(len(adapters))]
    try:
        with quiet():
            wrapped: Any = PeftModel.from_pretrained(model, str(adapters[0].folder), adapter_name=names[0])
            for name, adapter in zip(names[1:], adapters[1:], strict=True):
                wrapped.load_adapter(str(adapter.folder), adapter_name=name)
            for layer in wrapped.modules():
                for name, adapter in zip(names, adapters, strict=True):
                    if isinstance(layer, LoraLayer) and name in layer.scaling:
                        layer.scaling[name] *= adapter.weight
            return wrapped.merge_and_unload(adapter_names=names)
    except (ValueError, RuntimeError, KeyError, TypeError, NotImplementedError) as error:
        raise VerificationError(
            f"PEFT cannot merge this, so nothing proves a merge: {error}",
            where=", ".join(str(adapter.folder) for adapter in adapters),
        ) from error


@torch.no_grad()
def added(model: Any, source: Path, adapters: Sequence[Weighted]) -> Any:
    """Loads a model and adds every adapter in memory: the plain way, which the streamed folder must equal."""
    parameters = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
    for name, changes in all_changes(source, adapters, {}).items():
        tensor = parameters[name].data
        matrix = tensor.reshape(-1, tensor.shape[-1]) if tensor.ndim else tensor.reshape(1, 1)
        for change in changes:
            change.apply(matrix, 0)
        tensor.copy_(matrix.reshape(tensor.shape))
    return model


_FORCE = "name the base that it was trained on, or add --force-base if you know better"


def _exported_identity(folder: Path) -> BaseIdentity | None:
    """What `lockadapt export` wrote beside an adapter says of its base."""
    for file in (folder / SIDECAR, folder.parent / SIDECAR):
        if file.is_file():
            recorded = read_json(file).get("base_identity")
            return BaseIdentity.from_dict(recorded) if isinstance(recorded, dict) else None
    return None


def stored_dtype(folder: Path) -> torch.dtype:
    """The coarsest floating-point dtype that weights of a folder are kept in."""
    dtypes = {tensor.dtype for _, tensor in read_layout(folder).by_key().values()}
    for name, dtype in (("BF16", torch.bfloat16), ("F16", torch.float16)):
        if name in dtypes:
            return dtype
    return torch.float32


def _probe(adapters: Sequence[Weighted]) -> list[Sample]:
    """Real samples where an adapter is a run's, else pictures of noise and a question."""
    for adapter in adapters:
        run = adapter.folder.parent if adapter.folder is not None else None
        if run is not None and is_run(run):
            return read_probe(run)
    chance = np.random.default_rng(0)
    samples = []
    for number in range(PROBES):
        noise = Image.fromarray(chance.integers(0, 256, (64, 64, 3), dtype=np.uint8))
        image = ImageRef(key=f"noise-{number}", picture=noise)
        samples.append(question_answer("what is there?", "a picture", [image], f"noise:{number}"))
    return samples


def _origin(source: Path, adapters: Sequence[Weighted], folder: Path) -> dict[str, Any]:
    return {
        "base": str(source),
        "adapters": [{"folder": str(adapter.folder or ""), "weight": adapter.weight} for adapter in adapters],
        "versions": versions(),
        "files": {p.name: sha256_of(p) for p in sorted(folder.glob("*.safetensors"))},
    }
