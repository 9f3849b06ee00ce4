"""What goes into the head, of all images: each process passes its share of the batches through the model once."""

from collections.abc import Callable, Iterable

import numpy as np
import torch

from ...data.batches import Batch, ImageBatches
from ...models.linear_head import HeadInputs
from ...scoring.evaluator import Evaluator


def features_of(
    evaluator: Evaluator,
    head: HeadInputs,
    batches: ImageBatches,
    counting: Callable[[Iterable[Batch]], Iterable[Batch]] = iter,
) -> tuple[np.ndarray, np.ndarray]:
    """
    Features and labels of all images, on every process.

    The model itself is called, not the evaluator's runtime, which returns logits alone.

    Args:
        evaluator ([`Evaluator`]): makes the inputs of a batch, and has the processes that share the work.
        head ([`HeadInputs`]): where the features are recorded.
        batches ([`ImageBatches`]): the images.
        counting (`Callable`, *optional*): passes the batches on and counts them, for a progress bar.

    Returns:
        `tuple` of two `numpy.ndarray`: features, float32, of shape `(n, num_features)`, and labels, int64, of shape `(n,)`, in
        the order of the images.
    """
    processes = evaluator.processes
    mine = range(len(batches))[processes.process_index :: processes.num_processes]

    def work() -> dict[int, tuple[np.ndarray, np.ndarray]]:
        evaluator.model.eval()
        found = {}
        groups = batches.groups(mine, processes.stop.check, eager=True) if len(mine) else ()
        for batch in counting(batch for group in groups for batch in group):
            with head.recorded() as seen, torch.inference_mode(), evaluator.autocast():
                head.model(**evaluator.inputs(batch))
            found[batch.number] = seen[-1].numpy(), batch.labels.cpu().numpy()
        return found

    parts = {number: part for found in processes.gather(work) for number, part in found.items()}
    features, labels = zip(*(parts[number] for number in sorted(parts)))
    return np.concatenate(features), np.concatenate(labels)
