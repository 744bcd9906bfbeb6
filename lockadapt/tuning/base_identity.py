"""Which base an adapter was trained on: digests of weights and tokenizer, beyond dtype and quantization."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lockadapt.architectures import architecture_of, layout_of
from lockadapt.architectures.absent_tower import absent_tower
from lockadapt.architectures.base import ModelLayout, component_of, unwrap_model
from lockadapt.architectures.blocks import is_linear
from lockadapt.errors import SetupError
from lockadapt.tuning.quantize import is_quantized

FORMAT = 1
"""Version of the record; another format is not comparable."""

SAMPLED_ROWS, WHOLE = 128, 1 << 16
"""A tensor of more than WHOLE values is represented by so many rows, evenly spread: 7B parameters take a
second."""

TRAINED = ("projector", "lora", "retrieval", "generation")
"""Components that a run trains; they do not count."""

_TEXT = "Hello, world! Is there a red circle?\n  1234 + ünïcödé\tend"
"""Tokenised as a probe: merges, normalisation and pre-tokenisation are in no vocabulary."""


@dataclass(frozen=True)
class Component:
    """Digests (SHA-256, hex) of one frozen component.

    Attributes:
        shapes: of all tensors by their stock names; a linear layer's as (out, in), quantized or not.
        values: of what quantization does not touch (embeddings, norms, convolutions, biases, the head), in
            bfloat16; None where it did (the head).
        matrices: of the linear layers, in bfloat16; None where one is quantized.
    """

    shapes: str
    values: str | None
    matrices: str | None


@dataclass(frozen=True)
class Tokenisation:
    """Digests (SHA-256, hex) of a tokenizer: vocabulary, special tokens but padding, ids of a probe text."""

    vocabulary: str
    special_tokens: str
    probe: str


@dataclass(frozen=True)
class BaseIdentity:
    """What `run.json` keeps as `base_identity`.

    Attributes:
        model_class: of the Transformers model.
        settings: `Architecture.settings` of its config.
        components: by name; a component that could not be read (a tower that was not loaded) is None.
        trained_rows: vocabulary rows that train (query tokens) and so do not count.
        tokenizer: None where none was at hand.
    """

    model_class: str
    settings: dict[str, Any]
    components: dict[str, Component | None]
    trained_rows: tuple[int, ...] = ()
    tokenizer: Tokenisation | None = None
    format: int = FORMAT

    def to_dict(self) -> dict[str, Any]:
        """The record as plain values for JSON."""
        return asdict(self)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> BaseIdentity | None:
        """Back from JSON; None if it is of another format."""
        if values.get("format") != FORMAT:
            return None
        tokenizer = values["tokenizer"]
        return BaseIdentity(
            values["model_class"],
            dict(values["settings"]),
            {
                name: Component(**component) if component else None
                for name, component in values["components"].items()
            },
            tuple(values["trained_rows"]),
            Tokenisation(**tokenizer) if tokenizer else None,
        )


@dataclass(frozen=True)
class Comparison:
    """What differs between two bases, in words, and what could not be compared and why."""

    base: tuple[str, ...]
    tokenizer: tuple[str, ...]
    not_compared: tuple[str, ...]


def base_identity(
    model: nn.Module,
    tokenizer: Any = None,
    trained_rows: Sequence[int] = (),
    modules: Mapping[str, nn.Module] | None = None,
) -> BaseIdentity:
    """Reads it off a Transformers model on any device, in float32, bfloat16, NF4 or int8; nothing is changed.

    float16 may round other values than bfloat16 did, and then counts as another base.

    Args:
        model: a Transformers model, possibly wrapped by PEFT.
        tokenizer: the model's, or None.
        trained_rows: see `BaseIdentity`.
        modules: the stock modules by name, where adapters are in the model already.

    Returns:
        The identity of its base.

    Raises:
        SetupError: a weight is not in memory (offloaded to disk).
    """
    base, architecture = unwrap_model(model), architecture_of(model)
    parts = architecture.layout
    by_path = modules if modules is not None else dict(base.named_modules())
    tables = _tables(base, parts, by_path)
    # lockadapt brings their rows to length 1 as it loads; whoever else loads the model does not.
    changed = architecture.unit_rows
    grouped: dict[str, list[_Entry]] = {}
    for entry in _entries(by_path, parts):
        if entry.name in changed:
            continue
        grouped.setdefault(component_of(entry.name, parts), []).append(entry)
    components: dict[str, Component | None] = {
        name: _component(entries, tables, trained_rows)
        for name, entries in sorted(grouped.items())
        if name not in TRAINED
    }
    absent = absent_tower(model)
    if absent is not None:
        components["tower"] = Component(**absent.record.base) if absent.record.base else None
    settings = {name: _plain(getattr(base.config, name, None)) for name in architecture.settings}
    tokens = None if tokenizer is None else tokenisation(tokenizer)
    return BaseIdentity(type(base).__name__, settings, components, tuple(trained_rows), tokens)


def tower_component(model: nn.Module) -> Component:
    """The tower's part of `base_identity`, to be remembered for runs that do not load it."""
    base, parts = unwrap_model(model), layout_of(model)
    entries = [
        entry
        for entry in _entries(dict(base.named_modules()), parts)
        if component_of(entry.name, parts) == "tower"
    ]
    return _component(entries, (), ())


