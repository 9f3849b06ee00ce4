"""What goes into the head, of all images: each process passes its share of the batches through the model once."""

from itertools import chain

import numpy as np
import torch

from ...data.batches import ImageBatches
from ...models.linear_head import HeadInputs
from ...scoring.changes import Change
from ...scoring.evaluator import Evaluator, Variant
from ...scoring.work import Work

MAX_SLICES = 4
"""In how many parts a runtime that returns logits alone is asked for features, at most."""


def features_of(
    evaluator: Evaluator,
    head: HeadInputs,
    batches: ImageBatches,
    shown: Work | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """
    Features and labels of all images, on every process. Nothing of it is counted or recorded as scoring.

    A runtime that has compiled the model returns logits alone. Where there are many of them, the rows of the unit matrix take the
    place of the head's weights, and the logits are the features. Else the model itself is called, more slowly.

    Args:
        evaluator ([`Evaluator`]): makes the inputs of a batch, and has the processes that share the work.
        shown ([`Work`], *optional*): is told how far it has come, for a progress bar.

    Returns:
        `tuple` of two `numpy.ndarray`: features, float32, of shape `(n, num_features)`, and labels, int64, of shape `(n,)`, in
        the order of the images.
    """
    num_labels, num_features = head.layer.weight.flatten(1).shape
    if evaluator.runtime.name != "eager" and num_features <= MAX_SLICES * num_labels:
        return _as_logits(evaluator, head, batches, shown)
    processes = evaluator.processes
    mine = range(len(batches))[processes.process_index :: processes.num_processes]

    def work() -> dict[int, tuple[np.ndarray, np.ndarray]]:
        evaluator.model.eval()
        found = {}
        groups = batches.groups(mine, processes.stop.check, eager=True) if len(mine) else ()
        for batch in chain.from_iterable(groups):
            with head.recorded() as seen, torch.inference_mode(), evaluator.autocast():
                head.model(**evaluator.inputs(batch))
            if shown is not None:
                shown.advance(len(batch) * processes.num_processes)
            found[batch.number] = seen[-1].numpy(), batch.labels.cpu().numpy()
        return found

    if shown is not None:
        shown.begin(batches.num_images, 0)
    parts = {number: part for found in processes.gather(work) for number, part in found.items()}
    features, labels = zip(*(parts[number] for number in sorted(parts)))
    return np.concatenate(features), np.concatenate(labels)


def _as_logits(
    evaluator: Evaluator, head: HeadInputs, batches: ImageBatches, shown: Work | None = None
) -> tuple[np.ndarray, np.ndarray]:
    num_labels, num_features = head.layer.weight.flatten(1).shape

    def rows(start: int) -> list[tuple[str, Change]]:
        weight = torch.zeros((num_labels, num_features))
        here = range(start, min(start + num_labels, num_features))
        weight[range(len(here)), here] = 1.0
        new = {"weight": weight, "bias": torch.zeros(num_labels)}
        return [
            (f"{head.name}.{name}", (None, new[name].to(old).view_as(old)))
            for name, old in head.layer.named_parameters()
        ]

    starts = range(0, num_features, num_labels)
    changed = frozenset(head.parameter_names)
    variants = [Variant(f"features from {start}", lambda start=start: rows(start), changed) for start in starts]
    with evaluator.aside():
        evaluator.work = shown
        scores = evaluator.score(variants, batches, keep_logits=True)
    features = np.concatenate([score.logits for score in scores], axis=1)[:, :num_features]
    return np.ascontiguousarray(features), batches.labels
