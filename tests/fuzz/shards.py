"""Parquet files and tars: bytes torn, rows and members that nobody expects; and what reads them."""

from __future__ import annotations

import contextlib
import io
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from lockadapt.data.encode import Encoder
from lockadapt.data.images import open_image
from lockadapt.data.readers import Source
from lockadapt.data.readers.shards import shard_rules
from lockadapt.data.shards import open_shards
from lockadapt.data.sources import SourceDraw
from lockadapt.data.stream import StreamRows
from lockadapt.errors import LockadaptError
from tests.fuzz.values import ODD_TEXTS, edited, json_bytes, torn

MOST_ROWS, MOST_PIXELS = 20, 1_000_000
SUFFIXES = {"parquet": ".parquet", "webdataset": ".tar"}
ROW = {"question": "what?", "answer": "red"}


def drawn_shards(image: bytes) -> st.SearchStrategy[Any]:
    """(format, bytes of a file).

    Args:
        image: a good one.
    """
    rows = [{"image": {"bytes": image, "path": None}, **ROW}, {"image": {"bytes": image, "path": "a"}, **ROW}]
    members = [("0.png", image), ("0.json", json_bytes(ROW)), ("1.png", image), ("1.json", json_bytes(ROW))]
    names = st.one_of(
        st.sampled_from([name for name, _ in members]),
        st.sampled_from([f"{odd}.png" for odd in ODD_TEXTS] + [f"../{odd}.json" for odd in ODD_TEXTS]),
        st.text(max_size=8),
    )
    data = st.one_of(torn(image), torn(json_bytes(ROW)), edited(ROW).map(json_bytes), st.binary(max_size=20))
    kinds = st.sampled_from(
        (tarfile.REGTYPE,) * 9 + (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.GNUTYPE_SPARSE)
    )
    drawn = st.lists(st.tuples(names, data, kinds), max_size=4)
    return st.one_of(
        torn(_parquet(rows)).map(lambda data: ("parquet", data)),
        edited(rows).map(lambda value: ("parquet", _parquet(value))),
        torn(_tar([(*member, tarfile.REGTYPE) for member in members])).map(lambda data: ("webdataset", data)),
        drawn.map(lambda value: ("webdataset", _tar(value))),
        drawn.map(_tar).flatmap(torn).map(lambda data: ("webdataset", data)),
    )


def read_shards(value: tuple[str, bytes], encoder: Encoder, folder: Path) -> None:
    """Reads rows as `train` draws them, opens their images and encodes them; a bad row is no end."""
    format, data = value
    file = folder / f"rows{SUFFIXES[format]}"
    file.write_bytes(data)
    source = Source(str(file), "vqa")
    rows = StreamRows(open_shards(format, str(file), cache=folder / "cache"), source, shard_rules(source))
    following = rows.drawn(SourceDraw(), 1, 0)
    error = None
    for _ in range(min(len(rows), MOST_ROWS)):
        try:
            samples = rows.lean(following(0))
            for sample in samples:
                for image in sample.images:
                    open_image(image, MOST_PIXELS, sample.where)
            encoder.encode(samples)
        except LockadaptError as refused:
            error = refused
    if error is not None:
        raise error


def _parquet(rows: Any) -> bytes:
    file = io.BytesIO()
    with contextlib.suppress(pa.ArrowException, TypeError, ValueError, OverflowError, AttributeError):
        pq.write_table(pa.Table.from_pylist(rows), file)
    return file.getvalue()


def _tar(members: list[tuple[str, bytes, bytes]]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, data, kind in members:
            member = tarfile.TarInfo(name)
            member.type, member.size, member.linkname = kind, len(data), "/etc/passwd"
            with contextlib.suppress(UnicodeError, ValueError):
                archive.addfile(member, io.BytesIO(data))
    return file.getvalue()
