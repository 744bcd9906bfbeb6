"""How an LLM and a tower become one stock class: its fusions, and what an architecture says of assembling."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lockadapt.models.llms import LlmFacts
from lockadapt.models.towers import TowerFacts


@dataclass(frozen=True)
class Fusion:
    """A projector that a class offers, by the name that a recipe asks for it.

    Attributes:
        activation: what the class's config calls it, where it has a field for it.
        initialise: fills a fresh projector (the first path of `ModelLayout.projector`) in place.
        first: the layer that standardisation is folded into: the first linear one, as a path below the
            projector.
        scaled: the layer whose weights set the size of the projected tokens.
        depth: how many layers learn.
        frozen: layers of it that never train, as they only stand in for nothing.
        tokenwise: whether each token is projected by itself. If not, calibration looks at whole images only.
        factor: into how many patches a side the grid is divided where `model.factor` does not say; None: no
            such fusion.
        max_tiles: how many tiles an image is cut into at most where the recipe does not say; None: an image
            is one square.
        queries: how many learned queries read an image where `model.queries` does not say; None: no such
            fusion; 0: as many as the class finds right for the tower (`Assembly.queries`).
    """

    name: str
    activation: str
    initialise: Callable[[Any, torch.Generator], None]
    first: str
    scaled: str
    depth: int
    frozen: tuple[str, ...] = ()
    tokenwise: bool = True
    factor: int | None = None
    max_tiles: int | None = None
    queries: int | None = None


@dataclass(frozen=True)
class Ingredients:
    """An LLM and a tower on their way into one model: loaded and measured.

    Their modules move into the result.

    Attributes:
        llm: the causal LM, its vocabulary widened by the time that the model is built; its config changes.
        tower: the vision model; what `Assembly.tower` made of it once that was called.
        tokenizer: has `<image>` and what the class adds to it.
        image_processor: makes squares of the size that the tower takes.
        text, vision: what was measured.
        where: names the tower in messages.
        image_tokenizer: where images are generated.
        text_rms: root mean square of the LLM's embeddings, where something fresh stands among them.
        factor: see `Fusion`; 1 where the fusion has none.
        grids: (rows, columns) of tiles that an image may be cut into; empty where it is one square.
        queries: see `Fusion`; 0 where the fusion has none.
    """

    llm: PreTrainedModel
    tower: Any
    tokenizer: Any
    image_processor: Any
    text: LlmFacts
    vision: TowerFacts
    where: str
    image_tokenizer: Any = None
    text_rms: float = 1.0
    factor: int = 1
    grids: tuple[tuple[int, int], ...] = ()
    queries: int = 0


def as_asked(vision: TowerFacts, asked: int, where: str) -> int:
    """As many queries as are asked for; see `Assembly.queries`."""
    return asked


def as_it_is(ingredients: Ingredients, fusion: Fusion, pixel_values: Tensor | None) -> Any:
    """The tower unchanged; see `Assembly.tower`."""
    return ingredients.tower


@dataclass(frozen=True)
class Assembly:
    """How an LLM and a tower become this class, what is fresh in it, and how that starts.

    Attributes:
        fusions: the projectors that it offers by name.
        fusion_of: the one that a model of this class has, by its config.
        towers: the kinds of outputs (`TowerFacts.kind`) that it takes.
        projected: what the tower returns, with hidden states -> what the projector is fed, (images, tokens,
            channels): the reloaded folder is compared with it.
        build: the Transformers model around the very modules of the ingredients, in evaluation mode; fresh
            weights from a seed.
        processor: the stock processor, given the chat template.
        tower: the tower as the class holds it. With pixel values (images, channels, side, side) it is run and
            compared with the one given; without, only its structure is.
        finish: last changes to a built model's generation settings, by the tokenizer. In place.
        special_tokens: what the tokenizer gets beside `<image>`, by the names that the processor knows them
            under.
        image_tokenizer: whether it is built around one.
        whole_llm: whether it holds the causal LM with its own head and whatever lies before that, so that
            nothing of it need be measured.
        arguments: the model, ids (rows, tokens) and pixel values (images, channels, side, side) -> arguments
            of a forward pass whose logits must be the LLM's own; None: ids alone, without an image.
        calibrate: the model, batches of kept features, the RMS of the LLM's embeddings -> how many images
            its fresh layers were scaled on; None: as `calibrate_projector` does.
        refuse: LLM and tower -> why the class cannot hold them as far as structure tells, in words that
            follow "as"; None: it can.
        begun: whether conversations begin with bos in any case, as `generate` begins with it.
        encoder_decoders: whether the LLM may be one whose encoder reads prompts and whose decoder answers.
        example: pixel values (images, channels, side, side) of squares -> arguments of forward that show
            nothing but these squares, for the proof; None: as `Inputs.shown` says.
        queries: the tower, the number asked for (0: none), and the tower's name for messages -> how many
            queries read a square.
        several_layers: whether its projector reads several hidden layers of the tower side by side.
    """

    fusions: Mapping[str, Fusion]
    fusion_of: Callable[[Any], Fusion]
    towers: tuple[str, ...]
    projected: Callable[[Any, TowerFacts], Tensor]
    build: Callable[[Ingredients, Fusion, int], Any]
    processor: Callable[[Ingredients, str], Any]
    tower: Callable[[Ingredients, Fusion, Tensor | None], Any] = as_it_is
    finish: Callable[[Any, Any], None] | None = None
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    image_tokenizer: bool = False
    whole_llm: bool = False
    arguments: Callable[[Any, Tensor, Tensor], dict[str, Any]] | None = None
    calibrate: Callable[[Any, Iterable[Tensor], float], int] | None = None
    refuse: Callable[[Any, Any], str | None] | None = None
    begun: bool = False
    encoder_decoders: bool = False
    example: Callable[[Ingredients, Tensor], dict[str, Tensor]] | None = None
    queries: Callable[[TowerFacts, int, str], int] = as_asked
    several_layers: bool = False
