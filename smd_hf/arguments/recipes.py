"""Recipes: files of arguments that ship with the package, which `preset` names."""

import copy
import itertools
from collections.abc import Mapping
from dataclasses import field
from functools import lru_cache
from importlib import resources
from typing import Any

import yaml

from ..errors import SMDError
from .choices import OODMetric, Preset, names

PRESETS = names(Preset)


@lru_cache
def _file(preset: str) -> tuple[str, dict[str, Any]]:
    """The text of a recipe's file, and the arguments that it sets."""
    text = (resources.files("smd_hf") / "recipes" / f"{preset}.yaml").read_text(encoding="utf-8")
    return text, yaml.safe_load(text)


def read_recipe(preset: str) -> dict[str, Any]:
    """
    The arguments that a preset stands for. All presets set the same ones.

    Args:
        preset (`str`): the name of a file in `smd_hf/recipes`, without its ending.

    Raises:
        `SMDError`: if there is no such preset.
    """
    if preset not in PRESETS:
        raise SMDError(f"preset='{preset}' is not one of {', '.join(PRESETS)}.")
    return copy.deepcopy(_file(preset)[1])


BY_PRESET = frozenset(read_recipe("smd"))
"""The arguments whose default is the preset's value."""


def describe_recipe(preset: str) -> str:
    """What a recipe is for: the comment that its file begins with, on one line."""
    comments = itertools.takewhile(lambda line: line.startswith("#"), _file(preset)[0].splitlines())
    return " ".join(line.lstrip("# ") for line in comments)


def from_preset(name: str, text: str) -> Any:
    """A field of a dataclass whose default is the preset's value: `None` until the arguments are made. The help names the values."""
    values = ", ".join(f"{_shown(read_recipe(preset)[name])} ({preset})" for preset in PRESETS)
    return field(default=None, metadata={"help": f"{text} Default, by preset: {values}."})


def recipe_beside(preset: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """
    The values of a preset for what was not given. Where they do not go with what was given, they are those of the preset `smd`.

    Args:
        preset (`str`): its name.
        given (mapping): the values of all other arguments, by name.
    """
    recipe, plain = read_recipe(preset), read_recipe("smd")
    yields: set[str] = set()
    if given["mutation"] == "prune":
        yields |= recipe.keys() - {
            "population_size",
            "num_generations",
            "fitness_samples_per_generation",
            "ensemble_size",
        }
    if given["sigma_units"] != "relative":
        yields |= {"sigma"}
    if given["fitness"] in names(OODMetric):
        yields |= {"warm_start", "refit_head"}
    if given["unlabeled"]:
        # A child that scales a tensor is more confident, which information takes for better.
        yields |= {"scaling_share", "refit_head"}
    if given.get("decomposition", recipe["decomposition"]) != "blocks":
        yields |= {"allocation"}
    if given["objectives"] is not None and given.get("selection_fraction") == 0:
        yields |= {"fitness_samples_per_generation"}
    values = recipe | {name: plain[name] for name in yields} | dict(given)
    values["ensemble_size"] = min(values["ensemble_size"], values["population_size"])
    return {name: values[name] for name in recipe if name not in given}


def _shown(value: Any) -> str:
    return " ".join(value) if isinstance(value, list) else str(value)
