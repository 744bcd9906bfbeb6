"""`lockadapt.attach`: a trained adapter, projector included, on a live Hugging Face model.

Adapters are switched by name, and taken off again.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from lockadapt.architectures import layout_of
from lockadapt.attaching.fit import Fit, enforce, judge
from lockadapt.attaching.graft import active, graft, remove, switch
from lockadapt.attaching.snapshot import Snapshot
from lockadapt.attaching.source import Source, read_source
from lockadapt.errors import AdapterError
from lockadapt.models.four_bit import keep_as_trained

_STATE = "_lockadapt_attached"


@dataclass
class _State:
    """Kept on the model while something is attached."""

    before: Snapshot
    kinds: dict[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Attached:
    """An adapter on a model.

    Attributes:
        model: the same object that `attach` was given.
        name: the adapter's.
        fit: what was compared, and what could not be.
    """

    model: Any
    name: str
    fit: Fit

    def use(self, name: str | None = None) -> None:
        """Activates this adapter, or another attached one: LoRA, trained tokens, projector and all.

        So do `model.set_adapter(name)` of Transformers and `peft.functional.set_adapter(model, name)`.

        Args:
            name: None: this one.

        Raises:
            AdapterError: no adapter of that name is attached.
        """
        state, wanted = _state(self.model), name or self.name
        if wanted not in state.kinds:
            raise AdapterError(
                f"no adapter {wanted!r} is attached", where="use", fix=f"there are: {', '.join(state.kinds)}"
            )
        switch(self.model, wanted)

    def detach(self) -> None:
        """Takes this adapter off. With the last one the model is again what it was, bit for bit.

        If it was active and others remain, the one attached last becomes active.

        Raises:
            AdapterError: it is not attached any more.
        """
        state = _state(self.model)
        if self.name not in state.kinds:
            raise AdapterError(f"the adapter {self.name!r} is not attached any more", where="detach")
        del state.kinds[self.name]
        if not state.kinds:
            state.before.restore(self.model)
            delattr(self.model, _STATE)
            return
        current = active(self.model)
        remove(self.model, self.name, current if current in state.kinds else list(state.kinds)[-1])


def attach(
    model: Any,
    path_or_id: str | Path,
    *,
    name: str = "default",
    force_base: bool = False,
    tokenizer: Any = None,
) -> Attached:
    """Puts a trained adapter onto a live Transformers model, in place, and makes it the active one.

    The model may be in float32, bfloat16, NF4 or int8. Nothing of it is written to: layers are wrapped, the
    projector stands beside the old one. What was attached is frozen.

    Args:
        model: a stock LLaVA, FastVLM, Janus or dual encoder, not wrapped by PEFT.
        path_or_id: a run folder, a folder of `lockadapt export --to adapter` or `adapter-full`, or a Hub id
            of one, which is the only case in which the network is used.
        name: to switch by; several adapters can be attached, each with its own projector.
        force_base: accept another base or tokenizer, or a folder that does not say which it was. Another
            class, or tensors that do not fit, are refused all the same.
        tokenizer: the model's tokenizer or processor, to be compared; default: the one where the model was
            loaded from.

    Returns:
        A handle to switch and to detach with.

    Raises:
        AdapterError: another class; the name is taken; other adapters are on the model.
        VerificationError: another base or tokenizer; a tensor is missing, left over or of another shape;
            bitsandbytes has repacked the model's 4-bit layers. The model is left as it was.
        RecipeError, SetupError: the folder is none that can be attached, or is not there.
    """
    state = _ready(model, name)
    source = read_source(path_or_id)
    fit = judge(model, source, tokenizer, state.before.modules if state.kinds else None)
    enforce(fit, source, force_base)
    for what in fit.not_compared:
        if what.startswith("tokenizer"):
            warnings.warn(f"not compared with the adapter's: {what}", stacklevel=2)
    _put(model, source, name, state)
    return Attached(model, name, fit)


def _put(model: Any, source: Source, name: str, state: _State) -> None:
    kind = source.config.peft_type.value if source.config is not None else None
    _same_kind(kind, state, source)
    others, last = list(state.kinds), active(model) if state.kinds else None
    try:
        keep_as_trained(model)
        graft(model, source, name, others)
    except BaseException:
        if last is None:
            state.before.restore(model)
        else:
            remove(model, name, last)
            state.before.restore_flags()
        raise
    state.before.restore_flags()
    state.kinds[name] = kind
    setattr(model, _STATE, state)


def _ready(model: Any, name: str) -> _State:
    """The state of a model that can take an adapter of that name."""
    if not isinstance(model, nn.Module) or hasattr(model, "get_base_model"):
        raise AdapterError(
            f"{type(model).__name__} is not a supported Transformers model",
            where="model",
            fix="give the model that PEFT wraps",
        )
    layout_of(model)
    state: _State | None = vars(model).get(_STATE)
    known = set(state.kinds) if state else set()
    if set(getattr(model, "peft_config", None) or ()) != known:
        raise AdapterError(
            "the model has adapters that lockadapt did not attach, or lost some that it did",
            where="model",
            fix="delete them, or load the model again",
        )
    if not name or "." in name:
        raise AdapterError(f"{name!r} is no name for an adapter", where="name", fix="use letters and digits")
    if name in known:
        raise AdapterError(
            f"an adapter {name!r} is attached already", where="name", fix="give it another name"
        )
    return state or _State(Snapshot.of(model))


def _same_kind(kind: str | None, state: _State, source: Source) -> None:
    other = next(
        (attached for attached in state.kinds.values() if attached != kind and attached and kind), None
    )
    if other is not None:
        raise AdapterError(
            f"an adapter of the kind {kind} cannot stand beside one of the kind {other}",
            where=str(source.folder),
            fix="attach one at a time",
        )


def _state(model: Any) -> _State:
    state: _State | None = vars(model).get(_STATE)
    if state is None:
        raise AdapterError("nothing is attached to this model any more", where="model")
    return state
