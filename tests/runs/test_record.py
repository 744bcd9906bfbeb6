"""`run.json`: typed, versioned, readable for ever; damage is named."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from lockadapt.errors import RecipeError, VerificationError
from lockadapt.models.origins import Origin
from lockadapt.runs.record import RUN, VERSION, RunRecord, StageRecord, read_as, read_record, write_record
from tests.support.runs import component, record

KEYS = [
    *("version", "command", "versions", "seed", "base", "llm", "tower", "dtype", "quantization", "blind"),
    *(
        "sources",
        "rows",
        "stages",
        "base_identity",
        "base_fingerprint",
        "base_files",
        "artifacts",
        "admission",
        "steps",
        "seconds",
        "samples_per_second",
    ),
    "locked",
    "reward",
]


def values(**changes: Any) -> dict[str, Any]:
    """As the first version without a version wrote them."""
    kept = record().model_dump(mode="json")
    for key in ("version", "sources", "base_identity"):
        del kept[key]
    for key in ("samples_by_objective", "largest_batch_bytes", "packing"):
        del kept["stages"][0][key]
    return {**kept, **changes}


def written(folder: Path, content: Any) -> Path:
    (folder / RUN).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def test_what_is_written_is_read(tmp_path: Path) -> None:
    sources = (Origin("LLM", "org/llm", "org/llm", "mit", "README.md: mit"),)
    kept = record(sources=sources, components=(component("llm", "frozen"), component("lora")))
    write_record(tmp_path, kept)
    assert read_record(tmp_path) == kept
    on_disk = json.loads((tmp_path / RUN).read_text())
    assert list(on_disk) == KEYS, "scripts read these"
    assert on_disk["version"] == VERSION
    assert on_disk["sources"] == [sources[0].__dict__]
    assert (kept.components, kept.trained) == ({"llm", "lora"}, {"lora"})


def test_runs_of_before_versions_are_read(tmp_path: Path) -> None:
    read = read_record(written(tmp_path, values()))
    assert read.version == VERSION
    assert (read.sources, read.base_identity, read.stages[0].packing) == (None, None, None)
    assert read.stages[0].components == record().stages[0].components


def test_what_could_not_be_measured_is_kept(tmp_path: Path) -> None:
    stage = record().stages[0].model_copy(update={"loss_change_by_swapped_images": {"t2i": float("nan")}})
    write_record(tmp_path, record(stages=(stage,)))
    change = read_record(tmp_path).stages[0].loss_change_by_swapped_images
    assert change is not None
    assert math.isnan(change["t2i"])


def test_an_identity_of_another_format_is_none(tmp_path: Path) -> None:
    assert read_record(written(tmp_path, values(base_identity={"format": 99}))).base_identity is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        ("[1]", "no JSON object"),
        ('{"steps": "\udcff"}'.encode("utf-8", "surrogateescape").decode("latin-1"), "missing|required"),
        (values(quantization="int3"), "`quantization`"),
        (values(dtype="float8"), "`dtype`"),
        (values(steps="5"), "`steps`"),
        (values(steps=-1), "`steps`"),
        (values(seconds=float("nan")), "`seconds`"),
        (values(stages={}), "`stages`"),
        (values(base=None), "`base`"),
        (values(base_identity={"format": 1}), "`base_identity.model_class`"),
        (values(sources=[{"part": "LLM"}]), r"`sources\[0\].source`"),
        (values(stages=[{**values()["stages"][0], "locked": True}]), r"`stages\[0\].locked`"),
        (
            values(
                stages=[
                    {**values()["stages"][0], "components": [{**component("llm").__dict__, "state": "x"}]}
                ]
            ),
            "frozen or trained, not 'x'",
        ),
        (values(notes="mine"), "`notes`"),
        (values(version=VERSION + 1), "a newer lockadapt"),
        (values(version="1"), "no version"),
        (values(version=True), "no version"),
    ],
)
def test_damage_is_named(content: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match=message) as error:
        read_record(written(tmp_path, content))
    assert error.value.where == str(tmp_path / RUN)
    assert error.value.fix
    assert error.value.exit_code == 8


def test_every_problem_is_counted(tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match="`command`: required, but missing; .* and 11 more"):
        read_record(written(tmp_path, {"stages": [], "base": 1}))


def test_an_unfinished_run_has_none(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="not finished"):
        read_record(tmp_path)


def test_a_stage_is_kept_alone(tmp_path: Path) -> None:
    stage = record().stages[0]
    (tmp_path / "outcome.json").write_text(stage.model_dump_json())
    assert read_as(StageRecord, tmp_path / "outcome.json") == stage
    with pytest.raises(VerificationError, match="`name`"):
        read_as(StageRecord, written(tmp_path, {}) / RUN)


def test_nothing_is_converted() -> None:
    with pytest.raises(ValueError, match="seed"):
        RunRecord(**{**record().model_dump(), "seed": "1"})
