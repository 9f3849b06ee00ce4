"""Every choice of a run: `TrainingArguments`, and what evolution adds to them."""

import copy
import json
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any

from transformers import TrainingArguments

from .argument_checks import check_evolution_arguments, implied_arguments
from .data.label_map import read_label_map
from .errors import SMDError
from .objectives import OBJECTIVES
from .presets import PRESETS
from .strategies import RECOMBINATIONS
from .subspaces import DECOMPOSITIONS

DERIVED = ("max_steps", "num_train_epochs", "remove_unused_columns", "debug", "include_num_input_tokens_seen")
"""Arguments that a run sets itself, or that are of no meaning here and have another default on the command line."""


@dataclass
class EvolutionArguments(TrainingArguments):
    """
    Arguments of an [`EvolutionTrainer`]: those of `TrainingArguments`, of which the ones about gradients have no effect
    (see [`inherited_arguments`]), and those below. One generation is one step: `logging_steps`, `eval_steps` and `save_steps` count generations, and
    `per_device_eval_batch_size` is the batch size of all scoring, which `auto_find_batch_size` halves until it fits into memory.

    Raises:
        `SMDError`: for a value outside its range, or for choices that do not go together.
    """

    preset: str | None = field(
        default=None,
        metadata={
            "help": "Several choices in one; what is given beside it still holds. adapt: for a checkpoint that meets images from "
            "another source: five generations of Gauss-Newton steps over norm parameters and head.",
            "choices": list(PRESETS),
        },
    )
    population_size: int = field(default=16, metadata={"help": "Children a generation, 2 at the least."})
    num_generations: int = field(default=1, metadata={"help": "How many generations to evolve."})
    max_forward_passes: float | None = field(
        default=None,
        metadata={
            "help": "Begin no generation that would take the run beyond so many passes of the model over the fitness images."
        },
    )
    max_hours: float | None = field(
        default=None, metadata={"help": "Evolve for so many hours at the most, then keep the best so far."}
    )
    decomposition: str = field(
        default="partition",
        metadata={
            "help": "How a dense mutation is cut into one subspace per child: dense, random, antirandom, partition, blocks.",
            "choices": list(DECOMPOSITIONS),
        },
    )
    density: float | None = field(
        default=None,
        metadata={
            "help": "Share of the mutable coordinates that a child changes, in (0, 1]. The decomposition's own by default: "
            "1/16 for random; of its blocks' coordinates, all, for blocks. The others have no choice."
        },
    )
    subspace_schedule: str = field(
        default="dynamic",
        metadata={
            "help": "dynamic draws new masks and new noise every generation; static keeps the masks and draws new noise.",
            "choices": ["dynamic", "static"],
        },
    )
    sigma: float | None = field(
        default=None,
        metadata={
            "help": "Mutation strength. None: calibrated before the first generation, by bisection, so that a child flips "
            "calibration_target of the predictions."
        },
    )
    sigma_units: str = field(
        default="relative",
        metadata={
            "help": "relative: sigma times each tensor's standard deviation; absolute: sigma itself.",
            "choices": ["relative", "absolute"],
        },
    )
    sigma_schedule: str = field(
        default="constant",
        metadata={
            "help": "Sigma over generations: constant; linear or cosine, falling towards 0.",
            "choices": ["constant", "linear", "cosine"],
        },
    )
    calibration_target: float = field(
        default=0.03, metadata={"help": "Share of predictions that a child flips when sigma is calibrated, in (0, 1)."}
    )
    calibration_samples: int = field(
        default=256, metadata={"help": "How many fitness images the calibration of sigma looks at."}
    )
    match_norm: bool = field(
        default=False,
        metadata={"help": "Divide sigma by sqrt(density): children of every density are equally far from the parent."},
    )
    mutation: str = field(
        default="noise",
        metadata={
            "help": "What a child's coordinates become: noise adds Gaussian noise; prune sets them to zero, without a sigma, and "
            "with recombination best. A child that is pruned and no worse takes the parent's place (--no_elitism: also a worse one).",
            "choices": ["noise", "prune"],
        },
    )
    scaling_share: float = field(
        default=0.0,
        metadata={
            "help": "Share of the children, in [0, 1), that multiply whole tensors by 1 + sigma or 1 - sigma instead of adding noise: "
            "one tensor each, where they are enough for it. They go far where the parent is too sure of itself."
        },
    )
    mirrored: bool = field(
        default=False,
        metadata={
            "help": "Children in pairs, parent plus and parent minus the same mutation. Needs an even population."
        },
    )
    mutable_parameters: list[str] | None = field(
        default=None,
        metadata={
            "help": "What may change: the groups all, norms, biases, head, or shell-style patterns over parameter names. "
            "Everything by default."
        },
    )
    frozen_parameters: list[str] | None = field(
        default=None, metadata={"help": "What may not change, of the above: groups or patterns likewise."}
    )
    fitness: str = field(
        default="nll",
        metadata={
            "help": "What children are scored by: nll, accuracy, error, macro_f1, balanced_accuracy, top_5_accuracy (or another "
            "number), calibration_error, expected_cost (with cost_matrix), ood_auroc or ood_energy_auroc (with a second data set: "
            "how well confidence tells its images from the first one's), or a key that compute_metrics or metric_name_or_path returns."
        },
    )
    objectives: list[str] | None = field(
        default=None,
        metadata={
            "help": "Two or more numbers to choose children by at once, in place of fitness: what fitness takes, and "
            "mutated_fraction (share of weights that are not the first parent's) or zero_fraction (share that is zero). The next "
            "parent is one that no other candidate beats in all of them, and the front of such models is saved. Not objective, "
            "which is what a gauss_newton step lowers. Needs the extra smd_hf[pareto]."
        },
    )
    fitness_greater_is_better: bool | None = field(
        default=None,
        metadata={
            "help": "Direction of a fitness that compute_metrics returns. By default lower is better for keys that end in nll, "
            "loss, error, perplexity, distance, cost, mse, mae or brier_score, and greater for all others."
        },
    )
    metric_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "A metric of `evaluate`: the path of its script, or its name on the Hub, which needs trust_remote_code. Its "
            "first key is the fitness where no other is chosen."
        },
    )
    metric_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": 'Options of that metric as JSON, such as {"average": "macro"}.'},
    )
    fitness_samples_per_generation: int | None = field(
        default=None,
        metadata={
            "help": "Score each generation on so many fitness images alone, drawn evenly over the classes, and on others in the "
            "next, until all have been seen. All in every generation by default."
        },
    )
    selection_fraction: float = field(
        default=0.2,
        metadata={
            "help": "Share of train_dataset set aside, stratified by class, to choose among finished candidates; in [0, 1). "
            "With 0 the fitness data choose, and the report says so."
        },
    )
    recombination: str = field(
        default="gauss_newton",
        metadata={
            "help": "How scored children become the next parent: gauss_newton takes a step of second order in the span of all "
            "(or the fittest child, where that is better); best takes the fittest; top_k_mean averages the fittest; greedy_soup "
            "averages those of the fittest that help.",
            "choices": list(RECOMBINATIONS),
        },
    )
    recombination_top_k: int = field(
        default=4,
        metadata={
            "help": "best: how many of the fittest children are scored again on the selection split, which chooses one. "
            "top_k_mean: how many are averaged. greedy_soup: how many are tried. gauss_newton: how many are tried beside the step. "
            "With objectives, the fittest are those that no other child dominates."
        },
    )
    objective: str = field(
        default="cross_entropy",
        metadata={
            "help": "What a gauss_newton step lowers (not objectives, which children are chosen by): cross_entropy (with label_smoothing_factor and class_weights), focal, "
            "ordinal, expected_cost (with cost_matrix).",
            "choices": list(OBJECTIVES),
        },
    )
    class_weights: list[float] | None = field(
        default=None, metadata={"help": "For objective cross_entropy: what an image of each class counts."}
    )
    cost_matrix: str | None = field(
        default=None,
        metadata={
            "help": "For objective expected_cost: a JSON list of rows, in row i and column j what it costs to call an image of "
            "class i a j."
        },
    )
    elitism: bool = field(
        default=True,
        metadata={
            "help": "Keep the parent unless a candidate is better on the selection split (--no_elitism: never keep it)."
        },
    )
    ensemble_size: int = field(
        default=0,
        metadata={
            "help": "Also leave an ensemble of so many children of the last generation in output_dir/ensemble; 0: none."
        },
    )
    ensemble_selection: str = field(
        default="greedy",
        metadata={
            "help": "How its members are chosen, on the selection split: top_k by fitness; all; greedy forward selection with "
            "replacement (Caruana 2004); front: of the front of objectives, ensemble_size at the most.",
            "choices": ["top_k", "all", "greedy", "front"],
        },
    )
    ensemble_combination: str = field(
        default="mean_probabilities",
        metadata={
            "help": "How the ensemble combines its members: mean_probabilities, mean_logits or majority_vote.",
            "choices": ["mean_probabilities", "mean_logits", "majority_vote"],
        },
    )
    save_children: int = field(
        default=0,
        metadata={
            "help": "Also leave so many of the last generation's fittest children as deltas in output_dir/children."
        },
    )
    push_ensemble: bool = field(
        default=False, metadata={"help": "With push_to_hub, also push the ensemble, to {hub_model_id}-ensemble."}
    )
    push_children: int = field(
        default=0,
        metadata={"help": "With push_to_hub, also push so many of the fittest children, to {hub_model_id}-children."},
    )
    image_column_name: str | None = field(
        default=None, metadata={"help": "The column of images. Found by its type or usual name by default."}
    )
    label_column_name: str | None = field(
        default=None, metadata={"help": "The column of labels. Found by its type or usual name by default."}
    )
    on_bad_images: str = field(
        default="raise",
        metadata={
            "help": "What becomes of rows whose image cannot be read: raise ends the run before anything is scored; skip leaves "
            "them out before anything is split, with a warning, and counts them in the report.",
            "choices": ["raise", "skip"],
        },
    )
    label_map: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Which of the model's classes a label of the data set means: a JSON or CSV file (or a JSON object) from the "
            "data set's label to the model's label or class index. Other labels are matched by name, synonym and WordNet id."
        },
    )
    head_init: str | None = field(
        default=None,
        metadata={
            "help": "Where the data set's labels are not the model's: linear_probe replaces the classifier by a logistic "
            "regression on frozen features (no back-propagation), random by random weights, keep raises an error. By default "
            "linear_probe where no label is one of the model's, and an error where some are and some are not.",
            "choices": ["linear_probe", "random", "keep"],
        },
    )
    allocation: str = field(
        default="uniform",
        metadata={
            "help": "Children per block under decomposition blocks: uniform, or cost: more where the blocks from there to the "
            "logits cost less to run (counted in operations, so that it is the same on every machine).",
            "choices": ["uniform", "cost"],
        },
    )
    racing: str = field(
        default="none",
        metadata={
            "help": "halving: children are scored on more and more of the fitness images, and after each round the better "
            "half by NLL goes on, down to recombination_top_k at the least. none: all see all images.",
            "choices": ["none", "halving"],
        },
    )
    prefix_replay: bool = field(
        default=True,
        metadata={
            "help": "Begin a child's pass at the first block it changes; exact. (--no_prefix_replay: always whole passes.)"
        },
    )
    spread: str = field(
        default="auto",
        metadata={
            "help": "Over several processes: data gives each a share of the images, children a share of the children, auto "
            "whichever is done sooner. The results are the same bytes.",
            "choices": ["auto", "data", "children"],
        },
    )
    image_cache_gb: float = field(
        default=2.0,
        metadata={
            "help": "Memory for decoded images, in GB, in each process; kept as uint8 where that is exact. Within it, an image "
            "is decoded once in a run, else once a generation."
        },
    )
    image_cache_on_device: bool = field(
        default=False, metadata={"help": "Keep decoded images in the accelerator's memory instead of the host's."}
    )
    child_cache_gb: float = field(
        default=1.0,
        metadata={
            "help": "Memory for the weights of children while prefixes are replayed or images are still being read, in GB; "
            "beyond it they are made anew for each batch."
        },
    )
    reading_threads: int | None = field(
        default=None,
        metadata={
            "help": "Threads that decode and resize images ahead of scoring, where dataloader_num_workers is 0. By default one for "
            "each core, at most 8; while the model runs, only as many as it leaves cores idle. 0: none, each batch is read when "
            "it is needed, by the thread that scores."
        },
    )
    channels_last: bool = field(
        default=False,
        metadata={
            "help": "Run the model in channels_last memory format: often faster for convolutions in half precision."
        },
    )
    logging_steps: float = field(default=1, metadata={"help": "Log every so many generations."})
    model_init_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "What loads a model given by name: revision, trust_remote_code, dtype, cache_dir. Never a token: log in, or "
            "set HF_TOKEN."
        },
    )

    def __new__(cls, *args: Any, **kwargs: Any) -> "EvolutionArguments":
        made = super().__new__(cls)
        names = [argument.name for argument in fields(cls) if argument.init]
        given = {*names[: len(args)], *kwargs}
        # `HfArgumentParser` gives all, whether they were on its command line or not.
        made._given = given if len(given) < len(names) else set()
        return made

    def __post_init__(self):
        for name in ("model_init_kwargs", "metric_kwargs"):
            if isinstance(getattr(self, name), str):
                setattr(self, name, _json_object(name, getattr(self, name)))
        if self.label_map is not None:
            # Its content, not its place, is what a run is resumed with and reported by.
            self.label_map = read_label_map(self.label_map)
        # Trainer fills in many arguments below: what was chosen shows only here.
        self._chosen = {argument.name for argument in fields(self) if _differs(argument, getattr(self, argument.name))}
        if self.preset is not None:
            if self.preset not in PRESETS:
                raise SMDError(f"preset='{self.preset}' is not one of {', '.join(PRESETS)}.")
            self._follow(PRESETS[self.preset])
        self._follow(implied_arguments(self))
        check_evolution_arguments(self)
        self.max_steps = self.num_generations
        self.num_train_epochs = self.num_generations
        self.save_children = max(self.save_children, self.push_children)
        super().__post_init__()
        self._settled = self.to_dict()

    def _follow(self, values: Mapping[str, Any]) -> None:
        """Takes values for the arguments that were not given, be it with their defaults."""
        for name, value in values.items():
            if name not in self._chosen | self._given:
                setattr(self, name, copy.copy(value))
        self._chosen.update(values)

    @property
    def n_gpu(self) -> int:
        """GPUs of this process, 1 at most: Trainer's `DataParallel` would multiply the batch and keep all weights on one."""
        return min(super().n_gpu, 1)

    @property
    def idle_gpus(self) -> int:
        """GPUs that are visible to this process beside the one that it uses; 0 under a launcher."""
        return super().n_gpu - self.n_gpu

    @property
    def directions(self) -> int:
        """How many subspaces a generation has: one a child, or one a mirrored pair."""
        return self.population_size // 2 if self.mirrored else self.population_size

    def was_chosen(self, name: str) -> bool:
        """Whether an argument was given, itself or by a preset."""
        return name in self._chosen

    def non_default(self) -> dict[str, Any]:
        """The arguments that were chosen, at the start or since, as JSON values and without tokens."""
        return {
            name: value
            for name, value in self.to_dict().items()
            if (name in self._chosen or value != self._settled[name])
            and name not in DERIVED
            and not name.endswith("_token")
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
