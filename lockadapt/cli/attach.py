"""`lockadapt attach --check`: whether an adapter belongs on a base."""

from __future__ import annotations

import json

import typer

from lockadapt.errors import RecipeError


def attach(
    model: str = typer.Argument(help="Folder or Hub id of the stock model."),
    adapter: str = typer.Argument(help="Run folder, exported adapter folder, or Hub id of one."),
    check: bool = typer.Option(False, "--check", help="Say whether the adapter fits; nothing is written."),
    force_base: bool = typer.Option(False, "--force-base", help="Another base or tokenizer does not count."),
    as_json: bool = typer.Option(
        False, "--json", help="One JSON object on stdout, also where it does not fit."
    ),
) -> None:
    """Check that class, base, tokenizer and every tensor of an adapter fit a stock model."""
    if not check:
        raise RecipeError(
            "attaching happens in a live process; here it can only be checked",
            where="attach",
            fix="add --check, or call lockadapt.attach(model, adapter) from Python",
        )
    from lockadapt.attaching.check import check as look

    found = look(model, adapter, force_base=force_base)
    if as_json:
        print(json.dumps(found.report))
    elif found.error is None:
        print("fits")
        for key in ("base", "tokenizer", "not_compared"):
            for line in found.report[key]:
                print(f"  {key.replace('_', ' ')}: {line}")
    if found.error is not None:
        raise found.error
