from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from smd_hf.scoring.reading import ReadsClasses
from smd_hf.search.head import fit, linear
from smd_hf.search.head.baselines import PARENT, PULLS, Folds, baselines, best_of, measured_on
from smd_hf.search.head.coordinates import Coordinates
from smd_hf.search.head.fit import BIAS_PULL, HeadFits
from smd_hf.search.head.linear import LinearHead
from smd_hf.search.losses import cross_entropy, focal, ordinal
from smd_hf.tasks.multi_label import MultiLabelClassification


def by_nll(inputs, labels):
    return measured_on((inputs, labels), ReadsClasses(), lambda score, _: -score.nll)


def problem(seed=0, images=60, features=5, classes=4, bias=True):
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=images)
    inputs = (rng.normal(size=(images, features)) + rng.normal(size=(classes, features))[labels]).astype(np.float32)
    head = LinearHead(rng.normal(size=(classes, features)), rng.normal(size=classes) if bias else None)
    return head, inputs, labels


def mean_nll(head, features, labels):
    logits = torch.from_numpy(head.logits(features)).double()
    return float(torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels)))


@settings(deadline=None, max_examples=20)
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
    if "expected_cost" in getattr(loss, "__qualname__", ""):
        head, inputs, labels = problem(seed, images, features, 6, bias)
    before, linear.CHUNK_NUMBERS = linear.CHUNK_NUMBERS, chunk
    try:
        fits = HeadFits(head, inputs, labels, loss)
        away = np.random.default_rng(seed).normal(size=fits.numbers(head).shape)
        value, gradient = fits.value_and_gradient(away)
    finally:
        linear.CHUNK_NUMBERS = before

    # The same head as numbers, in the features' own coordinates.
    numbers = torch.from_numpy(away).requires_grad_()
    rows = numbers[: len(fits.classes) * fits.coordinates.axes.shape[1]].reshape(len(fits.classes), -1)
    weight = torch.from_numpy(head.weight).index_add(
        0, torch.from_numpy(fits.classes), rows @ torch.from_numpy(fits.coordinates.axes).T
    )
    logits = torch.from_numpy(inputs).double() @ weight.T
    if bias:
        mean = torch.from_numpy(fits.coordinates.mean)
        logits = logits + torch.from_numpy(head.bias) + numbers[rows.numel() :]
        logits = logits - (weight - torch.from_numpy(head.weight)) @ mean
    expected = loss(logits, torch.from_numpy(labels)) / images
    expected.backward()
    assert value == pytest.approx(float(expected.detach()), rel=1e-4, abs=1e-5)
    np.testing.assert_allclose(gradient, numbers.grad.numpy(), atol=1e-4)
    back = fits.of_numbers(away)
    np.testing.assert_allclose(back.weight, weight.detach().numpy(), atol=1e-10)
    np.testing.assert_allclose(fits.numbers(back), away, atol=1e-9)


def test_a_fit_that_is_pulled_to_zero_is_that_of_scikit_learn():
    _, inputs, labels = problem(1, images=80)
    # scikit-learn does not pull the intercept, so the bias is a feature here.
    inputs = np.concatenate([inputs, np.ones((80, 1), np.float32)], axis=1)
    zero = LinearHead(np.zeros((4, 6)), None)
    strength = 0.01 * Coordinates(inputs).scale
    expected = LogisticRegression(C=1 / (80 * strength), fit_intercept=False, tol=1e-9, max_iter=1000)
    expected.fit(inputs, labels)
    found = HeadFits(zero, inputs, labels, cross_entropy()).head(0.01)
    np.testing.assert_allclose(found.weight, expected.coef_, atol=2e-3)


def test_a_strong_pull_keeps_the_head_and_a_weak_one_fits_the_images():
    head, inputs, labels = problem(2)
    kept = HeadFits(head, inputs, labels, cross_entropy()).head(1e6)
    np.testing.assert_allclose(kept.weight, head.weight, atol=1e-4)
    prior = HeadFits(head, inputs, labels, cross_entropy()).class_prior()
    np.testing.assert_allclose(kept.bias - kept.bias.mean(), prior.bias - prior.bias.mean(), atol=0.02)
    losses = [
        mean_nll(HeadFits(head, inputs, labels, cross_entropy()).head(pull), inputs, labels)
        for pull in (10, 0.1, 0.001)
    ]
    assert mean_nll(head, inputs, labels) > losses[0] > losses[1] > losses[2]


def test_the_fitted_bias_gives_each_class_its_share():
    head, inputs, labels = problem(3, images=300, classes=3)
    found = HeadFits(head, inputs, labels, cross_entropy()).class_prior()
    assert found.weight is head.weight
    shares = torch.from_numpy(found.logits(inputs)).softmax(-1).mean(0).numpy()
    np.testing.assert_allclose(shares, np.bincount(labels) / 300, atol=2e-3)


