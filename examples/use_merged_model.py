"""Ask a merged model about an image with Transformers alone, without lockadapt.

python examples/use_merged_model.py merged/easy-vqa picture.png "what color is the shape?"
"""

from __future__ import annotations

import sys

import torch
from PIL import Image, ImageOps
from transformers import AutoModelForImageTextToText, AutoProcessor


def main(folder: str, picture: str, question: str) -> None:
    """Print the answer."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto", local_files_only=True)
    model = model.to(device).eval()

    content = [{"type": "image", "image": on_white(picture)}, {"type": "text", "text": question}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    ).to(device, model.dtype)
    with torch.no_grad():
        tokens = model.generate(**inputs, max_new_tokens=64, do_sample=False)
    print(processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip())


def on_white(path: str) -> Image.Image:
    """Return the image upright and in RGB.

    Transparency goes on white, as in training; a bare convert makes it black.
    """
    picture = ImageOps.exif_transpose(Image.open(path)).convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture).convert("RGB")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
