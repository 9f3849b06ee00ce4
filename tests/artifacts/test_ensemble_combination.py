"""Combining members' predictions: properties of the combinations, of classes, of pixels, of labels and of depths."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smd_hf.remote_code.configuration_smd_ensemble import OF_CLASSES
from smd_hf.remote_code.members_smd_ensemble import combine

arrays = st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(2, 7), st.integers(0, 10**6))


@given(arrays, st.sampled_from(OF_CLASSES), st.sampled_from([1.0, 30.0, 1e4]))
@settings(max_examples=60, deadline=None)
def test_combinations_are_finite_log_probabilities(shape, combination, scale):
    *sizes, seed = shape
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(*sizes, generator=generator) * scale
    weights = torch.rand(sizes[1], generator=generator) + 0.01
    combined = combine(logits, weights, combination)
    assert combined.isfinite().all()
    torch.testing.assert_close(combined.logsumexp(-1), torch.zeros(sizes[0]), atol=1e-5, rtol=0)
    # Neither the scale of the weights nor a constant in a member's logits matters.
    torch.testing.assert_close(combine(logits, 7 * weights, combination), combined, atol=1e-4 * scale, rtol=1e-4)


@given(arrays)
@settings(max_examples=60, deadline=None)
def test_majority_vote_ranks_by_votes_then_by_mean_probability(shape):
    *sizes, seed = shape
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(*sizes, generator=generator) * 3
    weights = torch.randint(1, 4, (sizes[1],), generator=generator).float()
    combined = combine(logits, weights, "majority_vote")
    probabilities = (logits.softmax(-1) * weights[:, None]).sum(1) / weights.sum()
    for row, members, mean in zip(combined, logits, probabilities):
        votes = torch.zeros(sizes[2])
        for member, weight in zip(members, weights):
            votes[member.argmax()] += weight
        best = (votes == votes.max()).nonzero().flatten()
        assert row.argmax() == best[mean[best].argmax()]


def test_equal_votes_are_smoothed_by_one_vote_of_the_mean_probability():
    logits = torch.tensor([[[2.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]])
    mean = logits.softmax(-1).mean(1)
    expected = (torch.tensor([[2.0, 1.0, 0.0]]) + mean) / 4
    torch.testing.assert_close(combine(logits, torch.ones(3), "majority_vote").exp(), expected)


def test_a_member_of_weight_zero_does_not_count():
    logits = torch.randn(2, 3, 4)
    for combination in ("mean_probabilities", "mean_logits"):
        found = combine(logits, torch.tensor([0.5, 0.0, 0.5]), combination)
        torch.testing.assert_close(found, combine(logits[:, [0, 2]], torch.ones(2), combination))


@given(arrays, st.sampled_from(OF_CLASSES))
@settings(max_examples=30, deadline=None)
def test_pixels_are_combined_one_by_one(shape, combination):
    *sizes, seed = shape
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(*sizes, 2, 3, generator=generator)
    weights = torch.rand(sizes[1], generator=generator) + 0.01
    combined = combine(logits, weights, combination)
    for row in range(2):
        for column in range(3):
            alone = combine(logits[..., row, column], weights, combination)
            torch.testing.assert_close(combined[..., row, column], alone)


@given(arrays, st.sampled_from(OF_CLASSES))
@settings(max_examples=30, deadline=None)
def test_each_label_is_combined_as_two_classes(shape, combination):
    *sizes, seed = shape
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(*sizes, generator=generator) * 3
    weights = torch.rand(sizes[1], generator=generator) + 0.01
    combined = combine(logits, weights, combination, of_labels=True)
    assert combined.shape == (sizes[0], sizes[2])
    shares = (weights / weights.sum())[:, None]
    if combination == "mean_logits":
        torch.testing.assert_close(combined, (logits * shares).sum(1), atol=1e-5, rtol=1e-4)
    elif combination == "mean_probabilities":
        torch.testing.assert_close(combined.sigmoid(), (logits.sigmoid() * shares).sum(1), atol=1e-6, rtol=1e-4)
    else:
        votes = ((logits > 0) * shares).sum(1)
        clear = (votes - 0.5).abs() > 1e-3
        assert ((combined > 0) == (votes > 0.5))[clear].all()


def test_depths_are_averaged_by_weight():
    depths = torch.tensor([1.0, 3.0]).view(1, 2, 1, 1).expand(2, 2, 4, 5)
    torch.testing.assert_close(combine(depths, torch.tensor([1.0, 3.0]), "mean"), torch.full((2, 4, 5), 2.5))
