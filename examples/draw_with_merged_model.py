"""Generate images with a merged Janus folder and Transformers alone, without lockadapt.

    python examples/draw_with_merged_model.py merged/mine "a blue rectangle" "a red circle" --output drawn

The same seed, prompts and settings give the images of `lockadapt generate`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoProcessor, DynamicCache, JanusForConditionalGeneration


def main() -> None:
    """Write one PNG per prompt."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", help="merged folder")
    parser.add_argument("prompts", nargs="+", help="what to draw")
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--guidance-scale", type=float, default=3.0)
    given = parser.parse_args()
    processor = AutoProcessor.from_pretrained(given.folder)
    model = JanusForConditionalGeneration.from_pretrained(given.folder).eval()
    texts = [
        processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "text", "text": prompt}]}],
            add_generation_prompt=True,
            tokenize=False,
        )
        for prompt in given.prompts
    ]
    inputs = processor(text=texts, generation_mode="image", padding=True, return_tensors="pt")
    torch.manual_seed(given.seed)
    codes = model.generate(
        inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        generation_mode="image",
        cache=DynamicCache(),  # the default cache fails with some LLMs (Qwen)
        do_sample=True,
        temperature=given.temperature,
        top_k=0,
        top_p=1.0,
        guidance_scale=given.guidance_scale,
    )
    with torch.no_grad():
        # Channels first: the Pillow processor does not accept the output of `decode_image_tokens`.
        values = model.model.vqmodel.decode(codes)
    # As tensors, which the processor supports with and without torchvision.
    levels = processor.postprocess(list(values), return_tensors="pt")["pixel_values"]
    pictures = [Image.fromarray(picture) for picture in levels.permute(0, 2, 3, 1).numpy()]
    given.output.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(pictures):
        picture.save(given.output / f"{number:04d}.png")
    print(f"{len(pictures)} images: {given.output}")


if __name__ == "__main__":
    main()
