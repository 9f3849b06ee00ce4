import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom
from transformers import default_data_collator

from smd_hf import EvolutionTrainer, SMDError
from smd_hf.data.fitness_samples import FreshSamples, inclusion_chances, split_indices
from tests.plain import plain_arguments
from tests.tiny import tiny_model, tiny_pixels


@given(st.integers(2, 5), st.integers(20, 80), st.integers(1, 20), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_each_image_comes_once_a_lap_and_every_sample_is_balanced(classes, count, size, seed):
    labels = np.random.default_rng(seed).integers(0, classes, count)
    fitness, selection = split_indices(labels, 0.2, seed)
    assert sorted([*fitness, *selection]) == list(range(count))
    fresh = FreshSamples(fitness, labels[fitness], size := min(size, len(fitness)), seed)
    a_lap = len(fitness) // size
    samples = [fresh.indices(generation) for generation in range(2 * a_lap)]
    for lap in (samples[:a_lap], samples[a_lap:]):
        rows = np.concatenate(lap)
        assert len(set(rows)) == len(rows) == a_lap * size and set(rows) <= set(fitness)
    sizes = len(np.unique(np.bincount(labels[fitness], minlength=classes)))
    for sample in samples:
        for label in range(classes):
            share = np.mean(labels[fitness] == label)
            # Two prefixes of a stratified order, each off by less than 1 + sizes x share.
            assert abs(np.sum(labels[sample] == label) - size * share) < 2 * (1 + sizes * share)
    again = FreshSamples(fitness, labels[fitness], size, seed)
    assert np.array_equal(again.indices(a_lap), samples[a_lap])


@given(st.lists(st.floats(0, 2), min_size=1, max_size=60), st.data())
@settings(max_examples=50, deadline=None)
def test_chances_follow_the_slopes_as_far_as_none_exceeds_one(slopes, data):
    slopes, size = np.array(slopes), data.draw(st.integers(1, len(slopes)))
    chances = inclusion_chances(slopes, size)
    assert chances.sum() == pytest.approx(size) and (chances > 0).all() and (chances <= 1).all()
    drawn = chances < 1
    ratio = chances[drawn] / (slopes[drawn] / max(slopes.mean(), 1e-300) + 0.1)
    assert not drawn.any() or ratio == pytest.approx(ratio[0])
    # Who is taken for certain has the steepest losses.
    assert drawn.all() or not drawn.any() or slopes[~drawn].min() >= slopes[drawn].max()


@given(st.integers(2, 4), st.integers(20, 60), st.integers(1, 15), st.integers(0, 99))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_weighted_sums_over_a_sample_are_those_over_all_images_on_average(classes, count, size, seed):
    rng = np.random.default_rng(seed)
    labels, slopes, rows = rng.integers(0, classes, count), rng.random(count) ** 4, 100 + np.arange(count)
    samples = FreshSamples(rows, labels, size, seed).by_importance(slopes)
    counts, total = np.zeros(count), np.zeros(count)
    for generation in range(400):
        drawn, weights = samples.sample(generation)
        assert len(drawn) == len(set(drawn)) == len(weights) == size
        counts[drawn - 100] += 1
        total[drawn - 100] += weights
    np.testing.assert_allclose(counts / 400, samples.chances, atol=0.12)
    # Each image counts the same on average, size / count: the steep come often and weigh little.
    np.testing.assert_allclose(total, counts * size / (count * samples.chances))
    # Few draws of a rare image are not spread normally, so five standard deviations are taken as a probability.
    low, high = binom.interval(1 - 5.7e-7, 400, samples.chances)
    assert ((low <= counts) & (counts <= high)).all()
    again = FreshSamples(rows, labels, size, seed).by_importance(slopes)
    assert all(np.array_equal(*pair) for pair in zip(again.sample(7), samples.sample(7), strict=True))


def test_images_without_any_slope_are_drawn_alike():
    assert inclusion_chances(np.zeros(8), 2).tolist() == [0.25] * 8


def test_a_sample_larger_than_the_data_is_all_of_them():
    samples = FreshSamples(np.arange(8), np.zeros(8, dtype=int), 9, 0)
    assert samples.size == 8
    assert sorted(samples.indices(0)) == sorted(samples.indices(3)) == list(range(8))


@pytest.fixture(scope="module")
def rows():
    return [
        {"pixel_values": pixels, "labels": number % 4, "label": number % 4}
        for number, pixels in enumerate(tiny_pixels(56))
    ]


def collate(batch):
    return default_data_collator([{name: row[name] for name in ("pixel_values", "labels")} for row in batch])


def make_trainer(folder, rows, **kwargs):
    arguments = dict(
        population_size=4,
        num_generations=4,
        fitness_samples_per_generation=16,
        sigma=0.3,
        recombination="best",
        elitism=False,
        use_cpu=True,
        disable_tqdm=True,
    )
    return EvolutionTrainer(
        tiny_model("resnet"),
        plain_arguments(str(folder), **arguments | kwargs),
        data_collator=collate,
        train_dataset=rows[:40],
        eval_dataset=rows[40:],
    )


def test_a_run_on_fresh_images_in_each_generation(rows, tmp_path):
    trainer = make_trainer(tmp_path / "out", rows, save_strategy="steps", save_steps=1)
    trainer.train()
    records = trainer.run.generations
    assert all(each["num_images"] == 16 for record in records for each in [record["parent"], *record["children"]])
    # 16 images for the parent and 4 children, 8 selection images for one candidate; in units of all 32 fitness images
    cost = trainer.report["cost"]
    assert cost["images_forwarded"] == 4 * (5 * 16 + 4 * 8)
    assert cost["parent_passes"] == pytest.approx(4 * (5 * 16 + 4 * 8) / 32)
    assert trainer.report["data"]["fitness"] == {"num_images": 32, "per_generation": 16}
    samples = [trainer.images.fresh.indices(generation) for generation in range(4)]
    assert not set(samples[0]) & set(samples[1]) and not set(np.concatenate(samples)) & set(
        trainer.images.selection.indices
    )
    # The first parent's score is that on the first sample.
    parent = make_trainer(tmp_path / "again", rows)
    first = parent.images.make_batches(parent.train_dataset, samples[0])
    logits = parent.evaluator.logits(first)
    assert records[0]["parent"]["accuracy"] == np.mean(logits.argmax(-1) == first.labels)
    # A run that goes on after the second generation sees what it would have seen.
    resumed = make_trainer(tmp_path / "out", rows)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    assert resumed.run.generations == records


def test_without_a_selection_split_the_parent_is_scored_on_the_new_images(rows, tmp_path):
    trainer = make_trainer(tmp_path, rows, selection_fraction=0.0, elitism=True, sigma=1e-4, decomposition="dense")
    trainer.train()
    for record in trainer.run.generations:
        # The same images as in scoring, so the same number; it would be last generation's otherwise.
        assert record["selection"]["parent"] == record["parent"]["fitness"]
    assert len({record["selection"]["parent"] for record in trainer.run.generations}) == 4
    assert trainer.report["selection"]["n_images"] == 16


def test_fewer_than_none_are_refused(rows, tmp_path):
    with pytest.raises(SMDError, match="fitness_samples_per_generation is -1; expected 1 or more, or 0 for all"):
        make_trainer(tmp_path, rows, fitness_samples_per_generation=-1)
