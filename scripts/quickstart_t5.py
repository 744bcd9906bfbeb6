"""A small T5, pre-trained on the quickstart's text: it reads the beginning of a text, and writes the rest."""

from __future__ import annotations

import time
from itertools import islice
from pathlib import Path
from random import Random

import torch
from quickstart_corpus import documents
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

LINE = "\n"


def make_tokenizer(random: Random, words: int = 768) -> PreTrainedTokenizerFast:
    """Byte-level BPE as the quickstart's LLM has it, with T5's special tokens: `</s>` behind every text."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=words,
        special_tokens=["<pad>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(islice(documents(random), 20_000), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A $B </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        eos_token="</s>",
        pad_token="<pad>",
        model_max_length=512,
    )


def make_t5(folder: Path, seed: int, steps: int, batch: int = 32, width: int = 128) -> float:
    """Train a small T5 on `steps` batches of invented text; returns the mean loss of the last 50 steps."""
    random = Random(seed)
    torch.manual_seed(seed)
    tokenizer = make_tokenizer(random)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=width, d_kv=32, d_ff=2 * width, num_layers=3, num_heads=4,
        feed_forward_proj="gated-gelu", dropout_rate=0.0, decoder_start_token_id=0, tie_word_embeddings=True,
        scale_decoder_outputs=True,
    )  # fmt: skip
    model = T5ForConditionalGeneration(config)
    matrices = [
        p
        for name, p in model.named_parameters()
        if p.ndim == 2 and "shared" not in name and "bias" not in name
    ]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(rest, 3e-3, betas=(0.9, 0.98)),
        torch.optim.Muon(matrices, 5e-3, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
    ]
    schedules = [
        torch.optim.lr_scheduler.OneCycleLR(
            o, o.param_groups[0]["lr"], total_steps=steps, pct_start=0.08, cycle_momentum=False
        )
        for o in optimizers
    ]
    texts, last, start = documents(random), [0.0], time.monotonic()
    for step in range(1, steps + 1):
        pairs = [_cut(text, random) for text in islice(texts, batch)]
        read = tokenizer([before for before, _ in pairs], return_tensors="pt", padding=True)
        written = [torch.tensor(tokenizer(after).input_ids) for _, after in pairs]
        loss = model(**read, labels=pad_sequence(written, batch_first=True, padding_value=-100)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        last = [*last[-49:], loss.item()]
        if step % 50 == 0:
            mean = sum(last) / len(last)
            print(f"  step {step}/{steps}  loss {mean:.4f}  {time.monotonic() - start:.0f} s", flush=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return sum(last) / len(last)


def _cut(text: str, random: Random) -> tuple[str, str]:
    """A text's beginning, to the end of a line or of a word, and what follows."""
    places = [n + 1 for n, letter in enumerate(text) if letter == LINE and n + 1 < len(text)]
    if not places or random.random() < 0.2:
        places = [n for n, letter in enumerate(text) if letter == " "] or [len(text) // 2]
    cut = random.choice(places)
    return text[:cut], text[cut:].split(LINE)[0]
