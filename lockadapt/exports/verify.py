"""Proves any folder: against the run that it comes from, or by what it says and does itself."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoConfig

from lockadapt.architectures import find_architecture
from lockadapt.architectures.load import load_processor
from lockadapt.console import Reporter
from lockadapt.errors import RecipeError, VerificationError
from lockadapt.evaluation.target import BESIDE
from lockadapt.exports.proofs.embeddings import embed_probe, prove_embeddings
from lockadapt.exports.proofs.lost_change import lost_change, note_lost_change
from lockadapt.exports.proofs.merged_folder import RECORD, note_blindness, prove_merge, unsound
from lockadapt.exports.proofs.reference import NEW_TOKENS, reference_answers
from lockadapt.exports.proofs.stored_folder import Stored, read_json, read_stored
from lockadapt.exports.proofs.wrong_tensors import wrong_tensors
from lockadapt.exports.stock_folder import BaseMode
from lockadapt.models.proof import run_fresh, run_script
from lockadapt.models.sources import some
from lockadapt.runs.run import Run, as_run

SIDE = 64
"""Pixels of the two pictures that a folder is shown where no run is named."""
QUESTION = "What is in the image?"
EMBEDDINGS = Path(__file__).parents[1] / "models" / "fresh_embeddings.py"
FIX = "merge or export the run again, with `lockadapt merge` or `lockadapt export`"


def verify_folder(folder: Path, against: Path | Run | None, reporter: Reporter) -> dict[str, Any]:
    """Verifies a folder by its files, and by loading it with its stock class in a fresh process.

    Nothing is written to the folder.

    Args:
        folder: a stock VLM folder; or, without `against`, one of an embedding target.
        against: the run, or its folder, that it should compute the same as.
        reporter: told of progress.

    Returns:
        With `against` what `merge_run` returns; else `{"output", "model_class", "missing_keys",
        "unexpected_keys", "dtype", "files", "image_effect"}`.

    Raises:
        RecipeError: the folder is of a kind that cannot be verified, or not against a run.
        VerificationError: a file is not what was written, a key is missing or unexpected, an output is not
            finite, images do not matter, or it is not what was trained.
        SafetyError: its index names a file outside of it.
    """
    stored = read_stored(folder)
    reporter.note(
        f"{stored.files} files are as the manifest says" if stored.files else "the folder has no manifest"
    )
    if against is not None:
        return {"output": str(folder), **_against(stored, against, reporter)}
    alone = _answers if stored.reader == "answers" else _embeds
    result = alone(stored)
    dtype = str(stored.dtype).removeprefix("torch.")
    return {"output": str(folder), **result, "dtype": dtype, "files": stored.files}


def _against(stored: Stored, against: Path | Run, reporter: Reporter) -> dict[str, Any]:
    if stored.reader != "answers":
        raise RecipeError(
            "embeds and does not answer, so this proof cannot compare it with a run",
            where=str(stored.folder),
            fix="leave --against out; `lockadapt export` compares what it writes with the run",
        )
    reporter.note("asking the trained model")
    run = as_run(against)
    samples, original = run.probe(), _base(stored.folder) == "original"
    if original:
        reporter.note("merged on the base before quantization: compared with the adapter on that")
    trained = run.load("original" if original else "dequantized")
    reference = reference_answers(trained.model, trained.processor, samples)
    embedded = embed_probe(run, trained.model, trained.processor, samples)
    if embedded is not None and not (stored.folder / BESIDE).is_file():
        reporter.note(
            f"{BESIDE} is missing: the folder answers only, and what the run embeds is not compared"
        )
        embedded = None
    del trained  # before the fresh process loads its own
    reporter.note("proving in a fresh process")
    base: BaseMode = "original" if original else "dequantized"
    try:
        proof = prove_merge(stored.folder, reference, stored.dtype, fix=FIX)
    except VerificationError as error:
        named = "; ".join([error.message, *wrong_tensors(run, stored.folder, base)])
        raise VerificationError(named, where=error.where, fix=error.fix) from error
    reporter.note("comparing tensors")
    if wrong := wrong_tensors(run, stored.folder, base):
        raise VerificationError("; ".join(wrong), where=str(stored.folder), fix=FIX)
    note_blindness(proof, reporter)
    proof["lost_change"] = lost_change(run, stored.folder, base)
    note_lost_change(proof["lost_change"], stored.dtype, reporter)
    return proof | prove_embeddings(run, stored.folder, embedded, stored.dtype)


def _answers(stored: Stored) -> dict[str, Any]:
    """Shows two pictures, and none if the class can: outputs must be finite, and the pictures must matter."""
    question = {"type": "text", "text": QUESTION}
    shown = [{"role": "user", "content": [{"type": "image"}, question]}]
    with tempfile.TemporaryDirectory(prefix="lockadapt-") as scratch:
        asked = [{"messages": shown, "images": [path]} for path in pictures(Path(scratch))]
        if _reads_text_alone(stored.folder):
            asked.append({"messages": [{"role": "user", "content": [question]}], "images": []})
        fresh = run_fresh(
            stored.folder, dtype=stored.dtype, conversations=asked, max_new_tokens=NEW_TOKENS, fix=FIX
        )
    if problems := unsound(fresh):
        raise VerificationError("; ".join(problems), where=str(stored.folder), fix=FIX)
    first, second, *_ = logits = [fresh.tensors[f"conversation{n}.logits"].float() for n in range(len(asked))]
    return {
        "model_class": fresh.answer["model_class"].rsplit(".", 1)[-1],
        "missing_keys": fresh.answer["missing_keys"],
        "unexpected_keys": fresh.answer["unexpected_keys"],
        "image_effect": _effect(stored.folder, first, second, *logits),
    }


def _reads_text_alone(folder: Path) -> bool:
    """Whether the folder's class takes texts without an image."""
    architecture = find_architecture(AutoConfig.from_pretrained(folder, local_files_only=True))
    return architecture is None or architecture.beside is None or architecture.beside.text_alone


