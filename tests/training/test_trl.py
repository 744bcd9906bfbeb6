"""TRL as an independent reference: the same rows, the same model, the same loss."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from lockadapt.architectures.assemble import Assembled
from lockadapt.architectures.load import load_model
from lockadapt.data.batch import collate
from lockadapt.data.encode import Encoder
from lockadapt.data.pixels import PixelInputs
from lockadapt.data.sample import ImageRef, question_answer
from lockadapt.objectives.answer_tokens import answer_loss


@pytest.mark.slow
def test_same_loss_as_sft_trainer(assembled: Assembled, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    pictures = [Image.new("RGB", (24, 24), colour) for colour in ("red", "blue", "green")]
    answers = ["red", "a blue square", "green"]
    rows = Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": "what color is the shape?"}],
                "completion": [{"role": "assistant", "content": answer}],
                "images": [picture],
            }
            for picture, answer in zip(pictures, answers, strict=True)
        ]
    )
    model, processor = load_model(assembled.folder, "float32")
    arguments = trl.SFTConfig(
        str(tmp_path),
        max_length=None,
        per_device_train_batch_size=3,
        use_cpu=True,
        report_to="none",
        bf16=False,
        gradient_checkpointing=False,
    )
    trainer = trl.SFTTrainer(model, arguments, train_dataset=rows, processing_class=processor)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(3)])
    with torch.no_grad():
        theirs = trainer.compute_loss(trainer.model.eval(), dict(batch))

    model, processor = load_model(assembled.folder, "float32")
    encoder = Encoder(processor, 250)
    samples = [
        question_answer("what color is the shape?", a, [ImageRef(a, picture=p)], "rows:1")
        for p, a in zip(pictures, answers, strict=True)
    ]
    items = encoder.encode(samples).encoded
    with torch.no_grad():
        ours, _ = answer_loss(model, collate(items, PixelInputs(processor.image_processor, 10**6), 2, "vqa"))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
