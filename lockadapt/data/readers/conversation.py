"""Turns messages (OpenAI/TRL `role`/`content`, LLaVA `from`/`value`) into turns with image counts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lockadapt.data.problems import quote
from lockadapt.data.readers.clips import Piece, clips
from lockadapt.data.readers.columns import RowRules, clean_text
from lockadapt.data.readers.source import IMAGE_MARK, VIDEO_MARK
from lockadapt.data.sample import ImageRef, Role, Turn
from lockadapt.errors import DataError

_ROLES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "human": "user",
    "gpt": "assistant",
}


def conversation(
    messages: Any,
    images: tuple[ImageRef, ...],
    rules: RowRules,
    where: str,
    videos: Sequence[Sequence[Piece]] = (),
) -> tuple[tuple[ImageRef, ...], tuple[Turn, ...]]:
    """Turn messages into images, in the order in which they are shown, and turns.

    A place for an image is a part `{"type": "image"}` (which may hold the image itself under `image`, `path`
    or `url`), or with `rules.marks` the text `<image>`. Images are shown where they stand in a user's text;
    a turn's only `<image>` at the end of its text is put before it, as LLaVA trains. Messages without any
    place get all images before the first user turn, as TRL does; not so with `rules.marks`. Empty system
    messages are dropped. Places for videos are a part `{"type": "video"}`, or `<video>`, or `<image>` in rows
    without images; the frames of a video stand there.

    Args:
        messages: the list of messages, unchecked.
        images: those of the row, for the places in their order.
        rules: whether `<image>` stands for an image, and how image values are read.
        where: the row's place, for messages.
        videos: the frames of the row's videos, for their places in order.

    Returns:
        The images and the turns.

    Raises:
        DataError: unknown role, wrong order of turns, empty or unusable text, a place outside user turns,
            more or fewer places than images.
        SafetyError: an image that a message names lies outside the data root.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, (str, bytes)) or not messages:
        raise DataError(
            f"the messages are {quote(messages)}, not a list with turns in it",
            where=where,
            fix="write a list of messages, each with a role and its text",
        )
    row = _Row(rules, where, list(videos), bool(images))
    if videos and not rules.marks and not any(map(_shows_video, messages)):
        messages = _videos_first(messages, len(videos))
    turns = [_said(item, f"message {number}", row) for number, item in enumerate(messages, start=1)]
    if row.videos:
        raise _other_count(len(videos), len(videos) - len(row.videos), where)
    turns = [turn for turn in turns if turn.role != "system" or turn.text]
    _check_order(turns, where)
    places = [number for turn in turns for number in turn.places]
    if images and not places and not rules.marks:
        first = next(number for number, turn in enumerate(turns) if turn.role == "user")
        places = [None] * len(images)
        turns[first] = replace(turns[first], places=tuple(places))
    if places.count(None) != len(images):
        mark = f"{IMAGE_MARK} markers" if rules.marks else "parts of type image without an image of their own"
        raise DataError(
            f"the row has {len(images)} image(s), but its messages hold {places.count(None)} {mark}",
            where=where,
            fix="make both numbers equal",
        )
    rest = iter(images)
    shown = tuple(next(rest) if number is None else number for number in places)
    return shown, tuple(_turn(turn, where) for turn in turns)


@dataclass(frozen=True)
class _Said:
    """One message: its places for images are None, or the image that the message itself names.

    `at` is where they stand in the text; empty: before it.
    """

    role: Role
    text: str
    places: tuple[ImageRef | None, ...]
    at: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Row:
    """What the messages of a row refer to: `videos` are those that no message has shown yet."""

    rules: RowRules
    where: str
    videos: list[Sequence[Piece]]
    has_images: bool

    def next_video(self) -> Sequence[Piece]:
        if not self.videos:
            raise _other_count(0, 1, self.where)
        return self.videos.pop(0)


def _said(item: Any, name: str, row: _Row) -> _Said:
    where = row.where
    if not isinstance(item, Mapping):
        raise DataError(
            f"{name} is {quote(item)}, not an object with a role and a text",
            where=where,
            fix='write {"role": "user", "content": "..."}',
        )
    told = item.get("role", item.get("from"))
    role = _ROLES.get(told) if isinstance(told, str) else None
    if role is None:
        raise DataError(
            f"{name} has the unknown role {quote(told)}", where=where, fix="one of: " + ", ".join(_ROLES)
        )
    content = item.get("content", item.get("value"))
    if isinstance(content, str):
        laid = _laid(role, _marked(content, row) if row.rules.marks else [content])
    else:
        laid = _laid(role, _parts(content, name, row))
    if laid.places and role != "user":
        raise DataError(
            f"{name} ({role}) holds an image",
            where=where,
            fix="only user messages may hold images: what is learned of an answer is its text",
        )
    return laid


