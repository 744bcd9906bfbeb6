"""Where a model or data set is from and under which licence, as its own files say, never its name."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

from lockadapt.models.hub import hub_is_reachable
from lockadapt.models.sources import HUB_ID

SIDECAR = "lockadapt.json"
"""What a folder that lockadapt wrote says of itself."""

UNKNOWN = "unknown: look at the source"
_HEADINGS = {"Apache License Version 2.0": "apache-2.0", "MIT License": "mit", "The MIT License": "mit"}
"""How a licence text begins -> its identifier on the Hub. Other texts are named by their first line."""


@dataclass(frozen=True)
class Origin:
    """One source.

    Attributes:
        part: what it became: `LLM`, `tower`, `image tokenizer`, `VLM`, `data`.
        source: Hub id, or the name of a folder or file; its local path is not published.
        hub_id: on the Hub, where `source` is no folder or file.
        licence: identifier as the Hub has it, or None where the source does not say it in a known way.
        said: what the source says, and where; `UNKNOWN` if nothing.
    """

    part: str
    source: str
    hub_id: str | None
    licence: str | None
    said: str


def read_origin(part: str, source: str, kind: str = "model") -> Origin:
    """Looks for front matter in README.md, then a licence file, then `license` in config.json.

    Args:
        part: name of the part, such as `tower`.
        source: folder, file (its folder counts) or Hub id. Of a Hub id only README.md is looked at.
        kind: of Hub repository: `model` or `dataset`.

    Returns:
        Where the part is from, and its licence as far as the files say.
    """
    path = Path(source).expanduser()
    if path.exists():
        folder = path if path.is_dir() else path.parent
        return Origin(part, source_name(source), None, *_of_folder(folder))
    if HUB_ID.fullmatch(source):
        readme = _hub_readme(source, kind)
        licence = _of_readme(readme) if readme is not None else None
        return Origin(part, source, source, *(licence or (None, UNKNOWN)))
    return Origin(part, source_name(source), None, None, UNKNOWN)


def source_name(source: str) -> str:
    """A Hub id as it is, of a folder or file its name."""
    path = Path(source).expanduser()
    if path.exists():
        return path.resolve().name
    return source if HUB_ID.fullmatch(source) else path.name


def write_origins(folder: Path, origins: list[Origin]) -> None:
    """Writes them into the sidecar of a stock folder that was put together from these sources."""
    text = json.dumps({"sources": [asdict(origin) for origin in origins]}, indent=1, ensure_ascii=False)
    (folder / SIDECAR).write_text(text + "\n", encoding="utf-8")


def inherited(source: str) -> list[Origin]:
    """What a folder that lockadapt wrote says that it was put together from; nothing for others."""
    file = Path(source).expanduser() / SIDECAR
    if not file.is_file():
        return []
    return [Origin(**origin) for origin in json.loads(file.read_text(encoding="utf-8")).get("sources") or []]


def _of_folder(folder: Path) -> tuple[str | None, str]:
    readme = folder / "README.md"
    licence = _of_readme(readme) if readme.is_file() else None
    if licence:
        return licence
    texts = sorted(p for p in folder.iterdir() if p.is_file() and p.stem.upper() in ("LICENSE", "LICENCE"))
    if texts:
        lines = texts[0].read_text(encoding="utf-8", errors="replace").splitlines()
        words = [line.strip() for line in lines if line.strip()]
        start = " ".join(words[:2])
        known = next((name for heading, name in _HEADINGS.items() if start.startswith(heading)), None)
        return known, f"{texts[0].name}: {words[0][:80] if words else 'empty'}"
    config = folder / "config.json"
    if config.is_file():
        name = json.loads(config.read_text(encoding="utf-8")).get("license")
        if isinstance(name, str):
            return name.lower(), f"config.json: {name}"
    return None, UNKNOWN


def _of_readme(readme: Path) -> tuple[str | None, str] | None:
    """The licence in a model card's front matter; None if it has none."""
    from huggingface_hub.repocard import RepoCard

    text = readme.read_text(encoding="utf-8", errors="replace")
    if not text.startswith("---"):
        return None
    try:
        card = RepoCard(text).data.to_dict()
    except (yaml.YAMLError, ValueError):
        return None
    name = card.get("license")
    names = name if isinstance(name, list) else [name]
    if not all(isinstance(name, str) for name in names):
        return None
    named = [card[key] for key in ("license_name", "license_link") if isinstance(card.get(key), str)]
    source = f"README.md: {', '.join([*names, *named])}"
    return names[0] if len(names) == 1 else None, source


def _hub_readme(source: str, kind: str) -> Path | None:
    """README.md of a Hub repository, from the cache or the Hub; None if it is not to be had."""
    from huggingface_hub import hf_hub_download

    try:
        # Without a network the library tries for half a minute.
        local = not hub_is_reachable()
        return Path(
            hf_hub_download(source, "README.md", repo_type=kind, etag_timeout=10, local_files_only=local)
        )
    except Exception:
        # A card is nothing that a run may fail for; "unknown" is said instead.
        return None
