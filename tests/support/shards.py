"""Parquet files and WebDataset tars of questions about drawn squares, as tests write them."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

COLORS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}


def png(number: int) -> bytes:
    """A square of a color, another picture for each number."""
    data = io.BytesIO()
    color = list(COLORS.values())[number % 4]
    picture = Image.new("RGB", (40, 40), color)
    picture.putpixel((number % 40, number // 40), (1, 2, 3))
    picture.save(data, "PNG")
    return data.getvalue()


def row(number: int) -> dict[str, Any]:
    """A question and its answer."""
    return {"question": f"what color is number {number}?", "answer": list(COLORS)[number % 4]}


def write_parquet(folder: Path, rows: int, per_file: int = 8, per_group: int = 4) -> Path:
    """Writes files of row groups; gives the folder."""
    folder.mkdir(exist_ok=True)
    for start in range(0, rows, per_file):
        numbers = range(start, min(rows, start + per_file))
        held = [{"image": {"bytes": png(n), "path": f"{n}.png"}, **row(n)} for n in numbers]
        pq.write_table(pa.Table.from_pylist(held), folder / f"{start:05d}.parquet", row_group_size=per_group)
    return folder


def write_tars(folder: Path, rows: int, per_file: int = 8) -> Path:
    """Writes tars of a PNG and a JSON a record; gives the folder."""
    folder.mkdir(exist_ok=True)
    for start in range(0, rows, per_file):
        with tarfile.open(folder / f"{start // per_file:05d}.tar", "w") as archive:
            for number in range(start, min(rows, start + per_file)):
                add(archive, f"a/{number:05d}.png", png(number))
                add(archive, f"a/{number:05d}.json", json.dumps(row(number)).encode())
    return folder


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    """Adds a member to a tar."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def write(format: str, folder: Path, rows: int) -> Path:
    """Writes shards of either format."""
    return write_parquet(folder, rows) if format == "parquet" else write_tars(folder, rows)
