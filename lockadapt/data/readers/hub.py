"""Reads what the `datasets` library opens: saved data sets, parquet, JSON, CSV, images, Hub ids."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lockadapt.data.paths import DataRoot, refuse_pickle
from lockadapt.data.readers.columns import rules_for
from lockadapt.data.readers.features import decoders
from lockadapt.data.readers.files import WEBDATASET, WEBDATASET_FIX
from lockadapt.data.readers.pictures import Pictures
from lockadapt.data.readers.rows import read_rows
from lockadapt.data.readers.source import Source, did_you_mean
from lockadapt.data.sample import Sample
from lockadapt.errors import DataError, LockadaptError, SafetyError, memory_ran_out

SUFFIXES = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".jsonl": "json",
    ".json": "json",
    ".csv": "csv",
    ".png": "imagefolder",
    ".jpg": "imagefolder",
    ".jpeg": "imagefolder",
    ".webp": "imagefolder",
}
"""Builder of `datasets` for the files of a folder; where a folder has several kinds, the first of these
wins."""

_HUB_ID = re.compile(r"(\w[\w.-]*/)?\w[\w.-]*")
_SLICE = re.compile(r"([^\[\]]+)\[:?(\d*)[^\]]*\]")
_ROWS_AT_ONCE = 256


def read(source: Source) -> Iterator[Sample]:
    """Read the samples of a data set; image cells may hold bytes, paths or both, and are not decoded.

    The network is used only where `source.path` is no local folder or file and looks like a Hub id (`name` or
    `owner/name`). Absolute paths in image cells are believed only inside the data set's folder (or `images`),
    for a Hub id inside the Hugging Face caches, as a row can forge them.

    Args:
        source: a local folder or file, or a Hub id; `split` and columns.

    Returns:
        An iterator over the samples.

    Raises:
        DataError, SafetyError: `datasets` cannot open it, it needs another builder than those of `SUFFIXES`,
            the split is absent or unsaid; and as `read_rows` for what the rows hold.
        RecipeError: as `Source.check`.
    """
    _refuse_slice(source)
    path = Path(source.path)
    local = path.exists()
    with _quiet():
        table = _split(_saved(path) if local else _from_hub(source), source)
    if local:
        root = source.image_root(path if path.is_dir() else path.parent)
        pictures = Pictures(root, source.image_name, source.split, trusted=(root,))
    else:
        named = source.image_root(path) if source.images is not None else None
        trusted = (*_caches(), *([named] if named else []))
        pictures = Pictures(named, source.image_name, source.split, trusted)
    name = path.name if source.split is None else f"{path.name}/{source.split}"
    return read_rows(source, _rows(table, name), rules_for(source, pictures))


def _saved(path: Path) -> Any:
    """The `Dataset` or `DatasetDict` of a local path."""
    import datasets

    refuse_pickle(path)
    try:
        if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
            return datasets.load_from_disk(str(path))
        builder = _builder(path)
        if path.is_file():
            return datasets.load_dataset(builder, data_files=[str(path)])
        return datasets.load_dataset(builder, data_dir=str(path))
    except LockadaptError:
        raise
    except Exception as error:  # `datasets` raises whatever its parsers raise
        raise _unreadable(
            str(path), error, "check the files, or read them with their own `format`"
        ) from error


def _builder(path: Path) -> str:
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    if any(file.name.startswith("metadata.") and file.suffix in (".jsonl", ".csv") for file in files):
        return "imagefolder"
    present = {file.suffix.lower() for file in files}
    for suffix, builder in SUFFIXES.items():
        if suffix in present:
            return builder
    if ".tar" in present:
        raise DataError(f"there are archives in it, {WEBDATASET}", where=str(path), fix=WEBDATASET_FIX)
    raise DataError(
        "there is no data set in it",
        where=str(path),
        fix="it must hold what save_to_disk wrote, or files of one of: " + ", ".join(SUFFIXES),
    )


def _from_hub(source: Source) -> Any:
    import datasets

    from lockadapt.models.hub import hub_is_reachable  # its package imports torch

    name = str(source.path)
    # A folder that exists up to its last part is a misspelt path: nobody named a Hub id, so no network.
    if not _HUB_ID.fullmatch(name) or ("/" in name and Path(name).parent.is_dir()):
        raise DataError("no such file or folder", where=name, fix="correct `path`")
    try:
        # Without a network the library tries for half a minute before it says so.
        offline = datasets.DownloadConfig(local_files_only=True) if not hub_is_reachable() else None
        builder = datasets.load_dataset_builder(name, download_config=offline)
        kind = type(builder).__module__.rpartition(".")[2]
        if kind not in SUFFIXES.values():
            raise SafetyError(
                f"`datasets` reads it with its builder {kind!r}, which may run or unpack what it downloads",
                where=name,
                fix="save it as parquet, or as images with metadata.jsonl, and name that folder",
            )
        builder.download_and_prepare()
        return builder.as_dataset()
    except LockadaptError:
        raise
    except Exception as error:  # as above, and whatever the network raises
        fix = "check the spelling, the connection and (for private data) the login; a local folder must exist"
        if not hub_is_reachable():
            raise DataError(
                "is no local file or folder, not in the cache, and the Hub cannot be reached",
                where=name,
                fix="mend `path`, or connect and try again",
            ) from error
        raise _unreadable(name, error, fix) from error


def _unreadable(name: str, error: Exception, fix: str) -> DataError:
    if memory_ran_out(error):
        raise error
    first = (str(error).strip().splitlines() or [""])[0][:200]
    return DataError(f"`datasets` cannot open it: {type(error).__name__}: {first}", where=name, fix=fix)


def _split(table: Any, source: Source) -> Any:
    """One `Dataset`: the split that is asked for, or the only one."""
    if isinstance(table, Mapping):
        splits = [str(name) for name in table]
        wanted = splits[0] if source.split is None and len(splits) == 1 else source.split
        if wanted in splits:
            return table[wanted]
        fix = did_you_mean(wanted, splits) if wanted else "choose `split`, one of: " + ", ".join(splits)
        message = f"there is no split {wanted!r}" if wanted else f"there are {len(splits)} splits"
        raise DataError(message, where=str(source.path), fix=fix)
    if source.split is None:
        return table
    raise DataError("it has no splits", where=str(source.path), fix="remove `split`")


def _refuse_slice(source: Source) -> None:
    slice_of = _SLICE.fullmatch(source.split or "")
    if slice_of:
        raise DataError(
            f"the split {source.split!r} is part of one",
            where=str(source.path),
            fix=f"write `split: {slice_of[1]}`, and `limit: {slice_of[2] or 'N'}` for its first rows",
        )


def _caches() -> tuple[DataRoot, ...]:
    import datasets
    import huggingface_hub.constants

    return DataRoot(datasets.config.HF_DATASETS_CACHE), DataRoot(huggingface_hub.constants.HF_HUB_CACHE)


def _rows(table: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Rows as plain values: the arrow format leaves images encoded; class labels become their names."""
    plain, number = decoders(table.features), 0
    for batch in table.with_format("arrow").iter(batch_size=_ROWS_AT_ONCE):
        for row in batch.to_pylist():
            for key, decode in plain.items():
                row[key] = decode(row[key])
            yield f"{name}[{number}]", row
            number += 1


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars of `datasets` while it opens files."""
    import datasets

    if datasets.are_progress_bars_disabled():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()
