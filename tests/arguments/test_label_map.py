"""Label maps: reading them, what they mean, and the mistakes in them."""

import json
import re

import numpy as np
import pytest

from smd_hf.arguments.label_map import read_label_map
from smd_hf.data.alignment import align_labels
from smd_hf.errors import SMDError
from tests.plain import plain_arguments

MODEL = {0: "crane", 1: "dog", 2: "crane", 3: "ice cream, icecream"}


def align(names, label_map, observed=None, **kwargs):
    observed = np.arange(len(names)) if observed is None else np.array(observed)
    return align_labels(names, observed, MODEL, label_map=read_label_map(label_map), **kwargs)


def test_forms(tmp_path):
    expected = {"crane": 2, "chien": "dog", "ice, cold": "ice cream", "junk": None}
    files = {
        "map.json": json.dumps(expected),
        "map.csv": 'label,class\ncrane,2\nchien,dog\n\n"ice, cold",ice cream\njunk,\n',
        "bare.CSV": '\ufeffcrane, 2\nchien, dog\n"ice, cold", "ice cream"\njunk,\n',
    }
    assert read_label_map(expected) == read_label_map(json.dumps(expected)) == expected
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        read = read_label_map(tmp_path / name)
        assert read == expected
        alignment = align(["ice, cold", "crane", "chien"], str(tmp_path / name))
        assert alignment.mapping.tolist() == [3, 2, 1] and alignment.is_sure
    assert read_label_map({0: 517}) == {"0": 517}


@pytest.mark.parametrize(
    "name, text, expected",
    [
        ("map.json", "{", "not JSON"),
        ("map.json", "[1, 2]", "no JSON object"),
        ("map.json", "[]", "no JSON object"),
        ("map.json", '{"a": 1, "a": 2}', "'a' twice"),
        ("map.json", '{"a": 1.5}', "1.5; expected"),
        ("map.json", '{"a": true}', "True; expected"),
        ("map.json", '{"a": {"b": 1}}', "expected the model's label"),
        ("map.csv", "a,b,c", r"3 columns in line 1.*quotes"),
        ("map.csv", "a,b\na,c", "'a' twice"),
        ("map.txt", "a,b", "neither a .json nor a .csv"),
        ("mop.json", "{}", r"Did you mean '{tmp}/mop\.json'"),
    ],
)
def test_what_cannot_be_read(name, text, expected, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(SMDError, match=expected.replace("{tmp}", re.escape(str(tmp_path)))) as told:
        plain_arguments(str(tmp_path), label_map=str(tmp_path / name.replace("mop", "map")), use_cpu=True)
    assert "\n" not in str(told.value)


def test_it_goes_before_names_and_several_labels_may_have_one_class():
    assert align(["dog", "cat", "crane"], {"dog": 3, "cat": "ice_cream", "crane": 0}).mapping.tolist() == [3, 3, 0]


def test_a_class_that_it_gives_is_taken():
    alignment = align(["the machine", "crane"], {"the machine": 2})
    assert alignment.mapping.tolist() == [2, 0] and "'crane' is class 0" in alignment.message
    with pytest.raises(SMDError, match="'hound' and 'dog' mean the same"):
        align(["hound", "dog"], {"hound": 1})


@pytest.mark.parametrize(
    "label_map, expected",
    [
        ({"dog": 4}, r"'dog' to class 4, but the model has 4 classes: expected 0 to 3"),
        ({"dog": "-1"}, r"no class of the model has this name"),
        ({"dog": "crane"}, r"may be the model's class 0 \(crane\) or 2 \(crane\)"),
        ({"dog": "ice crem"}, r"Did you mean 'ice cream'"),
        ({"doog": 1}, r"label 'doog', which the data set does not have. Did you mean 'dog'\?"),
        ({"dog": 1, "Dog": 1}, "twice, in two spellings"),
    ],
)
def test_mistakes(label_map, expected):
    with pytest.raises(SMDError, match=expected):
        align(["dog", "ice cream"], label_map)


def test_a_number_that_is_the_index_of_one_class_and_the_name_of_another_is_refused(tmp_path):
    numbers = dict(enumerate(["0", "1", "10", "2"]))
    (tmp_path / "map.csv").write_text("ten,2\n")
    with pytest.raises(SMDError, match=r"index of one class \('10'\) and the name of another \(index 3\)"):
        align_labels(["ten"], np.arange(1), numbers, label_map=read_label_map(tmp_path / "map.csv"))
    for name, index in (("10", 2), ("2", 3)):
        assert align_labels(["ten"], np.arange(1), numbers, label_map={"ten": name}).mapping.tolist() == [index]


def test_labels_that_the_data_do_not_have_are_left_alone():
    assert align(["dog"], {"zebra": "horse"}).mapping.tolist() == [1]


def test_a_label_without_a_class_must_have_no_image():
    assert align(["dog", "junk"], {"junk": None}, [0, 0]).mapping.tolist() == [1, -1]
    with pytest.raises(SMDError, match=r"train split has images of 1 labels without a class of the model \(junk\)"):
        align(["dog", "junk"], {"junk": None})


def test_integers_without_names():
    alignment = align_labels(None, np.array([0, 7, 0]), MODEL, label_map=read_label_map({7: "dog", "0": 2}))
    assert alignment.mapping[[0, 7]].tolist() == [2, 1] and alignment.names is None
    with pytest.raises(SMDError, match=r"without a class of the model \(3\)"):
        align_labels(None, np.array([0, 3]), MODEL, label_map={"0": 2})
    with pytest.raises(SMDError, match="integers without names, but label_map has the label 'dog'"):
        align_labels(None, np.array([0]), MODEL, label_map={"dog": 2})


def test_classes_without_real_names_by_their_index():
    generic = {index: f"LABEL_{index}" for index in range(5)}
    assert align_labels(["a", "b"], np.arange(2), generic, label_map={"a": 4, "b": 0}).mapping.tolist() == [4, 0]
    with pytest.raises(SMDError, match=r"1 of the data set's 2 labels.*'b'"):
        align_labels(["a", "b"], np.arange(2), generic, label_map={"a": 4})


def test_a_map_and_another_head_contradict_each_other():
    with pytest.raises(SMDError, match='label map keeps the head, but head_init="linear_probe" replaces it'):
        align(["dog", "horse"], {"dog": 1}, head_init="linear_probe")


def test_columns_of_labels_that_share_a_class():
    order, places = align(
        ["hound", "crane", "dog", "none"], {"hound": 1, "dog": 1, "crane": 2, "none": None}, [0]
    ).columns(4)
    assert order.tolist() == [1, 2, 0, 3] and places.tolist() == [0, 1, 0, -1]
