"""`EvolutionArguments`: `TrainingArguments`, and the parameters that evolution adds to them."""

import copy
import json
import warnings
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from ..errors import SMDError
from .checks import against_importance, check_evolution_arguments, measured_names
from .choices import Preset, Recombination
from .label_map import read_label_map
from .method_arguments import (
    FitnessArguments,
    MutationArguments,
    PopulationArguments,
    RecombinationArguments,
    WarmStartArguments,
)
from .recipes import BY_PRESET, read_recipe, recipe_beside
from .run_arguments import ArtifactArguments, ImageArguments, ScoringArguments, TaskArguments

DERIVED = (
    *("max_steps", "num_train_epochs", "remove_unused_columns", "save_only_model", "debug"),
    "include_num_input_tokens_seen",
)
"""Arguments that a run sets itself, or that have no effect and another default on the command line."""


@dataclass
class EvolutionArguments(
    ArtifactArguments,
    ScoringArguments,
    ImageArguments,
    TaskArguments,
    RecombinationArguments,
    FitnessArguments,
    MutationArguments,
    WarmStartArguments,
    PopulationArguments,
    TrainingArguments,
):
    """
    The arguments of an [`EvolutionTrainer`].

    They are those of [`~transformers.TrainingArguments`], of which the ones about gradients have no effect (see `inherited_arguments`), and:

    > Parameters that control the population and how long it evolves: [`PopulationArguments`]
    > Parameters that control how the classifier head is fitted, before the first generation and in each: [`WarmStartArguments`]
    > Parameters that control the mutation and the subspaces that it is cut into: [`MutationArguments`]
    > Parameters that control the fitness, and which images it is measured on: [`FitnessArguments`]
    > Parameters that control how scored children become the next parent: [`RecombinationArguments`]
    > Parameters that choose the task, and say what labels are in tasks other than single-label classification: [`TaskArguments`]
    > Parameters that control the images, their labels, and a new head for them: [`ImageArguments`]
    > Parameters that control how children are scored: [`ScoringArguments`]
    > Parameters that control what a run leaves, and what it pushes: [`ArtifactArguments`]

    One generation is one step: `logging_steps`, `eval_steps` and `save_steps` count generations.
    `per_device_eval_batch_size` is the batch size of all scoring; `auto_find_batch_size` halves it until it fits into memory.

    Args:
        preset (`str`, *optional*, defaults to `"adapt"`): a recipe of the package: values for the arguments that are
            `None` unless given. A value that is given overrides the recipe's, and those of the recipe that do not go with it are
            left out. `smd-hf presets` lists them.
        model_init_kwargs (`dict` or JSON `str`, *optional*): how a model given by name is loaded: `revision`,
            `trust_remote_code`, `dtype`, `cache_dir`.

    Raises:
        `SMDError`: for a value outside its range, or for choices that do not go together.
    """

    _argument_group_name = "Parameters that choose a recipe and load the model"

    preset: Preset = field(
        default="adapt",
        metadata={
            "help": "A recipe: values for the arguments below that say so; what is given overrides them. adapt: for a checkpoint that "
            "meets images from another source, a few generations of Gauss-Newton steps over the norms, and the head fitted on the "
            "features. smd: the method as the paper has it, one generation over all weights, the best child and an ensemble."
        },
    )
    logging_steps: float = field(default=1, metadata={"help": "Log every this many generations."})
    model_init_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "How a model given by name is loaded: revision, trust_remote_code, dtype, cache_dir. Never a token: log in, "
            "or set HF_TOKEN."
        },
    )

    def __post_init__(self):
        for name in ("model_init_kwargs", "metric_kwargs"):
            if isinstance(getattr(self, name), str):
                setattr(self, name, _json_object(name, getattr(self, name)))
        if self.label_map is not None:
            # Resuming and reports use its content, not its path.
            self.label_map = read_label_map(self.label_map)
        # Trainer fills in many arguments below, so what was chosen is recorded here.
        self._chosen = {argument.name for argument in fields(self) if _differs(argument, getattr(self, argument.name))}
        if self.objective is not None:
            self._rename_objective()
        self._read_recipe()
        self._imply()
        check_evolution_arguments(self)
        self.max_steps = self.num_generations
        self.num_train_epochs = self.num_generations
        self.save_children = max(self.save_children, self.push_children)
        super().__post_init__()
        self._settled = self.to_dict()

    def _read_recipe(self) -> None:
        """Gives the preset's values to the arguments that it sets, where none was given."""
        left_open = BY_PRESET - self._chosen
        others = {each.name: getattr(self, each.name) for each in fields(self) if each.name not in left_open}
        for name, value in recipe_beside(self.preset, others).items():
            setattr(self, name, value)

    def _rename_objective(self) -> None:
        warnings.warn("The argument `objective` is now called `loss`.", FutureWarning, stacklevel=5)
        self._follow({"loss": self.objective, "objective": None})
        self._chosen.discard("objective")

    def _imply(self) -> None:
        """Settles the choices that were left open and follow from others."""
        several = self.objectives is not None
        if self.unlabeled and not self.was_chosen("fitness"):
            self.fitness = "information"
        if self.unlabeled and not self.was_chosen("ensemble_selection"):
            self.ensemble_selection = "top_k"
        if self.recombination == "auto":
            # The losers of a race have not seen all images, which a Gauss-Newton step needs.
            best = self.racing == "halving" or self.mutation == "prune" or several
            self._chosen.discard("recombination")
            self.recombination = "best" if best else "gauss_newton"
        self.recombine_by(self.recombination)
        if against_importance(self) and not self.was_chosen("fitness_sampling"):
            self.fitness_sampling = "balanced"
        if several and "fitness" not in self._chosen:
            # Logs and plots show one of them.
            self._follow({"fitness": next(iter(measured_names(self.objectives or ())), self.fitness)})

    def recombine_by(self, name: Recombination) -> None:
        """Takes a recombination, with as many of the fittest children as suit it if their number was not given."""
        self.recombination = name
        if name != "gauss_newton" and not self.was_chosen("recombination_top_k"):
            few = read_recipe("smd")["recombination_top_k"]
            self.recombination_top_k = max(1, self.population_size // 2) if name == "top_k_sum" else few

    def _follow(self, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            setattr(self, name, copy.copy(value))
        self._chosen.update(values)

    @property
    def n_gpu(self) -> int:
        """GPUs of this process, at most 1: Trainer's `DataParallel` would multiply the batch and keep all weights on one."""
        return min(super().n_gpu, 1)

    @property
    def idle_gpus(self) -> int:
        """GPUs that this process sees and does not use; 0 under a launcher."""
        return super().n_gpu - self.n_gpu

    @property
    def directions(self) -> int:
        """How many subspaces a generation has: one a child, or one a mirrored pair."""
        return self.population_size // 2 if self.mirrored else self.population_size

    def was_chosen(self, name: str) -> bool:
        """Whether an argument was given, and not left to its default or to the preset."""
        return name in self._chosen

    def asks_for(self, name: str) -> bool:
        """Whether an argument was given, and not left to the preset, and is neither off nor 0."""
        return self.was_chosen(name) and bool(getattr(self, name))

    @property
    def folder(self) -> Path:
        """`output_dir` as a path."""
        return Path(str(self.output_dir))

    def non_default(self) -> dict[str, Any]:
        """The arguments that were chosen, by the preset, at the start or since, as JSON values and without tokens."""
        chosen = {"preset", *BY_PRESET, *self._chosen}
        return {
            name: value
            for name, value in self.to_dict().items()
            if (name in chosen or value != self._settled[name]) and name not in DERIVED and not name.endswith("_token")
        }


def _json_object(name: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise SMDError(f'{name} is not JSON ({error}). Give an object, such as \'{{"revision": "main"}}\'.') from error
    if not isinstance(value, dict):
        raise SMDError(
            f'{name} is {type(value).__name__}; expected a JSON object, such as \'{{"revision": "main"}}\'.'
        )
    return value


def _differs(argument: Field, value: Any) -> bool:
    """Whether the value of an argument is another one than its default."""
    return value != (argument.default if argument.default_factory is MISSING else argument.default_factory())
