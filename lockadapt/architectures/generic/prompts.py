"""Chat templates of classes whose checkpoints have none, as their processors read them."""

from __future__ import annotations

from typing import Any

from transformers import PaliGemmaProcessor

PALIGEMMA = """\
{%- for message in messages -%}
{%- if message['content'] is string -%}{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}{{- '<image>' -}}{%- else -%}{{- part['text'] -}}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- if message['role'] == 'assistant' -%}{{- eos_token -}}{%- endif -%}
{%- endfor -%}"""
"""The documented prompt, `<image>answer en QUESTION`; the processor adds bos and the line break behind it."""


def usual_template(processor: Any) -> str | None:
    """The chat template for a processor that has none; None: nothing is documented."""
    return PALIGEMMA if isinstance(processor, PaliGemmaProcessor) else None
