"""Streams: a run takes the rows that it needs from a stream once, and works on them as on any data set."""

import itertools
import math
from typing import Any

import datasets
import torch
from transformers.utils import logging

from ..arguments.evolution_arguments import EvolutionArguments
from ..errors import SMDError
from ..messages import one_line
from ..models.loading_errors import hub_fault

logger = logging.get_logger(__name__)

EVAL_SAMPLES = 2000
"""Images to report on, where nothing else is said."""

BUFFER_SIZE = 1000
"""Rows that are shuffled among each other, beside the order of the shards."""


def is_stream(dataset: Any) -> bool:
    """Whether a data set gives its rows one after the other, and has no length."""
    return isinstance(dataset, datasets.IterableDataset | torch.utils.data.IterableDataset)


def rows_needed(args: EvolutionArguments) -> int | None:
    """
    How many training images a run needs, so that every generation is scored on other ones; `None` where that is not said.

    It is `fitness_samples_per_generation` times `num_generations`, and the share for selection.
    """
    if not args.fitness_samples_per_generation:
        return None
    return math.ceil(args.fitness_samples_per_generation * args.num_generations / (1 - args.selection_fraction))


def take(stream: Any, count: int, seed: int, what: str, buffer_size: int = BUFFER_SIZE) -> Any:
    """
    The first rows of a shuffled stream, as a data set with a length. The same seed takes the same rows.

    Args:
        stream (`datasets.IterableDataset` or `torch.utils.data.IterableDataset`): the latter is not shuffled.
        count (`int`): how many rows; fewer, with a warning, where the stream ends before.
        buffer_size (`int`, *optional*, defaults to 1000): rows that are read ahead and shuffled among each other.

    Returns:
        `datasets.Dataset`, or a list of rows of a stream of torch.

    Raises:
        `SMDError`: if the stream is empty, or cannot be read.
    """
    try:
        if isinstance(stream, datasets.IterableDataset):
            found: Any = _take_rows(stream.shuffle(seed=seed, buffer_size=buffer_size).take(count))
        else:
            found = list(itertools.islice(iter(stream), count))
    except SMDError:
        raise
    except Exception as error:  # of the network, of files that are no images or no Parquet, of the user's own code
        reason = hub_fault(error) or f"{type(error).__name__}: {one_line(str(error))}"
        raise SMDError(
            f"{what} cannot be streamed ({reason}). Check the network and the data set, and run the command again; or load it "
            "without streaming."
        ) from None
    if len(found) == 0:
        raise SMDError(f"{what} is a stream without rows. Give one with images.")
    if len(found) < count:
        logger.warning(f"{what} has {len(found):,} rows, and {count:,} were asked for: all of them are used.")
    return found


def _take_rows(stream: datasets.IterableDataset) -> datasets.Dataset:
    """Rows with their images as the files they are, not decoded and encoded again."""
    features = stream.features
    images = [name for name, kind in (features or {}).items() if isinstance(kind, datasets.Image)]
    for name in images:
        stream = stream.cast_column(name, datasets.Image(decode=False))
    rows = list(stream)
    if features is None:
        return datasets.Dataset.from_list(rows)
    undecoded = datasets.Features(
        {name: datasets.Image(decode=False) if name in images else kind for name, kind in features.items()}
    )
    taken = datasets.Dataset.from_list(rows, features=undecoded)
    for name in images:
        taken = taken.cast_column(name, features[name])
    return taken


def take_streams(args: EvolutionArguments, train_dataset: Any, eval_dataset: Any) -> tuple[Any, Any]:
    """
    A trainer's data sets, with the rows that the run needs in place of streams.

    Raises:
        `SMDError`: if the number of training images is not known, or a stream cannot be read.
    """
    if is_stream(train_dataset):
        count = rows_needed(args)
        if count is None:
            raise SMDError(
                f"train_dataset is a {type(train_dataset).__name__}, a stream, and nothing says how many of its rows to take. Give "
                "fitness_samples_per_generation, the images that each generation is scored on: the run takes that many for each "
                "generation, and the share for selection, once. Or pass rows: `datasets.Dataset.from_list(list(stream.take(2000)), "
                "features=stream.features)`."
            )
        train_dataset = take(train_dataset, count, args.seed, "train_dataset")
    if is_stream(eval_dataset):
        eval_dataset = take(eval_dataset, EVAL_SAMPLES, args.seed, "eval_dataset")
    elif isinstance(eval_dataset, dict):
        eval_dataset = {
            name: take(each, EVAL_SAMPLES, args.seed, name) if is_stream(each) else each
            for name, each in eval_dataset.items()
        }
    return train_dataset, eval_dataset
