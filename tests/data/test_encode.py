"""One tokenisation, labels on the answers only, image spans never cut."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lockadapt.architectures.assemble import Assembled, assemble
from lockadapt.architectures.load import load_model
from lockadapt.data.encode import IGNORED, Encoder
from lockadapt.data.sample import ImageRef, Sample, Turn, question_answer
from lockadapt.errors import DataError, NoLabelError
from tests.support.rows import dialogue_sample
from tests.support.tiny import tiny_llm

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINKING = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""As Qwen3's: the last answer is preceded by an empty thought, earlier ones are not."""


@pytest.fixture(scope="module")
def encoder(assembled: Assembled) -> Encoder:
    return Encoder(assembled.processor, 200)


def learned(encoder: Encoder, sample: Sample) -> str:
    item = encoder.encode([sample]).encoded[0]
    return encoder.tokenizer.decode(item.input_ids[item.labels != IGNORED])


def one_question(text: str = "red", question: str = "what color is it?") -> Sample:
    return question_answer(question, text, [ImageRef("a.png")], "rows:1")


def test_only_answer_and_end_are_learned(encoder: Encoder) -> None:
    assert learned(encoder, one_question("a red square")) == "a red square</s>"


def test_same_ids_as_the_stock_processor(encoder: Encoder) -> None:
    sample = one_question()
    item = encoder.encode([sample]).encoded[0]
    text = encoder.render(sample)
    image = Image.new("RGB", (40, 17))
    theirs = encoder.processor(images=[image], text=text, add_special_tokens=False)["input_ids"]
    assert item.input_ids.tolist() == list(np.asarray(theirs).reshape(-1))
    assert (item.input_ids == encoder.image_token_id).sum() == encoder.image_tokens


def test_prompt_is_a_prefix_of_the_whole(encoder: Encoder) -> None:
    sample = one_question()
    prompt = encoder.prompt_ids(sample)
    item = encoder.encode([sample]).encoded[0]
    assert item.input_ids[: len(prompt)].tolist() == prompt
    assert (item.labels[: len(prompt)] == IGNORED).all()
    assert (item.labels[len(prompt) :] != IGNORED).all()


def test_every_assistant_turn_is_learned(encoder: Encoder, tmp_path: Path) -> None:
    assert learned(encoder, dialogue_sample(tmp_path)) == "red</s>no</s>"


@pytest.mark.parametrize(
    ("template", "expected"),
    [(CHATML, "red<|im_end|>no<|im_end|>"), (THINKING, "red<|im_end|><think>\n\n</think>\n\nno<|im_end|>")],
)
def test_templates_of_chat_models(template: str, expected: str, tiny: Path, tmp_path: Path) -> None:
    llm = tiny_llm("llama-tied", tmp_path / "llm", chat_template=template)
    built = assemble(llm, tiny / "clip-vision", None, prove=False, dtype="float32")
    built.processor.tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    assert learned(Encoder(built.processor, 300), dialogue_sample(tmp_path / "pictures")) == expected


def test_text_is_cut_and_counted(encoder: Encoder) -> None:
    short = Encoder(encoder.processor, encoder.image_tokens + 40)
    report = short.encode([one_question("red " * 50)])
    assert report.cut == ["rows:1"]
    assert len(report.encoded[0].input_ids) == encoder.image_tokens + 40


def test_image_span_is_never_cut(encoder: Encoder) -> None:
    turns = (
        Turn("user", "look", images=1),
        Turn("assistant", "red"),
        Turn("user", "and this?", images=1),
        Turn("assistant", "blue"),
    )
    two = Sample((ImageRef("a"), ImageRef("b")), turns, where="rows:7")
    ids = encoder.encode([two]).encoded[0].input_ids
    limit = int(np.flatnonzero(ids == encoder.image_token_id)[-1])
    report = Encoder(encoder.processor, limit).encode([two])
    assert report.dropped == ["rows:7"]
    assert not report.encoded


def test_nothing_learned_after_the_cut_drops_the_sample(encoder: Encoder) -> None:
    report = Encoder(encoder.processor, encoder.image_tokens + 5).encode([one_question()])
    assert report.dropped == ["rows:1"]


def test_image_marker_in_a_text_is_refused(encoder: Encoder) -> None:
    with pytest.raises(DataError, match="image marker") as error:
        encoder.encode([one_question(question="what is <image> here?")])
    assert error.value.where == "rows:1"


def test_template_without_image_token_is_refused(encoder: Encoder, assembled: Assembled) -> None:
    _, processor = load_model(assembled.folder, "float32")
    processor.chat_template = "{% for m in messages %}{{ m['role'] }} {% endfor %}"
    with pytest.raises(DataError, match="1 images, but the chat template shows 0"):
        Encoder(processor, 100).encode([one_question()])


def test_sample_without_label_is_an_error(encoder: Encoder, assembled: Assembled) -> None:
    _, processor = load_model(assembled.folder, "float32")
    processor.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}<image>ask{% endif %}{% endfor %}"
    )
    with pytest.raises(NoLabelError) as error:
        Encoder(processor, 100).encode(
            [dataclasses.replace(one_question(""), turns=(Turn("user", "ask", 1), Turn("assistant", "")))]
        )
    assert error.value.exit_code == 3


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.text(
            st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1, max_size=30
        ).filter(lambda t: t.strip() == t and "<" not in t),
        min_size=2,
        max_size=6,
    )
)
def test_any_text_is_learned_exactly(encoder: Encoder, texts: list[str]) -> None:
    turns = tuple(
        Turn("assistant" if i % 2 else "user", text, images=int(i == 0))
        for i, text in enumerate(texts[: len(texts) // 2 * 2])
    )
    sample = Sample((ImageRef("a"),), turns, where="rows:1")
    wide = Encoder(encoder.processor, 100_000)
    assert learned(wide, sample) == "".join(t.text + "</s>" for t in turns if t.role == "assistant")