def _laid(role: Role, pieces: Sequence[Piece]) -> _Said:
    """A message of texts and images in their order, without the white space at its ends.

    White space beside an image stays where images stand in the midst or at the end of the text.
    """
    whole = "".join(piece for piece in pieces if isinstance(piece, str))
    places: list[ImageRef | None] = []
    at: list[int] = []
    position = 0
    for piece in pieces:
        if isinstance(piece, str):
            position += len(piece)
        else:
            places += piece
            at.append(position)
    lead, end = len(whole) - len(whole.lstrip()), len(whole.rstrip())
    if not whole.strip() or all(start <= lead for start in at):
        return _Said(role, whole.strip(), tuple(places))
    lead, end = min(lead, at[0]), max(end, at[-1])
    return _Said(role, whole[lead:end], tuple(places), tuple(start - lead for start in at))


def _marked(text: str, row: _Row) -> list[Piece]:
    """A text whose markers are places; a single one at its end comes first (as in LLaVA's code)."""
    if row.videos and not row.has_images:
        text = text.replace(IMAGE_MARK, VIDEO_MARK)
    parts = re.split(f"({IMAGE_MARK}|{VIDEO_MARK})" if row.videos else f"({IMAGE_MARK})", text)
    if len(parts) == 3 and not parts[2].strip():
        parts = [parts[1], parts[0]]
    pieces: list[Piece] = []
    for part in parts:
        if part == VIDEO_MARK and row.videos:
            pieces += row.next_video()
        else:
            pieces.append((None,) if part == IMAGE_MARK else part)
    return pieces


def _parts(parts: Any, name: str, row: _Row) -> list[Piece]:
    """Texts and places of content that is a list of parts."""
    rules, where = row.rules, row.where
    if not isinstance(parts, Sequence) or isinstance(parts, bytes):
        raise DataError(
            f"the text of {name} is {quote(parts)}, neither text nor a list of parts",
            where=where,
            fix='write text, or parts like {"type": "text", "text": "..."}',
        )
    pieces: list[Piece] = []
    for part in parts:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "image_url":  # OpenAI's spelling
            own = part.get("image_url")
            own = own.get("url") if isinstance(own, Mapping) else own
            if not isinstance(own, str):
                raise DataError(
                    f"{name} has an image_url without a url",
                    where=where,
                    fix='write {"type": "image_url", "image_url": {"url": "images/1.png"}}',
                )
            pieces.append((rules.pictures.ref(own, where),))
        elif kind == "image":
            # Arrow tables give every part every key, so null means that the part does not name an image.
            own = next((part[key] for key in ("image", "path", "url") if part.get(key) is not None), None)
            pieces.append((None if own is None else rules.pictures.ref(own, where),))
        elif kind == "video":
            own = next((part[key] for key in ("video", "path", "url") if part.get(key) is not None), None)
            pieces += row.next_video() if own is None else clips([own], rules, where)[0]
        elif kind == "text" and isinstance(part.get("text"), str):
            pieces.append(part["text"])
        else:
            raise DataError(
                f"{name} has the part {quote(part)}, which is neither text nor an image or a video",
                where=where,
                fix='use parts like {"type": "text", "text": "..."} and {"type": "image"}',
            )
    return pieces


def _shows_video(message: Any) -> bool:
    content = message.get("content", message.get("value")) if isinstance(message, Mapping) else None
    parts = content if isinstance(content, list) else []
    return any(isinstance(part, Mapping) and part.get("type") == "video" for part in parts)


def _videos_first(messages: Sequence[Any], count: int) -> list[Any]:
    """The messages with places for videos before the first user turn."""
    changed = list(messages)
    for number, message in enumerate(changed):
        if isinstance(message, Mapping) and message.get("role", message.get("from")) in ("user", "human"):
            content = message.get("content", message.get("value"))
            parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
            if isinstance(parts, list):
                changed[number] = {**message, "content": [{"type": "video"}] * count + parts}
            break
    return changed


def _other_count(videos: int, places: int, where: str) -> DataError:
    return DataError(
        f"the row has {videos} video(s), but its messages show {'more' if places > videos else places}",
        where=where,
        fix='make both numbers equal: the column `video`, and parts {"type": "video"}',
    )


def _check_order(turns: Sequence[_Said], where: str) -> None:
    """At most one system turn, first; then user and assistant by turns; an assistant turn last."""
    wanted: Role = "user"
    for number, turn in enumerate(turns, start=1):
        if turn.role == "system" and number == 1:
            continue
        if turn.role != wanted:
            raise DataError(
                f"turn {number} is from the {turn.role} where one from the {wanted} is due",
                where=where,
                fix="user and assistant speak by turns, the user first, after at most one system turn; "
                "join neighbouring turns of one role",
            )
        wanted = "assistant" if wanted == "user" else "user"
    if not turns or turns[-1].role != "assistant":
        raise DataError(
            "the conversation does not end with an assistant turn, so there is no answer to learn",
            where=where,
            fix="add the answer, or remove what follows the last one",
        )


def user_turn(pieces: Sequence[Piece]) -> tuple[tuple[ImageRef, ...], Turn]:
    """The images and the turn of a user's text with images that are all named."""
    laid = _laid("user", pieces)
    images = tuple(image for image in laid.places if image is not None)
    return images, Turn("user", laid.text, len(images), laid.at)


def _turn(message: _Said, where: str) -> Turn:
    if not message.text and message.places:
        return Turn(message.role, "", len(message.places))
    clean_text(message.text, f"text of a {message.role} turn", where)
    return Turn(message.role, message.text, len(message.places), message.at)
