import numpy as np
import pytest
import torch

from smd_hf.search.head import fit, joint
from smd_hf.search.head.fit import HeadFits
from smd_hf.search.head.joint import HeadModel, JointSums, conjugate_gradients, joint_step, leading, num_coordinates
from smd_hf.search.head.linear import LinearHead
from smd_hf.search.losses import cross_entropy, focal
from tests.search.test_gauss_newton import make_children

IMAGES, CLASSES, FEATURES, DIRECTIONS, PULL = 60, 5, 4, 3, 1e-2


def problem(bias=True):
    rng = np.random.default_rng(0)
    labels = rng.integers(4, size=IMAGES)  # the last class has no image
    features = (rng.normal(size=(IMAGES, FEATURES)) + 2).astype(np.float32)
    start = LinearHead(rng.normal(size=(CLASSES, FEATURES)), rng.normal(size=CLASSES) if bias else None)
    moved = np.where(np.arange(CLASSES)[:, None] < 4, rng.normal(size=(CLASSES, FEATURES)) / 4, 0)
    current = LinearHead(start.weight + moved, None if start.bias is None else start.bias + rng.normal(size=CLASSES))
    changes = rng.normal(size=(DIRECTIONS, IMAGES, CLASSES))
    return start, current, features, labels, changes


def dense(loss, start, current, features, labels, changes, used, damping):
    """The same step with the whole Jacobian and Hessian: children on the images `used`, the head on all."""
    bias, classes = start.bias is not None, 4
    inputs = np.column_stack([features.astype(float), np.ones((IMAGES, 1))]) if bias else features.astype(float)
    logits = torch.from_numpy(features.astype(float) @ current.weight.T + (current.bias if bias else 0.0))
    share, width = len(used) / IMAGES, inputs.shape[1]

    def hessian(image):
        return torch.func.hessian(lambda z: loss(z[None], torch.from_numpy(labels[image : image + 1])))(
            logits[image]
        ).numpy()

    def slope(image):
        return torch.func.grad(lambda z: loss(z[None], torch.from_numpy(labels[image : image + 1])))(
            logits[image]
        ).numpy()

    size = DIRECTIONS + classes * width
    matrix, right = np.zeros((size, size)), np.zeros(size)
    for image in range(IMAGES):
        head = np.zeros((CLASSES, classes, width))
        head[range(classes), range(classes)] = inputs[image]
        head = head.reshape(CLASSES, -1)
        curved, g = hessian(image), slope(image)
        matrix[DIRECTIONS:, DIRECTIONS:] += share * head.T @ curved @ head
        right[DIRECTIONS:] -= share * head.T @ g
        if image in used:
            own = changes[:, image].T
            matrix[:DIRECTIONS, :DIRECTIONS] += own.T @ curved @ own
            matrix[:DIRECTIONS, DIRECTIONS:] += own.T @ curved @ head
            right[:DIRECTIONS] -= own.T @ g
    matrix[DIRECTIONS:, :DIRECTIONS] = matrix[:DIRECTIONS, DIRECTIONS:].T
    matrix[:DIRECTIONS, :DIRECTIONS] += damping * np.eye(DIRECTIONS)
    scale = np.mean((features.astype(float) ** 2).sum(1))
    pulls = np.full((classes, width), len(used) * PULL * scale)
    away = np.zeros((classes, width))
    away[:, :FEATURES] = (current.weight - start.weight)[:4]
    if bias:
        pulls[:, -1] = len(used) * BIAS
        away[:, -1] = (current.bias - start.bias)[:4]
    matrix[range(DIRECTIONS, size), range(DIRECTIONS, size)] += pulls.ravel()
    right[DIRECTIONS:] -= (pulls * away).ravel()
    step = np.linalg.solve(matrix, right)
    return step[:DIRECTIONS], step[DIRECTIONS:].reshape(classes, width)


BIAS = 0.0


@pytest.fixture(autouse=True)
def no_pull_of_the_bias(monkeypatch):
    """The pull of the bias, which centred features couple to the weights, is left out of the model; and of the dense one."""
    monkeypatch.setattr(fit, "BIAS_PULL", BIAS)


