"""Refuses what works in a [`~transformers.Trainer`] but not in an evolution, before anything is scored."""

from collections.abc import Callable
from typing import Any

from transformers import PreTrainedModel, Trainer, set_seed
from transformers.trainer_utils import enable_full_determinism, number_of_arguments
from transformers.utils import logging

from ..arguments.evolution_arguments import EvolutionArguments
from ..arguments.inherited_arguments import check_not_sharded, switch_off, warn_of_idle_gpus, warn_of_ignored_arguments
from ..data.map_style import check_map_style
from ..errors import SMDError
from ..files import check_output_dir

logger = logging.get_logger(__name__)

NEVER_CALLED = {
    "get_train_dataloader": (
        "The images that score children are the rows of train_dataset, through data_collator, in a fixed order: put what the "
        "method does into these two."
    ),
    "training_step": (
        "A step is a generation: change what it aims at with fitness, objective or compute_loss_func, and act between steps in a "
        "callback (on_step_begin, on_step_end)."
    ),
}
"""Methods of Trainer that decide what training does. An evolution never calls them, so overriding one is an error."""

PARTLY_CALLED = {
    "compute_loss": (
        "only evaluate() and predict() call it; pass compute_loss_func for what a gauss_newton step lowers, compute_metrics and "
        "fitness for what children are scored by"
    ),
    "prediction_step": (
        "only evaluate() and predict() call it; children are scored by the model's logits: change inputs in data_collator, scores "
        "in compute_metrics"
    ),
    "get_eval_dataloader": "only evaluate() calls it; the report reads the rows of eval_dataset through data_collator",
    "get_test_dataloader": "only predict() calls it; the report reads the rows of eval_dataset through data_collator",
    "create_optimizer": "an evolution has no optimizer",
    "create_scheduler": "an evolution has no learning rate: see sigma_schedule",
    "create_optimizer_and_scheduler": "an evolution has neither",
}
"""Methods that only evaluation calls, or nothing at all. Overriding one is a warning."""


def check_overrides(kind: type[Trainer], evolution_trainer: type[Trainer]) -> None:
    """
    Checks which methods a subclass overrides that are not called.

    Args:
        kind (`type`): the class of the trainer that is made.

    Raises:
        `SMDError`: for one that decides what the training does.
    """

    def overridden(name: str) -> bool:
        return getattr(kind, name) is not getattr(evolution_trainer, name)

    for name, instead in NEVER_CALLED.items():
        if overridden(name):
            raise SMDError(f"{kind.__name__} overrides {name}, which EvolutionTrainer never calls. {instead}")
    partly = [f"{name} ({what})" for name, what in PARTLY_CALLED.items() if overridden(name)]
    if partly:
        logger.warning(f"{kind.__name__} overrides methods that do not take part in scoring: {'; '.join(partly)}.")


def check_no_optimizer(optimizers: tuple[Any, Any], optimizer_cls_and_kwargs: tuple[Any, Any] | None) -> None:
    """Refuses an optimizer or a scheduler, which nothing would use."""
    given = "optimizers" if any(each is not None for each in optimizers or ()) else None
    given = "optimizer_cls_and_kwargs" if optimizer_cls_and_kwargs is not None else given
    if given is not None:
        raise SMDError(
            f"{given} is given, but an evolution takes no gradients and has no optimizer: children are made by noise of strength "
            "sigma. Leave it out; sigma and sigma_schedule stand in for the learning rate. To alternate gradient steps and "
            "generations, use Trainer with an EvolutionCallback."
        )


def called_model_init(
    model: Any | None, model_init: Callable[..., PreTrainedModel] | None, args: EvolutionArguments
) -> Any:
    """
    The parent: the model given, or the result of `model_init`, which is called once and seeded as in Trainer.

    Raises:
        `SMDError`: for both or neither, or a `model_init` that returns nothing.
    """
    if (model is None) == (model_init is None):
        given = "Both model and model_init are" if model is not None else "Neither model nor model_init is"
        raise SMDError(
            f"{given} given. Pass one: a model, the id or folder of one, or a function that returns a trained model."
        )
    if model_init is None:
        return model
    enable_full_determinism(args.seed) if args.full_determinism else set_seed(args.seed)
    made = model_init() if number_of_arguments(model_init) == 0 else model_init(None)
    if made is None:
        raise SMDError("model_init returned None; expected a model. Does it end in `return model`?")
    return made


def check_datasets(train_dataset: Any, eval_dataset: Any, ood_dataset: Any) -> None:
    """Refuses data sets that have no rows by index ([`check_map_style`])."""
    several = eval_dataset if isinstance(eval_dataset, dict) else {"eval_dataset": eval_dataset}
    for what, dataset in {"train_dataset": train_dataset, "ood_dataset": ood_dataset, **several}.items():
        check_map_style(dataset, what)


def settle_arguments(args: EvolutionArguments) -> None:
    """
    Checks again what may have changed since the arguments were made, and warns of arguments without effect.

    Raises:
        `SMDError`: for an `output_dir` that cannot be written, FSDP or DeepSpeed.
    """
    check_not_sharded(args)
    if args.should_save:
        check_output_dir(args.folder)
    warn_of_ignored_arguments(args)
    switch_off(args)
    # Evolution has no optimizer, and its random numbers are keyed: a checkpoint needs no further state.
    args.save_only_model = True
    warn_of_idle_gpus(args)
