"""Measures of the diversity of an ensemble, computed from its members' log-probabilities."""

import math

import numpy as np

from .statistics import log_softmax64, row_blocks


def disagreement(predictions: np.ndarray) -> float:
    """
    Share of images on which two members predict different classes, mean over all pairs of members, 0 to 1.

    Args:
        predictions (`np.ndarray` of shape `(members, n)`): predicted classes.

    Returns:
        `float`: NaN for a single member.
    """
    predictions = np.asarray(predictions)
    members, n = predictions.shape
    differing = sum(int(np.sum(predictions[i + 1 :] != predictions[i])) for i in range(members - 1))
    return differing / (n * math.comb(members, 2)) if members > 1 else math.nan


def mean_pairwise_kl(log_probs: np.ndarray) -> float:
    """
    Kullback-Leibler divergence `KL(p_i || p_j)` in nats, mean over images and over all ordered pairs of members i != j.

    With L the members' mean log-probability, the sum over j of `KL(p_i || p_j)` is `members * sum_c p_i (log p_i - L)`:
    no loop over pairs is needed.

    Args:
        log_probs (`np.ndarray` of shape `(members, n, classes)`): log-probabilities or logits.

    Returns:
        `float`: infinite if one member gives zero probability to a class that another gives more. NaN for a single member.
    """
    log_probs = np.asarray(log_probs)
    members, n, classes = log_probs.shape
    if members < 2:
        return math.nan
    total = 0.0
    for rows in row_blocks(n, members * classes):
        block = log_softmax64(log_probs[:, rows])
        with np.errstate(invalid="ignore"):
            terms = np.exp(block) * (block - block.mean(axis=0))
        total += float(np.where(np.isneginf(block), 0.0, terms).sum())
    return max(0.0, total / ((members - 1) * n))


def output_correlation(log_probs: np.ndarray) -> float:
    """
    Pearson correlation of the predicted probabilities of two members, over all images and classes, mean over all pairs.

    Args:
        log_probs (`np.ndarray` of shape `(members, n, classes)`): log-probabilities or logits.

    Returns:
        `float`: NaN for a single member, or if a member's output is constant.
    """
    log_probs = np.asarray(log_probs)
    members, n, classes = log_probs.shape
    gram = np.zeros((members, members))
    for rows in row_blocks(n, members * classes):
        # Probabilities sum to one over the classes, so their mean is exactly 1 / classes.
        centred = (np.exp(log_softmax64(log_probs[:, rows])) - 1 / classes).reshape(members, -1)
        gram += centred @ centred.T
    scale = np.sqrt(np.diag(gram))
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation = gram / np.outer(scale, scale)
    return float(correlation[np.triu_indices(members, k=1)].mean()) if members > 1 else math.nan