def test_the_temperature_of_an_overconfident_head_is_found():
    head, inputs, labels = problem(4, images=400)
    good = HeadFits(head, inputs, labels, cross_entropy()).head(1e-6)
    assert HeadFits(good.scaled(5.0), inputs, labels, cross_entropy()).temperature() == pytest.approx(0.2, rel=0.05)


def test_baselines_hold_the_parent_first_and_the_best_is_no_worse():
    head, inputs, labels = problem(5, images=120)
    parts = (inputs[:80], labels[:80]), (inputs[80:], labels[80:])
    found = baselines(HeadFits(head, *parts[0], cross_entropy()), by_nll(*parts[1]))
    assert found[0].name == PARENT and found[0].head is head
    assert {each.name.split(",")[0] for each in found} == {
        *(PARENT, "temperature", "class prior", "class prior and temperature", "head"),
    }
    assert best_of(found).fitness == max(each.fitness for each in found) > found[0].fitness
    assert -best_of(found).fitness == pytest.approx(mean_nll(best_of(found).head, *parts[1]))


def nll_folds(head, inputs, labels):
    return Folds.of(head, (inputs, labels), cross_entropy(), ReadsClasses(), lambda score, _: -score.nll)


def test_cross_validation_measures_each_image_by_a_fit_that_has_not_seen_it():
    head, inputs, labels = problem(5, images=63, bias=False)
    found = baselines(HeadFits(head, inputs, labels, cross_entropy()), None, folds=nll_folds(head, inputs, labels))
    by_name = {each.name: each for each in found}
    assert all(each.fitness == each.crossed for each in found)
    assert -by_name[PARENT].crossed == pytest.approx(mean_nll(head, inputs, labels))
    sums = {"temperature": 0.0, "head, pull 0.01": 0.0}
    for number in range(5):
        left_out = np.arange(63) % 5 == number
        fits = HeadFits(head, inputs[~left_out], labels[~left_out], cross_entropy())
        for name, each in (("temperature", head.scaled(fits.temperature())), ("head, pull 0.01", fits.head(1e-2))):
            sums[name] += mean_nll(each, inputs[left_out], labels[left_out]) * left_out.sum()
    for name, total in sums.items():
        assert -by_name[name].crossed == pytest.approx(total / 63, rel=1e-6)
    # What is put into the model is fitted on all of them.
    fits = HeadFits(head, inputs, labels, cross_entropy())
    np.testing.assert_allclose(by_name["head, pull 0.01"].head.weight, fits.head(1e-2).weight)


def test_cross_validation_chooses_better_than_a_few_selection_images():
    losses = {"selection": 0.0, "folds": 0.0}
    for seed in range(6):
        head, inputs, labels = problem(seed, images=1060, features=12)
        head = head.scaled(3.0)
        learn, choose, others = (inputs[:54], labels[:54]), (inputs[54:60], labels[54:60]), (inputs[60:], labels[60:])
        for name, folds in (("selection", None), ("folds", nll_folds(head, *learn))):
            best = best_of(baselines(HeadFits(head, *learn, cross_entropy()), by_nll(*choose), folds=folds))
            losses[name] += mean_nll(best.head, *others) / 6
    assert losses["folds"] < losses["selection"] - 0.02


def test_few_images_of_classes_that_the_data_set_names():
    """Classes without an image are as likely as they were if the data set names them, and all but excluded otherwise."""
    rng = np.random.default_rng(3)
    head, inputs, labels = problem(9, images=400, classes=40)
    labels = torch.from_numpy(head.logits(inputs))[:, :20].argmax(-1).numpy()
    few = rng.permutation(400)[:24]
    others = np.setdiff1d(np.arange(400), few)
    parts = (inputs[few[:16]], labels[few[:16]]), (inputs[few[16:]], labels[few[16:]])
    assert set(labels[others]) - set(labels[few[:16]])

    def prior(named):
        found = baselines(HeadFits(head, *parts[0], cross_entropy()), by_nll(*parts[1]), named)
        return mean_nll(best_of(found, "class prior").head, inputs[others], labels[others])

    assert prior(np.arange(20)) < mean_nll(head, inputs[others], labels[others]) < prior(None)


def test_a_head_without_a_bias_has_no_class_prior():
    head, inputs, labels = problem(6, bias=False)
    found = baselines(HeadFits(head, inputs, labels, cross_entropy()), by_nll(inputs, labels))
    assert "class prior" not in {each.name for each in found} and all(each.head.bias is None for each in found)


