"""Ranking from a shared cache equals scoring every whole text by itself; generation equals the stock `generate`."""

from __future__ import annotations

import dataclasses
import logging
import warnings
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import transformers as hf
from transformers.utils import logging as notices

from lockadapt.architectures.assemble import Assembled, assemble
from lockadapt.architectures.load import load_model
from lockadapt.data.encode import IGNORED, Encoder
from lockadapt.data.pixels import PixelInputs
from lockadapt.data.sample import Sample, Turn
from lockadapt.errors import RecipeError
from lockadapt.evaluation import prefill
from lockadapt.evaluation.context import PredictionContext
from lockadapt.evaluation.predict import SamplePredictor
from lockadapt.exports.proofs.reference import without_images
from lockadapt.features.in_memory import FeatureInputs
from lockadapt.features.tower import tower_outputs
from tests.support.rows import dialogue_sample, vqa_samples
from tests.support.tiny import GROUPED, tiny_llm, tiny_tokenizer

CANDIDATES = ["red", "a very long yellow answer", "no", "green"]


def predictor(folder: Path, remembered: bool = False) -> SamplePredictor:
    model, processor = load_model(folder, "float32")
    pixels = PixelInputs(processor.image_processor, 10**6)
    images = FeatureInputs(pixels, lambda v: tower_outputs(model, v)) if remembered else pixels
    return SamplePredictor(model, Encoder(processor, 250), images, batch_size=3)


def plain_scores(own: SamplePredictor, sample, candidates) -> list[float]:
    """Sum of log-probabilities of every answer token, one whole text at a time."""
    scores = []
    for candidate in candidates:
        turns = (*sample.turns[:-1], Turn("assistant", candidate))
        item = own.encoder.encode([dataclasses.replace(sample, turns=turns)]).encoded[0]
        prompt = len(own.encoder.prompt_ids(sample))
        ids = torch.tensor(item.input_ids[None].astype("int64"))
        with torch.no_grad():
            logits = own.model(input_ids=ids, **own.images(sample.images)).logits.log_softmax(-1)
        learned = [i for i in range(prompt, ids.shape[1]) if item.labels[i] != IGNORED]
        scores.append(sum(float(logits[0, i - 1, ids[0, i]]) for i in learned))
    return scores


@pytest.mark.parametrize("remembered", [False, True])
def test_rank_equals_plain_scoring(remembered: bool, assembled: Assembled, tmp_path: Path) -> None:
    own = predictor(assembled.folder, remembered)
    samples = [*vqa_samples(tmp_path), dialogue_sample(tmp_path)]
    plain = [plain_scores(predictor(assembled.folder), sample, CANDIDATES) for sample in samples]
    for part in (
        own,
        dataclasses.replace(own, max_row_tokens=None),
        dataclasses.replace(own, max_row_tokens=70),
    ):
        torch.testing.assert_close(
            part.scores(samples, CANDIDATES), torch.tensor(plain), rtol=1e-5, atol=1e-4
        )
    best = [CANDIDATES[max(range(4), key=lambda c: row[c])] for row in plain]
    assert own.rank(samples, CANDIDATES) == best


@pytest.mark.parametrize("kind", ["gpt2", "opt", "gpt-neox", "qwen3", "gemma", "gemma3-text", "bloom"])
def test_rank_and_generation_hold_for_other_llms(kind: str, tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "stock"
    assemble(tiny_llm(kind, tmp_path / "llm"), tiny / "clip-vision", folder, dtype="float32", prove=False)
    own = predictor(folder)
    samples = vqa_samples(tmp_path)[:3]
    plain = [plain_scores(own, sample, CANDIDATES) for sample in samples]
    assert own.rank(samples, CANDIDATES) == [CANDIDATES[max(range(4), key=lambda c: row[c])] for row in plain]
    shared, alone = (
        own.generate(samples, 6),
        dataclasses.replace(own, max_row_tokens=None).generate(samples, 6),
    )
    assert shared == alone


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("remembered", [False, True])
def test_generation_equals_stock(
    remembered: bool, beams: int, assembled: Assembled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_once = []
    monkeypatch.setattr(
        prefill, "_continued", lambda *given, go=prefill._continued: read_once.append(1) or go(*given)
    )
    own = dataclasses.replace(predictor(assembled.folder, remembered), beams=beams)
    samples = [*vqa_samples(tmp_path)[:4], dialogue_sample(tmp_path)]
    answers = own.generate(samples, 5)
    assert read_once, "beams go on from a shared reading as well"
    plain = predictor(assembled.folder)
    for sample, answer in zip(samples, answers, strict=True):
        ids = torch.tensor([plain.encoder.prompt_ids(sample)])
        made = plain.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            **plain.images(sample.images),
            max_new_tokens=5,
            do_sample=False,
            num_beams=beams,
        )
        text = plain.encoder.tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)
        assert answer == text.strip()


