"""`run.json`: what a finished run says of itself, typed and versioned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AllowInfNan, BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import ErrorDetails, from_json

from lockadapt.errors import RecipeError, VerificationError
from lockadapt.files import write_json
from lockadapt.models.origins import Origin
from lockadapt.tuning.base_identity import FORMAT, BaseIdentity
from lockadapt.tuning.locks import ComponentRow

RUN, VERSION = "run.json", 2
"""Its name, and the version that is written. Runs of before it had versions are read as version 0."""

Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]
Measured = Annotated[float, AllowInfNan(True)]
"""What a run measured, and NaN where there was nothing to measure: no run is lost to a number about it."""


class _Record(BaseModel):
    """Base of all that is recorded: values are never converted from other types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class PackingRecord(_Record):
    """How a stage made its rows.

    Attributes:
        row_tokens: longest row; None: one row a sample.
        together: the most samples of one image in a row.
        tokens, plain_tokens: of an epoch, as it was run and in padded rows of one sample each.
        why: one sentence for the user.
    """

    row_tokens: Count | None
    together: Count
    tokens: Count
    plain_tokens: Count
    why: str


class RewardRecord(_Record):
    """The reward that a stage with a method learned from: mean for grpo, margin for dpo.

    Attributes:
        first, last: of the first and the last line of metrics; None: there is none.
        held_out: of the last validation; None: there is none.
    """

    first: Measured | None
    last: Measured | None
    held_out: Measured | None


class ChangeRecord(_Record):
    """How a score of the validation rows changed in a stage with a method, on the same rows.

    Attributes:
        measure: of a row.
        before, after: means.
        low, high: 95 % interval of the difference.
        n: rows.
    """

    measure: str
    before: Measured
    after: Measured
    low: Measured
    high: Measured
    n: Count


class PerplexityRecord(_Record):
    """Perplexity of texts without images, before and after a stage with a method."""

    before: Measured
    after: Measured


class SourceRecord(_Record):
    """One source of an objective's training rows.

    Attributes:
        path: as the recipe names it.
        rows: that could be used.
        share: of the objective's samples that it gives, a fraction.
        revision: commit of what is streamed from the Hub; None of all others.
    """

    path: str
    rows: Count
    share: Measured
    revision: str | None = None


class StageRecord(_Record):
    """How a stage ended.

    Attributes:
        components: the component table at its start.
        locked: frozen tensors whose digests were compared.
        samples_by_objective, largest_batch_bytes, packing, seconds: None in runs of before they were
            recorded.
        text_logit_change: with `model.lock_text`, the largest change of a text-only logit, which is 0.
        reward, held_out_change, text_perplexity: of a stage with a method.
    """

    name: str
    steps: Count
    samples: Count
    samples_by_objective: dict[str, Count] | None = None
    train_loss: Measured
    best_validation_loss: Measured | None
    loss_change_by_swapped_images: dict[str, Measured] | None
    largest_batch_bytes: Count | None = None
    components: tuple[ComponentRow, ...]
    packing: PackingRecord | None = None
    seconds: Seconds | None = None
    locked: Count
    text_logit_change: Measured | None = None
    reward: RewardRecord | None = None
    held_out_change: ChangeRecord | None = None
    text_perplexity: PerplexityRecord | None = None

    @field_validator("components")
    @classmethod
    def _known_states(cls, rows: tuple[ComponentRow, ...]) -> tuple[ComponentRow, ...]:
        for row in rows:
            if row.state not in ("frozen", "trained"):
                raise ValueError(f"a component is frozen or trained, not {row.state!r}")
        return rows


