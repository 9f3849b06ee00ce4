"""
How many images fit into memory at once: found by trying, before anything is scored, and then fixed for the whole run.

Which images share a batch may change the last bits of their logits, so a size that changed in the midst of a run would
change its results. With `auto_find_batch_size`, accelerate's finder halves the size until one batch goes through the model as
children will; of several processes all take the smallest. Without it, a size that does not fit ends the run with its name.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import wraps
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import find_executable_batch_size
from accelerate.utils.memory import should_reduce_batch_size
from transformers.utils import logging

from ..errors import SMDError
from ..messages import one_line
from ..parallel.processes import Processes
from ..scoring.changes import applied
from ..scoring.evaluator import Evaluator
from ..scoring.prefix_replay import PrefixReplay

if TYPE_CHECKING:
    from ..arguments.evolution_arguments import EvolutionArguments
    from ..trainer import EvolutionTrainer

logger = logging.get_logger(__name__)

# As accelerate's finder knows it.
_NO_MEMORY = "DefaultCPUAllocator: can't allocate memory"

# Of C++, and of oneDNN, which computes convolutions on CPUs and does not say why it could not: a lack of memory as a rule.
_OTHER_SIGNS = (
    "bad_alloc",
    "could not create a primitive",
    "could not execute a primitive",
    "could not create a memory object",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is about memory that could not be had, on any device, or was made of such a one."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, RuntimeError) and (
        should_reduce_batch_size(error) or any(sign in str(error) for sign in _OTHER_SIGNS)
    ):
        return True
    return error.__cause__ is not None and is_out_of_memory(error.__cause__)


@contextmanager
def memory_is_told(args: "EvolutionArguments") -> Iterator[None]:
    """
    Within it, a lack of memory is an error that names the batch size.

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


def tells_of_memory(method: Callable) -> Callable:
    """A method of an object with `args`, under [`memory_is_told`]."""

    @wraps(method)
    def told(self: Any, *args: Any, **kwargs: Any) -> Any:
        with memory_is_told(self.args):
            return method(self, *args, **kwargs)

    return told


def largest_fitting(size: int, attempt: Callable[[int], None], processes: Processes) -> int:
    """
    The largest of a size, its half, its quarter and so on that fits into the memory of every process.

    Args:
        size (`int`): the first to be tried, in images.
        attempt (`Callable`): runs a batch of so many images; raises what the library raises where they do not fit.
        processes ([`Processes`]): the processes of the run. All of them must call it.

    Raises:
        `SMDError`: if not even one image fits.
    """
    current = size

    def halve() -> int:
        nonlocal current
        current //= 2
        return current

    @find_executable_batch_size(starting_batch_size=size, reduce_batch_size_fn=halve)
    def fitting(batch_size: int) -> int:
        try:
            attempt(batch_size)
        except (RuntimeError, MemoryError) as error:
            raise RuntimeError(_NO_MEMORY) if is_out_of_memory(error) else error from None
        return batch_size

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


def settle_batch_size(trainer: "EvolutionTrainer") -> dict[str, int] | None:
    """
    With `auto_find_batch_size`, sets `per_device_eval_batch_size` to the largest that fits; before anything is put in batches.

    Args:
        trainer ([`EvolutionTrainer`]): with its model on the device, and its collator.

    Returns:
        `dict` or `None`: the sizes `asked` for and `found`, for the report; `None` where none was to be found.

    Raises:
        `SMDError`: if not even one image fits.
    """
    args = trainer.args
    dataset = trainer.reported_dataset if trainer.train_dataset is None else trainer.train_dataset
    if not args.auto_find_batch_size or dataset is None:
        return None
    asked, devices = args.per_device_eval_batch_size, max(1, args.n_gpu)
    # Passes of children over recorded prefixes need more than others: all that was recorded.
    replays = args.prefix_replay and (args.decomposition == "blocks" or bool(args.mutable_parameters))
    memory_format = torch.channels_last if args.channels_last else torch.preserve_format
    evaluator = Evaluator(
        trainer.model,
        args.device,
        trainer.autocast_smart_context_manager,
        prefix_replay=False,
        memory_format=memory_format,
    )

    def attempt(size: int) -> None:
        rows = np.resize(np.arange(len(dataset)), devices * size)
        [batch] = trainer._batches(dataset, rows, 0.0)
        child = [(name, (None, tensor.detach().clone())) for name, tensor in evaluator.parameters.items()]
        replay = PrefixReplay(trainer.model) if replays else None
        trainer.model.eval()
        with applied(evaluator.parameters, child), nullcontext() if replay is None else replay.record():
            evaluator.forward(evaluator.inputs(batch))
        if replay is not None:
            replay.clear()

    found = largest_fitting(asked, attempt, Processes(args.spread, args.process_index, args.world_size))
    args.per_device_eval_batch_size = found
    log = logger.info if found == asked else logger.warning
    log(f"auto_find_batch_size: of {asked} images at once, {found} fit into memory. The whole run goes by this size.")
    return {"asked": asked, "found": found}
