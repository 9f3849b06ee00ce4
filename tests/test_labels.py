"""Labels: reading without decoding, stratification."""

import datasets
import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from hypothesis import given, settings
from hypothesis import strategies as st

from smd_hf.data.labels import (
    encode_labels,
    label_maps,
    label_names,
    label_values,
    sorted_names,
    stratified_order,
    stratified_split,
)
from smd_hf.errors import SMDError


class TestReading:
    def test_class_label(self):
        features = Features({"x": Value("int64"), "label": ClassLabel(names=["b", "a"])})
        dataset = Dataset.from_dict({"x": [1, 2, 3], "label": [1, 0, 1]}, features=features)
        assert label_names(dataset, "label") == ["b", "a"]
        assert label_values(dataset, "label").tolist() == [1, 0, 1]

    def test_nothing_is_decoded(self):
        features = Features({"image": datasets.Image(), "label": Value("int64")})
        dataset = Dataset.from_dict(
            {"image": [{"bytes": b"broken", "path": None}] * 3, "label": [2, 0, 1]}, features=features
        )
        for form in (dataset, dataset.with_format("torch"), dataset.with_transform(lambda rows: 1 / 0)):
            assert label_values(form, "label").tolist() == [2, 0, 1]
        subset = torch.utils.data.Subset(dataset, [2, 0])
        assert label_values(subset, "label").tolist() == [1, 2]
        assert label_names(subset, "label") is None

    def test_rows_of_any_map_style_data_set(self):
        rows = [{"y": 3}, {"y": np.int32(1)}, {"y": torch.tensor(2)}, {"y": 0.0}, {"y": True}]
        values = label_values(rows, "y")
        assert values.tolist() == [3, 1, 2, 0, 1] and values.dtype == np.int64
        assert label_names(rows, "y") is None

    def test_strings(self):
        dataset = Dataset.from_dict({"label": ["10", "9", "10"]})
        values = label_values(dataset, "label")
        assert values.tolist() == ["10", "9", "10"]
        assert label_names(dataset, "label") == ["9", "10"]
        assert encode_labels(values, ["9", "10"]).tolist() == [1, 0, 1]
        assert sorted_names(["b", "10", "9"]) == ["10", "9", "b"]
        with pytest.raises(SMDError, match="not among the known names: 10"):
            encode_labels(values, ["9"])

    @pytest.mark.parametrize("bad", [None, [1, 0], 0.5, float("nan"), float("inf")])
    def test_rows_without_one_label(self, bad):
        with pytest.raises(SMDError, match="label of row 1"):
            label_values([{"y": 0}, {"y": bad}], "y")

    def test_mixed_kinds(self):
        with pytest.raises(SMDError, match="mixes"):
            label_values([{"y": 0}, {"y": "cat"}], "y")

    def test_label_maps(self):
        assert label_maps(["a", "b"]) == ({0: "a", 1: "b"}, {"a": 0, "b": 1})


PINNED = [0, 4, 2, 1, 5, 3]
LABELS = st.lists(st.integers(0, 6), max_size=200).map(lambda labels: np.array(labels, dtype=np.int64))
SEEDS = st.integers(0, 2**32)


class TestStratification:
    @settings(max_examples=150, deadline=None)
    @given(LABELS, SEEDS)
    def test_every_prefix_holds_its_share_of_each_class(self, labels, seed):
        order = stratified_order(labels, seed)
        assert sorted(order.tolist()) == list(range(len(labels)))
        classes, counts = np.unique(labels, return_counts=True)
        sizes = len(np.unique(counts))
        prefix = np.arange(1, len(labels) + 1)
        for label, count in zip(classes, counts):
            share = count / len(labels)
            assert np.all(np.abs(np.cumsum(labels[order] == label) - prefix * share) < 1 + sizes * share + 1e-9)

    @settings(max_examples=100, deadline=None)
    @given(LABELS.filter(lambda labels: len(labels) >= 2), st.floats(0.01, 0.99), SEEDS)
    def test_split_is_a_partition_of_the_asked_size(self, labels, fraction, seed):
        kept, aside = stratified_split(labels, fraction, seed)
        assert sorted([*kept, *aside]) == list(range(len(labels)))
        assert np.all(np.diff(kept) > 0) and np.all(np.diff(aside) > 0)
        assert min(len(kept), len(aside)) >= 1
        assert abs(len(aside) - fraction * len(labels)) <= 1

    def test_balanced_classes_stay_balanced(self):
        labels = np.repeat(np.arange(10), 50)
        _, aside = stratified_split(labels, 0.2, seed=3)
        assert np.bincount(labels[aside]).tolist() == [10] * 10
        counts = np.bincount(labels[stratified_order(labels, 3)[:123]])
        assert counts.min() >= 12 and counts.max() <= 13

    def test_rare_classes_are_as_likely_as_others(self):
        labels = np.array([0] * 2000 + list(range(1, 101)))  # a hundred classes with one image each
        shares = [np.mean(labels[stratified_order(labels, seed)[:210]] > 0) for seed in range(100)]
        assert np.mean(shares) == pytest.approx(100 / 2100, rel=0.05)

    def test_the_seed_decides_and_nothing_else(self):
        # Written down once: any platform and release must give the same.
        labels = np.array([0, 1, 0, 2, 1, 0])
        assert stratified_order(labels, 7).tolist() == stratified_order(labels, 7).tolist() == PINNED
        assert stratified_order(np.array(["a", "b", "a", "c", "b", "a"]), 7).tolist() == PINNED
        many = np.zeros(100, dtype=np.int64)
        assert stratified_order(many, 1).tolist() != stratified_order(many, 2).tolist()

    def test_ends_of_the_range(self):
        kept, aside = stratified_split(np.zeros(5), 0, seed=0)
        assert (kept.tolist(), aside.tolist()) == ([0, 1, 2, 3, 4], [])
        assert stratified_order(np.empty(0), 0).shape == (0,)
        for fraction in (-0.1, 1.0, float("nan")):
            with pytest.raises(SMDError, match="set aside"):
                stratified_split(np.zeros(5), fraction, seed=0)
        with pytest.raises(SMDError, match="cannot be cut in two"):
            stratified_split(np.zeros(1), 0.5, seed=0)
