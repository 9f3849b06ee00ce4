"""Alignment: labels and classes by name and by index, and the labels of two splits."""

import numpy as np
import pytest

from smd_hf.data.alignment import align_labels, check_same_labels
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

    def test_the_position_tells_apart_classes_of_one_name(self):
        classes = {0: "crane", 1: "cat", 2: "crane"}
        assert align_labels(["crane", "cat", "crane"], OBSERVED, classes).mapping.tolist() == [0, 1, 2]

    def test_two_labels_never_share_a_class(self):
        with pytest.raises(SMDError, match=r"'cat' and 'Cat' mean the same: the model's class 0 \(cat\).*label_map"):
            align_labels(["cat", "Cat"], np.array([0, 1]), MODEL)

    def test_no_name_in_common_but_equal_count_goes_by_index(self):
        alignment = align_labels(["chat", "chien", "camion"], OBSERVED, MODEL)
        assert (alignment.how, alignment.mapping.tolist()) == ("index", [0, 1, 2])
        assert "chien" in alignment.message and "dog" in alignment.message

    @pytest.mark.parametrize("names", [["cat", "dog", "bird"], ["a", "b"], ["cat", "dog", "ice cream truck", "bird"]])
    def test_differing_label_sets_replace_the_head_on_purpose(self, names):
        alignment = align_labels(names, np.array([0, 1]), MODEL, head_init="random")
        assert (alignment.how, alignment.mapping, alignment.names) == ("replace", None, names)
        assert not alignment.is_sure

    def test_labels_that_are_all_others_replace_the_head_by_themselves(self):
        alignment = align_labels(["a", "b"], np.array([0, 1]), MODEL)
        assert alignment.how == "replace" and not alignment.is_sure
        assert "missing: a, b" in alignment.message and "head is replaced" in alignment.message

    @pytest.mark.parametrize("names", [["cat", "dog", "bird"], ["cat", "chien", "bird", "truk"]])
    def test_labels_that_match_in_part_are_an_error_that_says_what_to_do(self, names):
        with pytest.raises(SMDError) as told:
            align_labels(names, np.array([0, 1]), MODEL)
        text = str(told.value)
        assert f"{len(names) - (2 if 'dog' in names else 1)} of the data set's {len(names)} labels" in text
        assert "'bird'" in text and "--label_map FILE" in text and "--head_init linear_probe" in text
        assert "\n" not in text

    def test_the_list_of_labels_that_do_not_match_is_bounded_and_offers_near_names(self):
        with pytest.raises(SMDError, match=r"'dgo' \(did you mean 'dog'\?\), 'x0'.*'x8' and 91 more") as told:
            align_labels(["cat", "dgo", *(f"x{i}" for i in range(100))], np.array([0]), MODEL)
        assert len(str(told.value)) < 1500 and '{"dgo": "dog"}' in str(told.value)

    def test_where_the_head_cannot_be_replaced_the_error_says_what_else(self):
        for names in (["a", "b"], ["cat", "b"]):
            with pytest.raises(SMDError, match=r"Or do that[.]") as told:
                align_labels(names, np.array([0, 1]), MODEL, otherwise="Or do that.")
            assert "head_init" not in str(told.value)

    def test_keeping_the_head_names_what_is_missing(self):
        with pytest.raises(SMDError, match=r"model's 3 classes: 'bird'[.].*keep"):
            align_labels(["cat", "dog", "bird"], OBSERVED, MODEL, head_init="keep")

    def test_generic_classes_of_equal_count_go_by_index_with_a_warning(self):
        alignment = align_labels(["x", "y", "z"], OBSERVED, GENERIC, head_init="keep")
        assert (alignment.how, alignment.mapping.tolist(), alignment.names) == ("index", [0, 1, 2], ["x", "y", "z"])
        assert "LABEL_0" in alignment.message

    def test_generic_classes_of_another_count_are_replaced(self):
        assert align_labels(["x", "y"], np.array([0, 1]), GENERIC).how == "replace"
        with pytest.raises(SMDError, match="classes: 'x', 'y'"):
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
