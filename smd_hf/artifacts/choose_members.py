"""Chooses the members of an ensemble from stored logits, without a forward pass."""

from collections import Counter

import numpy as np
import torch


def choose_members(
    logits: np.ndarray,
    labels: np.ndarray,
    size: int,
    selection: str = "greedy",
    combination: str = "mean_probabilities",
) -> list[tuple[int, int]]:
    """
    Chooses the members of an ensemble and their votes.

    Args:
        logits (`numpy.ndarray`): of the candidates on the selection split, of shape `(candidates, n, num_labels)`, the
            fittest candidate first.
        labels (`numpy.ndarray`): of shape `(n,)`.
        size (`int`): the maximum number of members, or of picks for `"greedy"`. Has no effect on `"all"`.
        selection (`str`, *optional*, defaults to `"greedy"`): `"top_k"`: the first `size` candidates; `"all"`: every
            candidate; `"greedy"`: forward selection with replacement (Caruana et al. 2004). It picks `size` times the
            candidate that makes the ensemble best on the selection split. A member that is picked twice has two votes.
        combination (`str`, *optional*, defaults to `"mean_probabilities"`): how the ensemble combines its members. Greedy
            selection minimises the negative log-likelihood of `"mean_probabilities"` and `"mean_logits"`, and the number of
            errors of `"majority_vote"`.
    """
    if selection == "all":
        return [(candidate, 1) for candidate in range(len(logits))]
    if selection == "top_k":
        return [(candidate, 1) for candidate in range(min(size, len(logits)))]
    wanted = torch.from_numpy(labels)
    ballots = _ballots(torch.from_numpy(logits), wanted, combination)
    if combination == "mean_probabilities":
        wanted = torch.zeros_like(wanted)
    total = torch.zeros_like(ballots[0])
    picks: list[int] = []
    for members in range(1, size + 1):
        losses = [_loss((total + ballot) / members, wanted, combination) for ballot in ballots]
        picks.append(int(np.argmin(losses)))
        total += ballots[picks[-1]]
    return list(Counter(picks).items())


def _ballots(logits: torch.Tensor, labels: torch.Tensor, combination: str) -> torch.Tensor:
    """
    The values of each candidate that are summed over the members, float64, with the shape of the logits.

    For mean probabilities, the label's probability suffices: the shape is `(candidates, n, 1)`.
    """
    if combination == "mean_logits":
        return logits.double()
    if combination == "mean_probabilities":
        return torch.stack([each.double().softmax(-1).gather(-1, labels[:, None]) for each in logits])
    logits = logits.double()
    probabilities = logits.softmax(-1)
    votes = torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1])
    # The mean probability breaks ties between votes. It is too small to outweigh a vote.
    return votes + 1e-6 * probabilities


def _loss(mean: torch.Tensor, labels: torch.Tensor, combination: str) -> float:
    if combination == "majority_vote":
        return float((mean.argmax(-1) != labels).double().mean())
    log_probabilities = mean.log_softmax(-1) if combination == "mean_logits" else mean.log()
    return float(torch.nn.functional.nll_loss(log_probabilities, labels))
