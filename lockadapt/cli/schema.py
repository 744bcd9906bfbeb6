"""`lockadapt schema`: print the JSON schema of recipes, for editors."""

from __future__ import annotations

import json

from lockadapt.console import emit


def schema() -> None:
    """Print the JSON schema of recipes."""
    from lockadapt.recipe.explain import json_schema

    emit(json.dumps(json_schema(), indent=2))
