"""The dual encoder (LiT, arXiv 2111.07991): a frozen tower and a text model, each with a projection."""

from __future__ import annotations

from transformers import (
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    VisionTextDualEncoderProcessor,
)

from lockadapt.architectures.base import (
    RETRIEVAL,
    Apart,
    Architecture,
    Clients,
    Features,
    Inputs,
    ModelLayout,
)
from lockadapt.architectures.dual_encoder.embeddings import (
    pooled_image_features,
    project_images,
    project_texts,
    text_embedding,
)

DUAL_ENCODER = Architecture(
    model_class=VisionTextDualEncoderModel,
    config_class=VisionTextDualEncoderConfig,
    layout=ModelLayout(
        tower="vision_model",
        llm="text_model",
        projector=(),
        head=None,
        retrieval=("visual_projection", "text_projection", RETRIEVAL),
    ),
    inputs=Inputs(VisionTextDualEncoderProcessor, span=None),
    # No fusion holds it: `dual_encoder.assemble.assemble_dual` makes it.
    assemble=None,
    features=Features(
        take=lambda model, images: pooled_image_features(model, images["pixel_values"]),
        give=None,
    ),
    clients=Clients(
        refused={
            "gguf": "a dual encoder answers nothing, and llama.cpp has no such class",
            "colpali": "ColPaliForRetrieval holds one model for images and texts, this run has two",
            "bridge": "a dual encoder has no projector between a tower and an LLM (--to dual or --to "
            "sentence-transformers)",
        }
    ),
    apart=Apart(states=text_embedding, images=project_images, texts=project_texts),
)
