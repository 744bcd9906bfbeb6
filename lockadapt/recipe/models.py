"""The recipe's sections about models: what is joined or started from, and LoRA. Does not import torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, model_validator

from lockadapt.errors import RecipeError
from lockadapt.recipe.sections import InconsistentError, Section, Text, Weight

TileGrid = Annotated[list[Annotated[int, Field(gt=0, le=64)]], Field(min_length=2, max_length=2)]
"""Rows and columns."""

Layer = Annotated[int, Field(ge=-1000, le=1000)]


class ModelSection(Section):
    """The models to join: an LLM and a vision tower, or an existing vision-language model."""

    llm: Text | None = Field(
        default=None,
        description="folder, GGUF file (dequantized once, into the cache) or Hub id of a causal LM",
    )
    tower: Text | None = Field(default=None, description="folder or Hub id of a vision model (CNN or ViT)")
    vlm: Text | None = Field(
        default=None,
        description="instead of llm and tower: folder or Hub id of a vision-language model",
    )
    run: Text | None = Field(
        default=None,
        description="instead of llm, tower and vlm: folder of a finished run, whose base, adapter and "
        "trained parts this one goes on from; `dtype`, `quantization` and `lora` are that run's",
    )
    image_tokenizer: Text | None = Field(
        default=None,
        description="folder or Hub id of a JanusVQVAE, so that the model also generates images; needs a "
        "SigLIP tower",
    )
    fusion: Text | None = Field(
        default=None,
        description="what lies between tower and LLM: `mlp` (two layers with GELU), `linear` (one layer), or "
        "another that a model class offers; a wrong name lists them all. Default: `mlp`, or, where no class "
        "holds LLM and tower with it, the only fusion that does",
    )
    factor: Annotated[int, Field(gt=0, le=64)] | None = Field(
        default=None,
        description="patches on a side that become one token, for fusions that merge patches; default: "
        "the fusion's own",
    )
    grid: Annotated[list[TileGrid], Field(min_length=1, max_length=64)] | None = Field(
        default=None,
        description="`[rows, columns]` of tiles that images may be cut into, for the fusion `tiles`, which "
        "takes for each image the one that keeps most of its pixels; default: all of up to `max_tiles` tiles",
    )
    max_tiles: Annotated[int, Field(gt=0, le=64)] | None = Field(
        default=None,
        description="the most tiles of an image beside the whole image, for the fusion `tiles`; default 4",
    )
    queries: Annotated[int, Field(gt=0, le=4096)] | None = Field(
        default=None,
        description="tokens that an image becomes, for fusions that read it with learned queries "
        "(`qformer`); default: the fusion's own",
    )
    image_size: Annotated[int, Field(gt=0, le=8192)] | None = Field(
        default=None,
        description="side of the square to which images are resized, in pixels; default: the size in the "
        "tower's preprocessing config",
    )
    max_image_tokens: Annotated[int, Field(gt=0, le=65_536)] | None = Field(
        default=None,
        description="with `vlm`: maximum number of tokens per image, by lowering the processor's own limit "
        "on pixels or tiles; merged folders keep it; default: the processor's own",
    )
    feature_layer: Layer | Annotated[list[Layer], Field(min_length=2, max_length=64)] = Field(
        default=-2,
        description="hidden layer of a token tower to project (feature maps and cross-attention always use "
        "the last); `[-2, -8]`: the channels of several layers side by side, for `mlp`, `linear` and `tiles`",
    )
    lock_text: bool = Field(
        default=False,
        description="keep what the LLM makes of texts without an image, bit for bit, and prove it: for gated "
        "cross-attention (IDEFICS-1); needs `lora: null`",
    )
    calibration_images: Annotated[int, Field(ge=0, le=100_000)] = Field(
        default=256,
        description="number of training images used to calibrate the projector; 0 disables calibration",
    )
    calibration_words: bool = Field(
        default=True,
        description="start the projector's last layer by predicting the words of the answers about each "
        "calibration image, where images tell them (in closed form, by ridge regression)",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="auto: bfloat16 if the GPU supports it, otherwise float32"
    )
    quantization: Literal["none", "nf4", "int8"] = Field(
        default="none",
        description="quantization of the LLM's blocks; tower, projector and head are never quantized; "
        "`int8` computes matrix products in float16 (LLM.int8())",
    )

    @model_validator(mode="before")
    @classmethod
    def _base_of_the_run(cls, values: Any) -> Any:
        """Fills in the base of `run`; a recipe that a run recorded has it already."""
        if not isinstance(values, dict) or not isinstance(values.get("run"), str) or values.get("vlm"):
            return values
        given = [key for key in ("llm", "tower", "dtype", "quantization") if values.get(key) is not None]
        if given:
            raise InconsistentError([((key,), "is that of `run`; leave it out") for key in given])
        try:
            folder = Path(values["run"]).expanduser()
            record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
            base = str(folder / "base") if (folder / "base").is_dir() else record["base"]
            kept = {key: record[key] for key in ("dtype", "quantization")}
        except (OSError, ValueError, KeyError, TypeError) as error:
            text = f"is no finished run ({type(error).__name__}: run.json)"
            raise InconsistentError([(("run",), text)]) from error
        return {**values, **kept, "vlm": base}

    @model_validator(mode="after")
    def _one_start(self) -> ModelSection:
        if self.vlm and (self.llm or self.tower):
            raise InconsistentError([(("vlm",), "give either `vlm`, or `llm` and `tower`, not both")])
        if not self.vlm and not (self.llm and self.tower):
            raise InconsistentError([((), "needs `llm` and `tower` (or `vlm`, an existing checkpoint)")])
        if not self.vlm and self.max_image_tokens:
            problem = "limits the images of a `vlm`; with `llm` and `tower`, set `image_size` instead"
            raise InconsistentError([(("max_image_tokens",), problem)])
        return self

    @model_validator(mode="after")
    def _offered(self) -> ModelSection:
        wish = (self.factor, self.tile_grid, self.max_tiles)
        if self.fusion in (None, "mlp") and not any(wish) and self.queries is None:
            return self
        # Only now, as it imports torch.
        from lockadapt.architectures.choose import USUAL, Wish, choices

        try:
            draws = self.image_tokenizer is not None
            choices(Wish(self.fusion or USUAL, *wish, draws, self.queries))
        except RecipeError as error:
            key = (error.where or "").rpartition(".")[2]
            raise InconsistentError([((key,), f"{error.message}; {error.fix}")]) from error
        return self

    @property
    def tile_grid(self) -> tuple[tuple[int, int], ...] | None:
        """`grid` as pairs of rows and columns."""
        return None if self.grid is None else tuple((rows, columns) for rows, columns in self.grid)


Targets = Literal["all-linear", "attention", "experts"] | Annotated[list[Text], Field(min_length=1)]


class LoraSection(Section):
    """LoRA adapters on the LLM's linear layers (arXiv 2106.09685)."""

    rank: Annotated[int, Field(gt=0, le=8192)] = Field(default=16, description="rank of the adapters")
    alpha: Weight | None = Field(
        default=None, description="numerator of the scaling factor; default 2 * rank"
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0, description="dropout on the adapters' input"
    )
    targets: Targets = Field(
        default="all-linear",
        description="all linear layers of the LLM's blocks, attention layers only, stacked experts, or a "
        "list of these and of names such as q_proj or experts.down_proj",
    )
    rslora: bool = Field(default=False, description="scale by alpha / sqrt(rank) (arXiv 2312.03732)")
    dora: bool = Field(
        default=False,
        description="weight-decomposed adapters (arXiv 2402.09353); vLLM and SGLang do not serve them",
    )
    plus_ratio: Weight = Field(
        default=1.0, description="LoRA+: ratio of the learning rates of B and A (arXiv 2402.12354)"
    )
    init: Literal["default", "gaussian", "orthogonal"] = Field(
        default="default", description="initialisation of A; B is chosen so that the adapter starts at zero"
    )


def with_lora_of_run(values: Any) -> Any:
    """A recipe that starts from a run and says nothing of LoRA has that run's.

    Args:
        values: plain values of a recipe, unchecked.

    Returns:
        The same, with `lora` where the run's recipe can be read.
    """
    model = values.get("model") if isinstance(values, dict) else None
    run = model.get("run") if isinstance(model, dict) else None
    if not isinstance(run, str) or "lora" in values:
        return values
    try:
        recipe = yaml.safe_load((Path(run).expanduser() / "recipe.yaml").read_text(encoding="utf-8"))
        return {**values, "lora": recipe["lora"]}
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return values  # `model.run` says what is wrong
