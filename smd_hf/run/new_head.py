"""A new head for a data set whose labels are not the model's."""

import numpy as np
from transformers import PreTrainedModel

from ..arguments.evolution_arguments import EvolutionArguments
from ..errors import SMDError
from ..models.heads import replace_head
from ..scoring.bars import TickingBar
from .run_images import RunImages


def fit_new_head(model: PreTrainedModel, names: list[str], images: RunImages, args: EvolutionArguments) -> str:
    """
    Replaces the model's head, in place, by one for other classes, and returns how it was made.

    By default it is a linear probe that is fitted on the fitness images; with `head_init="random"`, it is not trained.

    Raises:
        `SMDError`: if a linear probe is wanted and there are no fitness images.
    """
    head_init = "random" if args.head_init == "random" else "linear_probe"
    if head_init == "linear_probe" and images.train_dataset is None:
        raise SMDError("The head is to be replaced by a linear probe, which needs a train_dataset to be fitted on.")
    # A random head takes from them only the shape of its input.
    trains = images.train_dataset is not None
    source = images.fitness if trains else images.make_batches(images.test_dataset, np.arange(1))
    shown = not args.disable_tqdm and args.process_index == 0
    # The fit that follows the last image counts nothing, but the time goes on.
    with TickingBar(f"Fitting a head for {len(names)} labels", shown, source.num_images) as bar:
        batches = (
            (batch.inputs(args.device, model.dtype), batch.labels.to(args.device)) for batch in bar.counting(source)
        )
        replace_head(model, names, batches, head_init=head_init, seed=args.seed)
    return head_init
