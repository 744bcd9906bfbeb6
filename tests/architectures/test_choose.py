"""What a recipe asks for is found among the architectures, or refused with what there is."""

from __future__ import annotations

import pytest
import transformers as hf

from lockadapt.architectures import ARCHITECTURES
from lockadapt.architectures.choose import Wish, choices, choose, fusion_names
from lockadapt.errors import AssemblyError, RecipeError
from lockadapt.recipe.models import ModelSection

SOURCES = {"llm": "llm", "tower": "tower"}


def test_the_tower_decides_between_those_that_offer_a_fusion() -> None:
    candidates = choices(Wish("mlp"))
    config = hf.LlamaConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=9
    )
    llm = hf.LlamaForCausalLM(config)
    kinds = {
        kind: choose(candidates, kind, "tower", llm, None).architecture.model_class.__name__
        for kind in ("tokens", "feature-map")
    }
    assert kinds == {
        "tokens": "LlavaForConditionalGeneration",
        "feature-map": "FastVlmForConditionalGeneration",
    }
    with pytest.raises(AssemblyError, match="takes towers that return tokens or feature-map"):
        choose(candidates, "sound", "tower", llm, None)


def test_only_one_class_generates_images() -> None:
    assert [
        choice.architecture.generates_images for choice in choices(Wish("mlp", generates_images=True))
    ] == [True]
    assert sum(architecture.generates_images for architecture in ARCHITECTURES) == 1


@pytest.mark.parametrize(
    ("wish", "where", "message"),
    [
        (Wish("mpl"), "model.fusion", "no fusion 'mpl'"),
        (Wish("mlp", factor=2), "model.factor", "makes a token of every patch"),
    ],
)
def test_what_is_not_offered(wish: Wish, where: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        choices(wish)
    assert caught.value.where == where
    with pytest.raises(ValueError, match=message):
        ModelSection(**SOURCES, fusion=wish.fusion, factor=wish.factor)


@pytest.mark.parametrize("name", fusion_names())
def test_every_fusion_is_a_value_of_the_recipe(name: str) -> None:
    assert ModelSection(**SOURCES, fusion=name).fusion == name