def part_digest(model: nn.Module, part: str) -> str:
    """Digests the tensors of a trained part (`projector` …) in bfloat16: which one lies in a bridge.

    Args:
        model: a Transformers model, possibly wrapped by PEFT.
        part: a trained part, such as `projector`.

    Returns:
        SHA-256, hex.

    Raises:
        SetupError: one of them is quantized, so that it cannot be told.
    """
    base, parts = unwrap_model(model), layout_of(model)
    entries = _entries(dict(base.named_modules()), parts)
    own = [entry for entry in entries if component_of(entry.name, parts) == part]
    if any(entry.quantized for entry in own):
        raise SetupError(
            f"the {part} is quantized, so nothing tells whether it is the trained one",
            fix="put its modules into llm_int8_skip_modules, by full path",
        )
    return _hash([_line(entry, (), ()) for entry in own])


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """Digests a file of the part's tensors by stock name in the same way: a run's `projector.safetensors`."""
    entries = [
        _Entry(name, tensor, tuple(tensor.shape), False, False) for name, tensor in sorted(tensors.items())
    ]
    return _hash([_line(entry, (), ()) for entry in entries])


def tokenisation(tokenizer: Any) -> Tokenisation:
    """Digests of a tokenizer. Which token pads is left out: users change it, and no model sees it."""
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    named = {name: getattr(tokenizer, name, None) for name in ("bos_token", "eos_token")}
    return Tokenisation(
        _hash([json.dumps(sorted(tokenizer.get_vocab().items()))]),
        _hash([json.dumps([sorted(special), sorted(named.items())])]),
        _hash([json.dumps(list(tokenizer(_TEXT).input_ids))]),
    )


def compare(recorded: BaseIdentity, current: BaseIdentity) -> Comparison:
    """The bases of training and of now. A difference of class is for the caller, who knows it before."""
    differ: list[str] = []
    blind: list[str] = []
    for name in sorted({*recorded.components, *current.components}):
        before, now = recorded.components.get(name), current.components.get(name)
        if before is None and name in recorded.components:
            blind.append(f"{name} (was not loaded at training)")
        elif before is None or now is None:
            differ.append(f"{name} is {'new' if before is None else 'absent'}")
        elif before.shapes != now.shapes:
            differ.append(f"{name} has other shapes")
        elif before.values is None or now.values is None:
            blind.append(f"{name} (quantized)")
        elif before.values != now.values:
            differ.append(f"{name} has other weights")
        elif before.matrices is None or now.matrices is None:
            blind.append(f"{name}'s linear layers (quantized)")
        elif before.matrices != now.matrices:
            differ.append(f"{name} has other weights in its linear layers")
    for key, value in recorded.settings.items():
        if value != current.settings.get(key):
            differ.append(f"config.{key} is {current.settings.get(key)}, was {value}")
    tokens: list[str] = []
    if recorded.tokenizer is None or current.tokenizer is None:
        when = "at training" if recorded.tokenizer is None else "now"
        blind.append(f"tokenizer (not at hand {when})")
    else:
        first, second = asdict(recorded.tokenizer), asdict(current.tokenizer)
        words = {
            "vocabulary": "another vocabulary",
            "special_tokens": "other special tokens",
            "probe": "another way of cutting texts",
        }
        tokens = [f"the tokenizer has {words[key]}" for key in first if first[key] != second[key]]
    return Comparison(tuple(differ), tuple(tokens), tuple(blind))


