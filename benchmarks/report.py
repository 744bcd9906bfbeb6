"""Writes what was measured into `docs/benchmarks.md`, between its markers, and draws `docs/benchmarks.png`.

    python benchmarks/throughput.py --details benchmarks/results/throughput-fp32.json
    python benchmarks/head.py --details benchmarks/results/head.json
    python benchmarks/gradcache.py --details benchmarks/results/gradcache.json
    python benchmarks/merge.py --details benchmarks/results/merge.json
    python benchmarks/report.py

`make bench` runs them all. The prose around the markers is written by hand and left alone; a part without
results says so.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from lockadapt.files import write_text

ROOT = Path(__file__).resolve().parents[1]
NOTHING = "Not measured yet."
OWN, PEER = "#1b6ca8", "#b8b8b8"


def load(folder: Path, name: str) -> dict[str, Any] | None:
    """The results of that name, if there are any."""
    path = folder / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def throughput_table(report: dict[str, Any] | None) -> str:
    """Cases as Markdown, and below it what they were measured on."""
    if report is None:
        return NOTHING
    lines = [
        "| case | samples/s | TRL | speedup | first epoch | peak memory, MiB | TRL | ratio | first "
        "loss differs by | of GEMM peak |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| `{case['name']}` | {case['samples_per_second']:.2f} | {case['peer_samples_per_second']:.2f} "
        f"| {case['speedup']:.2f} | {case['speedup_first_epoch']:.2f} | {case['peak_mib']:,.0f} "
        f"| {case['peer_peak_mib']:,.0f} | {case['memory_ratio']:.2f} | {case['loss_difference']:.1e} "
        f"| {case['gemm_fraction']:.2f} |"
        for case in report["cases"]
    ]
    lines += [
        "",
        "| case | batch | images | tokens | without repeats | s a step | fastest | TRL | fastest | "
        "speedup of the fastest | memory above the model |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| `{case['name']}` | {case['batch']} | {case['images_per_batch']:.1f} | "
        f"{case['tokens']['padded']:.0f} "
        f"| {case['tokens']['unique']:.0f} | {case['seconds']['median']:.3f} | "
        f"{case['seconds']['minimum']:.3f} "
        f"| {case['peer_seconds']['median']:.3f} | {case['peer_seconds']['minimum']:.3f} "
        f"| {case['speedup_of_minima']:.2f} | {case['memory_ratio_above_model']:.2f} |"
        for case in report["cases"]
    ]
    return "\n".join([*lines, "", measured_on(report)])


def measured_on(report: dict[str, Any]) -> str:
    """Machine, versions and settings in one paragraph."""
    machine, settings = report["machine"], report["settings"]
    versions = ", ".join(
        f"{name} {report['versions'][name]}"
        for name in ("lockadapt", "torch", "transformers", "peft", "trl", "accelerate", "python")
    )
    peak = machine["gemm_flops_per_second"]
    mode = " Small mode: one round, few steps, small batches." if settings["small"] else ""
    return (
        f"{settings['dtype']} on {machine['processor']}, {machine['cores']} cores, "
        f"{machine['threads']} threads, "
        f"{machine['memory_gib']} GiB, device {machine['device']}; GEMM peak "
        f"{'not known' if peak is None else f'{peak / 1e9:.0f} GFLOP/s'}; packing {settings['packing']}, "
        f"gradient checkpointing: {settings['checkpointing']}. {versions}.{mode}"
    )


def head_table(report: dict[str, Any] | None) -> str:
    """The head's ways as Markdown."""
    if report is None:
        return NOTHING
    lines = [
        "| vocabulary | way | ms | MiB | loss | norm of the gradient |",
        "| ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    for row in report["rows"]:
        if "absent" in row:
            lines.append(f"| {row['vocabulary']:,} | {row['way']} | {row['absent']} | | | |")
        else:
            lines.append(
                f"| {row['vocabulary']:,} | {row['way']} | {row['seconds'] * 1e3:.1f} | "
                f"{row['peak_mib']:.0f} "
                f"| {row['loss']:.6f} | {row['gradient_norm']:.6f} |"
            )
    settings = report["settings"]
    others = "; ".join(
        f"`{name}` is {'' if there else 'not '}installed" for name, there in report["installed"].items()
    )
    return "\n".join(
        [
            *lines,
            "",
            f"{settings['dtype']}, {settings['positions']:,} positions of size {settings['hidden']}, "
            f"{settings['labelled']} of them labelled. {others}.",
        ]
    )


def gradcache_table(report: dict[str, Any] | None) -> str:
    """GradCache's cases as Markdown, and below it the differences and the ratio of memory."""
    if report is None:
        return NOTHING
    lines = [
        "| case | batch | loss | norm of the gradient | live tensors, MiB | process, MiB | s |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| `{row['case']}` | {row['batch']:,} | {row['loss']:.6f} | {row['gradient_norm']:.6f} | "
        f"{row['live_mib']:.1f} "
        f"| {row['rss_mib']:.1f} | {row['seconds']:.1f} |"
        for row in report["rows"]
    ]
    lines += [
        "",
        "| against the whole batch | loss differs by | gradients by at most | the largest gradient |",
    ]
    lines += ["| --- | ---: | ---: | ---: |"]
    lines += [
        f"| `{pair['ours']}` and `{pair['whole']}` | {pair['loss_difference']:.1e} | "
        f"{pair['gradient_difference']:.1e} "
        f"| {pair['largest_gradient']:.1e} |"
        for pair in report["pairs"]
    ]
    settings, ratio = report["settings"], report["memory_ratio"]
    return "\n".join(
        [
            *lines,
            "",
            f"Peak memory of `gradcache` over that of `step`: live tensors {ratio['live_mib']:.2f}, process "
            f"{ratio['rss_mib']:.2f}. Chunks of {settings['chunk']}, loss `{settings['kind']}`, fp32, "
            f"threads: {settings['threads']}.",
        ]
    )


def merge_table(report: dict[str, Any] | None) -> str:
    """Ways to merge as Markdown, beside `cp`."""
    if report is None:
        return NOTHING
    lines = [
        "| | fastest, s | `cp` = 1 | memory beyond `import torch`, MiB |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, seconds in report["seconds"].items():
        memory = f"{max(report['rss_excess_mib'][name]):,.0f}" if name in report["rss_excess_mib"] else ""
        ratio = min(seconds) / min(report["seconds"]["cp"])
        lines.append(f"| `{name}` | {min(seconds):.2f} | {ratio:.2f} | {memory} |")
    rounds = len(report["seconds"]["cp"])
    return "\n".join(
        [
            *lines,
            "",
            f"{report['bytes'] / 1e9:.2f} GB of bfloat16 in {report['shards']} files, rank 16 on every "
            "linear layer, "
            f"{report['cores']} cores, fastest of {rounds} rounds. Bit for bit what the plain way computes: "
            f"{'yes' if report['bit_identical'] else 'no'}.",
        ]
    )


def draw(report: dict[str, Any], path: Path) -> None:
    """Speedup and memory of every case beside TRL's."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    cases = report["cases"]
    names, places = [case["name"] for case in cases], range(len(cases))
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 0.5 * len(cases) + 1.6), sharey=True)
    left.barh(places, [case["speedup"] for case in cases], color=OWN)
    left.set_xlabel("samples/s, TRL's SFTTrainer = 1")
    right.barh(places, [case["memory_ratio"] for case in cases], color=OWN)
    right.set_xlabel("peak memory of the process, TRL's SFTTrainer = 1")
    for axes, key in ((left, "speedup"), (right, "memory_ratio")):
        axes.axvline(1, color=PEER, zorder=0, linewidth=6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlim(0, 1.15 * max(1.0, *(case[key] for case in cases)))
        for position, case in zip(places, cases, strict=True):
            axes.text(case[key], position, f" {case[key]:.2f}", va="center")
    left.set_yticks(places, names)
    left.invert_yaxis()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def replaced(text: str, name: str, content: str) -> str:
    """The text with the part between the markers of that name written anew.

    Raises:
        ValueError: a marker is missing.
    """
    begin, end = f"<!-- {name}: written by benchmarks/report.py -->", f"<!-- /{name} -->"
    head, _, rest = text.partition(begin)
    _, marker, tail = rest.partition(end)
    if not marker:
        raise ValueError(f"the text lacks {begin} or {end}")
    return f"{head}{begin}\n\n{content}\n\n{end}{tail}"


def main() -> None:
    """Rewrites the parts, and draws."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--results", type=Path, default=ROOT / "benchmarks" / "results", help="folder of JSON files"
    )
    parser.add_argument(
        "--file", type=Path, default=ROOT / "docs" / "benchmarks.md", help="what to write into"
    )
    arguments = parser.parse_args()
    fp32, bf16 = (load(arguments.results, f"throughput-{dtype}") for dtype in ("fp32", "bf16"))
    text = arguments.file.read_text(encoding="utf-8")
    text = replaced(text, "fp32", throughput_table(fp32))
    text = replaced(text, "bf16", throughput_table(bf16))
    text = replaced(text, "head", head_table(load(arguments.results, "head")))
    text = replaced(text, "gradcache", gradcache_table(load(arguments.results, "gradcache")))
    text = replaced(text, "merge", merge_table(load(arguments.results, "merge")))
    text = replaced(text, "merge-large", merge_table(load(arguments.results, "merge-large")))
    if fp32 is not None and fp32["cases"]:
        picture = arguments.file.with_suffix(".png")
        draw(fp32, picture)
        text = replaced(text, "plot", f"![Speed and memory beside TRL]({picture.name})")
    write_text(arguments.file, text)


if __name__ == "__main__":
    main()
