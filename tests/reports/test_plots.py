"""Figures: written as PNG at their place, equal for equal data, drawn from what was given, pyplot left alone."""

import warnings

import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.figure import Figure
from PIL import Image

from smd_hf.metrics.statistics import reliability
from smd_hf.reports import plots
from smd_hf.reports.gain_report import gain_report

RNG = np.random.default_rng(0)
TRUTH = 2 * RNG.normal(size=(200, 4))
LABELS = (TRUTH + RNG.gumbel(size=TRUTH.shape)).argmax(axis=1)
PARENT, EVOLVED = 2 * (TRUTH + RNG.normal(size=TRUTH.shape)), TRUTH
VOTES = np.where(np.arange(4) == PARENT.argmax(axis=1)[:, None], 0.0, -np.inf)
GENERATIONS = [
    {"children": [-0.9, -0.7, -50.0, -np.inf, -0.8, -0.85], "parent": -0.8, "best": -0.7},
    {"children": [-0.75, -0.6, -0.65, -0.7, -0.72], "parent": -0.7, "best": -0.6},
]


def report(**more):
    return gain_report(PARENT, EVOLVED, LABELS, arguments={}, method={}, cost={}, data={}, **more)


IMAGES = [Image.fromarray(RNG.integers(256, size=(8, 8, 3)).astype(np.uint8)) for _ in range(3)]
DRAWN = {
    "fitness": lambda path: plots.plot_fitness(GENERATIONS, path),
    "fitness_one_child_each": lambda path: plots.plot_fitness([{"children": [0.5], "parent": 0.5, "best": 0.5}], path),
    "fitness_none_finite": lambda path: plots.plot_fitness(
        [{"children": [-np.inf] * 2, "parent": -1.0, "best": -1.0}], path, label="-NLL"
    ),
    "gain": lambda path: plots.plot_gain(report(), path),
    "gain_ensemble": lambda path: plots.plot_gain(report(ensemble_logits=PARENT + EVOLVED), path),
    "gain_infinite_nll": lambda path: plots.plot_gain(report(ensemble_logits=VOTES), path),
    "reliability": lambda path: plots.plot_reliability(
        reliability(PARENT, LABELS), reliability(EVOLVED, LABELS), path
    ),
    "calibration": lambda path: plots.plot_calibration_curve([(1, 0.8), (0.01, 0), (0.1, 0.02)], 0.12, 0.03, path),
    "ensemble": lambda path: plots.plot_ensemble_size([1, 2, 4], [0.8, 0.81, 0.82], 0.8, path),
    "ensemble_many_sizes": lambda path: plots.plot_ensemble_size(range(1, 33), np.linspace(0.8, 0.9, 32), 0.8, path),
    "shift": lambda path: plots.plot_shift(IMAGES, [np.asarray(image) // 2 for image in IMAGES], path),
    "shift_grey": lambda path: plots.plot_shift(RNG.random((2, 8, 8)) * 0, np.ones((2, 8, 8)), path, names=("a", "b")),
}


@pytest.mark.parametrize("name", DRAWN)
def test_a_figure_is_a_png_with_equal_bytes_for_equal_data(tmp_path, name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first = DRAWN[name](tmp_path / "new" / "first.png")
        second = DRAWN[name](str(tmp_path / "second.png"))
    assert first == tmp_path / "new" / "first.png" and second == tmp_path / "second.png"
    assert first.read_bytes() == second.read_bytes()
    with Image.open(first) as image:
        assert image.format == "PNG" and image.info["dpi"] == pytest.approx((150, 150), abs=0.1)
        assert "Software" not in image.info
        pixels = np.asarray(image.convert("RGB"))
    assert 200 < pixels.shape[1] <= 1100  # readable at the width of a README
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 10


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Draws a figure and returns it instead of only its file."""
    figures = []
    savefig = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (figures.append(self), savefig(self, *a, **k)))

    def draw(name):
        DRAWN[name](tmp_path / "figure.png")
        return figures[-1]

    return draw


def test_fitness_shows_every_finite_child_and_keeps_the_scale(drawn):
    axes = drawn("fitness").axes[0]
    shown = np.concatenate(
        [c.get_offsets() for c in axes.collections if hasattr(c, "get_sizes") and len(c.get_offsets())]
    )
    shown = shown[np.isfinite(shown).all(axis=1)]
    for generation, record in enumerate(GENERATIONS, start=1):
        values = sorted(y for x, y in shown if round(x) == generation)
        finite = sorted(v for v in record["children"] if np.isfinite(v))
        assert len(values) == len(finite)
        np.testing.assert_allclose(values[1:], finite[1:])
    assert axes.get_ylim()[0] > -1.2  # the child at -50 is a mark at the edge, not the scale
    assert "children below the axis" in [text.get_text() for text in axes.get_legend().get_texts()]


def test_gain_draws_the_paired_interval_around_the_models_own_value(drawn):
    expected = report()
    low, high = expected["difference"]["accuracy"]["interval"]
    base = expected["parent"]["accuracy"]
    panel = drawn("gain").axes[0]
    segment = panel.collections[0].get_segments()[0]
    np.testing.assert_allclose(segment[:, 0], [100 * (base + low), 100 * (base + high)])
    texts = [text.get_text() for text in panel.texts]
    assert texts == [f"{100 * expected[name]['accuracy']:.2f}" for name in ("parent", "evolved")]
    assert "not finite" in [text.get_text() for text in drawn("gain_infinite_nll").axes[1].texts]


def test_calibration_curve_has_a_logarithmic_sigma_and_sorted_points(drawn):
    axes = drawn("calibration").axes[0]
    assert axes.get_xscale() == "log"
    measured = next(line for line in axes.lines if line.get_label() == "measured")
    assert measured.get_xdata().tolist() == [0.01, 0.1, 1] and measured.get_ydata().tolist() == [0, 0.02, 0.8]


def test_rows_of_different_length_are_refused(tmp_path):
    with pytest.raises(ValueError, match="shorter"):
        plots.plot_shift(IMAGES, IMAGES[:2], tmp_path / "figure.png")


def test_pyplot_knows_nothing_of_the_figures(tmp_path):
    mine = pyplot.figure()
    try:
        for name in ("gain", "reliability", "shift"):
            DRAWN[name](tmp_path / "figure.png")
        assert pyplot.get_fignums() == [mine.number] and pyplot.gcf() is mine
    finally:
        pyplot.close(mine)
