"""What a run leaves beside its weights: the description of the method for the report, and plots."""

from pathlib import Path
from typing import Any

from .arguments import EvolutionArguments
from .mutation import Mutation
from .plots import plot_calibration_curve, plot_fitness, plot_gain
from .run_state import RunState
from .selection import Fitness


def describe_method(args: EvolutionArguments, mutation: Mutation, run: RunState, parent_name: str) -> dict[str, Any]:
    """What decides on the result, by the names of the arguments, for `gain_report.json`."""
    calibration = run.calibration
    return {
        "parent_name": parent_name,
        "decomposition": args.decomposition,
        "density": mutation.decomposition.density,
        "sigma": args.sigma if calibration is None else calibration.sigma,
        "sigma_units": args.sigma_units,
        "calibration": None if calibration is None else vars(calibration),
        "population_size": args.population_size,
        "num_generations": len(run.generations),
        "recombination": args.recombination,
        "fitness": args.fitness,
        "seed": args.seed,
        "mutable": {"tensors": len(mutation.space.names), "coordinates": mutation.space.total},
    }


def plot_run(run: RunState, report: dict[str, Any], fitness: Fitness, folder: Path) -> None:
    """Writes `gain.png`, `fitness.png` and, where sigma was calibrated, `calibration.png`."""
    plot_gain(report, folder / "gain.png")
    plot_fitness(run.fitness_history(), folder / "fitness.png", label=fitness.label)
    if run.calibration is not None:
        plot_calibration_curve(
            run.calibration.curve, run.calibration.sigma, run.calibration.target, folder / "calibration.png"
        )
