import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from smd_hf.search.head import fit
from smd_hf.search.head.baselines import PARENT, baselines, best_of
from smd_hf.search.head.fit import LinearHead, feature_scale, fit_bias, fit_head, fit_temperature, value_and_gradient
from smd_hf.search.losses import cross_entropy, focal, ordinal


def problem(seed=0, images=60, features=5, classes=4, bias=True):
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=images)
    inputs = (rng.normal(size=(images, features)) + rng.normal(size=(classes, features))[labels]).astype(np.float32)
    head = LinearHead(rng.normal(size=(classes, features)), rng.normal(size=classes) if bias else None)
    return head, inputs, labels


def mean_nll(head, features, labels):
    logits = torch.from_numpy(head.logits(features)).double()
    return float(torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels)))


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    images=st.integers(1, 40),
    features=st.integers(1, 8),
    classes=st.integers(2, 6),
    bias=st.booleans(),
    chunk=st.integers(1, 100),
    loss=st.sampled_from([cross_entropy(), cross_entropy(0.1), focal(), ordinal(6)]),
)
def test_the_gradient_is_that_of_autograd_in_chunks_of_any_size(seed, images, features, classes, bias, chunk, loss):
    head, inputs, labels = problem(seed, images, features, 6 if classes > 5 else classes, bias)
    if loss.__qualname__.startswith("expected_cost"):
        head, inputs, labels = problem(seed, images, features, 6, bias)
    weight = torch.from_numpy(head.weight).requires_grad_()
    offset = None if head.bias is None else torch.from_numpy(head.bias).requires_grad_()
    logits = torch.from_numpy(inputs).double() @ weight.T
    expected = loss(logits if offset is None else logits + offset, torch.from_numpy(labels)) / images
    expected.backward()

    before, fit.CHUNK_NUMBERS = fit.CHUNK_NUMBERS, chunk
    try:
        value, gradient = value_and_gradient(head, inputs, labels, loss)
    finally:
        fit.CHUNK_NUMBERS = before
    assert value == pytest.approx(float(expected.detach()))
    np.testing.assert_allclose(gradient.weight, weight.grad.numpy(), atol=1e-10)
    if offset is not None:
        np.testing.assert_allclose(gradient.bias, offset.grad.numpy(), atol=1e-10)


def test_a_fit_that_is_pulled_to_zero_is_that_of_scikit_learn():
    _, inputs, labels = problem(1, images=80)
    # scikit-learn does not pull the intercept, so the bias is a feature here.
    inputs = np.concatenate([inputs, np.ones((80, 1), np.float32)], axis=1)
    zero = LinearHead(np.zeros((4, 6)), None)
    strength = 0.01 * feature_scale(inputs)
    expected = LogisticRegression(C=1 / (80 * strength), fit_intercept=False, tol=1e-9, max_iter=1000)
    expected.fit(inputs, labels)
    found = fit_head(zero, inputs, labels, cross_entropy(), 0.01)
    np.testing.assert_allclose(found.weight, expected.coef_, atol=2e-3)


def test_a_strong_pull_keeps_the_head_and_a_weak_one_fits_the_images():
    head, inputs, labels = problem(2)
    kept = fit_head(head, inputs, labels, cross_entropy(), 1e6)
    np.testing.assert_allclose(kept.weight, head.weight, atol=1e-4)
    prior = fit_bias(head, inputs, labels, cross_entropy())
    np.testing.assert_allclose(kept.bias - kept.bias.mean(), prior.bias - prior.bias.mean(), atol=0.02)
    losses = [
        mean_nll(fit_head(head, inputs, labels, cross_entropy(), pull), inputs, labels) for pull in (10, 0.1, 0.001)
    ]
    assert mean_nll(head, inputs, labels) > losses[0] > losses[1] > losses[2]


def test_the_fitted_bias_gives_each_class_its_share():
    head, inputs, labels = problem(3, images=300, classes=3)
    found = fit_bias(head, inputs, labels, cross_entropy())
    assert found.weight is head.weight
    shares = torch.from_numpy(found.logits(inputs)).softmax(-1).mean(0).numpy()
    np.testing.assert_allclose(shares, np.bincount(labels) / 300, atol=2e-3)


def test_the_temperature_of_an_overconfident_head_is_found():
    head, inputs, labels = problem(4, images=400)
    good = fit_head(head, inputs, labels, cross_entropy(), 1e-6)
    assert fit_temperature(good.scaled(5.0), inputs, labels, cross_entropy()) == pytest.approx(1 / 5, rel=0.05)


def test_baselines_hold_the_parent_first_and_the_best_is_no_worse():
    head, inputs, labels = problem(5, images=120)
    parts = (inputs[:80], labels[:80]), (inputs[80:], labels[80:])
    found = baselines(head, *parts, cross_entropy(), lambda score, labels: -score.nll)
    assert found[0].name == PARENT and found[0].head is head
    assert {each.name.split(",")[0] for each in found} == {PARENT, "temperature", "class prior", "head"}
    assert best_of(found).fitness == max(each.fitness for each in found) > found[0].fitness
    assert -best_of(found).fitness == pytest.approx(mean_nll(best_of(found).head, *parts[1]))


def test_a_head_without_a_bias_has_no_class_prior():
    head, inputs, labels = problem(6, bias=False)
    found = baselines(head, (inputs, labels), (inputs, labels), cross_entropy(), lambda score, labels: -score.nll)
    assert "class prior" not in {each.name for each in found} and all(each.head.bias is None for each in found)
