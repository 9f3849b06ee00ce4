"""
Absent classes: classes of the model that have no image in the data. Measures the share of a gain that comes from no longer
predicting them.

If a model of 1,000 classes is evolved on images of 199, it can gain much by learning which classes are absent. This gain comes
from the class prior, and another user's images may have other classes. So models are also compared with predictions
restricted to the present classes, where nothing can be gained in this way.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .comparison import difference_entry, scores_entry
from .statistics import Comparison, compare


def classes_at_hand(labels: np.ndarray, others: Sequence[int] | np.ndarray = ()) -> np.ndarray:
    """The present classes: all classes in `labels` or `others`, sorted, int64."""
    return np.union1d(np.asarray(labels, dtype=np.int64), np.asarray(others, dtype=np.int64))


def predicted_elsewhere(logits: np.ndarray, at_hand: np.ndarray) -> float:
    """The share of images, 0 to 1, whose predicted class is absent."""
    return float(1 - np.isin(logits.argmax(axis=1), at_hand).mean())


def restricted(logits: np.ndarray, labels: np.ndarray, at_hand: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Restricts logits to the present classes, to the shape `(n, len(at_hand))`, and renumbers the labels."""
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
    Compares two models on the same images, with predictions restricted to the present classes.

    Args:
        logits_baseline, logits_candidate (`np.ndarray` of shape `(n, classes)`): logits of all classes. The models may have
            different numbers of classes.
        labels (`np.ndarray` of shape `(n,)`): integers, all in `at_hand`.

    Returns:
        [`Comparison`] or `None`: `None` if neither model has absent classes, or only one class is present.
    """
    if len(at_hand) < 2 or max(logits_baseline.shape[1], logits_candidate.shape[1]) <= len(at_hand):
        return None
    (first, places), (second, _) = (restricted(each, labels, at_hand) for each in (logits_baseline, logits_candidate))
    return compare(first, second, places, names=names, seed=seed)


def absent_entry(
    parent_logits: np.ndarray, logits: np.ndarray, labels: np.ndarray, at_hand: np.ndarray, name: str, seed: int = 0
) -> dict[str, Any] | None:
    """
    The entry `absent_classes` of a report, which compares a model with its parent.

    Args:
        name (`str`): of the model, as a key of the entry and in the verdict.

    Returns:
        `dict` or `None`: `None` if no class is absent. Counts all `classes`, and those `with_images` and `without_images`.
        `predicted` is the share of the images on which each model predicts an absent class; `restricted` holds the scores of
        both models, with their difference, if predictions are restricted to the other classes.
    """
    comparison = compare_restricted(parent_logits, logits, labels, at_hand, names=("parent", name), seed=seed)
    if comparison is None:
        return None
    classes = parent_logits.shape[1]
    models = {"parent": parent_logits, name: logits}
    return {
        "classes": classes,
        "with_images": len(at_hand),
        "without_images": classes - len(at_hand),
        "predicted": {each: predicted_elsewhere(values, at_hand) for each, values in models.items()},
        "restricted": {
            "parent": scores_entry(comparison.baseline),
            name: scores_entry(comparison.candidate),
            "difference": difference_entry(comparison),
            "significant": comparison.significant,
            "verdict": comparison.verdict,
        },
    }


def absent_lines(entry: Mapping[str, Any] | None) -> list[str]:
    """The terminal's lines about absent classes, from the entry `absent_classes` of a gain report, if any."""
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
    lines.append("The restricted difference excludes any gain from no longer predicting classes without images.")
    return lines
