"""The shape that every stock class is described in: a frozen dataclass of small parts, a question each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from lockadapt.architectures.assembly import Assembly
from lockadapt.architectures.kept import ImageRecord
from lockadapt.models.texts import Pooling

RETRIEVAL = "retrieval"
"""Name of the module that a contrastive run adds to a Transformers model; no stock folder holds it."""


@dataclass(frozen=True)
class ModelLayout:
    """Full paths of what a stock class is made of; a path leads to a module, or to a bare parameter.

    Attributes:
        tower: the frozen vision tower.
        llm: the frozen LLM.
        projector: all that lies between them and is trained as one; the module that reads the tower's outputs
            first.
        head: the LLM's; None where the class has none, so that it answers nothing.
        blocks: the lists of the LLM's transformer blocks; empty: the one list that is as long as the LLM's
            config says.
        retrieval: what embeds images and texts.
        generation: what generates images.
        image_tokenizer: what turns images into image tokens and back; frozen. The tokenizer itself first.
    """

    tower: str
    llm: str
    projector: tuple[str, ...]
    head: str | None
    blocks: tuple[str, ...] = ()
    retrieval: tuple[str, ...] = (RETRIEVAL,)
    generation: tuple[str, ...] = ()
    image_tokenizer: tuple[str, ...] = ()


@dataclass(frozen=True)
class ImageSpan:
    """What one image becomes in the text: `before`, then `count` times the image token, then `after`."""

    token: str
    count: int
    before: str = ""
    after: str = ""

    @property
    def text(self) -> str:
        """All of it."""
        return self.before + self.token * self.count + self.after


def every_picture(processor: Any) -> bool:
    """Whether a processor makes the same text of every picture: all of its class do; see `Inputs.uniform`."""
    return True


def squares(pixel_values: Tensor) -> dict[str, Tensor]:
    """Pixel values as they are; see `Inputs.shown`."""
    return {"pixel_values": pixel_values}


@dataclass(frozen=True)
class Inputs:
    """What images and text become in a batch.

    Attributes:
        processor_class: of the stock processor.
        span: a processor -> what one image becomes in the text; None: images and texts stay apart.
        extra: keys of the processor's output that forward needs beside ids, mask and pixels.
        stock: whether an image's text depends on its size, so that the stock processor is asked for every
            row.
        uniform: whether a processor of the class makes the same text of every picture; one that does not is
            asked for every row.
        shown: pixel values (images, channels, side, side) -> the arguments of forward that hold them.
        by_value: whether shapes inside forward depend on pixel values (images of zeros are left out), so
            that a plan needs real ones.
        beside: whether images are shown beside the text, which has no token of them (cross-attention).
        no_image: a model -> the arguments of forward that say that no image is shown; None: nothing has
            to say so.
        image_tokens: a model -> how many tokens it has for an image, where the class itself does not
            compare that with the text; None: it does.
    """

    processor_class: type[Any]
    span: Callable[[Any], ImageSpan] | None
    extra: tuple[str, ...] = ()
    stock: bool = False
    uniform: Callable[[Any], bool] = every_picture
    shown: Callable[[Tensor], dict[str, Tensor]] = squares
    by_value: bool = False
    beside: bool = False
    no_image: Callable[[Any], dict[str, Any]] | None = None
    image_tokens: Callable[[Any], int] | None = None

    @property
    def apart(self) -> bool:
        """Whether images and texts are never shown together, so that there are no conversations."""
        return self.span is None and not self.stock and not self.beside


@dataclass(frozen=True)
class Features:
    """What may be kept of a frozen tower, and the door through which it comes back.

    Attributes:
        take: a Transformers model and the image part of a batch -> (images, tokens, channels), without
            gradient, on the model's device: all that the frozen part computes of an image. Where images have
            different numbers of tokens: a record for each.
        give: a Transformers model, features, and what int8 ones are multiplied with (float32 (images, 1,
            channels) or None; ragged features hold their own) -> the arguments of forward and `generate` that
            stand for pixels, with gradient to what trains; None: features do not enter the class's forward.
        ragged: whether `take` gives records of one image at a time, and `give` takes `RaggedFeatures`.
        take_projected: as `take`, where the projector does not train either: image tokens as the LLM reads
            them; None: `take` serves then as well.
    """

    take: Callable[[Any, Mapping[str, Any]], Tensor | Sequence[ImageRecord]]
    give: Callable[[Any, Any, Tensor | None], dict[str, Any]] | None
    ragged: bool = False
    take_projected: Callable[[Any, Mapping[str, Any]], Sequence[ImageRecord]] | None = None


def depths_in_branches(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """The place of each token in its branch, int64 (rows, tokens); see `Positions.follow`."""
    depths: Tensor = batch["position_ids"]
    return depths


@dataclass(frozen=True)
class Positions:
    """How forward is told of rows with shared prefixes.

    Attributes:
        mask, positions: its names for mask (rows, 1, tokens, tokens) and positions.
        follow: a model and a packed batch -> the positions that the class gives to the tokens of its samples.
    """

    mask: str = "attention_mask"
    positions: str = "position_ids"
    follow: Callable[[nn.Module, Mapping[str, Any]], Tensor] = depths_in_branches


@dataclass(frozen=True)
class Beside:
    """How a class takes images that are shown beside the text.

    Attributes:
        arguments: a Transformers model, arguments as most classes take them (`input_ids`, `attention_mask`,
            `position_ids`, pixels or the arguments of `Features.give`), and the row of each image, int64
            (images,) -> this class's arguments of forward and of `generate`.
        left_padding: whether `generate` gives rows that are padded on the left what it gives each alone.
        text_alone: whether it takes rows without an image.
        several: whether it takes rows with several images.
        text_locks: full name of a trained parameter -> whether texts without an image stay what they were as
            long as it is frozen (`model.lock_text`); None: the class cannot promise that.
    """

    arguments: Callable[[Any, Mapping[str, Any], Tensor], dict[str, Any]]
    left_padding: bool = False
    text_alone: bool = False
    several: bool = False
    text_locks: Callable[[str], bool] | None = None


@dataclass(frozen=True)
class Apart:
    """How images and texts are embedded where each goes through a model of its own.

    Attributes:
        states: a model, ids and mask (texts, tokens), pooling -> pooled states (texts, hidden size).
        images: a model, and features (images, 1, channels) as `Features.take` gives them -> projected ones
            (images, dimension).
        texts: a model, and pooled states -> projected ones (texts, dimension); all with graph.
    """

    states: Callable[[Any, Tensor, Tensor, Pooling], Tensor]
    images: Callable[[Any, Tensor], Tensor]
    texts: Callable[[Any, Tensor], Tensor]


@dataclass(frozen=True)
class Clients:
    """Which exports can hold the class, and why others cannot.

    Attributes:
        refused: export target -> why it cannot hold the class. A target that is not named looks at the model
            itself.
        servers: of `vllm` and `sglang`, those that have the class.
        llava_graph: whether llama.cpp's LLaVA graph computes tower and projector; else it is left to
            llama.cpp's converter.
    """

    refused: Mapping[str, str] = field(default_factory=dict)
    servers: tuple[str, ...] = ()
    llava_graph: bool = False


SETTINGS = (
    "image_token_id",
    "vision_feature_layer",
    "vision_feature_select_strategy",
    "projector_hidden_act",
)
"""What of most configs decides how the frozen parts are joined."""


@dataclass(frozen=True)
class ImageCodec:
    """An image tokenizer: images become image tokens, and back.

    Attributes:
        side: of its images in pixels.
        codebook_size: how many image tokens there are.
        encode: pixel values (images, 3, side, side) -> image token ids, int64 (images, tokens), on the CPU.
        decode: image token ids, int64 (images, tokens) -> pixel values (images, 3, side, side), on its
            device.
        digest: gives a SHA-256 (hex) of all that the ids depend on beside the pixel values.
    """

    side: int
    codebook_size: int
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]
    digest: Callable[[], str]


@dataclass(frozen=True)
class Generation:
    """How a class that generates images writes them, token by token.

    Attributes:
        codec: a Transformers model -> the image tokenizer inside it.
        embed: a Transformers model, image token ids int64 (rows, tokens) -> what the LLM reads, (rows,
            tokens, hidden), with graph.
        logits: a Transformers model, hidden states (positions, hidden) -> (positions, codebook size), with
            graph.
    """

    codec: Callable[[Any], ImageCodec]
    embed: Callable[[Any, Tensor], Tensor]
    logits: Callable[[Any, Tensor], Tensor]


@dataclass(frozen=True)
class Architecture:
    """All that lockadapt knows of one stock class.

    Attributes:
        model_class, config_class: of Transformers.
        layout: where its parts are.
        inputs: what images and text become in a batch.
        assemble: how it is made; None: it can only be started from, or it is made beside the way of most
            (`embeds_apart`).
        features: what may be kept of a frozen tower; None: no feature cache.
        positions: what makes shared-prefix packing exact; None: plain rows.
        keys: the Transformers model on the meta device, and key on the disk -> stock name -> those keys that
            clients know under other names, and these; None: Transformers' own keys are read everywhere.
        clients: which exports can hold it.
        apart: how it embeds images and texts each through a model of its own; None: they go through one.
        generation: how it generates images; None: it does not.
        settings: what of the config decides how the frozen parts are joined: an adapter belongs to these
            values.
        unit_rows: matrices whose rows are brought to length 1 as a folder is loaded; whoever else loads it
            does not.
        beside: how images are shown beside the text; None: they stand in it.
        logits_to_keep: forward's name for the positions whose logits are needed.
        locate: where this very model has its parts, where its config decides that; None: `layout` says it.
        writer: a model and arguments of its forward -> what `generate` is called on, and with which
            arguments; None: the model itself, with these.
    """

    model_class: type[PreTrainedModel]
    config_class: type[PreTrainedConfig]
    layout: ModelLayout
    inputs: Inputs
    assemble: Assembly | None = None
    features: Features | None = None
    positions: Positions | None = None
    keys: Callable[[Any, Mapping[str, str]], Mapping[str, str]] | None = None
    clients: Clients = field(default_factory=Clients)
    apart: Apart | None = None
    generation: Generation | None = None
    settings: tuple[str, ...] = SETTINGS
    unit_rows: tuple[str, ...] = ()
    beside: Beside | None = None
    logits_to_keep: str = "logits_to_keep"
    locate: Callable[[Any], ModelLayout] | None = None
    writer: Callable[[Any, dict[str, Any]], tuple[Any, dict[str, Any]]] | None = None

    @property
    def whole_llm(self) -> bool:
        """Whether the LLM lies in it whole, so that what its head gives need not be what it returns."""
        return self.assemble is not None and self.assemble.whole_llm

    @property
    def answers(self) -> bool:
        """Whether it writes text."""
        return self.layout.head is not None

    @property
    def embeds_apart(self) -> bool:
        """Whether images and texts go through models of their own."""
        return self.apart is not None

    @property
    def generates_images(self) -> bool:
        """Whether it has what writes image tokens."""
        return self.generation is not None

    def frozen_layers(self, config: Any) -> tuple[str, ...]:
        """Full paths of what lies in a part that trains but never trains itself."""
        if self.assemble is None:
            return ()
        return tuple(
            f"{self.layout.projector[0]}.{layer}" for layer in self.assemble.fusion_of(config).frozen
        )


def unwrap_model(model: nn.Module) -> Any:
    """The stock Transformers object inside wrappers.

    PEFT injects adapters in place, so it is the same object.
    """
    if isinstance(getattr(model, "module", None), nn.Module):
        model = model.module  # type: ignore[assignment]
    if hasattr(model, "get_base_model"):
        model = model.get_base_model()  # type: ignore[operator]
    return model


def component_of(name: str, layout: ModelLayout) -> str:
    """Which component a parameter, buffer or module of a Transformers model belongs to."""
    if ".lora_" in name:
        return "lora"
    if ".trainable_tokens_" in name:
        return "retrieval"
    # The head first: some classes keep it inside the LLM. The projector before the tower: some keep it in
    # there.
    paths_of = {
        "head": (layout.head,),
        "projector": layout.projector,
        "tower": (layout.tower,),
        "llm": (layout.llm,),
        "retrieval": layout.retrieval,
        "generation": layout.generation,
        "image tokenizer": layout.image_tokenizer,
    }
    for component, paths in paths_of.items():
        if any(path and is_below(name, path) for path in paths):
            return component
    return "other"


def is_below(name: str, path: str) -> bool:
    """Whether a full name is a path's, or lies below it."""
    return name == path or name.startswith(path + ".")


def parameters_at(model: nn.Module, path: str) -> Iterator[nn.Parameter]:
    """Those of the module at a path, or the bare parameter there."""
    parent, _, leaf = path.rpartition(".")
    trained = getattr(model.get_submodule(parent), leaf)
    return iter([trained]) if isinstance(trained, nn.Parameter) else trained.parameters()
