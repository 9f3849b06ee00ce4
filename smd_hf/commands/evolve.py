"""`smd-hf evolve`: evolve an image classifier and save it."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from transformers.trainer_utils import get_last_checkpoint

from ..arguments import EvolutionArguments
from ..errors import SMDError
from ..report import format_table
from ..script_arguments import DataArguments, ModelArguments
from ..splits import load_splits
from ..trainer import EvolutionTrainer
from .parsing import CommandParser, hub_token, required
from .terminal import quiet_libraries


def run(argv: Sequence[str]) -> int:
    """
    Evolves, saves in `output_dir`, and prints the before/after table.

    Args:
        argv (`Sequence[str]`): arguments of [`ModelArguments`], [`DataArguments`] and [`EvolutionArguments`].

    Raises:
        `SMDError`: for arguments, a model or data that cannot work, before anything is scored; for a push that failed, after
            all is saved and printed.
        `KeyboardInterrupt`: with a sentence that says what is saved.
    """
    parser = CommandParser(
        "evolve",
        (ModelArguments, DataArguments, EvolutionArguments),
        "Evolve a pretrained image classifier on your images by Sparse Mutation Decompositions, with forward passes only.",
    )
    if not torch.accelerator.is_available():
        argv = [*argv, "--use_cpu"]
    model_args, data_args, args = parser.parse(argv)
    name = required(model_args, "model_name_or_path")
    args.model_init_kwargs = {**(args.model_init_kwargs or {}), **model_args.loading()}
    quiet_libraries()

    with hub_token(model_args.token):
        train, validation = load_splits(
            **asdict(data_args),
            image_column_name=args.image_column_name,
            label_column_name=args.label_column_name,
            seed=args.seed,
            cache_dir=model_args.cache_dir,
        )
        trainer = EvolutionTrainer(name, args, train_dataset=train, eval_dataset=validation)
        if data_args.dataset_name is not None and not Path(data_args.dataset_name).exists():
            trainer.dataset_name = data_args.dataset_name
        try:
            trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(what_is_saved(trainer)) from None

    if not trainer.is_world_process_zero():
        return 0
    print(f"\n{format_table(trainer.report)}\n")
    print(f"The evolved model is in {args.output_dir}: AutoModelForImageClassification.from_pretrained loads it.")
    print(f"Beside it: gain_report.json (all numbers), children.jsonl (every child), {_figures(args.output_dir)}.")
    for address in trainer.pushed.values():
        print(f"Pushed to {address}")
    if trainer.push_failure is not None:
        raise SMDError(trainer.push_failure)
    return 0


def what_is_saved(trainer: EvolutionTrainer) -> str:
    """What a run that was stopped has left behind, and how to go on."""
    done, folder = trainer.state.global_step, trainer.args.output_dir
    text = f"{done} of {trainer.args.num_generations} generations were finished"
    checkpoint = get_last_checkpoint(folder)
    if checkpoint is None or int(Path(checkpoint).name.rpartition("-")[2]) > done:
        return f"{text}, no checkpoint was saved (--save_steps 1 saves one a generation)."
    return f"{text}; go on with --resume_from_checkpoint {checkpoint}"


def _figures(folder: str) -> str:
    return ", ".join(sorted(path.name for path in Path(folder).glob("*.png")))