@dataclass(frozen=True)
class _Entry:
    """A tensor of the model: `matrix` if it is a linear layer's, `shape` as that has it unquantized."""

    name: str
    tensor: Tensor
    shape: tuple[int, ...]
    matrix: bool
    quantized: bool


def _entries(modules: Mapping[str, nn.Module], parts: ModelLayout) -> list[_Entry]:
    seen: set[int] = set()
    entries: list[_Entry] = []
    for path, module in modules.items():
        kept = dict(module.named_buffers(recurse=False))
        for name in module._non_persistent_buffers_set:
            kept.pop(name, None)
        for leaf, tensor in [*module.named_parameters(recurse=False), *kept.items()]:
            if id(tensor) in seen:
                continue
            seen.add(id(tensor))
            matrix = leaf == "weight" and is_linear(module) and path != parts.head
            name = f"{path}.{leaf}" if path else leaf
            shape = _shape(module, tensor) if matrix else tuple(tensor.shape)
            entries.append(_Entry(name, tensor, shape, matrix, leaf == "weight" and is_quantized(module)))
    return sorted(entries, key=lambda entry: entry.name)


def _shape(module: Any, weight: Tensor) -> tuple[int, ...]:
    """(out, in), also of a packed weight and of GPT-2's transposed one."""
    if isinstance(module, nn.Linear):
        return (module.out_features, module.in_features)
    return tuple(reversed(weight.shape))


def _component(entries: Sequence[_Entry], tables: Sequence[Tensor], rows: Sequence[int]) -> Component:
    shapes = [f"{entry.name} {entry.shape}" for entry in entries]
    digests: list[str | None] = []
    for part in ([e for e in entries if not e.matrix], [e for e in entries if e.matrix]):
        quantized = any(entry.quantized for entry in part)
        digests.append(None if quantized else _hash([_line(entry, tables, rows) for entry in part]))
    return Component(_hash(shapes), *digests)


def _line(entry: _Entry, tables: Sequence[Tensor], rows: Sequence[int]) -> str:
    tensor = entry.tensor.detach()
    if tensor.is_meta:
        raise SetupError(
            "is not in memory, so its base cannot be told",
            where=entry.name,
            fix="load the model without offloading",
        )
    apart = rows if any(entry.tensor is table for table in tables) else ()
    values = _sample(tensor, apart)
    if values.is_floating_point():
        values = values.to(torch.bfloat16)
    raw = values.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return f"{entry.name} {hashlib.sha256(raw.tobytes()).hexdigest()}"


def _sample(tensor: Tensor, apart: Sequence[int]) -> Tensor:
    large = tensor.dim() > 1 and tensor.numel() > WHOLE and tensor.shape[0] > SAMPLED_ROWS
    if not large and not apart:
        return tensor
    count = tensor.shape[0]
    chosen = torch.linspace(0, count - 1, SAMPLED_ROWS).long().tolist() if large else range(count)
    left_out = set(apart)
    kept = [row for row in chosen if row not in left_out]
    return tensor[torch.tensor(kept, dtype=torch.long, device=tensor.device)]


def _tables(base: Any, parts: ModelLayout, modules: Mapping[str, nn.Module]) -> list[Tensor]:
    """The weights that have a row for every token."""
    config = modules[parts.llm].config
    rows = getattr(config, "vocab_size", None)
    inside = [
        module for path, module in modules.items() if path.startswith(parts.llm + ".") or path == parts.head
    ]
    weights: list[Any] = [
        module.weight
        for module in inside
        if isinstance(module, (nn.Embedding, nn.Linear)) and hasattr(module, "weight")
    ]
    return [weight for weight in weights if weight.dim() == 2 and weight.shape[0] == rows]


def _plain(value: Any) -> Any:
    """As JSON gives it back: lists for tuples, at any depth."""
    return [_plain(entry) for entry in value] if isinstance(value, (tuple, list)) else value


def _hash(lines: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
