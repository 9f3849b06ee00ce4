"""What `smd-hf evolve` does once its arguments are read."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers.trainer_utils import get_last_checkpoint

from ..arguments.evolution_arguments import EvolutionArguments
from ..arguments.script_arguments import DataArguments, ModelArguments, OODArguments
from ..data.splits import load_ood_images, load_splits
from ..data.streaming import rows_needed
from ..errors import SMDError
from ..metrics.absent_classes import absent_lines
from ..metrics.ood import ood_lines
from ..parallel.stopping import Terminated
from ..reports.front import front_lines
from ..reports.gain_report import format_table
from ..reports.steps import steps_lines
from ..run.limits import stopped_sentence
from ..run.records import HEADER_NAME, LEDGER_NAME
from ..run.run_task import task_of_run
from ..tasks.registry import is_classification
from ..trainer import EvolutionTrainer
from .parsing import hub_token
from .terminal import quiet_libraries


def evolve(
    name: str,
    model_args: ModelArguments,
    data_args: DataArguments,
    ood_args: OODArguments,
    args: EvolutionArguments,
    resume: bool,
) -> int:
    """Evolves, saves in `output_dir`, and prints the before/after table: 0 if all that was asked was done."""
    if data_args.streaming and data_args.max_train_samples is None:
        data_args.max_train_samples = rows_needed(args)
    quiet_libraries()

    with hub_token(model_args.token):
        task = task_of_run(args, name)
        train, validation = load_splits(
            **asdict(data_args),
            image_column_name=args.image_column_name,
            label_column_name=args.label_column_name,
            seed=args.seed,
            cache_dir=model_args.cache_dir,
            classified=is_classification(task),
            unlabeled=args.unlabeled,
        )
        ood_images = load_ood_images(
            **asdict(ood_args),
            image_column_name=args.image_column_name,
            seed=args.seed,
            cache_dir=model_args.cache_dir,
        )
        images: dict[str, Any] = {"train_dataset": train, "eval_dataset": validation, "ood_dataset": ood_images}
        trainer = EvolutionTrainer(name, args, **images)
        if data_args.dataset_name is not None and not Path(data_args.dataset_name).exists():
            trainer.dataset_name = data_args.dataset_name
        try:
            trainer.train(resume_from_checkpoint=args.resume_from_checkpoint or resume)
        except (KeyboardInterrupt, Terminated) as stopped:
            kind = Terminated if isinstance(stopped, Terminated) else KeyboardInterrupt
            raise kind(what_is_saved(trainer)) from None

    if not trainer.is_world_process_zero() or trainer.report is None:
        return 0
    print(f"\n{format_table(trainer.report)}\n")
    for line in steps_lines(trainer.report):
        print(line)
    for line in absent_lines(trainer.report.get("absent_classes")):
        print(line)
    if trainer.stopped is not None:
        print(stopped_sentence(trainer.stopped))
    print(f"The evolved model is in {args.output_dir}: {trainer.task.kind.auto_class}.from_pretrained loads it.")
    print(f"Next to it: gain_report.json (all numbers), children.jsonl (every child), {_figures(args.output_dir)}.")
    for line in (*front_lines(trainer.front), *ood_lines(trainer.ood_report)):
        print(line)
    for address in trainer.pushed.values():
        print(f"Pushed to {address}")
    if trainer.push_failure is not None:
        raise SMDError(trainer.push_failure)
    return 0


def has_run(folder: Path) -> bool:
    """Whether a folder holds the ledger or a checkpoint of a run."""
    return (folder / LEDGER_NAME / HEADER_NAME).is_file() or (
        folder.is_dir() and get_last_checkpoint(folder) is not None
    )


def what_is_saved(trainer: EvolutionTrainer) -> str:
    """What a stopped run has saved, and how to continue."""
    done, planned = trainer.state.global_step, trainer.args.num_generations
    if not has_run(Path(trainer.args.output_dir or ".")):
        return "Nothing was saved."
    return (
        f"{done} of {planned} generations were finished, and what was scored since is kept. The same command with --resume "
        "continues the run."
    )


def _figures(folder: str | None) -> str:
    return ", ".join(sorted(path.name for path in Path(folder or ".").glob("*.png")))
