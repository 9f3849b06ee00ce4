"""One pass of a model over images that is no scoring: each process takes its share of the batches."""

from collections.abc import Callable
from itertools import chain
from typing import TypeVar

from ..data.batches import Batch, ImageBatches
from .evaluator import Evaluator
from .work import Work

T = TypeVar("T")


def one_pass(
    evaluator: Evaluator, batches: ImageBatches, visit: Callable[[Batch], T], shown: Work | None = None
) -> list[T]:
    """
    What a visit of each batch returns, in the order of the batches, on every process. Nothing of it is counted or recorded.

    Args:
        evaluator ([`Evaluator`]): has the model, which is in eval mode, and the processes that share the work.
        visit (`Callable`): calls the model, without gradients and in the evaluator's precision.
        shown ([`Work`], *optional*): is told how far it has come, for a progress bar.
    """
    processes = evaluator.processes
    mine = range(len(batches))[processes.process_index :: processes.num_processes]

    def work() -> dict[int, T]:
        evaluator.model.eval()
        found = {}
        groups = batches.groups(mine, processes.stop.check, eager=True) if len(mine) else ()
        for batch in chain.from_iterable(groups):
            found[batch.number] = visit(batch)
            evaluator.freed.after(len(batch))  # what visits return is kept amid it, and holes add up
            if shown is not None:
                shown.advance(len(batch) * processes.num_processes)
        evaluator.freed.give_back()
        return found

    if shown is not None:
        shown.begin(batches.num_images, 0)
    parts = {number: part for found in processes.gather(work) for number, part in found.items()}
    return [parts[number] for number in sorted(parts)]