def sums_of(loss, fits, current, features, labels, changes, used, width):
    logits = torch.from_numpy(current.logits(features)).double()
    batches = dict(enumerate(np.array_split(used, 3)))
    offsets = None if fits.start.bias is not None else fits.offsets
    phi = {number: leading(fits.centred[rows], width, offsets) for number, rows in batches.items()}
    sums = JointSums(make_children(DIRECTIONS), loss, fits.classes, phi)
    parts = []
    for number, rows in batches.items():
        base = logits[rows]
        every = [base, *(base + torch.from_numpy(change[rows]) for change in changes)]
        parts.append(sums(every, torch.from_numpy(labels[rows]), number))
    sums.total = np.sum(parts, axis=0)
    assert sums.total.shape == sums.shape
    return sums


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("loss", [cross_entropy(), cross_entropy(0.1, [1.0, 2.0, 1.0, 0.5, 1.0])])
def test_the_step_is_that_of_the_dense_system(loss, bias):
    start, current, features, labels, changes = problem(bias)
    used, damping = np.arange(0, IMAGES, 2), 3.0
    fits = HeadFits(start, features, labels, loss)
    width = FEATURES + bias
    sums = sums_of(loss, fits, current, features, labels, changes, used, width)
    head = HeadModel(fits, fits.numbers(current), PULL, width, len(used))
    total, cross = sums.total[:, :DIRECTIONS], sums.cross()
    c, v = joint_step(total, sums.total[:, DIRECTIONS], cross, head, damping)
    expected_c, expected_v = dense(loss, start, current, features, labels, changes, set(used.tolist()), damping)
    np.testing.assert_allclose(c, expected_c, rtol=1e-3, atol=1e-5)
    moved = fits.of_numbers(fits.numbers(current) + head.numbers(v))
    found = (moved.weight - current.weight)[:4]
    np.testing.assert_allclose(found, expected_v[:, :FEATURES], rtol=1e-3, atol=1e-4)
    if bias:
        np.testing.assert_allclose((moved.bias - current.bias)[:4], expected_v[:, -1], rtol=2e-3, atol=1e-3)
    np.testing.assert_array_equal(moved.weight[4], start.weight[4])


def test_children_that_do_what_the_head_can_do_are_left_to_it():
    start, current, features, labels, changes = problem()
    loss = cross_entropy()
    fits = HeadFits(start, features, labels, loss)
    current = fits.head(PULL)
    # The first child changes logits as another weight of the first class would.
    changes[0] = 0.0
    changes[0][:, 0] = features[:, 1]
    used = np.arange(IMAGES)
    sums = sums_of(loss, fits, current, features, labels, changes, used, FEATURES + 1)
    head = HeadModel(fits, fits.numbers(current), PULL, FEATURES + 1, IMAGES)
    c, _ = joint_step(sums.total[:, :DIRECTIONS], sums.total[:, DIRECTIONS], sums.cross(), head, 1e-3)
    alone = -np.linalg.solve(sums.total[:, :DIRECTIONS] + 1e-3 * np.eye(DIRECTIONS), sums.total[:, DIRECTIONS])
    assert np.abs(c - alone).max() > 1e-2
    # At the head's own minimum, without children, nothing is left to do.
    assert np.abs(head.gradient).max() < 1e-3 * IMAGES


def test_fewer_coordinates_where_the_sums_would_be_too_large(monkeypatch):
    assert num_coordinates(96, 10, 64) == 64
    assert num_coordinates(96, 1000, 1280) == joint.MAX_CROSS_NUMBERS // 96000 - 1
    assert num_coordinates(10**6, 1000, 1280) == 0


def test_conjugate_gradients_end_where_the_matrix_is_not_positive():
    matrix = np.diag([1.0, 2.0, -1.0])
    step = conjugate_gradients(lambda x: matrix @ x, lambda x: x, np.array([1.0, 2.0, 0.0]))
    np.testing.assert_allclose(step, [1.0, 1.0, 0.0], atol=1e-12)
    assert np.isfinite(conjugate_gradients(lambda x: matrix @ x, lambda x: x, np.ones(3))).all()


def test_a_loss_that_is_not_convex_gives_a_finite_step():
    start, current, features, labels, changes = problem()
    fits = HeadFits(start, features, labels, focal())
    sums = sums_of(focal(), fits, current, features, labels, changes, np.arange(IMAGES), 3)
    head = HeadModel(fits, fits.numbers(current), PULL, 3, IMAGES)
    values, vectors = np.linalg.eigh(sums.total[:, :DIRECTIONS])
    steps = joint_step(vectors * np.abs(values) @ vectors.T, sums.total[:, DIRECTIONS], sums.cross(), head, 1.0)
    assert all(np.isfinite(step).all() for step in steps)
