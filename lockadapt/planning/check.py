"""`lockadapt check`: everything that can be known without training, and the first samples token by token."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from rich.text import Text

from lockadapt.architectures import inputs_of
from lockadapt.architectures.base import unwrap_model
from lockadapt.building.cache_trial import rows_to_try
from lockadapt.building.experiment import Experiment, build_experiment
from lockadapt.building.model import add_adapters, draft_model
from lockadapt.console import Reporter, printable
from lockadapt.data.encode import IGNORED, Encoded, Encoder, EncodeReport
from lockadapt.data.ledger import ImageLedger
from lockadapt.data.model_encoder import model_encoder
from lockadapt.data.sample import Sample
from lockadapt.data.scan import scan_images
from lockadapt.data.stream import StreamRows
from lockadapt.data.table import Table
from lockadapt.data.whole_image import crop_note
from lockadapt.errors import DataError
from lockadapt.models.chat_template import thinking_off
from lockadapt.planning.admission import admit_rows
from lockadapt.planning.check_stored import OnDiskCheck, open_on_disk
from lockadapt.planning.tally import Tally
from lockadapt.recipe.schema import Recipe
from lockadapt.tuning.adapters import default_parts, set_trainable
from lockadapt.tuning.experts import experts_note
from lockadapt.tuning.locks import component_table, component_text, table_json

PARTS = ("train", "validation", "test")


def check_recipe(recipe: Recipe, reporter: Reporter, shown: int = 3) -> dict[str, Any]:
    """Loads components and rows, opens every image, encodes every row, and shows what will be learned.

    Args:
        recipe: read and valid.
        reporter: is told what was found.
        shown: samples of each objective that are shown token by token, learned tokens in colour.

    Returns:
        `{"ok": True, "components", "objectives": {name: {part: {"rows", "images", "tokens", …}}}, "steps",
        "admission"}`; the last is what was measured of a model that nobody described, on the first rows.

    Raises:
        LockadaptError: whatever would stop the run.
    """
    experiment = build_experiment(recipe)  # also reads the closed lists of answers, which may be wrong
    on_disk = {part: open_on_disk(experiment, part, reporter.note) for part in PARTS}
    parts = {part: _in_memory(experiment, part, on_disk[part], reporter) for part in PARTS}
    data = experiment.data
    everything = [s for rows in parts.values() for samples in rows.values() for s in samples]
    scan = scan_images(
        everything,
        data.max_pixels,
        data.on_bad_image,
        data.max_bad_fraction,
        progress=reporter.counted("opening images"),
        ledger=ImageLedger(experiment.features.cache, recall=False),
    )
    bad = {entry.key for entry in scan.bad}
    for entry in scan.bad[:20]:
        reporter.note(f"bad image, its samples are left out: {entry.where}: {entry.reason}")
    model, processor = draft_model(experiment)
    crop = crop_note(processor) if recipe.model.vlm else None
    if crop:
        reporter.note(crop)
    model, objectives = add_adapters(experiment, model, processor), experiment.objectives
    experts = experts_note(model) if experiment.lora is not None else None
    if experts:
        reporter.note(experts)
    for objective in objectives.values():
        objective.prepare(model)
    set_trainable(
        model,
        default_parts(model, [objective.parts for objective in objectives.values()]),
        lock_text=experiment.model.lock_text,
    )
    table = component_table(model)
    reporter.note(component_text(table))
    encoder = model_encoder(model, processor, data.max_length, data.allow_special_tokens)
    dialogue = describe_dialogue(encoder, model)
    if dialogue:
        reporter.note(dialogue_text(dialogue))
    counts: dict[str, dict[str, Any]] = {}
    tried: list[Sample] = []
    bad_images = len(scan.bad)
    for part in PARTS:
        for name, objective in objectives.items():
            if not experiment.recipe.objectives[name].sources(part):
                continue
            encode = partial(objective.encode, encoder)
            good = [s for s in parts[part].get(name, ()) if not bad & {image.key for image in s.images}]
            counted = _PartCheck(experiment, name, part, shown, reporter)
            counted.run(good, on_disk[part].get(name, {}), encode)
            counts.setdefault(name, {})[part] = counted.tally.told(f"{name} {part}", encoder, reporter)
            bad_images += counted.bad_images
            if part == "train":
                counts[name][part]["sources"] = _sources(experiment, name, counted.tally, reporter)
                tried = rows_to_try([*tried, *counted.tried])
                for item in counted.examples:
                    show_tokens(item, encoder, reporter)
    admission = admit_rows(model, processor, tried, reporter, experiment.projector_trains)
    rows = {name: entry["train"]["rows"] for name, entry in counts.items()}
    stages = experiment.stages(rows)
    for stage in stages:
        size = stage.micro_batch * stage.accumulation
        reporter.note(
            f"stage {stage.name}: {stage.steps:,} steps of {size:g} samples train {', '.join(stage.train)}"
        )
    return {
        "ok": True,
        "components": table_json(table),
        "objectives": counts,
        "bad_images": bad_images,
        "dialogue": dialogue,
        "experts": experts,
        "crop": crop,
        "admission": [asdict(finding) for finding in admission],
        "steps": sum(stage.steps for stage in stages),
    }


def _in_memory(
    experiment: Experiment, part: str, on_disk: Mapping[str, Mapping[int, Any]], reporter: Reporter
) -> dict[str, list[Sample]]:
    """Reads the rows of a part of the data that do not stay on disk."""
    sections = experiment.recipe.objectives.items()
    names = [name for name, s in sections if len(on_disk.get(name, ())) < len(s.sources(part))]
    return experiment.samples(part, names, reporter.note, streamed=False)


@dataclass
class _PartCheck:
    """Encodes and counts the rows of an objective in one part of the data, those in memory and the others.

    Attributes:
        experiment: of the recipe.
        name: of the objective.
        part: of the data.
        shown: so many encoded rows are kept as examples.
        reporter: told of progress.
    """

    experiment: Experiment
    name: str
    part: str
    shown: int
    reporter: Reporter
    tally: Tally = field(default_factory=Tally)
    examples: list[Encoded] = field(default_factory=list)
    tried: list[Sample] = field(default_factory=list)
    bad_images: int = 0

    def run(
        self,
        samples: Sequence[Sample],
        on_disk: Mapping[int, Table | StreamRows],
        encode: Callable[..., EncodeReport],
    ) -> None:
        """Goes through all rows.

        Args:
            samples: those in memory, whose images can be used.
            on_disk: the others, by position of their source.
            encode: makes token arrays.

        Raises:
            DataError: no row is left; or as `OnDiskCheck.run`.
            SafetyError: as `OnDiskCheck.run`.
        """
        if samples:
            progress = self.reporter.counted(f"encoding {self.name} {self.part}")
            self._take(encode(samples, progress), samples, streamed=False)
        for number, rows in on_disk.items():
            check = OnDiskCheck(self.experiment, self.name, self.part, number, rows, self.reporter)
            self.bad_images += check.run(encode, partial(self._take, streamed=not rows.listable))
        if not self.tally.rows:
            raise DataError(
                "no sample is left",
                where=f"objectives.{self.name}.{self.part}",
                fix="raise data.max_length",
            )

    def _take(self, report: EncodeReport, samples: Sequence[Sample], streamed: bool) -> None:
        self.tally.add(report, streamed)
        self.examples += report.encoded[: max(self.shown - len(self.examples), 0)]
        self.tried = rows_to_try([*self.tried, *samples])


def describe_dialogue(encoder: Encoder, model: Any) -> dict[str, Any] | None:
    """What ends an answer, what generation stops at, whether thoughts are off; None without a chat template.

    Args:
        encoder: of the run.
        model: whose generation settings say where it stops.

    Returns:
        `{"ends", "appended", "stops", "thinking_off"}`: `ends` are the tokens that an answer is learned with;
        `appended` says that the template writes none, so that the tokenizer's eos is put there.
    """
    if inputs_of(encoder.processor).apart:
        return None
    stops = unwrap_model(model).generation_config.eos_token_id
    ids = stops if isinstance(stops, list) else [stops]
    dialogue = encoder.dialogue
    return {
        "ends": list(dialogue.ends) or [dialogue.end],
        "appended": not dialogue.ends,
        "stops": encoder.tokenizer.convert_ids_to_tokens([token for token in ids if token is not None]),
        "thinking_off": thinking_off(encoder.tokenizer, dialogue.template),
    }


def dialogue_text(described: dict[str, Any]) -> str:
    """What `describe_dialogue` found, for people."""
    ends, stops = ("".join(described["ends"]), ", ".join(described["stops"]))
    how = (
        "appended: the chat template writes no end"
        if described["appended"]
        else "written by the chat template"
    )
    thinking = "; prompts close the model's thinking" if described["thinking_off"] else ""
    return f"answers end with {ends} ({how}), generation stops at {stops}{thinking}"


def show_tokens(item: Encoded, encoder: Encoder, reporter: Reporter) -> None:
    """One sample: learned tokens in green (and between brackets, also without colour), images counted."""
    line, images = Text(), 0
    if encoder.beside and item.images:
        line.append(f"<image x{len(item.images)}, beside the text> ", style="cyan")
    for token, label in zip(item.input_ids.tolist(), item.labels.tolist(), strict=True):
        if token == encoder.image_token_id:
            images += 1
            continue
        if images:
            line.append(f"<image x{images}>", style="cyan")
            images = 0
        text = printable(encoder.tokenizer.convert_ids_to_tokens(token).replace("\n", "\\n"))
        if label == IGNORED:
            line.append(text + " ", style="dim")
        else:
            line.append(f"[{text}] ", style="bold green")
    reporter.console.print(Text(printable(f"  {item.sample.where}: ")).append_text(line), soft_wrap=True)


def _sources(experiment: Experiment, name: str, tally: Tally, reporter: Reporter) -> list[dict[str, Any]]:
    """Say what each source of an objective's training rows gives; also as values for JSON."""
    count = len(experiment.recipe.objectives[name].sources("train"))
    told = experiment.source_rows(name, [tally.rows[number] for number in range(count)])
    for source in told if len(told) > 1 else ():
        reporter.note(f"  {source['path']}: {source['rows']:,} rows, {source['share']:.1%} of the samples")
    return told
