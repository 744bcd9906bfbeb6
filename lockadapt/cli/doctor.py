"""`lockadapt doctor`: report versions, devices, bitsandbytes and memory, and how to fix problems."""

from __future__ import annotations

import json
import os
import shutil
import sys
from typing import Any

import typer

from lockadapt.console import emit


def doctor(as_json: bool = typer.Option(False, "--json", help="Print one JSON object on stdout.")) -> None:
    """Check this machine. Exit code 4 if a requirement of every run is missing."""
    report = _look()
    if as_json:
        emit(json.dumps(report))
    else:
        for name, value in report["facts"].items():
            emit(f"{name}: {value}")
        for problem in report["problems"]:
            emit(f"will not work: {problem['what']}\n  fix: {problem['fix']}")
        if not report["problems"]:
            emit("no problems found")
    if any(problem["fatal"] for problem in report["problems"]):
        sys.exit(4)


def _look() -> dict[str, Any]:
    problems: list[dict[str, Any]] = []
    try:
        import torch
        import transformers

        from lockadapt.models.bitsandbytes import require_bitsandbytes
        from lockadapt.models.four_bit import processor_misreads_scales, processor_repacks
        from lockadapt.runs.run_folder import versions
    except ImportError as error:
        problems.append({"what": str(error), "fix": "reinstall lockadapt with pip", "fatal": True})
        return {"facts": {"python": sys.version.split()[0]}, "problems": problems}
    from lockadapt.errors import SetupError

    facts: dict[str, Any] = dict(versions())
    facts["cpu cores"] = os.cpu_count()
    facts["memory"] = f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB"
    facts["free disk here"] = f"{shutil.disk_usage('.').free / 2**30:.1f} GiB"
    if torch.cuda.is_available():
        facts["gpu memory"] = f"{torch.cuda.get_device_properties(0).total_memory / 2**30:.1f} GiB"
        facts["bfloat16"] = torch.cuda.is_bf16_supported()
    else:
        fix = "small models train on the CPU; for larger ones install a CUDA build of torch"
        problems.append({"what": "no GPU is visible to torch", "fix": fix, "fatal": False})
    try:
        require_bitsandbytes()
        facts["nf4, int8"] = "available"
        facts["4-bit layers on this CPU"] = (
            "bitsandbytes would repack and round them in evaluation (AVX512-BF16); lockadapt stops it"
            if processor_repacks()
            else "computed as they are stored"
        )
        if processor_misreads_scales():
            what = "bitsandbytes misreads 4-bit layers on this CPU whose columns 64 does not divide"
            fix = "for LLMs with such layers use a GPU or quantization: none; training warns of them"
            problems.append({"what": what, "fix": fix, "fatal": False})
    except SetupError as error:
        problems.append({"what": str(error), "fix": error.fix or "", "fatal": False})
    facts["image backend"] = "torchvision" if transformers.utils.is_torchvision_available() else "Pillow"
    return {"facts": facts, "problems": problems}
