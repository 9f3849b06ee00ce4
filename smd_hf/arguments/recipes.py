"""Several choices under one name: the values of `EvolutionArguments.preset`."""

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    "adapt": {
        "population_size": 96,
        "num_generations": 5,
        "fitness_samples_per_generation": 825,
        "decomposition": "blocks",
        "allocation": "cost",
        "mutable_parameters": ["norms", "head"],
        "scaling_share": 0.6,
        "sigma": 0.05,
        "recombination": "gauss_newton",
        "recombination_top_k": 1,
        "selection_fraction": 0.1,
    }
}
"""What each `preset` stands for. The numbers of `adapt` are what `examples/studies/settings.py` chose."""
