import numpy as np
from scipy.special import softmax

from smd_hf.search.head import linear
from smd_hf.search.image_slopes import slope_norms
from smd_hf.search.losses import cross_entropy, focal


def test_the_slope_of_cross_entropy_is_what_the_probabilities_lack(monkeypatch):
    monkeypatch.setattr(linear, "CHUNK_NUMBERS", 4 * 3)
    logits = np.random.default_rng(0).standard_normal((10, 3)).astype(np.float32)
    labels = np.arange(10) % 3
    expected = np.linalg.norm(softmax(logits.astype(np.float64), 1) - np.eye(3)[labels], axis=1)
    np.testing.assert_allclose(slope_norms(cross_entropy(), logits, labels), expected, atol=1e-9)


def test_any_loss_that_is_a_sum_over_images_has_slopes():
    logits = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
    labels = np.arange(5) % 3
    alone = [slope_norms(focal(), logits[[row]], labels[[row]])[0] for row in range(5)]
    np.testing.assert_allclose(slope_norms(focal(), logits, labels), alone, atol=1e-12)
