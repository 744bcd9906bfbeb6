"""Preferences of a run's own wrong answers: wrong, its own, and read again as they were written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

import lockadapt
from lockadapt.data.model_encoder import model_encoder
from lockadapt.data.pixels import pixel_inputs
from lockadapt.data.readers import Source, read_samples
from lockadapt.data.sample import ImageRef, Sample
from lockadapt.errors import DataError
from lockadapt.evaluation.own_preferences import AnswerDraws, own_preferences, write_preferences
from lockadapt.runs.run import LoadedRun, open_run
from tests.support.runs import values


@pytest.fixture(scope="module")
def loaded(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> LoadedRun:
    """Trained until it answers some rows rightly and others wrongly."""
    folder = tmp_path_factory.mktemp("own-preferences")
    recipe = values(tiny, folder)
    recipe["training"] |= {"steps": 60}
    return open_run(lockadapt.train(recipe, output=folder / "run", quiet=True).output).load()


def asked(loaded: LoadedRun, samples: Sequence[Sample], **draws: float) -> list[Sample]:
    given = AnswerDraws(**{"max_new_tokens": 5, "batch_size": 12, **draws})  # type: ignore[arg-type]
    encoder = model_encoder(loaded.model, loaded.processor, None)
    return own_preferences(loaded.model, encoder, pixel_inputs(loaded.processor, 10**6), samples, given)


@pytest.fixture
def samples(loaded: LoadedRun) -> list[Sample]:
    """The run's training rows."""
    return loaded.run.experiment.samples("train")["vqa"]


def test_greedy_ones_are_the_answers_of_evaluation(loaded: LoadedRun, samples: list[Sample]) -> None:
    answers = lockadapt.Predictor(loaded).answers(
        [row.images[0].path for row in samples], [row.turns[0].text for row in samples], max_new_tokens=5
    )
    wrong = {row.where: answer for row, answer in zip(samples, answers, strict=True) if answer != row.answer}
    assert 0 < len(wrong) < len(samples)
    preferences = asked(loaded, samples, answers=1, temperature=0.0)
    assert {row.where: row.rejected for row in preferences} == {k: v for k, v in wrong.items() if v}


def test_sampled_ones_are_wrong_and_repeat(loaded: LoadedRun, samples: list[Sample]) -> None:
    preferences = asked(loaded, samples, answers=30, pairs=3)
    assert all(row.rejected not in ("", row.answer) for row in preferences)
    pairs = [(row.where, row.rejected) for row in preferences]
    assert len(set(pairs)) == len(pairs)
    assert max([where for where, _ in pairs].count(where) for where, _ in pairs) in (2, 3)
    assert pairs == [(row.where, row.rejected) for row in asked(loaded, samples, answers=30, pairs=3)]
    other = asked(loaded, samples, answers=30, pairs=3, seed=1)
    assert pairs != [(row.where, row.rejected) for row in other]
    own = loaded.model.get_base_model().generation_config  # type: ignore[operator, union-attr]
    assert not own.do_sample


def test_they_are_read_as_they_were_written(loaded: LoadedRun, samples: list[Sample]) -> None:
    preferences = asked(loaded, samples, answers=6)
    file = loaded.run.folder.parent / "own.jsonl"
    write_preferences(file, preferences)
    read = read_samples("jsonl", Source(str(file), "preference"))
    assert [(row.images, row.turns, row.rejected) for row in read] == [
        (row.images, row.turns, row.rejected) for row in preferences
    ]


def test_images_that_no_row_can_name_are_refused(samples: list[Sample], tmp_path: Path) -> None:
    row = replace(samples[0], rejected="purple")
    with pytest.raises(DataError, match="lies outside"):
        write_preferences(tmp_path / "own.jsonl", [row])
    with pytest.raises(DataError, match="no file of its own"):
        write_preferences(tmp_path / "own.jsonl", [replace(row, images=(ImageRef("k", data=b"1"),))])
    assert not (tmp_path / "own.jsonl").exists()