class RunRecord(_Record):
    """`run.json`. Its keys are a contract with scripts: none is renamed or dropped.

    Attributes:
        versions: of lockadapt, Python, the packages that results depend on, and the device.
        base: folder or Hub id of the stock base, as it was when the run was trained.
        sources: of LLM, tower and data, with their licences; None in runs of before they were recorded.
        base_identity: taken before the first step; None where none, or one of another format, was recorded.
        base_fingerprint: SHA-256 over the digests of all frozen tensors.
        base_files: `folder_digest` of the base before the first step; None where it was not recorded.
        admission: what was measured of a class without a description of its own; None of others.
        rows: the sources of training rows by objective; None in runs of before they were recorded.
        artifacts: `artifact_digests` of what training left, by file; None in runs of before they were
            recorded.
        reward: of the last stage with a method; None: there is none.
    """

    version: int = VERSION
    command: str
    versions: dict[str, str]
    seed: int
    base: str
    llm: str | None
    tower: str | None
    dtype: Literal["float32", "bfloat16", "float16"]
    quantization: Literal["none", "nf4", "int8"]
    blind: bool
    sources: tuple[Origin, ...] | None = None
    rows: dict[str, tuple[SourceRecord, ...]] | None = None
    stages: tuple[StageRecord, ...]
    base_identity: BaseIdentity | None = None
    base_fingerprint: str
    base_files: str | None = None
    artifacts: dict[str, str] | None = None
    admission: tuple[dict[str, str], ...] | None = None
    steps: Count
    seconds: Seconds
    samples_per_second: Seconds
    locked: bool
    reward: RewardRecord | None = None

    @property
    def components(self) -> frozenset[str]:
        """Names of all components that the model had in any stage."""
        return frozenset(row.component for stage in self.stages for row in stage.components)

    @property
    def trained(self) -> frozenset[str]:
        """Names of the components that trained in any stage."""
        rows = (row for stage in self.stages for row in stage.components)
        return frozenset(row.component for row in rows if row.state == "trained")


def read_record(folder: Path) -> RunRecord:
    """Reads `run.json` of a run folder; one that was written before versions is read as version 0.

    Args:
        folder: of the run.

    Returns:
        The record.

    Raises:
        RecipeError: there is none, so the run is not finished.
        VerificationError: it is damaged, and which value; or a newer lockadapt wrote it.
    """
    file = folder / RUN
    if not file.is_file():
        raise RecipeError(
            "the run is not finished: run.json is missing",
            where=str(folder),
            fix="finish it with `lockadapt train … --resume`",
        )
    return read_as(RunRecord, file)


def write_record(folder: Path, record: RunRecord) -> None:
    """Writes `run.json`."""
    write_json(folder / RUN, record.model_dump(mode="json"))


Kept = TypeVar("Kept", RunRecord, StageRecord)


def read_as(kind: type[Kept], file: Path) -> Kept:
    """Reads a `RunRecord` or `StageRecord` from a JSON file.

    Args:
        kind: the class.
        file: JSON.

    Returns:
        An object of the class.

    Raises:
        VerificationError: the file is damaged, and which value; or a newer lockadapt wrote it.
    """
    try:
        values = from_json(file.read_bytes())
    except (OSError, ValueError) as error:
        raise VerificationError(f"cannot be read: {error}", where=str(file), fix=_AGAIN) from error
    if not isinstance(values, dict):
        raise VerificationError("holds no JSON object", where=str(file), fix=_AGAIN)
    if kind is RunRecord:
        values = _upgraded(values, file)
    try:
        return kind.model_validate_json(json.dumps(values))
    except ValidationError as error:
        raise VerificationError(problems(error), where=str(file), fix=_AGAIN) from error


_AGAIN = "copy the run folder again, or train again"


def _upgraded(values: dict[str, Any], file: Path) -> dict[str, Any]:
    """The values as this version writes them."""
    version = values.get("version", 0)
    if not isinstance(version, int) or isinstance(version, bool) or version < 0:
        raise VerificationError(f"`version`: {version!r} is no version", where=str(file), fix=_AGAIN)
    if version > VERSION:
        raise VerificationError(
            f"a newer lockadapt wrote version {version} of it, this one reads up to {VERSION}",
            where=str(file),
            fix="update lockadapt",
        )
    identity = values.get("base_identity")
    if isinstance(identity, dict) and identity.get("format") != FORMAT:
        values = {**values, "base_identity": None}  # nothing can be compared with it
    return {**values, "version": VERSION}


def problems(error: ValidationError) -> str:
    """Says what is wrong with a file: the first few values, each with its key."""
    errors = error.errors(include_url=False, include_context=False)
    lines = [f"`{_key(detail['loc']) or 'all of it'}`: {_said(detail)}" for detail in errors[:3]]
    more = [f"and {len(errors) - 3} more"] if len(errors) > 3 else []
    return "is damaged: " + "; ".join(lines + more)


def _key(location: tuple[int | str, ...]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")


def _said(problem: ErrorDetails) -> str:
    if problem["type"] == "missing":
        return "required, but missing"
    value = repr(problem["input"])
    return f"{problem['msg']}, got {value if len(value) <= 60 else f'{value[:57]}...'}"
