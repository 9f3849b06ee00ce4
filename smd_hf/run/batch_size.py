"""
How many images fit into memory at once: found by trying, before anything is scored, and fixed for the whole run.

The images that share a batch can change the last bits of each other's logits, so a size that changed during a run would change
its results. With `auto_find_batch_size`, accelerate's finder halves the size until one batch goes through the model as it will
for children; all processes take the smallest size found. Without it, a size that does not fit ends the run with an error.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from accelerate.utils import find_executable_batch_size
from accelerate.utils.memory import should_reduce_batch_size
from transformers.utils import logging

from ..arguments.evolution_arguments import EvolutionArguments
from ..data.batches import ImageBatches
from ..errors import SMDError
from ..messages import one_line
from ..parallel.processes import Processes
from ..scoring.changes import applied
from ..scoring.evaluator import Evaluator
from ..scoring.prefix_replay import PrefixReplay

logger = logging.get_logger(__name__)

# A text that accelerate's finder takes for a lack of memory.
_NO_MEMORY = "DefaultCPUAllocator: can't allocate memory"

# C++, and oneDNN, which computes convolutions on CPUs and does not say why it failed: usually for lack of memory.
_OTHER_SIGNS = (
    "bad_alloc",
    "could not create a primitive",
    "could not execute a primitive",
    "could not create a memory object",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or one that it was raised from, is a lack of memory on any device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, RuntimeError) and (
        should_reduce_batch_size(error) or any(sign in str(error) for sign in _OTHER_SIGNS)
    ):
        return True
    return error.__cause__ is not None and is_out_of_memory(error.__cause__)


@contextmanager
def explain_oom(args: EvolutionArguments) -> Iterator[None]:
    """
    Within the context, a lack of memory becomes an error that names the batch size.

    Raises:
        `SMDError`: in place of what the library raises.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise SMDError(
            f"There is not enough memory to score {args.eval_batch_size} images at once ({one_line(str(error), 160)}). Set "
            f"per_device_eval_batch_size below {args.per_device_eval_batch_size}, or auto_find_batch_size to have it halved until "
            "it fits; image_cache_gb and child_cache_gb say how much else is kept in memory."
        ) from error


def largest_fitting(size: int, attempt: Callable[[int], None], processes: Processes) -> int:
    """
    The largest of a size, its half, its quarter and so on that fits into the memory of every process.

    Args:
        attempt (`Callable`): runs a batch of that many images. Raises the library's error if they do not fit.
        processes ([`Processes`]): the processes of the run. All of them must call it.

    Raises:
        `SMDError`: if not even one image fits.
    """
    current = size

    def halve() -> int:
        nonlocal current
        current //= 2
        return current

    def fits(batch_size: int) -> int:
        try:
            attempt(batch_size)
        except (RuntimeError, MemoryError) as error:
            raise RuntimeError(_NO_MEMORY) if is_out_of_memory(error) else error from None
        return batch_size

    fitting: Any = find_executable_batch_size(fits, size, halve)

    def find() -> int:
        try:
            return fitting()
        except RuntimeError as error:
            if current > 0:
                raise
            raise SMDError(
                "auto_find_batch_size has found no batch size: not even one image at a time goes through the model. Free memory, "
                "choose a smaller model, load it in half precision (dtype='bfloat16'), or lower child_cache_gb."
            ) from error

    return min(processes.gather(find))


def settle_batch_size(
    args: EvolutionArguments,
    evaluator: Evaluator,
    make_batches: Callable[..., ImageBatches],
    dataset: Any | None,
) -> dict[str, int] | None:
    """
    With `auto_find_batch_size`, sets `per_device_eval_batch_size` to the largest size that fits into memory.

    All processes of the evaluator must call it. The images to try are those of the data set.

    Returns:
        `dict` or `None`: the sizes `asked` and `found`, for the report. `None` if no size was to be found.

    Raises:
        `SMDError`: if not even one image fits.
    """
    if not args.auto_find_batch_size or dataset is None:
        return None
    model = evaluator.model
    asked, devices = args.per_device_eval_batch_size, max(1, args.n_gpu)
    # Passes of children over recorded prefixes need the most memory: that of the whole recording too.
    replays = args.prefix_replay and (args.decomposition == "blocks" or args.mutable_parameters != ["all"])

    def attempt(size: int) -> None:
        [batch] = make_batches(dataset, np.resize(np.arange(len(dataset)), devices * size))
        child = [(name, (None, tensor.detach().clone())) for name, tensor in evaluator.parameters.items()]
        replay = PrefixReplay(model) if replays else None
        model.eval()
        with applied(evaluator.parameters, child), nullcontext() if replay is None else replay.record():
            evaluator.forward(evaluator.inputs(batch))
        if replay is not None:
            replay.clear()

    found = largest_fitting(asked, attempt, evaluator.processes)
    args.per_device_eval_batch_size = found
    log = logger.info if found == asked else logger.warning
    log(f"auto_find_batch_size: of {asked} images at once, {found} fit into memory. The whole run uses this size.")
    return {"asked": asked, "found": found}
