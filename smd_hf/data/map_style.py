"""Map-style data sets: evolution compares all children on the same images in the same batches, so it needs rows by number."""

from typing import Any

import datasets
import torch

from ..errors import SMDError


def check_map_style(dataset: Any, what: str) -> None:
    """
    Refuses streams, and several splits where one is expected.

    Args:
        dataset: what was given; `None` is fine.
    """
    if isinstance(dataset, dict):
        raise SMDError(
            f"{what} is a {type(dataset).__name__} of several splits ({', '.join(map(str, dataset))}); expected one data set. "
            f"Pass one of them, such as {what}=splits[{next(iter(dataset), 'train')!r}]."
        )
    stream = isinstance(dataset, datasets.IterableDataset | torch.utils.data.IterableDataset)
    has_rows = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    if dataset is not None and (stream or not has_rows):
        raise SMDError(
            f"{what} is a {type(dataset).__name__}, which gives its rows one after the other, but all children are compared on the "
            "same images, so expected a data set with a length and rows by number. Take as many rows as you need into memory: "
            f"`{what}=datasets.Dataset.from_list(list(stream.take(2000)), features=stream.features)`, or `list(...)` of any "
            "other iterable; or load the data without streaming=True."
        )
