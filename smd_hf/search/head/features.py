"""What goes into the head, of all images: each process passes its share of the batches through the model once."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ...data.batches import Batch, ImageBatches
from ...models.linear_head import HeadInputs
from ...models.pixel_head import PixelHeadInputs
from ...models.query_head import QueryHeadInputs
from ...scoring.changes import Change
from ...scoring.evaluator import Evaluator, Variant
from ...scoring.one_pass import one_pass
from ...scoring.reading import Reading
from ...scoring.work import Work

MAX_NUMBERS = 2**25
"""Features of pixels or queries that are kept, at most: fewer of an image where there are many images."""

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
        `tuple` of two `numpy.ndarray`: features, float32, of shape `(n, num_features)`, and labels, int64, of shape `(n,)`, or
        as the task has them, in the order of the images. For a head of pixels, of shape `(n, pixels, num_features)` and `(n, pixels)`;
        for one of queries, with what the model adds to their logits and their boxes, `(n, queries, num_features + 5)` and `(n, most, 5)`.
    """
    num_labels, num_features = head.layer.weight.flatten(1).shape
    # Labels of other tasks come with the batches.
    compiled = evaluator.runtime.name != "eager" and num_features <= MAX_SLICES * num_labels
    if evaluator.reading.keeps_labels and (compiled or not head.is_called):
        return _as_logits(evaluator, head, batches, shown)
    most = max(1, MAX_NUMBERS // (batches.num_images * num_features))

    def visit(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        with head.recorded() as seen, torch.inference_mode(), evaluator.autocast():
            output = head.model(**evaluator.inputs(batch))
        if isinstance(head, PixelHeadInputs):
            return _at_pixels(evaluator.reading, head, seen[-1], output, batch, most)
        if isinstance(head, QueryHeadInputs):
            return _of_queries(evaluator.reading, head, seen[-1], output, batch, most)
        return seen[-1].numpy(), batch.labels.cpu().numpy()

    features, labels = zip(*one_pass(evaluator, batches, visit, shown))
    return np.concatenate(features), np.concatenate(_of_one_length(labels))


def _at_pixels(
    reading: Reading, head: PixelHeadInputs, features: torch.Tensor, output: Any, batch: Batch, most: int
) -> tuple[np.ndarray, np.ndarray]:
    """Features and labels of a batch at the pixels that the task looks at, at most so many of an image."""
    logits = reading.prediction(output)
    # As many channels at a time as there are logits: all of them may be gigabytes at the size of the logits.
    parts = [
        reading.sampled(head.as_logits(channels, logits), batch)[:, :most].cpu()
        for channels in features.split(logits.shape[1], dim=1)
    ]
    return torch.cat(parts, dim=-1).numpy(), reading.sampled_labels(batch)[:, :most].cpu().numpy()


def _of_queries(
    reading: Any, head: QueryHeadInputs, features: torch.Tensor, output: Any, batch: Batch, most: int
) -> tuple[np.ndarray, np.ndarray]:
    """The most confident queries, in their order: features, what is added to logits, and boxes; and the objects of the images."""
    prediction = reading.prediction(output).float()
    count = min(most, prediction.shape[1])
    kept = reading.set_loss.confidence(prediction).topk(count, dim=1).indices.sort(dim=1).values[..., None]
    with torch.inference_mode():
        added = head.added(features, prediction[..., :-4])
    queries = torch.cat([features, added, prediction[..., -4:]], dim=-1)
    return queries.gather(1, kept.expand(-1, -1, queries.shape[-1])).cpu().numpy(), batch.labels.cpu().numpy()


def _of_one_length(labels: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
    """Objects of all batches as many an image: see [`~smd_hf.data.boxes.BoxCollator`]. Other labels as they are."""
    if labels[0].ndim < 3:
        return labels
    most = max(each.shape[1] for each in labels)
    return [np.pad(each, ((0, 0), (0, most - each.shape[1]), (0, 0)), constant_values=-1) for each in labels]


def _as_logits(
    evaluator: Evaluator, head: HeadInputs, batches: ImageBatches, shown: Work | None = None
) -> tuple[np.ndarray, np.ndarray]:
    num_labels, num_features = head.layer.weight.flatten(1).shape

    def rows(start: int) -> Sequence[tuple[str, Change]]:
        weight = torch.zeros((num_labels, num_features))
        here = range(start, min(start + num_labels, num_features))
        weight[range(len(here)), here] = 1.0
        return head.changes({"weight": weight, "bias": torch.zeros(num_labels)})

    starts = range(0, num_features, num_labels)
    changed = frozenset(head.parameter_names)
    variants = [Variant(f"features from {start}", lambda start=start: rows(start), changed) for start in starts]
    with evaluator.aside():
        evaluator.work = shown
        scores = evaluator.score(variants, batches, keep_logits=True)
    features = np.concatenate([score.logits for score in scores], axis=1)[:, :num_features]
    return np.ascontiguousarray(features), batches.labels
