"""Model cards of folders made from a run: how they were proved, and how they are used without lockadapt."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lockadapt.export.targets import Frames
from lockadapt.training.card import Made, card_text


def merged_card(run: Path, proof: Mapping[str, Any]) -> str:
    """That of a merged folder, with the proof's numbers."""
    section = (
        "## Proof",
        "",
        "Reloaded by its stock class in a fresh process without lockadapt and compared with the trained model: "
        f"largest logit difference {proof['max_abs_logit_diff']:.3g}, KL {proof['kl']:.3g} nats, "
        f"top-1 agreement {proof['top1_agreement']:.4f}, {len(proof['missing_keys'])} missing and "
        f"{len(proof['unexpected_keys'])} unexpected keys.",
        "",
        *_retrieval(proof),
        "```python",
        "from transformers import AutoModelForImageTextToText, AutoProcessor",
        "",
        'processor = AutoProcessor.from_pretrained("PATH")',
        'model = AutoModelForImageTextToText.from_pretrained("PATH")',
        "```",
        "",
    )
    return card_text(run, Made("transformers", "image-text-to-text", section))


def embedding_card(run: Path, proof: Mapping[str, Any], frames: Frames) -> str:
    """That of a folder of an embedding target; `frames` are what the user must put around texts and images."""
    library = "sentence-transformers" if proof["target"] == "sentence-transformers" else "transformers"
    section = (
        "## Proof",
        "",
        f"Loaded as {proof['model_class']} in a fresh process without lockadapt and compared with the trained model: an "
        f"entry of a normalised embedding differs by at most {proof['text_difference']:.3g} (texts) and "
        f"{proof['image_difference']:.3g} (images).",
        "",
        "```python",
        *_USES[proof["target"]](frames),
        "```",
        "",
    )
    return card_text(run, Made(library, "feature-extraction", section))


def _retrieval(proof: Mapping[str, Any]) -> list[str]:
    if "max_abs_embedding_diff" not in proof:
        return []
    return [
        "`retrieval/` holds what turns the state behind the query tokens into an embedding; `lockadapt search` and "
        "`lockadapt eval` read it. Embeddings of images and texts differ from the trained model's by at most "
        f"{proof['max_abs_embedding_diff']:.3g}.",
        "",
    ]


def _dual(frames: Frames) -> list[str]:
    return [
        "from PIL import Image",
        "from transformers import AutoProcessor, VisionTextDualEncoderModel",
        "",
        'processor = AutoProcessor.from_pretrained("PATH")',
        'model = VisionTextDualEncoderModel.from_pretrained("PATH")',
        'inputs = processor(text=["a text"], images=[Image.open("image.png")], return_tensors="pt")',
        "found = model(**inputs)  # text_embeds, image_embeds",
    ]


def _sentence_transformers(frames: Frames) -> list[str]:
    return [
        "from PIL import Image",
        "from sentence_transformers import SentenceTransformer",
        "",
        'model = SentenceTransformer("PATH")',
        'texts, images = model.encode(["a text"]), model.encode([Image.open("image.png")])',
        "model.similarity(texts, images)",
    ]


def _colpali(frames: Frames) -> list[str]:
    text = f'{json.dumps(frames.before)} + "a text" + {json.dumps(frames.after)}'
    return [
        "from PIL import Image",
        "from transformers import AutoProcessor, ColPaliForRetrieval",
        "",
        'processor = AutoProcessor.from_pretrained("PATH")',
        'model = ColPaliForRetrieval.from_pretrained("PATH")',
        f"text = {text}",
        f"image = {json.dumps(frames.image)}",
        'said = processor(text=[text], add_special_tokens=False, padding=True, return_tensors="pt")',
        'shown = processor(text=[image], images=[Image.open("image.png")], add_special_tokens=False, return_tensors="pt")',
        "embeddings = [model(**inputs).embeddings[:, -1] for inputs in (said, shown)]",
    ]


_USES = {"dual": _dual, "sentence-transformers": _sentence_transformers, "colpali": _colpali}
