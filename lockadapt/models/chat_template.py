"""The processor's chat template: the model's own, settled so that its prompts begin what is trained."""

from __future__ import annotations

import contextlib
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from importlib.resources import files
from types import FrameType
from typing import Any, Literal

from jinja2 import TemplateError, TemplateSyntaxError
from transformers import PreTrainedTokenizerBase

from lockadapt.errors import DataError

TemplateKind = Literal["own", "plain"]

RENDER_SECONDS = 5.0
RENDERED_CHARACTERS = 64 * 1024**2
"""What a template may take for one conversation; real ones take less than a millisecond."""

MARKS = ("\ue000", "\ue001")
"""Private-use characters around the name of a text that a template is tried with."""

OPEN_THOUGHT = re.compile(r"<(think|thinking|thought|reasoning)>\s*\Z")
THOUGHT = re.compile(r"<(think|thinking|thought|reasoning)>.*?</\1>\s*", re.DOTALL)
"""A thought that a template or a model writes before the answer; it is never part of an answer that is
scored."""
CLOSED_THOUGHT = re.compile(r"<(think|thinking|thought|reasoning)>\s*</\1>\s*\Z")

_SWITCH = "{%- if enable_thinking is not defined -%}{%- set enable_thinking = false -%}{%- endif -%}"


def chat_template(
    tokenizer: PreTrainedTokenizerBase, *, marked: bool = True, begun: bool = False
) -> tuple[str, TemplateKind]:
    """Makes a Jinja chat template for images and text.

    `own`: the tokenizer's template behind a prelude that turns content lists into strings, an image into
    `<image>`; settled (`settle_template`). `plain`, for base LLMs: `{bos}<image>question`, a newline,
    `answer{eos}`, and a newline before a further turn; bos only if the tokenizer itself starts texts with it.
    The generation prompt ends at the newline, so an answer starts a line: tokenizers that put the space at
    the end of a piece see the same pieces at training and at generation.

    Args:
        tokenizer: the LLM's.
        marked: whether `<image>` is written for an image, or nothing.
        begun: whether every conversation begins with bos, whatever the tokenizer puts before texts.

    Returns:
        The template, and where it is from.

    Raises:
        DataError: the tokenizer's template is no valid Jinja.
    """
    own = tokenizer.chat_template
    if isinstance(own, dict):
        own = own.get("default") or next(iter(own.values()))
    bos, written = "{{- bos_token -}}\n", "<image>" if marked else ""
    if not own:
        first = bos if begun or starts_with_bos(tokenizer) else ""
        return first + _read("plain.jinja").replace("<image>", written), "plain"
    template = settle_template(tokenizer, _read("flatten.jinja").replace("<image>", written) + own)
    if begun and not (_tried(tokenizer, template, [_message("user", "a")]) or "").startswith(
        str(tokenizer.bos_token)
    ):
        template = bos + template
    return template, "own"


def settle_template(tokenizer: PreTrainedTokenizerBase, template: str) -> str:
    """Gives the template a generation prompt behind which an answer can stand as it is trained. Idempotent.

    Thinking is off unless a client asks for it: by the template's own switch (`enable_thinking`), else by
    closing the thought that the generation prompt opens. A header of the assistant's turn that the generation
    prompt lacks is added to it. Templates that need none of this come back unchanged, as do those that refuse
    a plain question and answer.

    Args:
        tokenizer: renders the template.
        template: Jinja.

    Returns:
        The template, settled.

    Raises:
        DataError: the template is no valid Jinja.
    """
    check_syntax(tokenizer, template)
    question, answer = _message("user", _name("q")), _message("assistant", _name("a"))
    if "enable_thinking" in template and not template.startswith(_SWITCH):
        prompts = [
            _tried(tokenizer, candidate, [question], prompt=True)
            for candidate in (template, _SWITCH + template)
        ]
        if None not in prompts and prompts[0] != prompts[1]:
            template = _SWITCH + template
    prompt = _tried(tokenizer, template, [question], prompt=True)
    finished = _tried(tokenizer, template, [question, answer])
    if prompt is None or finished is None or finished.count(_name("a")) != 1:
        return template
    before = finished.partition(_name("a"))[0]
    if before.startswith(prompt):
        head = before[len(prompt) :]
        lacking = (
            head.rstrip(" ") if OPEN_THOUGHT.search(prompt) or not THOUGHT.fullmatch(head.lstrip()) else ""
        )
    else:
        lacking = ""
        if opened := OPEN_THOUGHT.search(prompt):
            lacking = ("\n" if prompt.endswith("\n") else "\n\n") + f"</{opened[1]}>\n\n"
    if not lacking.strip():
        return template
    # Jinja drops one line break at a template's end, and an expression leaves what stands before it alone.
    return template.removesuffix("\n") + "{{ " + _literal(lacking) + " if add_generation_prompt else '' }}"