def test_the_shared_cache_goes_by_its_present_name(
    assembled: Assembled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Transformers' notice of the old one would reach the terminal; `quiet` must not be what hides it."""
    monkeypatch.setattr(prefill, "quiet", nullcontext)
    notices.warning_once.cache_clear()
    library = logging.getLogger("transformers")
    library.addHandler(caplog.handler)
    try:
        with caplog.at_level(logging.WARNING, "transformers"), warnings.catch_warnings():
            warnings.simplefilter("error", FutureWarning)
            predictor(assembled.folder).generate(vqa_samples(tmp_path)[:4], 3)
    finally:
        library.removeHandler(caplog.handler)
    assert not [message for message in caplog.messages if "deprecated" in message]


def test_ranking_needs_a_list(assembled: Assembled, tmp_path: Path) -> None:
    own = predictor(assembled.folder)
    context = PredictionContext(own.model, own.encoder, own.images, 4, None, method="rank")
    with pytest.raises(RecipeError, match="closed list"):
        context.answers(vqa_samples(tmp_path), None, 4)


@pytest.mark.parametrize("texts", [2, 3])
def test_rows_without_images_are_answered(texts: int, assembled: Assembled, tmp_path: Path) -> None:
    own = predictor(assembled.folder)
    alone = [without_images(sample) for sample in vqa_samples(tmp_path)[:texts]]
    one_by_one = [own.generate([sample], 6)[0] for sample in alone]
    assert own.generate(alone, 6) == one_by_one
    mixed = [alone[0], vqa_samples(tmp_path)[0], alone[1]]
    assert own.generate(mixed, 6)[::2] == one_by_one[:2]
    scores = own.scores(alone, CANDIDATES)
    plain = [plain_text_scores(own, sample) for sample in alone]
    torch.testing.assert_close(scores, torch.tensor(plain), rtol=1e-5, atol=1e-4)


def plain_text_scores(own: SamplePredictor, sample: Sample) -> list[float]:
    return [float(own.scores([sample], [candidate])[0, 0]) for candidate in CANDIDATES]


def test_a_thought_is_no_part_of_an_answer(
    assembled: Assembled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = predictor(assembled.folder)
    thought = own.encoder.tokenizer("<think>blue?</think>\n\nred", add_special_tokens=False)["input_ids"]

    def generate(input_ids: torch.Tensor, **_: object) -> torch.Tensor:
        return torch.cat([input_ids, torch.tensor([thought] * len(input_ids))], 1)

    monkeypatch.setattr(own.model, "generate", generate)
    assert own.generate(vqa_samples(tmp_path)[:2], 20) == ["red", "red"]


def test_an_llm_that_cannot_share_answers_alone_and_says_why(tiny: Path, tmp_path: Path) -> None:
    """Convolutions carry tokens from branch to branch, and from a cached prefix into padding."""
    torch.manual_seed(0)
    layers = {"layer_types": ["conv", "full_attention"], "block_multiple_of": 8}
    hf.AutoModelForCausalLM.from_config(hf.Lfm2Config(**GROUPED, **layers)).save_pretrained(tmp_path / "llm")
    tiny_tokenizer().save_pretrained(tmp_path / "llm")
    assemble(tmp_path / "llm", tiny / "clip-vision", tmp_path / "stock", dtype="float32", prove=False)
    notes: list[str] = []
    own = dataclasses.replace(predictor(tmp_path / "stock"), note=notes.append)
    alone = dataclasses.replace(own, max_row_tokens=None)
    samples = vqa_samples(tmp_path)[:3]
    torch.testing.assert_close(own.scores(samples, CANDIDATES), alone.scores(samples, CANDIDATES))
    assert own.generate(samples, 4) == alone.generate(samples, 4)
    assert len(notes) == 2
    assert all("computed by itself" in note and "conv layers" in note for note in notes)
