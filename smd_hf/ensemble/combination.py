"""
Combining the logits of an ensemble's members into log-probabilities.

Everything is computed from log-probabilities with log-sum-exp, so that nothing overflows or becomes log 0.

This file travels with an ensemble's checkpoint: it imports torch alone.
"""

import torch


def combine(member_logits: torch.Tensor, member_weights: torch.Tensor, combination: str) -> torch.Tensor:
    """
    The log-probabilities of an ensemble.

    Args:
        member_logits (`torch.Tensor`): of shape `(batch, members, classes)`, float32 or float64.
        member_weights (`torch.Tensor`): of shape `(members,)`, at least 0 and not all 0.
        combination (`str`): one of

            - `"mean_probabilities"`: the weighted mean of the members' probabilities.
            - `"mean_logits"`: the softmax of the weighted mean of the members' logits.
            - `"majority_vote"`: each member votes with its weight for its most probable class. The share of the
              votes is smoothed by the mean of the members' probabilities p, which votes as one member more: the
              probability of a class is (1 - e) share + e p, with e = 1 / (members + 1), or smaller where shares
              are so close that p would reverse their order. So it is never 0, classes rank by votes, and equal votes
              rank by p.

    Returns:
        `torch.Tensor`: of shape `(batch, classes)` and the logits' dtype; the exponentials of a row sum to 1.
    """
    weights = (member_weights / member_weights.sum()).to(member_logits.dtype)
    if combination == "mean_logits":
        return torch.einsum("bmc,m->bc", member_logits, weights).log_softmax(dim=-1)
    log_probabilities = member_logits.log_softmax(dim=-1)
    mean = (log_probabilities + weights.log()[:, None]).logsumexp(dim=1)
    if combination == "mean_probabilities":
        return mean
    votes = torch.nn.functional.one_hot(log_probabilities.argmax(dim=-1), member_logits.shape[-1])
    # Rounded, so that 0.1 + 0.2 and 0.3 are the same number of votes.
    shares = torch.einsum("bmc,m->bc", votes.to(weights.dtype), weights).round(decimals=5)
    ranked = shares.sort(dim=-1, descending=True).values
    gaps = ranked[:, :-1] - ranked[:, 1:]
    gap = gaps.masked_fill(gaps <= 0, 1).amin(dim=-1, keepdim=True)
    smoothing = (gap / (1 + gap)).clamp(max=1 / (len(weights) + 1))
    voted = shares.log() + (1 - smoothing).log()
    return torch.logaddexp(voted, mean + smoothing.log()).log_softmax(dim=-1)
