"""What tasks check of the data and arguments of a run."""

from collections.abc import Mapping
from typing import Any

from transformers.utils import logging

from ..arguments.evolution_arguments import EvolutionArguments
from ..errors import SMDError
from ..models.tasks import Kind
from .protocol import GivenData, Task, title_of

logger = logging.get_logger(__name__)


def check_rows(given: GivenData, kind: Kind, needs_processor: bool = True) -> dict[str, Any]:
    """
    The data sets by name, after a check that none is empty and, by default, that there is an image processor.

    Raises:
        `SMDError`: if not.
    """
    tests = given.eval_dataset
    splits = {"train_dataset": given.train_dataset} | (tests if isinstance(tests, dict) else {"eval_dataset": tests})
    present = {what: split for what, split in splits.items() if split is not None}
    if not present:
        raise SMDError("There is neither a train_dataset nor an eval_dataset. Give at least one.")
    for what, split in present.items():
        if len(split) == 0:
            raise SMDError(f"{what} is empty. Give at least one image, or check the split and the limits on its size.")
    if needs_processor and given.processing_class is None:
        raise SMDError(
            f"There is no image processor to prepare images for {kind.words}. Pass "
            "processing_class=AutoImageProcessor.from_pretrained(...), or give the model by name."
        )
    return present


def refuse(arguments: Mapping[str, bool], whose: str, task: Task) -> None:
    """
    Raises `SMDError` for arguments that do not apply to a task.

    Args:
        arguments (mapping of `str` to `bool`): by name, whether it is given.
    """
    names = [name for name, is_given in arguments.items() if is_given]
    if names:
        verb, them = ("is", "it") if len(names) == 1 else ("are", "them")
        raise SMDError(
            f"{' and '.join(names)} {verb} for {whose}, and the task is {title_of(task)}. Leave {them} out."
        )


def leave_gauss_newton_out(args: EvolutionArguments, task: Task) -> None:
    """Adds up the fittest children where the loss has no Gauss-Newton step, and none was asked for."""
    if args.recombination == "gauss_newton" and not args.was_chosen("recombination"):
        args.recombine_by("top_k_sum")
        logger.warning(f"Recombination is 'top_k_sum': gauss_newton, the default, does not apply to {title_of(task)}.")


def leave_ensemble_out(args: EvolutionArguments, model: Any, why: str) -> None:
    """For a model whose predictions an ensemble cannot combine: refuses one that was asked for, and leaves the preset's out."""
    if args.asks_for("ensemble_size"):
        raise SMDError(
            f"ensemble_size makes an ensemble, and there is none of {type(model).__name__}: {why}. Leave it out."
        )
    args.ensemble_size = 0


def leave_head_alone(args: EvolutionArguments, task: Task) -> None:
    """For a task without a head to fit: says so where it was asked for and not left to the preset."""
    if args.asks_for("warm_start"):
        logger.warning(f"warm_start re-estimates BatchNorm statistics, but fits no head: {title_of(task)} has none.")
    if args.asks_for("refit_head"):
        logger.warning(f"refit_head fits the head of a classifier, and has no effect on {title_of(task)}.")
    args.refit_head = False
