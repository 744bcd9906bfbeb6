"""`lockadapt assemble`: join a frozen LLM and a frozen vision tower into one model folder."""

from __future__ import annotations

import json

import typer

from lockadapt.console import emit


def assemble(
    llm: str = typer.Option(..., "--llm", help="Folder or Hub id of a causal language model."),
    tower: str = typer.Option(..., "--tower", help="Folder or Hub id of a vision tower."),
    output: str = typer.Option(..., "--output", "-o", help="Output folder; must be new or empty."),
    fusion: str = typer.Option(
        None, "--fusion", help="Projector: mlp (default), linear, or another; a wrong name lists them."
    ),
    factor: int = typer.Option(
        None, "--factor", help="Patches on a side that become one token, for projectors that merge patches."
    ),
    max_tiles: int = typer.Option(
        None, "--max-tiles", help="The most tiles of an image, for the projector `tiles`."
    ),
    queries: int = typer.Option(
        None,
        "--queries",
        help="Tokens that an image becomes, for projectors that read it with learned queries.",
    ),
    image_size: int = typer.Option(
        None, "--image-size", help="Side of the square to which images are resized, in pixels."
    ),
    feature_layer: list[int] = typer.Option(
        [-2],
        "--feature-layer",
        help="Hidden layer of a token tower to project; repeat it to project several side by side.",
    ),
    dtype: str = typer.Option("auto", "--dtype", help="auto, float32, bfloat16 or float16."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object on stdout."),
) -> None:
    """Join an LLM and a vision tower with an untrained projector, and verify that neither has changed."""
    from lockadapt.architectures.assemble import assemble as build

    result = build(
        llm,
        tower,
        output,
        fusion_name=fusion,
        factor=factor,
        max_tiles=max_tiles,
        queries=queries,
        image_size=image_size,
        feature_layer=feature_layer[0] if len(feature_layer) == 1 else feature_layer,
        dtype=dtype,
    )
    report = result.report.to_dict()
    emit(json.dumps({"output": output, **report}) if as_json else output)
