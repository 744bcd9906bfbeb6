"""Which stock class holds these sources, and the model and processor of that class."""

from __future__ import annotations

from typing import Any

from transformers import LlavaProcessor, PreTrainedModel

from lockadapt.architectures.bridge import join, set_generation
from lockadapt.architectures.calibrate import embedding_rms
from lockadapt.architectures.fusions import Projector, processor_arguments
from lockadapt.architectures.janus.graft import graft, janus_processor, set_drawing
from lockadapt.architectures.janus.image_tokenizer import ImageTokenizer
from lockadapt.models.chat_template import TemplateKind, add_end_tokens, chat_template, end_token_ids
from lockadapt.models.embeddings import image_token_id, widen_vocabulary
from lockadapt.models.llms import LlmFacts
from lockadapt.models.quiet import quiet
from lockadapt.models.towers import TowerFacts


def stock_model(
    llm: PreTrainedModel,
    tower: Any,
    tokenizer: Any,
    square: Any,
    text: LlmFacts,
    vision: TowerFacts,
    projector: Projector,
    seed: int,
    image_tokenizer: ImageTokenizer | None = None,
) -> tuple[Any, Any, TemplateKind]:
    """LLaVA for towers that return tokens, FastVLM for feature maps, Janus where there is an image tokenizer.

    Args:
        llm: the causal LM. Its vocabulary is widened, and its parts move into the result.
        tower: the vision model; with an image tokenizer, what `janus_tower` made of it. It moves into the result.
        tokenizer: from `load_tokenizer`; its chat template moves to the processor.
        square: the tower's image processor, from `square_processor`.
        text, vision: what `probe_llm` and `probe_tower` found.
        projector: the fusion, of the kind that the class wants.
        seed: of all fresh weights.

    Returns:
        The model in evaluation mode, its processor, and where the chat template is from.

    Raises:
        AssemblyError: the stock class cannot hold these.
    """
    image_id = image_token_id(tokenizer)
    real = llm.device.type != "meta"
    rms = embedding_rms(llm) if real and image_tokenizer is not None else 1.0
    with quiet():
        widen_vocabulary(llm, tokenizer)
    template, kind = chat_template(tokenizer)
    tokenizer.chat_template = None
    processor: Any
    if image_tokenizer is None:
        model = join(llm, tower, text, vision, image_id, projector, seed)
        processor = LlavaProcessor(square, tokenizer, chat_template=template, **processor_arguments(vision))
    else:
        model = graft(llm, tower, image_tokenizer, text, image_id, projector, rms, seed)
        processor = janus_processor(square, tokenizer, template, vision.tokens, image_tokenizer)
    set_generation(model, llm, tokenizer)
    add_end_tokens(model.generation_config, end_token_ids(tokenizer, template))
    if image_tokenizer is not None:
        set_drawing(model, tokenizer)
    return model, processor, kind