def starts_with_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer itself puts bos before a text, found out by tokenising one."""
    ids = tokenizer("a").input_ids
    return tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]


def without_thought(text: str) -> str:
    """A generated answer without the thought before it; nothing is left of one that is all thought."""
    if match := THOUGHT.match(text.lstrip()):
        return text.lstrip()[match.end() :].strip()
    if re.match(r"<(think|thinking|thought|reasoning)>", text.lstrip()):
        return ""
    return text.strip()


def adds_special_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
    """Whether a stock processor lets the tokenizer add its special tokens to a rendered conversation.

    The rule of `ProcessorMixin.apply_chat_template`: a text that begins with bos gets none.
    """
    bos = tokenizer.bos_token
    return bos is None or not text.startswith(str(bos))


def control_tokens(tokenizer: PreTrainedTokenizerBase, template: str | None = None) -> tuple[str, ...]:
    """The tokens that no text of a row may forge: special ones, and added ones that the template writes.

    Longest first. Words and single characters are none: some tokenizers pad with `!`.
    """
    added = tokenizer.added_tokens_decoder.values()
    special = {str(token) for token in tokenizer.all_special_tokens}
    special |= {str(token) for token in added if token.special}
    if template is not None:
        question, answer = _message("user", _name("q")), _message("assistant", _name("a"))
        shown = _tried(tokenizer, template, [question, answer, question], prompt=True) or ""
        special |= {str(token) for token in added if str(token) in shown}
    controls = (token for token in special if len(token.strip()) > 1 and not token.isalnum())
    return tuple(sorted(controls, key=lambda token: (-len(token), token)))


def end_tokens(tokenizer: PreTrainedTokenizerBase, template: str) -> tuple[str, ...]:
    """The tokens that the template writes behind the last answer, in order; none for some templates."""
    question, answer = _message("user", _name("q")), _message("assistant", _name("a"))
    finished = _tried(tokenizer, template, [question, answer])
    tail = (finished or "").partition(_name("a"))[2]
    tokens = control_tokens(tokenizer, template)
    controls = re.findall("|".join(map(re.escape, tokens)), tail) if tokens else []
    return tuple(dict.fromkeys(controls))


def end_token_ids(tokenizer: PreTrainedTokenizerBase, template: str) -> list[int]:
    """Ids of `end_tokens`, or eos alone where the template writes none: what ends a trained answer."""
    ids: Any = tokenizer.convert_tokens_to_ids(list(end_tokens(tokenizer, template)))
    if not ids and tokenizer.eos_token_id is not None:
        ids = [tokenizer.eos_token_id]
    return [int(token) for token in ids]


def add_end_tokens(generation_config: Any, ids: Sequence[int]) -> None:
    """Let generation stop at these tokens as well; in place.

    Settings that hold them already stay as they are.
    """
    given = generation_config.eos_token_id
    known = [] if given is None else list(given) if isinstance(given, (list, tuple)) else [int(given)]
    lacking = [token for token in ids if token not in known]
    if lacking:
        ends = [*known, *lacking]
        generation_config.eos_token_id = ends if len(ends) > 1 else ends[0]


def thinking_off(tokenizer: PreTrainedTokenizerBase, template: str) -> bool:
    """Whether a prompt ends with a thought that is closed already."""
    prompt = _tried(tokenizer, template, [_message("user", _name("q"))], prompt=True)
    return CLOSED_THOUGHT.search(prompt or "") is not None


def render(
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    messages: Sequence[dict[str, Any]],
    *,
    prompt: bool = False,
    where: str | None = None,
) -> str:
    """Renders a conversation as text.

    Args:
        tokenizer: whose special tokens the template may write.
        template: Jinja.
        messages: of the conversation, contents as lists.
        prompt: add what asks the assistant to speak.
        where: place for the error message.

    Returns:
        The text.

    Raises:
        DataError: the template refuses the conversation, has a mistake, takes longer than
            `RENDER_SECONDS`, or makes more than `RENDERED_CHARACTERS` of it.
    """
    try:
        with _time_limit(RENDER_SECONDS):
            text = str(
                tokenizer.apply_chat_template(
                    list(messages), chat_template=template, tokenize=False, add_generation_prompt=prompt
                )
            )
    except TemplateSyntaxError as error:
        raise _syntax(error, where) from error
    except _Overdue as error:
        raise _Excess(
            f"the chat template takes longer than {RENDER_SECONDS:g} s for this conversation",
            where=where,
            fix="remove the endless loop from the chat template",
        ) from error
    except TemplateError as error:
        raise DataError(
            f"the chat template refuses the conversation: {_one_line(error)}",
            where=where,
            fix="change the row to what the template takes (some take no system turn), or use another "
            "chat template",
        ) from error
    except Exception as error:
        raise DataError(
            f"the chat template fails: {type(error).__name__}: {_one_line(error)}",
            where=where,
            fix="correct the chat template of the model's folder (chat_template.jinja)",
        ) from error
    if len(text) > RENDERED_CHARACTERS:
        raise _Excess(
            f"the chat template makes {len(text):,} characters of this conversation, and "
            f"{RENDERED_CHARACTERS:,} are the most",
            where=where,
            fix="correct the chat template of the model's folder (chat_template.jinja)",
        )
    return text


def check_syntax(tokenizer: PreTrainedTokenizerBase, template: str) -> None:
    """Compiles the template.

    Args:
        tokenizer: as `render`.
        template: Jinja.

    Raises:
        DataError: it is no valid Jinja.
    """
    try:
        tokenizer.apply_chat_template(
            [_message("user", "")], chat_template="{% if false %}" + template + "{% endif %}", tokenize=False
        )
    except TemplateSyntaxError as error:
        raise _syntax(error, None) from error
    except (
        Exception
    ):  # a macro or block that cannot stand in a condition; what rendering says is told with the row
        return


class _Excess(DataError):
    """The template takes too much: it is not asked again with other rows."""


class _Overdue(Exception):
    """The time of a rendering is over."""


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Interrupts Python code: by an alarm in the main thread, by tracing in others (which is slower)."""
    if threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer"):
        before = signal.signal(signal.SIGALRM, _alarm)
        rest, started = signal.setitimer(signal.ITIMER_REAL, seconds)[0], time.monotonic()
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
            if rest:  # somebody else's alarm
                signal.setitimer(signal.ITIMER_REAL, max(rest - (time.monotonic() - started), 1e-3))
        return
    deadline, before_trace = time.monotonic() + seconds, sys.gettrace()

    def watch(frame: FrameType, event: str, argument: Any) -> Any:
        if time.monotonic() > deadline:
            raise _Overdue
        return watch

    sys.settrace(watch)
    try:
        yield
    finally:
        sys.settrace(before_trace)


def _alarm(number: int, frame: FrameType | None) -> None:
    raise _Overdue


def _tried(
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    messages: Sequence[dict[str, Any]],
    prompt: bool = False,
) -> str | None:
    """A rendering, or None where the template refuses it: rows will tell, each with its place."""
    try:
        return render(tokenizer, template, messages, prompt=prompt)
    except _Excess:
        raise
    except DataError:
        return None


def _message(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": text}]}


def _name(what: str) -> str:
    return what.join(MARKS)


def _literal(text: str) -> str:
    """A Jinja string literal."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def _syntax(error: TemplateSyntaxError, where: str | None) -> DataError:
    return DataError(
        f"the chat template is no valid Jinja: line {error.lineno}: {_one_line(error)}",
        where=where or "chat template",
        fix="correct the chat template of the model's folder (chat_template.jinja)",
    )


def _one_line(error: Exception) -> str:
    return " ".join((getattr(error, "message", None) or str(error)).split())[:300]


def _read(name: str) -> str:
    return files("lockadapt.models").joinpath("templates", name).read_text(encoding="utf-8")
