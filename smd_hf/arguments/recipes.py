"""Recipes: files of arguments that ship with the package, which `preset` names."""

import itertools
from importlib import resources
from typing import Any

import yaml

from ..errors import SMDError
from .choices import Preset, names

PRESETS = names(Preset)


def read_recipe(preset: str) -> dict[str, Any]:
    """
    The arguments that a preset stands for.

    Args:
        preset (`str`): the name of a file in `smd_hf/recipes`, without its ending.
    """
    if preset not in PRESETS:
        raise SMDError(f"preset='{preset}' is not one of {', '.join(PRESETS)}.")
    return yaml.safe_load((resources.files("smd_hf") / "recipes" / f"{preset}.yaml").read_text(encoding="utf-8"))


def describe_recipe(preset: str) -> str:
    """What a recipe is for: the comment that its file begins with, on one line."""
    text = (resources.files("smd_hf") / "recipes" / f"{preset}.yaml").read_text(encoding="utf-8")
    comments = itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())
    return " ".join(line.lstrip("# ") for line in comments)
