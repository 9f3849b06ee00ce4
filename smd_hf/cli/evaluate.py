"""`smd-hf evaluate`: score a model, or compare two on the same images."""

from collections.abc import Sequence
from pathlib import Path

from ..arguments.evaluation_arguments import EvaluationArguments
from ..arguments.script_arguments import DataArguments, ModelArguments
from ..files import check_output_dir
from .dataclass_parsing import CommandParser, required


def make_parser() -> CommandParser:
    return CommandParser(
        "evaluate",
        (ModelArguments, DataArguments, EvaluationArguments),
        "Score an image model on labelled images, or compare it with another one on the same images.",
    )


def run(argv: Sequence[str]) -> int:
    """Prints accuracy, NLL and calibration error, or the metrics of another task; with `--against`, the paired comparison."""
    parser = make_parser()
    model_args, data_args, args = parser.parse(argv)
    models = [required(model_args, "model_name_or_path")] + ([args.against] if args.against is not None else [])
    if args.output_file is not None:
        check_output_dir(Path(args.output_file).parent)
    # This takes seconds to import: help and mistakes in arguments come before it.
    from .evaluate_run import evaluate

    return evaluate(models, model_args, data_args, args)
