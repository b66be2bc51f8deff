"""Recipes of `five_systems.py rare`: the street teacher's answers by pixels, by channels, both."""

from dataclasses import replace

from stillroom.losses import ChannelKL, SoftKL, Temperature
from stillroom.recipe import Recipe
from stillroom.recipes import RECIPES

_PIXELS = SoftKL(target="street", temperature=Temperature(start=2.0))
_CHANNELS = ChannelKL(target="street", weight=3.0)  # weight and T = 4 of Shu et al. 2021 (CWD)


def _with(name: str, *terms: SoftKL | ChannelKL) -> Recipe:
    recipe = RECIPES["street-few"]()
    return replace(recipe, name=name, terms=(*recipe.terms[:2], *terms))


def pixels() -> Recipe:
    return _with("street-pixels", _PIXELS)


def channels() -> Recipe:
    return _with("street-channels", _CHANNELS)


def both() -> Recipe:
    return _with("street-both", _PIXELS, _CHANNELS)
