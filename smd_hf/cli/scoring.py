"""Scores a model on a data set, with a progress bar: for commands that evaluate."""

from collections.abc import Callable
from typing import Any

import torch

from ..data.batches import ImageBatches
from ..data.pixels import codec_for
from ..data.reading import spare_threads
from ..errors import SMDError
from ..models.inputs import input_names
from ..scoring.bars import ScoringBar
from ..scoring.evaluator import Evaluator
from ..scoring.reading import Reading
from ..scoring.scores import Score


def score_images(
    name: str, model: Any, processor: Any, images: Any, collator: Callable, args: Any, reading: Reading
) -> Score:
    """
    Scores a model, on a GPU if there is one.

    Args:
        name (`str`): of the model, for the bar and messages.
        images, collator: the data set, and what makes batches of its rows.

    Raises:
        `SMDError`: if predictions are not finite.
    """
    use_cpu = args.use_cpu or not torch.accelerator.is_available()
    device = (None if use_cpu else torch.accelerator.current_accelerator()) or torch.device("cpu")
    batches = ImageBatches(
        images,
        collator,
        args.per_device_eval_batch_size,
        num_workers=args.dataloader_num_workers,
        codec=codec_for(processor),
        input_names=input_names(model),
        spare=spare_threads(device),
        keep_labels=reading.keeps_labels,
    )
    evaluator = Evaluator(model.to(device), device, reading=reading)
    evaluator.work = bar = ScoringBar(f"Scoring {name}", shown=not args.disable_tqdm)
    with bar:
        score = evaluator.score_model(batches)
    if not score.finite:
        what = "logits" if reading.keeps_labels else "predictions"
        raise SMDError(
            f"'{name}' gives {what} that are not finite (NaN or infinity) on this data. Check that the checkpoint fits its "
            "image processor, and load it with --dtype float32 if it is in float16."
        )
    return score
