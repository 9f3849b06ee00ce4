"""
Every image is decoded once before anything expensive starts. Unreadable ones are an error, or are left out.

Each process checks a share of the rows, and all get the same result.
"""

from collections.abc import Callable, Mapping
from contextlib import closing
from typing import TYPE_CHECKING, Any

import datasets
from tqdm.auto import tqdm
from transformers.utils import logging

from ..errors import SMDError
from ..messages import one_line
from ..parallel.processes import Processes
from .images import as_tensor, is_processed, to_image
from .reading import ReadAhead, default_threads
from .rows import find_image_column, stored_images

if TYPE_CHECKING:
    from ..arguments.evolution_arguments import EvolutionArguments

logger = logging.get_logger(__name__)

_CHUNK = 16
"""Images that a thread takes at a time: few, so that stopping is fast and small data sets use all threads."""

_SHOWN = 5

CheckRow = Callable[[Mapping[str, Any]], str | None]
"""What is wrong with a row: a sentence, or `None`."""


def check_images(dataset: Any, image_column: str, *, what: str = "train", **options: Any) -> None:
    """Decodes every image once, before anything expensive starts. Takes the arguments of [`bad_images`]."""
    problems = bad_images(dataset, image_column, what=what, **options)
    if problems:
        indices = ", ".join(map(str, list(problems)[:10])) + (", ..." if len(problems) > 10 else "")
        first, reason = next(iter(problems.items()))
        wrong = "cannot be used" if options.get("check_row") else "are not readable images"
        raise SMDError(
            f"{len(problems)} of {len(dataset)} entries of the {what} split {wrong} (index {indices}). At index "
            f"{first}: {reason} Repair or remove these entries, or leave them out of a run with on_bad_images='skip'."
        )


def bad_images(
    dataset: Any,
    image_column: str,
    *,
    what: str = "train",
    processes: Processes | None = None,
    num_workers: int | None = None,
    progress: bool = True,
    check_row: CheckRow | None = None,
) -> dict[int, str]:
    """
    The entries that cannot be read, or whose labels do not fit.

    Args:
        processes ([`Processes`], *optional*): the processes that share the rows. All of them must
            call it. Defaults to this process alone.
        num_workers (`int`, *optional*): threads that read and decode; one for each core, at most 8, by default.
        progress (`bool`, *optional*, defaults to `True`): show a bar once it takes more than two seconds.
        check_row (`Callable`, *optional*): also checks each row as a whole, once its image is known to be readable.

    Returns:
        `dict[int, str]`: by index, in increasing order, what is wrong; the same on every process.
    """
    processes = processes or Processes()
    find_problem = _problem_of_pixel_values if image_column == "pixel_values" else _problem
    read = _reader(dataset, image_column)
    # A transform or data set of the user may draw random numbers.
    repeatable = isinstance(dataset, datasets.Dataset) and image_column in dataset.column_names
    starts = range(0, len(dataset), _CHUNK)[processes.process_index :: processes.num_processes]

    def look() -> dict[int, str]:
        def problems_from(start: int) -> tuple[int, dict[int, str]]:
            values = read(start, min(start + _CHUNK, len(dataset)))
            texts = dict(enumerate(map(find_problem, values), start))
            if check_row is not None:
                texts |= {
                    index: _row_problem(dataset, index, check_row) for index, text in texts.items() if text is None
                }
            return len(values), {index: text for index, text in texts.items() if text is not None}

        found: dict[int, str] = {}
        shown = progress and processes.process_index == 0
        total = sum(min(_CHUNK, len(dataset) - start) for start in starts)
        bar = tqdm(total=total, desc=f"Checking {what} images", unit="image", delay=2, disable=not shown)
        threads = default_threads() if num_workers is None else num_workers
        with (
            bar,
            closing(ReadAhead(problems_from, starts, threads, window=2 * threads, repeatable=repeatable)) as chunks,
        ):
            for count, problems_there in chunks:
                found |= problems_there
                bar.update(count)
                processes.stop.check()
        return found

    problems: dict[int, str] = {}
    for part in processes.gather(look):
        problems |= part
    return dict(sorted(problems.items()))


