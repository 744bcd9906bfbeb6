"""Model cards of folders made from a run: how they were proved, and how they are used without lockadapt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lockadapt.architectures.base import RETRIEVAL
from lockadapt.runs.artifacts import PART_FILES
from lockadapt.runs.card import CardFields, card_text
from lockadapt.runs.run import Run


def merged_card(run: Run, proof: Mapping[str, Any]) -> str:
    """The card of a merged folder, with the proof's numbers."""
    section = (
        "## Proof",
        "",
        "Reloaded by its Transformers class in a fresh process without lockadapt and compared with "
        "the trained model: "
        f"largest logit difference {proof['max_abs_logit_diff']:.3g}, KL {proof['kl']:.3g} nats, "
        f"top-1 agreement {proof['top1_agreement']:.4f}, {len(proof['missing_keys'])} missing and "
        f"{len(proof['unexpected_keys'])} unexpected keys.",
        "",
        *_retrieval(proof),
        "```python",
        "from transformers import AutoModelForImageTextToText, AutoProcessor",
        "",
        'processor = AutoProcessor.from_pretrained("PATH")',
        'model = AutoModelForImageTextToText.from_pretrained("PATH")',
        "```",
        "",
    )
    return card_text(run, CardFields("transformers", "image-text-to-text", section))


def embedding_card(run: Run, proof: Mapping[str, Any], library: str, use: Sequence[str]) -> str:
    """The card of a folder for an embedding client.

    `library` is its name on the Hub, `use` lines of Python that load and embed.
    """
    section = (
        "## Proof",
        "",
        f"Loaded as {proof['model_class']} in a fresh process without lockadapt and compared with the "
        "trained model: an "
        f"entry of a normalised embedding differs by at most {proof['text_difference']:.3g} (texts) and "
        f"{proof['image_difference']:.3g} (images).",
        "",
        "```python",
        *use,
        "```",
        "",
    )
    return card_text(run, CardFields(library, "feature-extraction", section))


def gguf_card(run: Run, proof: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    """The card of a folder for llama.cpp; `proof` is that of the merged folder that it was written from."""
    section = (
        "## For llama.cpp",
        "",
        f"Written from a merged folder that was proved equal to the trained model (largest logit difference "
        f"{proof['max_abs_logit_diff']:.3g}). `{result['model']}` is the LLM, by llama.cpp's own converter; "
        f"`{result['mmproj']}` is tower and projector, its tensors read back after writing. llama.cpp "
        "itself was not run.",
        "",
        *[f"- {note}" for note in result["notes"]],
        *([""] if result["notes"] else []),
        "```bash",
        f"llama-mtmd-cli -m {result['model']} --mmproj {result['mmproj']} --jinja --temp 0 --image "
        "IMAGE -p PROMPT",
        "```",
        "",
    )
    return card_text(run, CardFields("gguf", "image-text-to-text", section))


def _retrieval(proof: Mapping[str, Any]) -> list[str]:
    if "max_abs_embedding_diff" not in proof:
        return []
    return [
        "`retrieval/` holds what turns the state behind the query tokens into an embedding; "
        "`lockadapt search` and "
        "`lockadapt eval` read it. Embeddings of images and texts differ from the trained model's by at most "
        f"{proof['max_abs_embedding_diff']:.3g}.",
        "",
    ]


def bridge_card(run: Run, result: Mapping[str, Any], quantization: Mapping[str, Any] | None) -> str:
    """The card of a bridge."""
    section = (
        "## A bridge",
        "",
        "The base model with everything that the run trained except LoRA: projector, trained "
        "vocabulary rows, "
        "and the image-generation head, if any. LLM and tower are unchanged. Without its adapter, it "
        "is not the trained model."
        if run.lora
        else "The base model with everything that the run trained. LLM and tower are unchanged.",
        "",
        *_proved(result),
        *_retrieval_beside(run),
        *_servers(result),
        "```python",
        *_loading("PATH", quantization),
        "```",
        "",
    )
    return card_text(run, CardFields("transformers", "image-text-to-text", section))


def adapter_card(run: Run, result: Mapping[str, Any], quantization: Mapping[str, Any] | None) -> str:
    """The card of a PEFT folder, with LoRA alone (`bridge` in the result) or everything (`base`)."""
    alone = "bridge" in result
    base = result["bridge"] if alone else result["base"]
    what = (
        "LoRA alone. It belongs on the bridge, which holds the trained projector:"
        if alone
        else "LoRA, the projector and whatever else was trained, for the untrained base:"
    )
    section = (
        "## A PEFT adapter",
        "",
        f"{what} `{base}` (`base_model_name_or_path`; write another place there if you move it).",
        "",
        *_proved(result),
        *([] if alone else _retrieval_beside(run)),
        *_servers(result),
        "```python",
        "from peft import PeftModel",
        *_loading("BASE", quantization),
        'model = PeftModel.from_pretrained(model, "PATH")'
        + ('  # or model.load_adapter("PATH")' if "load_adapter" in result["clients"] else ""),
        "```",
        "",
    )
    return card_text(run, CardFields("peft", "image-text-to-text", section, adapter=True))


def _proved(result: Mapping[str, Any]) -> list[str]:
    ways = {
        "peft": "`PeftModel.from_pretrained`",
        "load_adapter": "`load_adapter`",
        "alone": "its Transformers class",
    }
    clients = " and by ".join(ways[way] for way in result["clients"])
    return [
        f"Loaded in a fresh process without lockadapt by {clients}, and compared with the trained model: "
        "largest logit "
        f"difference {result['max_abs_logit_diff']:.3g}, KL {result['kl']:.3g} nats, top-1 agreement "
        f"{result['top1_agreement']:.4f}, {result['answers_equal']} of {result['answers']} greedy "
        "answers the same, "
        f"{len(result['missing_keys'])} missing and {len(result['unexpected_keys'])} unexpected keys.",
        "",
    ]


def _servers(result: Mapping[str, Any]) -> list[str]:
    lines = ["| client | takes it, by its published rules (servers are not run here) |", "| --- | --- |"]
    for name, verdict in result["servable"].items():
        lines.append(f"| {name} | {'yes' if verdict is True else f'no: {verdict}'} |")
    command = result.get("serve")
    return [*lines, "", *(["```bash", command, "```", ""] if command else [])]


def _retrieval_beside(run: Run) -> list[str]:
    if not (run.folder / PART_FILES[RETRIEVAL]).is_file():
        return []
    return [f"What embeds images and texts lies in `{RETRIEVAL}/`, which only lockadapt reads.", ""]


def _loading(folder: str, quantization: Mapping[str, Any] | None) -> list[str]:
    """Lines of Python that load a stock folder as it was trained on."""
    names = "AutoModelForImageTextToText, AutoProcessor" + (", BitsAndBytesConfig" if quantization else "")
    how = ', dtype="auto"' + (", quantization_config=quantization" if quantization else "")
    lines = [
        f"from transformers import {names}",
        "",
        f'processor = AutoProcessor.from_pretrained("{folder}")',
    ]
    if quantization:
        given = ", ".join(f"{key}={value!r}" for key, value in quantization.items())
        lines += [
            "# The adapter was trained on a quantized base, so that is what it belongs on.",
            f"quantization = BitsAndBytesConfig({given})",
        ]
    return [*lines, f'model = AutoModelForImageTextToText.from_pretrained("{folder}"{how})']
