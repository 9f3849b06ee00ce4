"""
Classes of the model without an image in the data: what a gain owes to no longer predicting them.

A model of 1,000 classes that meets images of 199 can gain much by learning which classes do not come. That is a gain from the
class prior, and another user's images may have other classes. So models are also compared with predictions restricted to
the classes at hand, where nothing is to be gained that way.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .statistics import Comparison, compare


def classes_at_hand(labels: np.ndarray, others: Sequence[int] | np.ndarray = ()) -> np.ndarray:
    """The classes that have an image, among these labels or others: sorted, int64."""
    return np.union1d(np.asarray(labels, dtype=np.int64), np.asarray(others, dtype=np.int64))


def predicted_elsewhere(logits: np.ndarray, at_hand: np.ndarray) -> float:
    """The share of images, 0 to 1, whose prediction is none of the classes at hand."""
    return float(1 - np.isin(logits.argmax(axis=1), at_hand).mean())


def restricted(logits: np.ndarray, labels: np.ndarray, at_hand: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logits of shape `(n, len(at_hand))` of the classes at hand alone, and labels in their numbering."""
    return logits[:, at_hand], np.searchsorted(at_hand, labels)


def compare_restricted(
    logits_baseline: np.ndarray,
    logits_candidate: np.ndarray,
    labels: np.ndarray,
    at_hand: np.ndarray,
    *,
    names: tuple[str, str] = ("parent", "evolved"),
    seed: int = 0,
) -> Comparison | None:
    """
    Two models on the same images, with predictions restricted to the classes at hand.

    Args:
        logits_baseline, logits_candidate (`np.ndarray` of shape `(n, classes)`): of all classes; the models may differ in how many.
        labels (`np.ndarray` of shape `(n,)`): integers, all among `at_hand`.
        at_hand (`np.ndarray`): as [`classes_at_hand`] returns them.
        names (`tuple[str, str]`, *optional*), seed (`int`, *optional*): as for [`~statistics.compare`].

    Returns:
        [`Comparison`] or `None`: `None` where both models have no other classes, or there is one class alone.
    """
    if len(at_hand) < 2 or max(logits_baseline.shape[1], logits_candidate.shape[1]) <= len(at_hand):
        return None
    (first, places), (second, _) = (restricted(each, labels, at_hand) for each in (logits_baseline, logits_candidate))
    return compare(first, second, places, names=names, seed=seed)


def absent_lines(entry: Mapping[str, Any] | None) -> list[str]:
    """What the terminal is told of classes without an image: `absent_classes` of a gain report, if it has any."""
    if entry is None:
        return []
    scores, difference = entry["restricted"], entry["restricted"]["difference"]
    lines = [
        f"{entry['without_images']:,} of the model's {entry['classes']:,} classes have no image. They are predicted on "
        f"{100 * entry['predicted']['parent']:.2f} % of the test images by the parent, and on {100 * entry['predicted']['evolved']:.2f} % "
        "by the evolved model."
    ]
    changes = []
    for key, name, factor, form in (("accuracy", "accuracy (%)", 100, ".2f"), ("nll", "NLL (nats)", 1, ".4f")):
        values = [
            scores["parent"][key],
            scores["evolved"][key],
            difference[key]["estimate"],
            *difference[key]["interval"],
        ]
        if None not in values:
            before, after, *change = (factor * value for value in values)
            signed = "{:+{form}} ({:+{form}} to {:+{form}})".format(*change, form=form)
            changes.append(f"{name} {before:{form}} before, {after:{form}} after, {signed}")
    lines.append(f"Predictions restricted to the {entry['with_images']:,} classes with images: {'; '.join(changes)}.")
    lines.append(
        "What is gained only by no longer predicting classes without images is not in this restricted difference."
    )
    return lines
