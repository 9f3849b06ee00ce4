"""Labels: alignment by name and by index, comparison of splits, reading without decoding, stratification."""

import datasets
import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from hypothesis import given, settings
from hypothesis import strategies as st

from smd_hf.data.labels import (
    align_labels,
    check_same_labels,
    encode_labels,
    label_maps,
    label_names,
    label_values,
    sorted_names,
    stratified_order,
    stratified_split,
)
from smd_hf.errors import SMDError

MODEL = {0: "cat", 1: "dog", 2: "ice_cream truck"}
GENERIC = {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
OBSERVED = np.array([0, 1, 2, 1])


class TestAlignLabels:
    def test_by_name_in_another_order_and_spelling(self):
        alignment = align_labels(["Ice-Cream  Truck", "DOG", " cat"], OBSERVED, MODEL)
        assert alignment.how == "name"
        assert alignment.mapping.tolist() == [2, 1, 0]
        assert alignment.mapping.dtype == np.int64
        assert alignment.names == ["Ice-Cream  Truck", "DOG", " cat"]

    def test_a_few_of_the_models_classes_by_name(self):
        assert align_labels(["dog", "cat"], np.array([0, 1]), MODEL).mapping.tolist() == [1, 0]

    def test_keys_of_the_configuration_may_be_strings_in_any_order(self):
        id2label = {"10": "k", "9": "j", **{str(i): f"c{i}" for i in range(9)}}
        assert align_labels(["k", "j"], np.array([0]), id2label).mapping.tolist() == [10, 9]

    @pytest.mark.parametrize(
        "names, classes",
        [
            (["goldfish", "tench"], ["tench, Tinca tinca", "goldfish, Carassius auratus"]),
            (["goldfish, Carassius auratus", "tench,Tinca tinca"], ["tench, Tinca tinca", "goldfish"]),
            (["goldfish, Carassius auratus", "Tench"], ["tench", "goldfish"]),
        ],
    )
    def test_imagenet_names_match_on_the_whole_or_the_first_part(self, names, classes):
        alignment = align_labels(names, np.array([0, 1]), dict(enumerate(classes)))
        assert (alignment.how, alignment.mapping.tolist()) == ("name", [1, 0])

    def test_the_whole_name_goes_before_a_shared_first_part(self):
        classes = {0: "crane, machine", 1: "crane", 2: "crane, bird"}
        assert align_labels(["crane", "crane, bird"], np.array([0]), classes).mapping.tolist() == [1, 2]

    def test_an_ambiguous_first_part_is_no_match(self):
        classes = {0: "crane, machine", 1: "crane, bird", 2: "cat"}
        assert align_labels(["cat", "dog", "crane"], OBSERVED, classes).how == "replace"

    def test_the_position_tells_apart_classes_of_one_name(self):
        classes = {0: "crane", 1: "cat", 2: "crane"}
        assert align_labels(["crane", "cat", "crane"], OBSERVED, classes).mapping.tolist() == [0, 1, 2]

    def test_two_labels_never_share_a_class(self):
        assert align_labels(["cat", "Cat"], np.array([0, 1]), MODEL).how == "replace"

    def test_no_name_in_common_but_equal_count_goes_by_index(self):
        alignment = align_labels(["chat", "chien", "camion"], OBSERVED, MODEL)
        assert (alignment.how, alignment.mapping.tolist()) == ("index", [0, 1, 2])
        assert "chien" in alignment.message and "dog" in alignment.message

    @pytest.mark.parametrize("names", [["cat", "dog", "bird"], ["a", "b"], ["cat", "dog", "ice cream truck", "bird"]])
    def test_differing_label_sets_replace_the_head(self, names):
        alignment = align_labels(names, np.array([0, 1]), MODEL, head_init="random")
        assert (alignment.how, alignment.mapping, alignment.names) == ("replace", None, names)

    def test_keeping_the_head_names_what_is_missing(self):
        with pytest.raises(SMDError, match=r"missing: bird;.*keep"):
            align_labels(["cat", "dog", "bird"], OBSERVED, MODEL, head_init="keep")

    def test_generic_classes_of_equal_count_go_by_index_with_a_warning(self):
        alignment = align_labels(["x", "y", "z"], OBSERVED, GENERIC, head_init="keep")
        assert (alignment.how, alignment.mapping.tolist(), alignment.names) == ("index", [0, 1, 2], ["x", "y", "z"])
        assert "LABEL_0" in alignment.message

    def test_generic_classes_of_another_count_are_replaced(self):
        assert align_labels(["x", "y"], np.array([0, 1]), GENERIC).how == "replace"
        with pytest.raises(SMDError, match="missing: x, y"):
            align_labels(["x", "y"], np.array([0, 1]), GENERIC, head_init="keep")

    @pytest.mark.parametrize("id2label", [MODEL, GENERIC])
    def test_plain_integers_in_range_go_by_index(self, id2label):
        alignment = align_labels(None, np.array([0, 1]), id2label)
        assert (alignment.how, alignment.mapping.tolist(), alignment.names) == ("index", [0, 1, 2], None)

    def test_plain_integers_out_of_range(self):
        with pytest.raises(SMDError, match=r"out of range.*from 1 to 3.*3 classes"):
            align_labels(None, np.array([1, 2, 3]), MODEL)

    def test_labels_beyond_their_own_names(self):
        with pytest.raises(SMDError, match=r"from 0 to 5, but there are 2 label names"):
            align_labels(["cat", "dog"], np.array([0, 5]), MODEL)

    @pytest.mark.parametrize("names", [None, ["cat", "dog"]])
    def test_negative_labels_name_split_and_row(self, names):
        with pytest.raises(SMDError, match=r"test split has 2 negative labels, the first of them \(-1\) in row 1"):
            align_labels(names, np.array([0, -1, -1]), MODEL, split="test")

    def test_strings_are_labels_by_sorted_name(self):
        alignment = align_labels(None, np.array(["dog", "cat", "dog"]), MODEL)
        assert (alignment.how, alignment.names, alignment.mapping.tolist()) == ("name", ["cat", "dog"], [0, 1])


class TestCheckSameLabels:
    def test_equal_names_need_no_mapping(self):
        assert check_same_labels(["a", "b"], ["a", "b"]) is None

    def test_another_order_is_mapped_by_name(self):
        assert check_same_labels(["a", "b", "c"], ["c", "A"]).tolist() == [2, 0]

    def test_no_overlap(self):
        with pytest.raises(SMDError, match=r"validation split has no label in common.*x, y.*a, b"):
            check_same_labels(["a", "b"], ["x", "y"])

    def test_an_unknown_label_matters_only_where_it_occurs(self):
        assert check_same_labels(["a", "b"], ["b", "junk", "a"], np.array([0, 2])).tolist() == [1, -1, 0]
        with pytest.raises(SMDError, match="does not know: junk"):
            check_same_labels(["a", "b"], ["b", "junk", "a"], np.array([0, 1]))
        with pytest.raises(SMDError, match="does not know: junk"):
            check_same_labels(["a", "b"], ["b", "junk", "a"])

    def test_plain_integers_are_checked_for_their_range(self):
        assert check_same_labels(["a", "b"], None, np.array([0, 1])) is None
        assert check_same_labels(None, None) is None
        with pytest.raises(SMDError, match="validation split run from 0 to 2"):
            check_same_labels(["a", "b"], None, np.array([0, 2]))

    @pytest.mark.parametrize("eval_names", [None, ["b", "a"]])
    def test_unlabelled_rows(self, eval_names):
        with pytest.raises(SMDError, match="test split has 1 negative"):
            check_same_labels(["a", "b"], eval_names, np.array([0, -1]), split="test")


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