class ReadableRows:
    """
    Leaves out of data sets the rows whose image cannot be read, where `on_bad_images` is `"skip"`.

    Args:
        processes ([`Processes`], *optional*): the processes that share the rows. Defaults to the
            processes of the arguments.

    Attributes:
        left_out (`dict[str, int]`): how many rows of each data set.
    """

    def __init__(self, args: "EvolutionArguments", processes: Processes | None = None):
        self.args = args
        self.processes = processes or Processes(args.spread, args.process_index, args.world_size)
        self.left_out: dict[str, int] = {}

    def __call__(self, dataset: Any, what: str, check_row: CheckRow | None = None) -> Any:
        """
        The data set, or each of several in a dict, without those rows. Warns with their count and names the first.

        Args:
            dataset: map-style, of `dict` rows; `None` stays `None`.
        """
        if self.args.on_bad_images == "raise" or dataset is None:
            return dataset
        if isinstance(dataset, dict):
            return {name: self(each, name, check_row) for name, each in dataset.items()}
        if len(dataset) == 0:
            return dataset
        column = _image_column(dataset, self.args.image_column_name, what)
        bar = not self.args.disable_tqdm
        problems = bad_images(dataset, column, what=what, processes=self.processes, progress=bar, check_row=check_row)
        self.left_out[what] = self.left_out.get(what, 0) + len(problems)
        if len(problems) == len(dataset):
            raise SMDError(
                f"None of the {len(dataset)} entries of {what} is a readable image. At index 0: {problems[0]} Check the data set "
                "and its image column (image_column_name)."
            )
        if not problems:
            return dataset
        named = "; ".join(f"index {index}: {text.rstrip('.')}" for index, text in list(problems.items())[:_SHOWN])
        more = ", and so on" if len(problems) > _SHOWN else ""
        logger.warning(
            f"{len(problems)} of {len(dataset)} entries of {what} cannot be read and are left out ({named}{more})."
        )
        kept = [index for index in range(len(dataset)) if index not in problems]
        return dataset.select(kept) if isinstance(dataset, datasets.Dataset) else Rows(dataset, kept)


class Rows:
    """Some rows of a data set, in order. Unlike a `Subset` of PyTorch, the other rows are never read, for labels either."""

    def __init__(self, dataset: Any, indices: list[int]):
        self.dataset = dataset
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[self.indices[index]]


def _image_column(dataset: Any, name: str | None, what: str) -> str:
    """The column of images, by types or by the first row that can be read."""
    if isinstance(dataset, datasets.Dataset) and dataset.format["type"] != "custom":
        return find_image_column(dataset, name)
    reason = ""
    for index in range(len(dataset)):
        try:
            row = dataset[index]
        except Exception as error:  # whatever the user's data set raises for this row
            reason = reason or f"{type(error).__name__}: {one_line(str(error))}"
            continue
        return find_image_column([row], name)
    raise SMDError(f"None of the {len(dataset)} entries of {what} can be read ({reason}). Check the data set.")


def _reader(dataset: Any, image_column: str) -> Callable[[int, int], list[Any]]:
    """Reads entries of the image column, not yet decoded where possible; an exception in place of a failing row."""
    if isinstance(dataset, datasets.Dataset) and image_column in dataset.column_names:
        column = stored_images(dataset, image_column)
        return lambda start, end: column[start:end][image_column]

    def read_row(index: int) -> Any:
        try:
            return dataset[index][image_column]
        except Exception as error:  # whatever the user's data set raises for this row
            return error

    return lambda start, end: [read_row(index) for index in range(start, end)]


def _row_problem(dataset: Any, index: int, check_row: CheckRow) -> str | None:
    try:
        return check_row(dataset[index])
    except Exception as error:  # whatever a damaged row raises
        return f"Reading it raises {type(error).__name__}: {one_line(str(error))}."


def _problem(value: Any) -> str | None:
    if isinstance(value, Exception):
        return f"Reading it raises {type(value).__name__}: {one_line(str(value))}."
    try:
        to_image(value)
    except SMDError as error:
        return str(error)
    return None


def _problem_of_pixel_values(value: Any) -> str | None:
    if not is_processed(value):
        return _problem(value)
    tensor = as_tensor(value)
    if tensor.ndim != 3:
        return f"Its pixel_values have the shape {tuple(tensor.shape)}; expected (C, H, W)."
    return None if bool(tensor.isfinite().all()) else "Its pixel_values are not finite."
