"""`lockadapt attach --check`: check whether an adapter fits a base model."""

from __future__ import annotations

import json

import typer

from lockadapt.console import emit
from lockadapt.errors import RecipeError


def attach(
    model: str = typer.Argument(help="Folder or Hub id of the base model."),
    adapter: str = typer.Argument(help="Run folder, exported adapter folder, or Hub id of one."),
    check: bool = typer.Option(False, "--check", help="Check whether the adapter fits; writes nothing."),
    force_base: bool = typer.Option(
        False, "--force-base", help="Ignore differences in base weights and tokenizer."
    ),
    as_json: bool = typer.Option(
        False, "--json", help="Print one JSON object on stdout, even if the adapter does not fit."
    ),
) -> None:
    """Check that model class, base weights, tokenizer and every tensor of an adapter fit a model."""
    if not check:
        raise RecipeError(
            "attaching needs a live model; the command line can only check",
            where="attach",
            fix="add --check, or call lockadapt.attach(model, adapter) from Python",
        )
    from lockadapt.attaching.check import check as look

    fit = look(model, adapter, force_base=force_base)
    if as_json:
        emit(json.dumps(fit.report))
    elif fit.error is None:
        emit("fits")
        for key in ("base", "tokenizer", "not_compared"):
            for line in fit.report[key]:
                emit(f"  {key.replace('_', ' ')}: {line}")
    if fit.error is not None:
        raise fit.error
