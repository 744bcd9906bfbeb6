"""Turns image values of rows into `ImageRef`s, one object for each distinct image."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import string
from collections.abc import Mapping
from typing import Any

from PIL import Image

from lockadapt.data.paths import DataRoot
from lockadapt.data.problems import quote
from lockadapt.data.sample import ImageRef
from lockadapt.errors import DataError, RecipeError

_LONGEST_NAME = 255
_BASE64_STARTS = ("iVBORw0KGgo", "/9j/", "UklGR", "R0lGOD")
"""How PNG, JPEG, WebP and GIF files begin in base64."""
_SPEC = re.compile(r"0?\d{0,2}d?")


class Pictures:
    """The images of one source.

    The key of a file is its absolute path with symlinks resolved, so that it is the same for every source
    that names the file and different for `train/0.png` and `test/0.png`; the key of bytes or pixels is their
    SHA-256.

    Args:
        root: the folder that names are relative to; None where rows hold no names.
        image_name: pattern around a value, with the fields `{}` (or `{id}`) and `{split}`, e.g. `{}.png`.
        split: what `{split}` stands for.
        trusted: folders in which the `datasets` library, not a row, may have put files by absolute path.

    Raises:
        RecipeError: `image_name` holds another field, or a width of more than two digits.
    """

    def __init__(
        self,
        root: DataRoot | None,
        image_name: str | None = None,
        split: str | None = None,
        trusted: tuple[DataRoot, ...] = (),
    ) -> None:
        self._root, self._name, self._split, self._trusted = root, image_name, split, trusted
        self._numeric = _check_pattern(image_name) if image_name is not None else False
        self._named: dict[str | int, ImageRef] = {}
        self._hashed: dict[str, ImageRef] = {}

    def refs(self, value: Any, where: str) -> tuple[ImageRef, ...]:
        """The images of a cell: none for null or an empty text, one, or those of a list."""
        if value is None or value == "":
            return ()
        if isinstance(value, (list, tuple)):
            return tuple(self.ref(item, where) for item in value)
        return (self.ref(value, where),)

    def ref(self, value: Any, where: str) -> ImageRef:
        """Turn an image value of a row into an image reference.

        Args:
            value: a name, a number for the pattern, bytes, a picture, or what `datasets` holds; unchecked.
            where: the row's place, for messages.

        Returns:
            The reference; the same object for the same image.

        Raises:
            DataError: not an image value, an empty one, or one that does not fit the pattern.
            SafetyError: as `DataRoot.join`.
        """
        if type(value) is str and (inline := inline_image(value, where)) is not None:
            return self._hash(hashlib.sha256(inline), data=inline)
        if type(value) is str or type(value) is int:
            if value not in self._named:
                self._named[value] = self.file(self._file_name(value, where), where)
            return self._named[value]
        if isinstance(value, bytes) and value:
            return self._hash(hashlib.sha256(value), data=value)
        if isinstance(value, Image.Image):
            digest = hashlib.sha256(f"{value.mode} {value.size}".encode())
            digest.update(value.tobytes())
            return self._hash(digest, picture=value)
        if isinstance(value, Mapping) and (value.get("bytes") or value.get("path")):
            return self.ref(value["bytes"], where) if value.get("bytes") else self._cell(value["path"], where)
        raise DataError(
            f"an image is {quote(value)}, not a name, a number, bytes or an image",
            where=where,
            fix="write the file name of the image, or map the right column: `columns: {image: ...}`",
        )

    def _file_name(self, value: str | int, where: str) -> str:
        if self._name is None:
            if isinstance(value, str):
                return value
            raise DataError(
                f"an image is the number {value}, not a file name",
                where=where,
                fix="say how numbers become names, e.g. `image_name: '{}.png'`",
            )
        try:
            number = int(value) if self._numeric else value
            return self._name.format(number, id=number, split=self._split)
        except ValueError as error:
            raise DataError(
                f"image {quote(value)} does not fit the pattern {self._name!r}",
                where=where,
                fix="correct the value or `image_name`",
            ) from error

    def forget(self) -> None:
        """Let go of the images that were named so far."""
        self._named.clear()
        self._hashed.clear()

    def frame(self, ref: ImageRef) -> ImageRef:
        """Return the one object for a frame of a video."""
        return self._hashed.setdefault(ref.key, ref)

    def file(self, name: str, where: str) -> ImageRef:
        """Turn a file name into a reference, whatever is in the file.

        Args:
            name: relative to the data root.
            where: the row's place, for messages.

        Returns:
            The reference, with the state that the file is in.

        Raises:
            DataError: there is no folder of files.
            SafetyError: as `DataRoot.join`.
        """
        if self._root is None:
            raise DataError(
                f"{quote(name)} names a file, but this data set has no folder of files",
                where=where,
                fix="let `images` name the folder that holds them",
            )
        path = self._root.join(name, where)
        return ImageRef(key=path.as_posix(), path=path, stamp=DataRoot.stamp(path))

    def _cell(self, path: Any, where: str) -> ImageRef:
        """`path` of a `datasets` image cell: the library makes it absolute, a row may have forged it."""
        plain = isinstance(path, str) and "\0" not in path and os.path.isabs(path)
        for root in self._trusted if plain else ():
            held = root.holds(path)
            if held is not None:
                return ImageRef(key=held.as_posix(), path=held, stamp=DataRoot.stamp(held))
        return self.ref(path, where)

    def _hash(self, digest: Any, data: bytes | None = None, picture: Any = None) -> ImageRef:
        key = f"sha256:{digest.hexdigest()}"
        # One object a distinct image: ten questions about it must not keep its bytes ten times.
        return self._hashed.setdefault(key, ImageRef(key=key, data=data, picture=picture))


def inline_image(text: str, where: str) -> bytes | None:
    """Decode an image that stands in a row as base64, with or without `data:image/…;base64,` before it.

    Args:
        text: an image value of a row.
        where: the row's place, for messages.

    Returns:
        The image file's bytes; None where the text is a name.

    Raises:
        DataError: it is cut off or no base64.
    """
    if text.startswith("data:image/"):
        coded = text.partition(";base64,")[2]
    elif len(text) > _LONGEST_NAME and text.startswith(_BASE64_STARTS):
        coded = text
    else:
        return None
    try:
        data = base64.b64decode("".join(coded.split()), validate=True)
    except ValueError:
        data = b""
    if not data:
        raise DataError(
            "an image in the row is no whole base64",
            where=where,
            fix="write the row again, or write the image to a file and name it",
        )
    return data


def _check_pattern(pattern: str) -> bool:
    """Check that the pattern formats a number, and refuse anything but a plain field."""
    numeric = False
    try:
        for _, name, spec, conversion in string.Formatter().parse(pattern):
            if name is None:
                continue
            if name not in ("", "0", "id", "split") or conversion or not _SPEC.fullmatch(spec or ""):
                raise ValueError(f"the field {name!r} cannot be used")
            numeric |= name != "split" and (spec or "").endswith("d")
    except ValueError as error:
        raise RecipeError(
            f"the pattern {pattern!r} cannot be used: {error}",
            where="image_name",
            fix="use `{}` for the value (`{:012d}` for a padded number) and `{split}`, e.g. `{}.png`",
        ) from error
    return numeric
