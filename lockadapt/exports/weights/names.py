"""Which stock parameter each tensor of a folder becomes, by Transformers' own conversion mapping."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from transformers import AutoConfig

from lockadapt.errors import AssemblyError, VerificationError
from lockadapt.models.safetensors_file import Shard, StoredTensor
from lockadapt.models.sources import find, loading, some


@dataclass(frozen=True)
class ExpertPart:
    """The place of one expert's stored matrix in a tensor of stacked experts, (experts, rows, columns).

    Attributes:
        name: of the stacked tensor in the stock class.
        expert: its number.
        before: keys of the same expert whose rows come first (a gate before what it gates).
    """

    name: str
    expert: int
    before: tuple[str, ...] = ()


@dataclass(frozen=True)
class RowRange:
    """Where one parameter lies in a stored tensor that holds several, one below the other (Molmo2's q, k, v).

    Attributes:
        key: of the stored tensor.
        first: its first entry of the first dimension.
        last: the entry behind its last one.
    """

    key: str
    first: int
    last: int


@dataclass(frozen=True)
class Names:
    """The dialect of a folder.

    Attributes:
        stock: key on the disk -> name of a parameter or buffer of the stock class.
        converted: keys that only become a parameter together with others, or by arithmetic: nobody may change
            them, but for those of `experts` and `fused`.
        ties: name -> the name whose tensor it shares.
        experts: of `converted`, keys of single experts -> where the stock class stacks them.
        fused: name -> rows of one of `converted` that hold it as it is.
    """

    stock: Mapping[str, str]
    converted: frozenset[str]
    ties: Mapping[str, str]
    experts: Mapping[str, ExpertPart] = field(default_factory=dict)
    fused: Mapping[str, RowRange] = field(default_factory=dict)

    def keys_of(self, name: str) -> list[str]:
        """Keys on the disk that hold this parameter, or one that it is tied to."""
        group = self.group(name)
        return [key for key, stock in self.stock.items() if stock in group]

    def experts_of(self, name: str) -> dict[str, ExpertPart]:
        """Keys on the disk that hold one expert each of this stacked tensor."""
        return {key: part for key, part in self.experts.items() if part.name == name}

    def held_by(self, key: str) -> dict[str, RowRange]:
        """The parameters that a key on the disk holds one below the other."""
        return {name: part for name, part in self.fused.items() if part.key == key}

    def group(self, name: str) -> set[str]:
        """The names that share one tensor with this one, itself among them."""
        group = {name, self.ties.get(name, name)}
        return group | {tied for tied, source in self.ties.items() if source in group}


def stored_values(
    names: Names, stored_at: Mapping[str, tuple[Shard, StoredTensor]], name: str
) -> list[torch.Tensor]:
    """Reads a parameter from the folder that it lies in.

    Args:
        names: of the folder.
        stored_at: shard and place of every key of the folder (`Layout.by_key`).
        name: of the parameter.

    Returns:
        Its tensor, once for every key that holds it; a part of a stored one where several parameters share
        it; nothing where it is made from several.
    """

    def read(key: str) -> torch.Tensor:
        with safe_open(stored_at[key][0].path, "pt") as file:
            tensor: torch.Tensor = file.get_tensor(key)
        return tensor

    part, keys = names.fused.get(name), names.keys_of(name)
    if part is not None and not keys:
        return [read(part.key)[part.first : part.last]]
    return [read(key) for key in keys]


def meta_model(folder: Path) -> Any:
    """Makes the stock class that a folder's config names, without weights.

    Args:
        folder: a stock folder.

    Returns:
        The model on the meta device.

    Raises:
        SetupError: the folder cannot be read.
        AssemblyError: Transformers has no such class.
    """
    source = find(folder, "base")
    with loading(source, "base"):
        config = AutoConfig.from_pretrained(source.name, **source.arguments)
    name = (getattr(config, "architectures", None) or [None])[0]
    kind = getattr(transformers, str(name), None)
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        raise AssemblyError(
            f"Transformers {transformers.__version__} has no class {name}",
            where=f"{folder / 'config.json'}: architectures",
            fix="pass a Transformers model folder",
        )
    with loading(source, "base"), torch.device("meta"):
        model: Any = kind
        return model._from_config(config)


def read_names(model: Any, keys: Iterable[str], where: str) -> Names:
    """Names the parameter of every key of a folder, as loading it would find it.

    Args:
        model: from `meta_model`, nothing attached.
        keys: of the folder's weights.
        where: the folder, for messages.

    Returns:
        The names, and what may not be changed.

    Raises:
        VerificationError: two keys become one parameter; a key becomes none; a parameter has no key.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    mapping = get_model_conversion_mapping(model)
    renamings = [step for step in mapping if isinstance(step, WeightRenaming)]
    converters = [step for step in mapping if isinstance(step, WeightConverter)]
    own = model.state_dict()
    stock: dict[str, str] = {}
    converted: dict[str, tuple[str, str]] = {}
    unexpected = []
    for key in sorted(keys):
        name, pattern = rename_source_key(key, renamings, converters, model.base_model_prefix, own)
        if name not in own and key in own:
            name, pattern = key, None
        if pattern is not None:
            converted[key] = (name, pattern)
        elif name in own:
            stock[key] = name
        elif not any(re.search(p, name) for p in model._keys_to_ignore_on_load_unexpected or ()):
            unexpected.append(key)
    if unexpected:
        raise VerificationError(
            f"{type(model).__name__} has no place for {some(unexpected)}", where=where, fix=_FIX
        )
    if len(set(stock.values())) != len(stock):
        values = list(stock.values())
        raise VerificationError(
            f"two keys are {some({name for name in values if values.count(name) > 1})}", where=where, fix=_FIX
        )
    ties = dict(getattr(model, "all_tied_weights_keys", None) or {})
    sizes = {name: tensor.shape[0] for name, tensor in own.items() if tensor.ndim}
    fused = _fused(converted, converters, sizes)
    names = Names(stock, frozenset(converted), ties, _experts(converted, converters), fused)
    missing = [
        name
        for name in own
        if not converters
        and name not in stock.values()
        and not names.keys_of(name)
        and name not in _buffers(model)
    ]
    if missing:
        raise VerificationError(f"{type(model).__name__} lacks {some(missing)}", where=where, fix=_FIX)
    return names


def _experts(converted: Mapping[str, tuple[str, str]], converters: Sequence[Any]) -> dict[str, ExpertPart]:
    """The keys that Transformers only stacks, expert on expert, and joins row on row; others are left out."""
    from transformers.core_model_loading import Concatenate, MergeModulelist, dot_natural_key

    def joined(converter: Any) -> bool:
        first, *rest = converter.operations
        stacks = type(first) is MergeModulelist and first.dim == 0
        return stacks and (not rest or (len(rest) == 1 and type(rest[0]) is Concatenate and rest[0].dim == 1))

    sources = {
        pattern: (number, len(converter.source_patterns))
        for converter in converters
        if joined(converter)
        for number, pattern in enumerate(converter.source_patterns)
    }
    by_name: dict[str, dict[int, list[str]]] = {}
    for key in sorted(converted, key=dot_natural_key):
        name, pattern = converted[key]
        if pattern in sources:
            by_name.setdefault(name, {}).setdefault(sources[pattern][0], []).append(key)
    experts = {}
    for name, keys in by_name.items():
        for number, own in keys.items():
            for expert, key in enumerate(own):
                before = tuple(keys[earlier][expert] for earlier in sorted(keys) if earlier < number)
                experts[key] = ExpertPart(name, expert, before)
    return experts


def _fused(
    converted: Mapping[str, tuple[str, str]], converters: Sequence[Any], sizes: Mapping[str, int]
) -> dict[str, RowRange]:
    """The parameters that Transformers only cuts out of one tensor's rows; sizes are those of the class."""
    from transformers.core_model_loading import Chunk, Split

    def cuts(converter: Any) -> bool:
        (first, *rest), sources = converter.operations, converter.source_patterns
        equal = type(first) is Chunk and first.num_shards_attribute is None
        return not rest and len(sources) == 1 and (equal or type(first) is Split) and first.dim == 0

    targets = {c.source_patterns[0]: c.target_patterns for c in converters if cuts(c)}
    fused: dict[str, RowRange] = {}
    for key, (name, pattern) in converted.items():
        # As `Split` names them.
        held = [name.replace(targets[pattern][0], target) for target in targets.get(pattern, ())]
        if all(part in sizes for part in held):
            ends = list(accumulate(sizes[part] for part in held))
            for part, first, last in zip(held, [0, *ends], ends, strict=False):
                fused[part] = RowRange(key, first, last)
    return fused


_FIX = "config.json and the weights do not belong together: download or export the folder again"


def _buffers(model: Any) -> set[str]:
    return {name for name, _ in model.named_buffers()}
