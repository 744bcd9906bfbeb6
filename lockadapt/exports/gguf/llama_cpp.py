"""The user's copy of llama.cpp's sources: its converter, run as a process, and what that converter knows."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from lockadapt.errors import SetupError, VerificationError

CONVERTER = "convert_hf_to_gguf.py"
PACKAGES = {"gguf": "gguf", "sentencepiece": "sentencepiece", "google.protobuf": "protobuf"}
"""What the converter and `sentencepiece.py` import, by the name of the distribution."""
CLASS_TOKEN_LAST = re.compile(r"ggml_concat\(\s*ctx0\s*,\s*inp\s*,\s*model\.class_embedding\b")
LAST_WORDS = 300
NO_DRAFT = "--no-mtp"
"""Layers that draft tokens ahead, as Qwen3.5 has, are in no Transformers class and so in no merged folder."""
MARKS = re.compile(r"[\s~^]*")


@dataclass(frozen=True)
class LlamaCpp:
    """A folder with llama.cpp's sources; make it with `open_llama_cpp`."""

    folder: Path

    @cached_property
    def classes(self) -> tuple[frozenset[str], frozenset[str]]:
        """Asks which Transformers classes the converter takes.

        Returns:
            Names: as text models, and for their `mmproj`.

        Raises:
            SetupError: the converter does not start.
        """
        done = self._run("--print-supported-models")
        text, _, mmproj = (done.stderr + done.stdout).partition("MMPROJ models:")
        names = tuple(frozenset(re.findall(r"- (\w+)\s*$", part, re.MULTILINE)) for part in (text, mmproj))
        if not names[0]:
            raise SetupError(
                f"llama.cpp's converter does not say what it can convert: {_last_words(done)}",
                where=str(self.folder / CONVERTER),
                fix="install what it imports (pip install 'lockadapt[gguf]'), or get a newer llama.cpp",
            )
        return names[0], names[1]

    @property
    def misplaces_class_token(self) -> bool:
        """Whether this version's LLaVA graph appends CLIP's class token, but takes the first one to be it.

        All versions since May 2025 do, until https://github.com/ggml-org/llama.cpp/pull/25844 is in: every
        patch gets its neighbour's position, the first patch is lost, and the class token is shown to the LLM.
        """
        graph = self.folder / "tools" / "mtmd" / "models" / "llava.cpp"
        if not graph.is_file():
            graph = self.folder / "tools" / "mtmd" / "clip.cpp"
        return graph.is_file() and bool(CLASS_TOKEN_LAST.search(graph.read_text(encoding="utf-8")))

    def refusal(self, model: Path, scratch: Path) -> str | None:
        """Why the converter cannot take a folder's config and tokenizer (no weights are read), or None."""
        done = self._run_undrafted(str(model), "--vocab-only", "--outtype", "f32", "--outfile", str(scratch))
        scratch.unlink(missing_ok=True)
        return None if done.returncode == 0 else _last_words(done)

    def convert(self, model: Path, output: Path, outtype: str, *, mmproj: bool = False) -> None:
        """Converts a folder's text model, or its tower and projector, to the file `output`.

        Args:
            model: a stock folder.
            output: file to write.
            outtype: as the converter names it.
            mmproj: tower and projector instead of the text model.

        Raises:
            VerificationError: the converter fails, although it was asked before.
        """
        arguments = (str(model), "--outfile", str(output), "--outtype", outtype)
        done = self._run(*arguments, "--mmproj") if mmproj else self._run_undrafted(*arguments)
        # The converter puts `mmproj-` before the name that it is given.
        written = output.with_name(f"mmproj-{output.name}") if mmproj else output
        if done.returncode == 0 and not output.is_file() and written.is_file():
            os.replace(written, output)
        if done.returncode != 0 or not output.is_file():
            raise VerificationError(
                f"llama.cpp's converter failed: {_last_words(done)}",
                where=str(self.folder / CONVERTER),
                fix="try a newer llama.cpp; if that fails too, please report this",
            )

    def _run_undrafted(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs the converter; again without drafting layers where it fails for want of them."""
        done = self._run(*arguments)
        if done.returncode == 0 or "mtp" not in done.stderr:
            return done
        again = self._run(*arguments, NO_DRAFT)
        knows = again.returncode == 0 or "mtp" not in _last_words(again)
        return again if knows else done

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(self.folder / CONVERTER), *arguments],
            env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"},
            capture_output=True,
            text=True,
            check=False,
        )


def open_llama_cpp(folder: str | Path) -> LlamaCpp:
    """Opens llama.cpp's sources.

    Args:
        folder: of the sources.

    Returns:
        The converter, not started yet.

    Raises:
        SetupError: the converter is not there, or a package that it imports is not installed.
    """
    path = Path(folder).expanduser().resolve()
    if not (path / CONVERTER).is_file():
        raise SetupError(
            f"there is no {CONVERTER}",
            where=str(path),
            fix="name a folder with llama.cpp's sources (git clone https://github.com/ggml-org/llama.cpp)",
        )
    require_packages()
    return LlamaCpp(path)


def require_packages() -> None:
    """Checks that the packages of the `gguf` extra are installed.

    Raises:
        SetupError: one is not.
    """
    missing = [package for name, package in PACKAGES.items() if not _importable(name)]
    if missing:
        raise SetupError(
            f"GGUF files need {', '.join(missing)}, which is not installed",
            fix="pip install 'lockadapt[gguf]'",
        )


def _importable(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _last_words(done: subprocess.CompletedProcess[str]) -> str:
    """The exception that ended the converter, or its last line; of an exception without words, the code."""
    lines = [line.strip() for line in (done.stderr + done.stdout).splitlines() if not MARKS.fullmatch(line)]
    if not lines:
        return f"exit code {done.returncode}"
    bare = len(lines) > 1 and lines[-1].isidentifier() and lines[-1].endswith("Error")
    return ": ".join(reversed(lines[-2:]) if bare else lines[-1:])[:LAST_WORDS]
