"""Bounds the tokens that one image takes, by the settings that the stock processor itself has for it."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lockadapt.architectures.generic.inputs import StockInputs
from lockadapt.errors import RecipeError
from lockadapt.files import write_json

SHAPES = ((2048, 2048), (3072, 1024), (1024, 3072), (4096, 256), (256, 4096), (640, 480))
"""Width and height of the pictures that are counted: large, long, and of everyday size."""

SETTINGS = (
    "max_soft_tokens",
    "max_image_tokens",
    "max_patches",
    "max_num_tiles",
    "max_tiles",
    "max_image_tiles",
    "max_crops",
    "image_grid_pinpoints",
    "size",
)
"""What processors call their bounds, finest first; any of them may be missing."""

REFINEMENTS = 5
"""Halvings of the interval behind the first value that fits: within three percent of the largest."""

CONFIGS = ("processor_config.json", "preprocessor_config.json")


def limit_image_tokens(processor: Any, limit: int) -> dict[str, Any]:
    """Lowers one setting of a stock processor, in place, until no image takes more tokens than a limit.

    What is lowered is measured: pictures of several shapes are counted before and after.

    Args:
        processor: of a stock VLM; its image processor changes.
        limit: tokens that an image may take, the markers of the class around them not counted.

    Returns:
        The settings that changed, by name; empty where no image took more before.

    Raises:
        RecipeError: no setting of the processor bounds its tokens that far.
    """
    before = most_image_tokens(processor)
    if before <= limit:
        return {}
    counted = _Counted(processor, limit)
    for name in SETTINGS:
        given = getattr(processor.image_processor, name, None)
        if (value := _largest_that_fits(counted, name, given)) is not None:
            setattr(processor.image_processor, name, value)
            return {name: value}
        if given is not None:
            setattr(processor.image_processor, name, given)
    raise RecipeError(
        f"{type(processor.image_processor).__name__} takes up to {before} tokens an image, and no setting of "
        f"it makes that fewer than {min([before, *counted.counts])}",
        where="model.max_image_tokens",
        fix="give a larger number, or leave it out",
    )


def most_image_tokens(processor: Any) -> int:
    """The largest number of tokens that one image of `SHAPES` takes."""
    inputs = StockInputs(copy.copy(processor))
    tokenizer = processor.tokenizer
    counts = []
    for shape in SHAPES:
        ids = tokenizer(inputs.expansions((shape,))[0], add_special_tokens=False)["input_ids"]
        counts.append(ids.count(inputs.token))
    return max(counts)


def write_limits(folder: Path, settings: dict[str, Any]) -> None:
    """Puts lowered settings into the processor's files of a stock folder.

    Args:
        folder: holds `processor_config.json` or `preprocessor_config.json`.
        settings: as `limit_image_tokens` returns them.
    """
    for name in CONFIGS:
        file = folder / name
        if not settings or not file.is_file():
            continue
        content = json.loads(file.read_text(encoding="utf-8"))
        own = content if name == CONFIGS[1] else content.get("image_processor")
        if own is not None:
            # Older files bound pixels under names that Transformers reads before `size`.
            for old in ("max_pixels", "min_pixels"):
                if "size" in settings and old in own:
                    del own[old]
            own.update(settings)
            write_json(file, content)


class _Counted:
    """Tries settings of a processor, and remembers how many tokens they left."""

    def __init__(self, processor: Any, limit: int) -> None:
        self.processor, self.limit = processor, limit
        self.counts: list[int] = []

    def fits(self, name: str, value: Any) -> bool:
        setattr(self.processor.image_processor, name, value)
        try:
            self.counts.append(most_image_tokens(self.processor))
        except Exception:
            # A processor may refuse values that lie between the ones it knows.
            return False
        return self.counts[-1] <= self.limit


def _largest_that_fits(counted: _Counted, name: str, given: Any) -> Any:
    """The largest value of a setting that keeps the limit, found by halving; None if there is none."""
    if name == "image_grid_pinpoints" and given is not None:
        return next((value for value in _fewer_tiles(given) if counted.fits(name, value)), None)
    bounded = (
        hasattr(given, "get") if name == "size" else isinstance(given, int) and not isinstance(given, bool)
    )
    # Only a longest edge bounds what images of every size become; of a fixed square it is the tower's side.
    edge = given.get("longest_edge") if bounded and name == "size" else given
    if not bounded or not edge:
        return None

    def value_of(number: int) -> Any:
        if name != "size":
            return number
        shortest = given.get("shortest_edge")
        smaller = {"longest_edge": number}
        return {**smaller, "shortest_edge": min(shortest, number)} if shortest else smaller

    too_many, fitting = edge, edge // 2
    while fitting and not counted.fits(name, value_of(fitting)):
        too_many, fitting = fitting, fitting // 2
    if not fitting:
        return None
    for _ in range(REFINEMENTS):
        middle = (fitting + too_many) // 2
        if middle in (fitting, too_many):
            break
        if counted.fits(name, value_of(middle)):
            fitting = middle
        else:
            too_many = middle
    return value_of(fitting)


def _fewer_tiles(grids: Sequence[Sequence[int]]) -> Iterator[list[list[int]]]:
    """The grids without the largest ones, without more of them, and so on."""
    areas = sorted({height * width for height, width in grids}, reverse=True)
    for largest in areas[1:]:
        yield [list(grid) for grid in grids if grid[0] * grid[1] <= largest]