def test_a_class_without_an_image_keeps_its_weights():
    head, inputs, labels = problem(7, classes=6)
    labels = labels % 4
    found = HeadFits(head, inputs, labels, cross_entropy()).head(1e-3)
    np.testing.assert_array_equal(found.weight[4:], head.weight[4:])
    assert (found.bias[4:] < head.bias[4:] - 1).all() and np.abs(found.weight[:4] - head.weight[:4]).max() > 0.01


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("images, near", [(200, 5e-4), (8, 1e-2)])
def test_a_fit_is_the_minimum_where_features_are_far_from_round(images, near, bias):
    """Also with fewer images than features, where the axes are those of the images alone."""
    head, inputs, labels = problem(8, images=images, features=12, bias=bias)
    # As after ReLU: a great mean, and variances that differ by orders of magnitude.
    inputs = (inputs * np.geomspace(1, 1e-2, 12) + 3).astype(np.float32)
    found = HeadFits(head, inputs, labels, cross_entropy()).head(1e-5)
    coordinates = Coordinates(inputs)
    strength = 1e-5 * coordinates.scale
    assert coordinates.axes.shape == (12, min(12, images + 1))

    origin = torch.from_numpy(np.column_stack([head.weight, head.bias if bias else np.zeros(4)]))
    pulls = torch.tensor([strength] * 12 + [BIAS_PULL])

    def objective(numbers):
        numbers = numbers.view(4, 13)
        logits = torch.from_numpy(inputs).double() @ numbers[:, :12].T + (numbers[:, 12] if bias else 0.0)
        value = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels))
        return value + (pulls * (numbers - origin).square()).sum() / 2

    at = torch.from_numpy(np.column_stack([found.weight, found.bias if bias else np.zeros(4)])).ravel()
    gradient = torch.func.grad(objective)(at)
    left = gradient @ torch.linalg.solve(torch.func.hessian(objective)(at), gradient) / 2
    assert 0 <= left < near < objective(origin.ravel()) - objective(at)


def test_a_small_fit_has_one_thread_and_a_large_one_those_that_there_are(two_threads, monkeypatch):
    threads = set()

    def loss(logits, labels):
        threads.add(torch.get_num_threads())
        return torch.nn.functional.cross_entropy(logits, labels, reduction="sum")

    for small, expected in ((60 * 4, {1}), (60 * 4 - 1, {2})):
        monkeypatch.setattr(fit, "SMALL", small)
        threads.clear()
        fits = HeadFits(*problem(), loss)
        fits.temperature(), fits.class_prior(), fits.head(1e-3)
        assert threads == expected and torch.get_num_threads() == 2


def test_weaker_pulls_are_left_out_once_they_are_worse():
    head, inputs, labels = problem(9, images=30, features=20)
    rng = np.random.default_rng(0)
    noise = rng.integers(4, size=200)
    other = rng.normal(size=(200, 20)).astype(np.float32)
    found = baselines(HeadFits(head, inputs, labels, cross_entropy()), by_nll(other, noise))
    tried = [each.fitness for each in found if each.name.startswith("head")]
    assert 2 <= len(tried) < len(PULLS) and tried[-1] < tried[-2]


def test_several_labels_an_image_are_logistic_regressions():
    head, inputs, _ = problem(11, images=80, classes=3)
    rng = np.random.default_rng(11)
    targets = (rng.random((80, 3)) < np.array([0.5, 0.2, 0.0])).astype(np.float32)
    task = MultiLabelClassification()
    loss = task.head_loss(SimpleNamespace(label_smoothing_factor=0.0))
    fits = HeadFits(head, inputs, targets, loss)
    found, pull = fits.head(1e-3), 1e-3 * fits.coordinates.scale

    # A label that no image has keeps its weights; the others are pulled to the old ones.
    np.testing.assert_array_equal(found.weight[2], head.weight[2])
    assert fits.classes.tolist() == [0, 1]
    for label in (0, 1):
        weight, bias = torch.from_numpy(found.weight[label]), torch.tensor(found.bias[label])
        weight.requires_grad_(), bias.requires_grad_()
        logits = torch.from_numpy(inputs).double() @ weight + bias
        value = torch.nn.functional.binary_cross_entropy_with_logits(
            logits, torch.from_numpy(targets[:, label]).double()
        )
        value = value + pull / 2 * (weight - torch.from_numpy(head.weight[label])).square().sum()
        gradients = torch.autograd.grad(value, [weight, bias])
        assert max(float(each.abs().max()) for each in gradients) < 2e-3

    prior = fits.class_prior()
    chances = torch.from_numpy(prior.logits(inputs)).sigmoid().mean(0).numpy()
    np.testing.assert_allclose(chances[:2], targets.mean(0)[:2], atol=5e-3)
