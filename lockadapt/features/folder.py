"""The cache of one tower on disk: which image is in which shard, and how shards are made.

A process may be killed at any time, and others may fill the same folder.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lockadapt.data.claims import Claims
from lockadapt.data.sample import ImageRef
from lockadapt.errors import DiskError, VerificationError
from lockadapt.features.identity import fingerprint_of
from lockadapt.features.ragged_shards import RaggedLayout, RaggedShard
from lockadapt.features.shards import Drift, Layout, Shard
from lockadapt.files import write_bytes

SHARD_BYTES = 64 * 2**20
"""Size of a shard, about: what a killed builder loses at most."""
INDEX, LOCK = "index.json", ".lock"
_PLAN = 0
# Claim of shard n is n + 1.
_FIX = (
    "raise data.feature_disk_gib, name a larger disk in data.cache, use data.feature_dtype: int8, or "
    "data.features: none"
)

Images = Mapping[str, ImageRef]
"""Images by content key."""
Tower = Callable[[Sequence[tuple[str, ImageRef]]], Iterable[Any]]
"""Images with their content keys -> their features in order, in batches on the CPU: (images, tokens,
channels), or a record an image."""
AnyLayout = Layout | RaggedLayout
AnyShard = Shard | RaggedShard


@dataclass
class _Index:
    """The plan, written before anything is built. A shard without keys was given up."""

    layout: AnyLayout
    shards: list[list[str]] = field(default_factory=list)


class FeatureFolder:
    """Features of any number of images under one fingerprint, below `root`.

    The index first says which images go into which shard, in the order of first use; then shards are
    computed, each by one process that claims it. So an interrupted, continued or shared build ends in the
    same bytes.

    Args:
        root: the cache's folder; the fingerprint's is made in it.
        identity: from `feature_identity`.
        disk_gib: the most that this folder may hold, in GiB.
        note: told about damage.
        shard_bytes: size of a shard, about.
        thorough: compare every shard's SHA-256 when it is opened, instead of header and size alone.
    """

    def __init__(
        self,
        root: Path,
        identity: dict[str, Any],
        disk_gib: float,
        note: Callable[[str], None],
        shard_bytes: int = SHARD_BYTES,
        thorough: bool = False,
    ) -> None:
        self.identity, self.fingerprint = identity, fingerprint_of(identity)
        self.path = root.expanduser() / self.fingerprint
        self.disk_gib, self.note, self.shard_bytes, self.thorough = disk_gib, note, shard_bytes, thorough
        self._open: dict[int, AnyShard] = {}
        self._told: set[int] = set()
        self._known: tuple[tuple[int, ...], _Index] | None = None

    def layout(self) -> AnyLayout | None:
        """What an image takes, if the index is there."""
        index = self._read()
        return index.layout if index else None

    def holds(self, keys: Iterable[str]) -> bool:
        """Whether the features of all these images are there, in undamaged shards."""
        index = self._read()
        if index is None:
            return False
        shard_of = {key: number for number, part in enumerate(index.shards) for key in part}
        needed = {shard_of.get(key, -1) for key in keys}
        return -1 not in needed and all(self._complete(n, index.shards[n]) for n in sorted(needed))

    def refusal(self, keys: Iterable[str], layout: AnyLayout) -> DiskError | None:
        """Why features of these images may not be stored, if so: beyond the limit, or no room on the disk."""
        index = self._read()
        shards = [part for n, part in enumerate(index.shards) if self._file(n).is_file()] if index else []
        there = {key for part in shards for key in part}
        new = [key for key in keys if key not in there]
        size = len(new) * (layout.image_bytes + 80)
        held = self._held()
        nearest = next(folder for folder in (self.path, *self.path.parents) if folder.is_dir())
        free = shutil.disk_usage(nearest).free
        what = f"features of {len(new):,} images take {_gib(size)}"
        if new and size + held > self.disk_gib * 2**30:
            beside = f" beside {_gib(held)} that are there" if held else ""
            return DiskError(
                f"{what}{beside}, and data.feature_disk_gib allows {self.disk_gib:g} GiB",
                where=str(self.path),
                fix=_FIX,
            )
        if size > free:
            return DiskError(f"{what}, and {_gib(free)} are free", where=str(self.path), fix=_FIX)
        return None

    def fill(
        self,
        images: Images,
        layout: AnyLayout,
        tower: Tower,
        progress: Callable[[int, int], None] | None = None,
    ) -> int:
        """Computes what is missing, alone or together with other processes.

        Args:
            images: by key.
            layout: what every image takes.
            tower: computes features of pixel values.
            progress: told (shards done, shards to do).

        Returns:
            How many images this process computed.

        Raises:
            DiskError: they do not fit, or cannot be written.
        """
        built = 0
        with Claims(self.path / LOCK) as claims:
            while todo := self._plan(claims, images, layout):
                left = set(todo)
                for wait in (False, True):
                    for number in todo:
                        built += self._attempt(claims, number, wait, images, tower)
                        if progress and number in self._open and number in left:
                            left.remove(number)
                            progress(len(todo) - len(left), len(todo))
        return built

    def rows(self, keys: Iterable[str]) -> dict[str, tuple[AnyShard, int]]:
        """Shard and row of those images whose shards are open, which `fill` sees to."""
        wanted = set(keys)
        return {
            key: (shard, row)
            for shard in self._open.values()
            for row, key in enumerate(shard.keys)
            if key in wanted
        }

    def drift(self) -> Drift | None:
        """The drift of the first shard that is open, as it was measured when it was computed."""
        return self._open[min(self._open)].drift if self._open else None

    def _plan(self, claims: Claims, images: Images, layout: AnyLayout) -> list[int]:
        """Shards that are yet to be computed; new images are added to the index."""
        claims.take(_PLAN, wait=True)
        try:
            index = copy.deepcopy(self._read()) or _Index(layout)
            todo, changed = [], not (self.path / INDEX).is_file()
            for number, keys in enumerate(index.shards):
                own = [key for key in keys if key in images]
                if not own or self._complete(number, keys):
                    continue
                if len(own) == len(keys) or not claims.take(number + 1):
                    todo.append(number)
                    continue
                # Planned by a run that had other images too, and is gone: ours are planned anew.
                self._file(number).unlink(missing_ok=True)
                index.shards[number], changed = [], True
                claims.leave(number + 1)
            planned = {key for keys in index.shards for key in keys}
            new = [key for key in images if key not in planned]
            if (todo or new) and (refused := self.refusal(images, layout)):
                raise refused
            size = max(1, self.shard_bytes // layout.image_bytes)
            for start in range(0, len(new), size):
                todo.append(len(index.shards))
                index.shards.append(new[start : start + size])
            if changed or new:
                self._write(index)
            return todo
        finally:
            claims.leave(_PLAN)

    def _attempt(self, claims: Claims, number: int, wait: bool, images: Images, tower: Tower) -> int:
        """Computes a shard unless another process has it in hand; gives the number of its images."""
        index = self._read()
        keys = index.shards[number] if index else []
        if self._complete(number, keys) or not claims.take(number + 1, wait):
            return 0
        try:
            if not keys or any(key not in images for key in keys) or self._complete(number, keys):
                return 0
            assert index is not None
            batches = tower([(key, images[key]) for key in keys])
            index.layout.write(self._file(number), self.fingerprint, keys, batches)
            if isinstance(index.layout, RaggedLayout):
                self._check_limit(number)
            self._complete(number, keys)
            return len(keys)
        finally:
            claims.leave(number + 1)

    def _check_limit(self, number: int) -> None:
        """What images of different sizes take is known once they are computed.

        Raises:
            DiskError: with this shard, which is removed, the folder holds more than it may.
        """
        if self._held() > self.disk_gib * 2**30:
            self._file(number).unlink()
            raise DiskError(
                f"the features take more than the {self.disk_gib:g} GiB that data.feature_disk_gib allows",
                where=str(self.path),
                fix=_FIX,
            )

    def _held(self) -> int:
        return sum(file.stat().st_size for file in self.path.glob("shard-*"))

    def _complete(self, number: int, keys: Sequence[str]) -> bool:
        if number in self._open:
            return True
        index = self._read()
        if index is None:
            return False
        try:
            shard = index.layout.open(self._file(number), self.fingerprint, self.thorough)
            if shard.keys != tuple(keys):
                raise VerificationError("it holds other images", where=str(self._file(number)))
        except FileNotFoundError:
            return False
        except VerificationError as error:
            if number not in self._told:
                self._told.add(number)
                self.note(f"damaged, computed again: {error.where}: {error.message}")
            return False
        self._open[number] = shard
        return True

    def _file(self, number: int) -> Path:
        return self.path / f"shard-{number:06d}.safetensors"

    def _read(self) -> _Index | None:
        file = self.path / INDEX
        try:
            now = file.stat()
            # Every writing is another file, so an unchanged one need not be read again.
            state = (now.st_ino, now.st_mtime_ns, now.st_size)
            if self._known is None or self._known[0] != state:
                values = json.loads(file.read_bytes())
                self._known = (state, _Index(_layout_of(values["layout"]), values["shards"]))
            return self._known[1]
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            self.note(f"{file} is damaged and written anew; shards that fit it are kept")
            file.unlink(missing_ok=True)
            return None

    def _write(self, index: _Index) -> None:
        values = {"identity": self.identity, "layout": asdict(index.layout), "shards": index.shards}
        data = (json.dumps(values, indent=1) + "\n").encode()
        write_bytes(self.path / INDEX, data, fix="free space, or change data.cache")


def _layout_of(values: dict[str, Any]) -> AnyLayout:
    if isinstance(values.get("channels"), dict):
        return RaggedLayout(**values)
    return Layout(**values)


def _gib(size: int) -> str:
    return f"{size / 2**30:,.3g} GiB"
