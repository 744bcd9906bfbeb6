"""Parquet files and WebDataset tars that are cut off, dishonest, or bombs."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.hostile.case import ACCEPTED, Case, Content
from tests.hostile.pictures import png, png_of

GOOD, LLM = ACCEPTED
ASKED = {"question": "what?", "answer": "red"}
ROW = {"image": {"bytes": png(), "path": None}, **ASKED}
FILES = {"parquet": "rows.parquet", "webdataset": "rows.tar"}
SKIP = {"on_bad_row": "skip"}


def shard(format: str, what: str, content: Content, code: int, *words: str, **data: Any) -> Case:
    file = FILES[format]
    return Case(
        "shards",
        f"{format}: {what}",
        code,
        words,
        {file: content},
        source={"format": format, "path": file},
        recipe={"data": {"cache": "cache", **data}},
    )


def of_parquet() -> Iterator[Case]:
    def case(what: str, content: Content, code: int, *words: str, **data: Any) -> Case:
        return shard("parquet", what, content, code, *words, **data)

    good = parquet([ROW, ROW])
    yield case("good", good, GOOD, *LLM)
    yield from broken("parquet", good)
    yield case("only its marks", b"PAR1PAR1", 3, "cannot be read")
    yield case("a footer of 2 GB", b"PAR1" + struct.pack("<I", 2**31 - 1) + b"PAR1", 3, "cannot be read")
    yield case("without its second half", good[: len(good) // 2], 3, "cannot be read")
    yield case("without its first half", good[len(good) // 2 :], 3, "rows.parquet")
    yield case("zeros in its pages", good[:4] + bytes(60) + good[64:], 3, "row group 0")
    yield case("no row", parquet([], pa.schema({"image": pa.binary()})), 3, "no row")
    yield case("no column", lambda path: pq.write_table(pa.table({}), path), 3, "no row")
    yield case("no image", parquet([ASKED]), 3, "no column 'image'")
    yield case("image is null", parquet([ROW, {**ROW, "image": None}]), 3, "no image")
    yield case(
        "bytes are null", parquet([{**ROW, "image": {"bytes": None, "path": "0.png"}}]), 3, "no folder"
    )
    yield case("bytes are empty", parquet([{**ROW, "image": {"bytes": b"", "path": None}}]), 3, "an image is")
    yield case(
        "path that climbs", parquet([{**ROW, "image": {"bytes": None, "path": "../0.png"}}]), 3, "no folder"
    )
    yield case("image is a number", parquet([{**ROW, "image": 7}]), 3, "the number 7")
    yield case("image is text", parquet([{**ROW, "image": "/etc/passwd"}]), 3, "no folder")
    yield case("image is a list of nulls", parquet([{**ROW, "image": [None]}]), 3, "an image is")
    yield case("image is no image", parquet([{**ROW, "image": b"hello"}]), 3, "no image")
    yield case("image of 60,000 x 60,000", parquet([{**ROW, "image": png_of(60_000, 60_000)}]), 10, "pixels")
    yield case("question is a number", parquet([{**ROW, "question": 3}]), 3, "question")
    yield case(
        "time beyond all years",
        parquet([{**ROW, "when": 2**62}], when=pa.timestamp("us")),
        3,
        "cannot be read",
    )
    yield case("10,000 columns", late(lambda: parquet([{str(n): n for n in range(10_000)}])), 3, "no column")
    yield case("20 lists deep", parquet([{**ROW, "answer": nested(20)}]), 3, "answer")
    yield case("100 lists deep", parquet([{**ROW, "answer": nested(100)}]), 3, "nested")
    yield case("a value of 1 MB in a million rows", dictionary_bomb, 10, "row group 0")
    yield case("a row group of 3 GB of zeros", zeros_bomb, 10, "row group 0")
    yield case("one bad row of two", parquet([ROW, {**ROW, "answer": ""}]), 3, "rows.parquet:1", "empty")
    yield case("half of the rows bad, skipped", parquet([ROW, {**ROW, "answer": ""}]), 3, "1 of 2", **SKIP)
    many = [ROW] * 199 + [{**ROW, "answer": ""}]
    yield case("a bad row of 200, skipped", parquet(many), GOOD, "left out 1 of 200", **SKIP)


def of_tars() -> Iterator[Case]:
    def case(what: str, content: Content, code: int, *words: str, **data: Any) -> Case:
        return shard("webdataset", what, content, code, *words, **data)

    asked = json.dumps(ASKED).encode()
    good = tar(("0.png", png()), ("0.json", asked), ("1.png", png()), ("1.json", asked))
    yield case("good", good, GOOD, *LLM)
    yield from broken("webdataset", good)
    yield case("packed", gzip.compress(good), 3, "must not be packed")
    yield case("cut off in a member", good[:700], 3, "cannot be read")
    yield case("cut off in a header", good[:1100], 3, "damaged or cut off at byte 1,024")
    yield case("rubbish between members", good[:1024] + b"x" * 512 + good[1024:], 3, "at byte 1,024")
    yield case("first header without its checksum", bytes(200) + good[200:], 3, "cannot be read")
    yield case("without its end mark", good[:4096], GOOD, *LLM)
    yield case("no member", tar(), 3, "no row")
    yield case(
        "folders, pipes and devices", tar(*((f"{n}.png", kind) for n, kind in enumerate(ODD))), 3, "no row"
    )
    for what, kind in (("symlink", tarfile.SYMTYPE), ("hard link", tarfile.LNKTYPE)):
        yield case(f"image is a {what}", tar(("0.png", kind), ("0.json", asked)), 3, "no column 'image'")
    yield case("names that climb", tar(("../../0.png", png()), ("../../0.json", asked)), GOOD, *LLM)
    yield case("names from the root", tar(("/etc/0.png", png()), ("/etc/0.json", asked)), GOOD, *LLM)
    yield case("name with control characters", tar(("\x1b[31m\n.png", png())), 3, "\\x1b[31m\\n")
    yield case("name of 100,000 characters", tar(("a" * 100_000 + ".png", png())), 3, "no column")
    yield case("name of 3 MB", late(lambda: tar(("a" * 3_000_000 + ".png", png()))), 3, "claims 3,")
    yield case("member that claims 8 GB", claimed("0.png", 8**11 - 1), 3, "cannot be read")
    yield case("member of minus 512 bytes", claimed("0.png", -512), 3, "rows.tar")
    yield case(
        "long name of 8 GB", claimed("././@LongLink", 8**11 - 1, b"L"), 3, "claims 8,589,934,592 bytes"
    )
    yield case("header of 8 GB", claimed("x", 8**11 - 1, tarfile.XHDTYPE), 3, "claims 8,589,934,592 bytes")
    yield case(
        "5,000 headers of headers", late(lambda: claimed("x", 0, tarfile.XHDTYPE) * 5_000), 3, "rows.tar"
    )
    yield case(
        "record of 300 MB", lambda path: sparse(path, 300_000_000), 3, "the record has 300,000,000 bytes"
    )
    yield case(
        "100,000 empty images",
        late(lambda: tar(*((f"{n}.png", b"") for n in range(100_000)))),
        3,
        "more of this kind",
    )
    yield case("no image", tar(("0.json", asked)), 3, "no column 'image'")
    yield case("no JSON", tar(("0.png", png())), 3, "no column")
    yield case("empty image", tar(("0.png", b""), ("0.json", asked)), 3, "an image is")
    yield case("image is text", tar(("0.png", b"hello"), ("0.json", asked)), 3, "no image")
    yield case(
        "image of 60,000 x 60,000", tar(("0.png", png_of(60_000, 60_000)), ("0.json", asked)), 10, "pixels"
    )
    yield case("JSON is a list", tar(("0.png", png()), ("0.json", b"[1]")), 3, "no object")
    yield case(
        "JSON is cut off", tar(("0.png", png()), ("0.json", asked[:9])), 3, "rows.tar:0", "invalid JSON"
    )
    yield case("JSON is 100,000 brackets", tar(("0.json", b"[" * 100_000)), 3, "nested too deeply")
    yield case(
        "JSON of 40 MB", late(lambda: tar(("0.json", b'{"a": "' + b"x" * 40_000_000 + b'"}'))), 3, "more than"
    )
    yield case(
        "JSON names a file",
        tar(("0.json", json.dumps({**ASKED, "image": "/etc/passwd"}).encode())),
        3,
        "no folder",
    )
    yield case("text is not UTF-8", tar(("0.png", png()), ("0.answer", b"\xff")), 3, ".answer is not UTF-8")
    one_bad = [
        part for n in range(200) for part in ((f"{n}.png", png()), (f"{n}.json", asked if n else b"{}"))
    ]
    yield case("a bad row of 200, skipped", tar(*one_bad), GOOD, "left out 1 of 200", **SKIP)


def broken(format: str, good: bytes) -> Iterator[Case]:
    """What is wrong with any file."""
    file = FILES[format]
    yield shard(format, "empty", b"", 3, "cannot be read")
    yield shard(format, "zeros", bytes(4096), 3, "rows.")
    yield shard(format, "text", "hello " * 99, 3, "cannot be read")
    yield shard(format, "a folder without shards", lambda path: path.mkdir(), 3, "there is no")
    yield shard(format, "a broken link", lambda path: path.symlink_to("nowhere"), 3, "no such file")
    yield shard(format, "/dev/zero", lambda path: path.symlink_to("/dev/zero"), 3, file)
    for name, path, words in (
        ("missing", "nowhere", "no such file"),
        ("pattern of nothing", "nowhere-*", "there is no"),
        ("braces without end", "{0..999999999999}", "counts no files"),
    ):
        source = {"format": format, "path": path}
        yield Case("shards", f"{format}: {name}", 3, (words,), source=source)
    for url in ("zip://a::file://b", "python://x", "simplecache::s3://a/b", "reference://x"):
        source = {"format": format, "path": url}
        yield Case("shards", f"{format}: {url}", 10, ("such a URL is not opened",), source=source)


def parquet(rows: list[Any], schema: pa.Schema | None = None, **types: pa.DataType) -> bytes:
    """A parquet file of rows, with types of columns."""
    table = pa.Table.from_pylist(rows, schema)
    for name, kind in types.items():
        position = table.column_names.index(name)
        table = table.set_column(position, name, table.column(name).cast(kind))
    file = io.BytesIO()
    pq.write_table(table, file, write_page_checksum=True)
    return file.getvalue()


def late(make: Callable[[], bytes]) -> Content:
    """What is made when its case runs."""
    return lambda path: path.write_bytes(make()) and None


def dictionary_bomb(path: Path) -> None:
    """A value that is stored once, and unpacks to 1 TB."""
    value = pa.DictionaryArray.from_arrays(pa.array([0] * 1_000_000, pa.int32()), pa.array([bytes(1 << 20)]))
    rows = pa.table({"image": value, "question": ["what?"] * 1_000_000})
    pq.write_table(rows, path, row_group_size=1_000_000, store_schema=False)


def zeros_bomb(path: Path) -> None:
    """3 GB that take little room."""
    part = pa.array([bytes(1 << 20)] * 64)
    rows = pa.table({"image": pa.chunked_array([part] * 48)})
    pq.write_table(rows, path, row_group_size=len(rows), use_dictionary=False, compression="zstd")


def nested(depth: int) -> Any:
    """Lists in lists."""
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


ODD = (tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE)


def tar(*members: tuple[str, bytes]) -> bytes:
    """A tar of members; a single byte is the type of one without content."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            if data in (*ODD, tarfile.SYMTYPE, tarfile.LNKTYPE):
                member.type, member.linkname = data, "/etc/passwd"
                data = b""
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return file.getvalue()


def claimed(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """The header of a member with a size that need not be true."""
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, size
    return member.tobuf(tarfile.GNU_FORMAT)


def sparse(path: Path, size: int) -> None:
    """A tar of a large member that takes no room on the disk."""
    with path.open("wb") as file:
        file.write(claimed("0.png", size))
        file.truncate(512 + -(-size // 512) * 512 + 10_240)


CASES = [*of_parquet(), *of_tars()]