def _embeds(stored: Stored) -> dict[str, Any]:
    """Embeds two pictures and two texts by the client's own code."""
    image_text = load_processor(stored.folder).image_token if stored.reader == "colpali" else ""
    with tempfile.TemporaryDirectory(prefix="lockadapt-") as scratch:
        request = {
            "reader": stored.reader,
            "dtype": str(stored.dtype).removeprefix("torch."),
            "texts": [QUESTION, "a picture"],
            "images": [str(path) for path in pictures(Path(scratch))],
            "image_text": image_text,
            "pooling": "tokens",  # of them all, as a folder does not say how its user pools
        }
        outputs, answer = run_script(EMBEDDINGS, stored.folder, request, {}, fix=FIX)
    for key in ("missing_keys", "unexpected_keys"):
        if answer[key]:
            raise VerificationError(
                f"{key.replace('_', ' ')}: {some(answer[key])}", where=str(stored.folder), fix=FIX
            )
    images, texts = outputs["images"].float(), outputs["texts"].float()
    return {
        "model_class": answer["model_class"].rsplit(".", 1)[-1],
        "missing_keys": answer["missing_keys"],
        "unexpected_keys": answer["unexpected_keys"],
        "image_effect": _effect(stored.folder, images[0], images[1], images, texts),
    }


def _effect(folder: Path, first: torch.Tensor, second: torch.Tensor, *outputs: torch.Tensor) -> float:
    """The largest change from one picture to the other.

    Raises:
        VerificationError: it is 0, or an output is not finite.
    """
    if not all(bool(output.isfinite().all()) for output in outputs):
        raise VerificationError("an output is not finite", where=str(folder), fix=FIX)
    change = float((first - second).abs().max())
    if change == 0.0 and not _known_blind(folder):
        raise VerificationError(
            "another image changes nothing: the model does not see", where=str(folder), fix=FIX
        )
    return change


def _base(folder: Path) -> str | None:
    """Which base of a quantized run a folder says that it was merged on."""
    file = folder / RECORD
    base = read_json(file).get("base") if file.is_file() else None
    return base if isinstance(base, str) else None


def _known_blind(folder: Path) -> bool:
    """Whether the proof that a merge left says that the trained model did not look either."""
    file = folder / RECORD
    return file.is_file() and read_json(file).get("looks_at_images") is False


def pictures(folder: Path) -> list[Path]:
    """Two pictures that no model should take for one another: a red ramp and a blue one across it."""
    ramp = Image.linear_gradient("L").resize((SIDE, SIDE))
    none = Image.new("L", (SIDE, SIDE))
    made = {
        "first.png": (ramp, none, none),
        "second.png": (none, none, ramp.rotate(90)),
    }
    for name, channels in made.items():
        Image.merge("RGB", channels).save(folder / name)
    return [folder / name for name in made]
