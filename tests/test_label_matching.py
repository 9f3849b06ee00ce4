"""Labels of ImageNet: synonyms, WordNet ids, and the two classes of each name that ImageNet has twice."""

import numpy as np
import pytest
from timm.data import ImageNetInfo

from smd_hf.data.alignment import align_labels, check_same_labels
from smd_hf.data.class_names import ClassNames, wordnet_id
from smd_hf.data.label_matching import match_labels
from smd_hf.errors import SMDError

INFO = ImageNetInfo()
IDS = INFO.label_names()
FULL = INFO.label_descriptions()
SHORT = [name.split(",")[0] for name in FULL]
IMAGENET = ClassNames(FULL)
BIRD, MACHINE = 134, 517
# In alphabetical order, as folders are, with capitals where ImageNet has them.
NAMES = ["African elephant", "Labrador retriever", "acorn", "beagle", "dam", "goldfish", "tench", "viaduct", "wok"]


def classes(names, model=IMAGENET):
    return match_labels(names, model).classes


def test_wordnet_ids_are_those_of_the_order_of_imagenets_classes():
    assert classes(IDS[::-1]) == list(range(1000))[::-1]
    assert classes(["n01443537"], ClassNames(SHORT)) == [1]
    assert classes(["n01443537", "n01440764"], ClassNames(["background", *FULL])) == [2, 1]


def test_wordnet_ids_of_other_label_sets_are_those_of_their_own_order():
    for subset in ("imagenet-12k", "imagenet-22k"):
        info = ImageNetInfo(subset)
        model = ClassNames(info.label_descriptions())
        assert classes(["n01443537", "n02012849"], model) == [
            info.label_names().index(each) for each in ("n01443537", "n02012849")
        ]


def test_a_model_of_some_classes_in_another_order_has_them_by_their_names():
    imagenette = [0, 217, 482, 491, 497, 566, 569, 571, 574, 701]
    model = ClassNames([SHORT[index] for index in imagenette[::-1]])
    assert classes([IDS[index] for index in imagenette], model) == list(range(10))[::-1]
    named_by_id = ClassNames([IDS[index] for index in imagenette])
    assert classes(["golf ball", "Tench", "tinca_tinca", "n03888257"], named_by_id)[::3] == [8, 9]
    assert classes(["golf ball", "Tinca_tinca"], named_by_id) == [8, 0]


def test_folders_may_have_a_name_after_the_id():
    assert wordnet_id("n02085620-Chihuahua") == wordnet_id("n02085620_Chihuahua") == "n02085620"
    assert wordnet_id("n02085620x") is wordnet_id("n123") is wordnet_id("an02085620") is None
    assert classes(["n02085620-Chihuahua", "n02099712-Labrador_retriever"]) == [151, 208]


def test_an_id_that_the_model_does_not_have_is_missing():
    match = match_labels(["n01440764", "n00005787", "n99999999"], IMAGENET)
    assert match.classes == [0, None, None] and match.missing == [1, 2]


def test_synonyms_underscores_case_and_apostrophes():
    labels = ["Tinca_tinca", "ROCK PYTHON", "potters_wheel", "pay phone", "man-eating_shark", "tench,_Tinca_tinca"]
    assert [classes([label])[0] for label in labels] == [0, 62, 739, 707, 2, 0]


def test_an_ambiguous_name_is_asked_about_by_name():
    with pytest.raises(SMDError) as told:
        align_labels([*NAMES, "crane"], np.arange(10), dict(enumerate(FULL)))
    text = str(told.value)
    assert "'crane' may be the model's class 134 (crane: large long-necked wading bird" in text
    assert "or class 517 (crane: lifts and moves heavy objects" in text
    assert '{"crane": 134}' in text and "crane,134" in text and "are not among" not in text


def test_maillot_is_asked_about_where_labels_are_first_words():
    assert match_labels(["tench", "goldfish", "maillot"], IMAGENET).ambiguous == {2: [638, 639]}


@pytest.mark.parametrize(
    "labels, found",
    [
        ([*NAMES, "crane", "crane bird"], [MACHINE, BIRD]),
        ([*NAMES, "crane (bird)", "crane"], [BIRD, MACHINE]),
        ([*NAMES, "construction_crane", "crane, bird"], [MACHINE, BIRD]),
        ([*NAMES, "crane", "n03126707"], [BIRD, MACHINE]),
        ([*NAMES, "maillot", "tank suit"], [638, 639]),
        (["goldfish, Carassius auratus", "tench, Tinca tinca", "maillot"], [0, 638]),
        ([*NAMES, "Cardigan", "cardigan"], [264, 474]),
        ([*NAMES, "cardigan"], [909, 474]),
    ],
)
def test_other_labels_settle_an_ambiguous_name(labels, found):
    match = match_labels(labels, IMAGENET)
    assert match.classes[-2:] == found and not match.ambiguous


def test_the_order_of_the_models_classes_settles_an_ambiguous_name():
    in_order = ["tench", "goldfish", "black stork", "crane", "king penguin", "albatross", "dugong", "Chihuahua"]
    assert classes(in_order)[3] == BIRD
    assert classes([*in_order[4:], *in_order[:3], "crane"])[-1] is None
    assert classes(FULL) == list(range(1000)) and classes(SHORT) == list(range(1000))
    numbered = ["crane2" if index == MACHINE else name for index, name in enumerate(SHORT)]
    assert classes(numbered)[MACHINE] == MACHINE


def test_what_was_settled_is_said_in_a_warning():
    alignment = align_labels([*NAMES, "crane bird"], np.arange(10), dict(enumerate(FULL)))
    assert not alignment.is_sure and "'crane bird' is class 134 (crane: large" in alignment.message
    assert align_labels(NAMES, np.arange(9), dict(enumerate(FULL))).is_sure


def test_a_single_ambiguous_label_among_many_does_not_cost_the_head():
    labels = [*sorted(name for name in SHORT if SHORT.count(name) == 1 and "aillot" not in name)[:199], "crane"]
    with pytest.raises(SMDError, match="'crane' may be"):
        align_labels(labels, np.arange(200), dict(enumerate(FULL)))
    alignment = align_labels(labels, np.arange(200), dict(enumerate(FULL)), label_map={"crane": BIRD})
    assert alignment.how == "name" and alignment.mapping[-1] == BIRD


def test_names_and_ids_of_two_splits_are_the_same_labels():
    assert check_same_labels(IDS[:3], ["goldfish", "tench, Tinca tinca"]).tolist() == [1, 0]


def test_lists_of_timm_are_read_only_where_names_do_not_decide(monkeypatch):
    monkeypatch.setattr("smd_hf.data.class_names._imagenet", lambda subset: pytest.fail("read"))
    assert classes(["dog", "cat"], ClassNames(["cat", "dog"])) == [1, 0]
    assert classes(NAMES, ClassNames(FULL))[0] == 386
