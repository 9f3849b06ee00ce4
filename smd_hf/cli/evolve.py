"""`smd-hf evolve`: evolve a pretrained image model and save it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from ..arguments.evolution_arguments import EvolutionArguments
from ..arguments.inherited_arguments import HIDDEN
from ..arguments.script_arguments import DataArguments, ModelArguments, OODArguments
from .dataclass_parsing import CommandParser, required


@dataclass
class ResumeArguments:
    """Parameters that resume a run."""

    resume: bool = field(
        default=False,
        metadata={
            "help": "Continue the run in output_dir, or begin one if there is none yet. (--resume_from_checkpoint continues "
            "from one checkpoint-N.)"
        },
    )


def make_parser() -> CommandParser:
    return CommandParser(
        "evolve",
        (ModelArguments, DataArguments, OODArguments, EvolutionArguments, ResumeArguments),
        "Evolve a pretrained image model on your images by Sparse Mutation Decompositions, with forward passes only.",
        hidden=HIDDEN,
    )


def run(argv: Sequence[str]) -> int:
    """
    Evolves, saves in `output_dir`, and prints the before/after table.

    Args:
        argv (`Sequence[str]`): arguments of [`ModelArguments`], [`DataArguments`], [`OODArguments`], [`EvolutionArguments`] and
            [`ResumeArguments`].

    Raises:
        `SMDError`: for arguments, a model or data that cannot work, before anything is scored; for a push that failed, after
            all is saved and printed.
        `KeyboardInterrupt`, `Terminated`: with a sentence that says what is saved.
    """
    parser = make_parser()
    if not torch.accelerator.is_available():
        argv = [*argv, "--use_cpu"]
    model_args, data_args, ood_args, args, resuming = parser.parse(argv)
    name = required(model_args, "model_name_or_path")
    args.model_init_kwargs = {**(args.model_init_kwargs or {}), **model_args.loading()}
    # This takes seconds to import: help and mistakes in arguments come before it.
    from .evolve_run import evolve

    return evolve(name, model_args, data_args, ood_args, args, resuming.resume)
