"""What most tests evolve by: one small generation over all weights, whose children a Gauss-Newton step recombines."""

from typing import Any

from smd_hf import EvolutionArguments

PLAIN = {"preset": "smd", "recombination": "auto", "ensemble_size": 0}
"""The preset `smd`, without its ensemble and by a step instead of the best child."""

PLAIN_OPTIONS = tuple(text for name, value in PLAIN.items() for text in (f"--{name}", str(value)))
"""The same on the command line."""


def plain_arguments(output_dir: str, **given: Any) -> EvolutionArguments:
    """[`EvolutionArguments`] beside `PLAIN`."""
    return EvolutionArguments(output_dir, **PLAIN | given)
