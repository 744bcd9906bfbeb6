"""Makes the package's models: an LLM from text only, a tower and an image tokenizer from images.

    python scripts/make_quickstart_assets.py             # all, into lockadapt/quickstart/assets
    python scripts/make_quickstart_assets.py --only llm
    python scripts/make_quickstart_assets.py --only vit --output ../towers   # beside the package
    # as are clip, t5 and numbers-llm, which has read coordinates

Neither ever sees what the other is made from: no image has a caption or a label here, no text has an image.
The same seed, versions and thread count give the same weights. Needs torch 2.9 or newer (its Muon).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import torch
import typer
from quickstart_corpus import documents, located_documents
from quickstart_image_tokenizer import make_image_tokenizer
from quickstart_t5 import make_t5
from quickstart_tower import make_tower
from quickstart_towers import make_clip, make_vit
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

ASSETS = Path(__file__).parents[1] / "lockadapt" / "quickstart" / "assets"
SPECIAL = ("<unk>", "<s>", "</s>", "<pad>")
WIDTH = 128


def main(
    only: str = typer.Option(
        "all", help="llm, tower, image-tokenizer or all (these); vit, clip, t5, numbers-llm"
    ),
    output: Path = typer.Option(ASSETS, help="where to"),
    seed: int = 0,
    llm_steps: int = 700,
    tower_steps: int = 3000,
    tokenizer_steps: int = 3000,
    other_steps: int = typer.Option(1500, help="of vit and clip; t5 takes as many as llm"),
    threads: int = 1,
) -> None:
    """Make the assets."""
    torch.set_num_threads(threads)
    models = (
        ("llm", make_llm, llm_steps),
        ("tower", make_tower, tower_steps),
        ("image-tokenizer", make_image_tokenizer, tokenizer_steps),
    )
    beside: tuple[Any, ...] = (
        ("vit", partial(make_vit, source=ASSETS / "tower"), other_steps),
        ("clip", partial(make_clip, source=ASSETS / "tower"), other_steps),
        ("t5", make_t5, llm_steps),
        ("numbers-llm", partial(make_llm, texts=located_documents), llm_steps),
    )
    for name, make, steps in (*models, *beside):
        if only == name or (only == "all" and (name, make, steps) in models):
            start = time.monotonic()
            loss = make(output / name, seed, steps)
            size = sum(path.stat().st_size for path in (output / name).glob("*.safetensors"))
            print(f"{name}: loss {loss:.4f}, {size / 1e6:.2f} MB, {time.monotonic() - start:.0f} s")


def make_tokenizer(
    random: Random, texts: Callable[[Random], Iterator[str]], words: int = 768
) -> PreTrainedTokenizerFast:
    """Byte-level BPE on 20,000 documents: any text can be written, common words are one token.

    A digit is a token where the documents are full of numbers.
    """
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    pieces = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Digits(individual_digits=True)
    numbers = texts is located_documents
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pieces]) if numbers else pieces
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=words,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(islice(texts(random), 20_000), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        model_max_length=512, padding_side="left",
    )  # fmt: skip


def make_llm(
    folder: Path,
    seed: int,
    steps: int,
    texts: Callable[[Random], Iterator[str]] = documents,
    batch: int = 24,
    length: int = 128,
) -> float:
    """Train a small Llama on `steps` batches of invented text; returns the mean loss of the last 50 steps."""
    random = Random(seed)
    torch.manual_seed(seed)
    tokenizer = make_tokenizer(random, texts)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=WIDTH * 11 // 4, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=512, tie_word_embeddings=True,
        bos_token_id=1, eos_token_id=2, pad_token_id=3,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    chosen = {id(p) for p in matrices}
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW([p for p in model.parameters() if id(p) not in chosen], 3e-3, betas=(0.9, 0.98)),
        torch.optim.Muon(matrices, 5e-3, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
    ]
    schedules = [
        torch.optim.lr_scheduler.OneCycleLR(
            o, o.param_groups[0]["lr"], total_steps=steps, pct_start=0.08, cycle_momentum=False
        )
        for o in optimizers
    ]
    rows, last, start = _rows(texts(random), tokenizer, batch, length), [0.0], time.monotonic()
    for step in range(1, steps + 1):
        ids = next(rows)
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        last = [*last[-49:], loss.item()]
        if step % 50 == 0:
            print(
                f"  step {step}/{steps}  loss {sum(last) / len(last):.4f}  {time.monotonic() - start:.0f} s",
                flush=True,
            )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return sum(last) / len(last)


def _rows(
    texts: Iterator[str], tokenizer: PreTrainedTokenizerFast, batch: int, length: int
) -> Iterator[torch.Tensor]:
    """Batches of token ids (batch, length).

    A row begins with a document and is filled up with further ones.
    """
    encoded = (ids for part in _chunks(texts, 200) for ids in tokenizer(part)["input_ids"])
    while True:
        rows = []
        for _ in range(batch):
            row: list[int] = []
            while len(row) < length:
                row += [*next(encoded), tokenizer.eos_token_id]
            rows.append(row[:length])
        yield torch.tensor(rows)


def _chunks(texts: Iterator[str], size: int) -> Iterator[list[str]]:
    while True:
        yield list(islice(texts, size))


if __name__ == "__main__":
    typer.run(main)
