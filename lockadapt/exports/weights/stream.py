"""Writes new shards from old ones: untouched bytes copied by the kernel, changed rows computed."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch

from lockadapt.exports.weights.edits import TensorWrite
from lockadapt.exports.weights.shards import Layout
from lockadapt.files import opened
from lockadapt.models.safetensors_file import Shard, header_bytes

COPY_BYTES = 16 << 20
"""At once, so that copying and computing share the disk."""

Job = Callable[[], None]


def write_shards(
    layout: Layout,
    folder: Path,
    edits: Mapping[str, Sequence[TensorWrite]],
    keys: Mapping[str, str],
    device: torch.device,
    threads: int,
) -> None:
    """Writes every shard of a layout into a folder, under its own name, synced.

    Args:
        layout: of the base.
        folder: exists.
        edits: by key of the layout; several of one tensor in the order of their rows.
        keys: old key -> new key, of all tensors.
        device: where changed rows are computed.
        threads: that work at a time.
    """
    with ExitStack() as stack:
        jobs: list[Job] = []
        handles = []
        for shard in layout.shards:
            source = stack.enter_context(opened(shard.path, os.O_RDONLY))
            target = stack.enter_context(opened(folder / shard.path.name, os.O_RDWR | os.O_CREAT | os.O_EXCL))
            header = header_bytes(shard, keys)
            os.ftruncate(target, len(header) + shard.size - shard.data_start)
            os.pwrite(target, header, 0)
            handles.append(target)
            jobs += _jobs(shard, source, target, len(header), edits, device)
        _run(jobs, threads)
        for target in handles:
            os.fsync(target)


def cores() -> int:
    """How many cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _jobs(
    shard: Shard,
    source: int,
    target: int,
    start: int,
    edits: Mapping[str, Sequence[TensorWrite]],
    device: torch.device,
) -> list[Job]:
    """Everything to do for one shard, in the order of its bytes."""
    copies, pieces = [], []
    position = shard.data_start
    for edit in (edit for stored in shard.tensors for edit in edits.get(stored.key, ())):
        for first, last in edit.pieces():
            row = edit.shape[1] * edit.item
            begin, end = edit.stored.begin + first * row, edit.stored.begin + last * row
            copies.append((position, begin))
            position = end
            pieces.append((begin, _compute(edit, source, target, first, last, device)))
    copies.append((position, shard.size))
    shift = start - shard.data_start
    for begin, end in copies:
        for piece in range(begin, end, COPY_BYTES):
            pieces.append((piece, _copy(source, target, piece, min(end, piece + COPY_BYTES), shift)))
    return [job for _, job in sorted(pieces, key=lambda piece: piece[0])]


def _compute(edit: TensorWrite, source: int, target: int, first: int, last: int, device: torch.device) -> Job:
    return lambda: edit.compute(source, target, first, last, device)


def _copy(source: int, target: int, begin: int, end: int, shift: int) -> Job:
    return lambda: copy_range(source, target, begin, end, begin + shift)


def copy_range(source: int, target: int, begin: int, end: int, to: int) -> None:
    """Copies bytes from one open file into another, inside the kernel where it can (shared on some disks)."""
    while begin < end:
        try:
            done = os.copy_file_range(source, target, end - begin, begin, to)
        except (AttributeError, OSError) as error:
            missing = (errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)
            if isinstance(error, OSError) and error.errno not in missing:
                raise
            done = os.pwrite(target, os.pread(source, min(end - begin, 1 << 20), begin), to)
        if not done:
            raise OSError(errno.EIO, "the source became shorter while it was copied")
        begin, to = begin + done, to + done


def _run(jobs: Sequence[Job], threads: int) -> None:
    """Runs jobs in order on several threads, each computing on one core; the first error stops them all."""
    waiting: Iterator[Job] = iter(jobs)
    lock = threading.Lock()
    errors: list[BaseException] = []

    def work() -> None:
        # Of this thread alone: cores are shared by pieces, not by the arithmetic of one piece.
        torch.set_num_threads(1)
        while not errors:
            with lock:
                job = next(waiting, None)
            if job is None:
                return
            try:
                with torch.no_grad():
                    job()
            except BaseException as error:
                errors.append(error)

    workers = [threading.Thread(target=work, name=f"merge-{number}") for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if errors:
        raise errors[0]
