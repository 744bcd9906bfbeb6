"""Makes the two models that the package carries: a language model from text only, a vision tower from images only.

    python scripts/make_quickstart_assets.py            # both, into lockadapt/quickstart/assets
    python scripts/make_quickstart_assets.py --only llm

Neither ever sees what the other is made from: no image has a caption or a label here, no text has an image.
The same seed, versions and thread count give the same weights.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random

import torch
from quickstart_corpus import documents
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

ASSETS = Path(__file__).parents[1] / "lockadapt" / "quickstart" / "assets"
SPECIAL = ("<unk>", "<s>", "</s>", "<pad>")


def make_tokenizer(random: Random, words: int = 768) -> PreTrainedTokenizerFast:
    """Byte-level BPE on 20,000 documents: any text can be written, common words are one token."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=words,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(islice(documents(random), 20_000), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        model_max_length=512, padding_side="left",
    )  # fmt: skip


def make_llm(
    folder: Path, seed: int, steps: int, batch: int = 48, length: int = 128, width: int = 128
) -> float:
    """Train a small Llama on `steps` batches of invented text; returns the mean loss of the last 50 steps."""
    random = Random(seed)
    torch.manual_seed(seed)
    tokenizer = make_tokenizer(random)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=width * 11 // 4, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=512, tie_word_embeddings=True,
        bos_token_id=1, eos_token_id=2, pad_token_id=3,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    rows = _rows(random, tokenizer, batch, length)
    loss = _train(model, steps, 3e-3, lambda: model(input_ids=(ids := next(rows)), labels=ids).loss)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return loss


def _rows(random: Random, tokenizer: PreTrainedTokenizerFast, batch: int, length: int) -> Iterator[torch.Tensor]:
    """Batches of token ids (batch, length). A row begins with a document and is filled up with further ones."""
    encoded = (ids for texts in _chunks(documents(random), 200) for ids in tokenizer(texts)["input_ids"])
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


def _train(model: torch.nn.Module, steps: int, rate: float, loss_of) -> float:
    """AdamW with a one-cycle schedule; `loss_of()` gives the loss of the next batch."""
    optimizer = torch.optim.AdamW(model.parameters(), rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    model.train()
    last: list[float] = []
    start = time.monotonic()
    for step in range(1, steps + 1):
        loss = loss_of()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        last = [*last[-49:], loss.item()]
        if step % 50 == 0:
            print(
                f"  step {step}/{steps}  loss {sum(last) / len(last):.4f}  {time.monotonic() - start:.0f} s",
                flush=True,
            )
    return sum(last) / len(last)
