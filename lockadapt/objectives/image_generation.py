"""How images are generated: the prompt of a caption, and the sampling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lockadapt.errors import RecipeError


@dataclass(frozen=True)
class ImageGenerationConfig:
    """How images are generated.

    Attributes:
        seed: of all sampling; the same seed, prompts and batch size give the same images.
        temperature: 0 takes the likeliest code.
        top_k, top_p: as in `generate`; None for no limit.
        guidance_scale: how far from the unconditional prompt; above 1, which the stock class needs.
        batch_size: prompts at a time.
    """

    seed: int = 0
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    guidance_scale: float = 3.0
    batch_size: int = 64

    def __post_init__(self) -> None:
        wrong = {
            "seed": not 0 <= self.seed < 2**63,
            "temperature": not 0 <= self.temperature <= 1000,
            "top_k": self.top_k is not None and not 0 < self.top_k <= 1_000_000_000,
            "top_p": self.top_p is not None and not 0 < self.top_p <= 1,
            "guidance_scale": not 1 <= self.guidance_scale <= 1000,  # NaN is never in bounds
        }
        for name, is_wrong in wrong.items():
            if is_wrong:
                raise RecipeError(
                    f"{getattr(self, name)} is not supported",
                    where=name,
                    fix="seed: 0 to 2**63 - 1; temperature: 0 to 1000; top_k: 1 or more; top_p: above 0, "
                    "at most 1; "
                    "guidance_scale: 1 to 1000",
                )

    def arguments(self) -> dict[str, Any]:
        """The keywords of the stock `generate`.

        Returns:
            Keyword arguments for `generate`.

        Raises:
            RecipeError: a guidance scale of 1 or less, or a negative temperature.
        """
        if self.guidance_scale <= 1 or self.temperature < 0:
            raise RecipeError(
                f"guidance_scale {self.guidance_scale} and temperature {self.temperature} are not supported",
                where="guidance_scale, temperature",
                fix="use a guidance scale above 1 and a temperature of at least 0",
            )
        made: dict[str, Any] = {"guidance_scale": self.guidance_scale, "do_sample": self.temperature > 0}
        if made["do_sample"]:
            # 0 and 1 switch off what a generation config may have on.
            made |= {"temperature": self.temperature, "top_k": self.top_k or 0, "top_p": self.top_p or 1.0}
        return made


def generation_prompts(processor: Any, captions: Sequence[str]) -> list[np.ndarray[Any, Any]]:
    """What the stock processor makes of captions for image generation, int32 (tokens,) each.

    These are the ids of `processor(text=processor.apply_chat_template(messages, add_generation_prompt=True),
    generation_mode="image")` with the caption as the user's message.
    """
    if not captions:
        return []
    texts = [
        processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "text", "text": caption}]}],
            add_generation_prompt=True,
            tokenize=False,
        )
        for caption in captions
    ]
    made = processor(text=texts, generation_mode="image", padding=True, return_tensors="np")
    pairs = zip(made["input_ids"], made["attention_mask"], strict=True)
    return [ids[mask.astype(bool)].astype(np.int32) for ids, mask in pairs]
