"""
Matching the data set's labels to the model's classes, or deciding that the head must be replaced.

Names decide wherever both sides have them; positions are trusted only where a
name is missing, and never silently.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arguments.label_map import LabelMap
from ..errors import SMDError
from ..messages import closest
from .class_names import ClassNames
from .label_matching import LabelMatch, match_labels
from .labels import check_range, encode_labels, some, sorted_names
from .mapped_labels import mapped_classes

_LISTED = 10
"""Labels listed in an error."""


@dataclass(frozen=True, eq=False)
class LabelAlignment:
    """
    How the data set's labels relate to the model's classes.

    Args:
        mapping (`np.ndarray` or `None`): int64 of shape `(number of labels,)`, from the data set's label to the
            model's class, -1 for a label without a class; `None` where the head is replaced by one whose
            classes are the data set's labels.
        how (`str`): `"name"` (the label map included), `"index"` or `"replace"`.
        names (`list[str]` or `None`): the data set's label names in the order of its labels, where it has any.
        is_sure (`bool`): whether `message` is only information; otherwise it is a warning.
    """

    mapping: np.ndarray | None
    how: str
    names: list[str] | None
    message: str
    is_sure: bool = False

    def check(self, values: np.ndarray, *, split: str) -> None:
        """Refuses labels (int64, of shape `(n,)`) that have no class."""
        if self.mapping is None:
            return
        occurring = [int(label) for label in np.unique(values)]
        without = [label for label in occurring if not 0 <= label < len(self.mapping) or self.mapping[label] < 0]
        if without:
            names = [str(label) if self.names is None else self.names[label] for label in without]
            raise SMDError(
                f"The {split} split has images of {len(without)} labels without a class of the model ({some(names)}). Give them one "
                "in the label map, or remove these images."
            )

    def columns(self, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
        """
        The model's classes in the order of the data set's labels.

        Returns:
            `tuple[np.ndarray, np.ndarray]`: int64 of shape `(num_classes,)`, the classes of the labels in their order and then all
            others; int64 of shape `(number of labels,)`, the place of each label among them, -1 for a label without a class.
        """
        assert self.mapping is not None  # no head is to be replaced
        classes, first = np.unique(self.mapping[self.mapping >= 0], return_index=True)
        known = classes[np.argsort(first)]
        place = np.full(num_classes, -1, dtype=np.int64)
        place[known] = np.arange(len(known))
        order = np.concatenate([known, np.setdiff1d(np.arange(num_classes), known)])
        return order, np.where(self.mapping >= 0, place[self.mapping], -1)


def align_labels(
    dataset_names: Sequence[str] | None,
    observed: np.ndarray,
    id2label: Mapping[Any, str],
    *,
    head_init: str | None = None,
    split: str = "train",
    label_map: LabelMap | None = None,
    otherwise: str | None = None,
) -> LabelAlignment:
    """
    Find the model's class for each of the data set's labels.

    Names are matched as [`~label_matching.match_labels`] does it; what `label_map` says goes before. Where no label is one of the
    model's, the head is to be replaced. Where some are and some are not, that is an error, unless `head_init` says so.

    Args:
        head_init (`str`, *optional*): `"linear_probe"` or `"random"`: the head may be replaced also where some labels are the
            model's; `"keep"`: it may not be replaced. By default it is replaced where no label is the model's.
        otherwise (`str`, *optional*): where the head cannot be replaced, what an error says to do instead.
    """
    names = None if dataset_names is None else list(dataset_names)
    if names is None and np.asarray(observed).dtype.kind == "U":
        names = sorted_names(observed)
    classes = ClassNames.of(id2label)
    values = encode_labels(observed, names, split=split)
    if names is None and label_map is not None:
        return _align_integers(values, classes, label_map, split)
    check_range(values, len(classes) if names is None else len(names), split=split, of_model=names is None)
    if names is None:
        return LabelAlignment(
            np.arange(len(classes)),
            "index",
            None,
            "The data set's labels are integers without names: label k was taken for the model's class k "
            f"({some(f'{index}: {name}' for index, name in enumerate(classes.names))}); check that the orders agree.",
        )
    if classes.are_generic and len(names) == len(classes) and label_map is None:
        return LabelAlignment(
            np.arange(len(names)),
            "index",
            names,
            f"The model's {len(classes)} classes have no real names ({some(classes.names)}): label k of the data set "
            f"({some(names)}) was taken for class k.",
        )
    given = {} if label_map is None else mapped_classes(label_map, names, classes)
    match = LabelMatch([given.get(label) for label in range(len(names))])
    if not classes.are_generic:
        match = match_labels(names, classes, given)
    if all(index is not None for index in match.classes):
        alignment = LabelAlignment(
            np.array(match.classes, dtype=np.int64),
            "name",
            names,
            _matched(match, names, classes, given),
            not match.settled,
        )
        alignment.check(values, split=split)
        return alignment

    differing = (
        f"{len(match.missing)} of the data set's {len(names)} labels are not among the model's {len(classes)} classes"
    )
    nothing = len(match.missing) == len(names)
    if nothing and len(names) == len(classes):
        return LabelAlignment(
            np.arange(len(names)),
            "index",
            names,
            f"No label name of the data set ({some(names)}) is one of the model's ({some(classes.names)}), but both have "
            f"{len(names)}: label k was taken for class k; check that the orders agree.",
        )
    may_replace = otherwise is None and head_init != "keep"
    if may_replace and (nothing or head_init is not None) and label_map is None:
        missing = [names[label] for label in match.missing]
        reason = (
            f"(missing: {some(missing)})" if nothing else f'(missing: {some(missing)}), and head_init is "{head_init}"'
        )
        return LabelAlignment(
            None,
            "replace",
            names,
            f"{differing} {reason}: the model's head is replaced by one with the data set's {len(names)} labels.",
        )
    raise SMDError(" ".join(_problems(match, names, classes, head_init, otherwise, label_map)))


def _align_integers(values: np.ndarray, classes: ClassNames, label_map: LabelMap, split: str) -> LabelAlignment:
    """Integers without names: only the label map says which classes they are."""
    strange = [label for label in label_map if not label.isdecimal()]
    if strange:
        raise SMDError(
            f"The labels of the {split} split are integers without names, but label_map has the label {strange[0]!r}. Expected the "
            'data set\'s integers as labels, such as {"0": 517}.'
        )
    check_range(values, int(values.max(initial=0)) + 1, split=split)
    count = 1 + max([int(values.max(initial=0)), *map(int, label_map)])
    given = mapped_classes(label_map, [str(label) for label in range(count)], classes)
    mapping = np.full(count, -1, dtype=np.int64)
    mapping[list(given)] = list(given.values())
    alignment = LabelAlignment(
        mapping,
        "name",
        None,
        f"The label map gives {len(given)} of the data set's integer labels a class of the model's {len(classes)}.",
        True,
    )
    alignment.check(values, split=split)
    return alignment


def _matched(match: LabelMatch, names: list[str], classes: ClassNames, given: Mapping[int, int]) -> str:
    """What is logged where every label has a class."""
    by_map = f", {len(given)} of them by the label map" if given else ""
    message = f"The data set's {len(names)} labels were matched by name to the model's {len(classes)} classes{by_map}."
    if match.settled:
        chosen = "; ".join(
            f"{names[label]!r} is class {classes.described(match.classes[label] or 0)}, {why}"
            for label, why in list(match.settled.items())[:_LISTED]
        )
        message += f" {len(match.settled)} could have been one of several classes: {chosen}. If that is wrong, give a label_map."
    return message


def _problems(
    match: LabelMatch,
    names: list[str],
    classes: ClassNames,
    head_init: str | None,
    otherwise: str | None,
    label_map: LabelMap | None,
) -> list[str]:
    """The sentences of an error: which labels have no class, and what to do."""
    sentences, example = [], {}
    missing, count = match.missing, len(classes)
    if missing:
        near = {label: closest(names[label].replace("_", " "), classes.named) for label in missing[:_LISTED]}
        hints = [f"{names[label]!r}" + (f" (did you mean {name!r}?)" if name else "") for label, name in near.items()]
        more = f" and {len(missing) - _LISTED:,} more" if len(missing) > _LISTED else ""
        sentences.append(
            f"{len(missing):,} of the data set's {len(names):,} labels are not among the model's {count:,} classes: "
            f"{', '.join(hints)}{more}. The model has {some(name.split(',')[0] for name in classes.names)}."
        )
        hinted = next((label for label, name in near.items() if name), missing[0])
        example[names[hinted]] = near[hinted] or 0
    for label, candidates in list(match.ambiguous.items())[:_LISTED]:
        sentences.append(
            f"The label {names[label]!r} may be the model's class "
            f"{' or class '.join(classes.described(index) for index in candidates[:3])}, and the other labels do not settle which."
        )
        example[names[label]] = next((index for index in candidates if index not in example.values()), candidates[0])
    if len(match.ambiguous) > _LISTED:
        sentences.append(f"{len(match.ambiguous) - _LISTED:,} more labels are ambiguous.")
    for index, labels in list(match.shared.items())[:_LISTED]:
        several = " and ".join(repr(names[label]) for label in labels[:3])
        sentences.append(f"The labels {several} mean the same: the model's class {classes.described(index)}.")
        example[names[labels[0]]] = example[names[labels[1]]] = index
    if len(match.shared) > _LISTED:
        sentences.append(f"{len(match.shared) - _LISTED:,} more classes have several labels.")
    shown = dict(list(example.items())[:3])
    if label_map is not None and head_init not in (None, "keep") and otherwise is None:
        sentences.append(
            f'A label map keeps the head, but head_init="{head_init}" replaces it: complete the label map and leave head_init out, or '
            "leave the label map out."
        )
        return sentences
    sentences.append(
        f"Say which class each of these labels is: --label_map FILE (in Python label_map=...), a JSON file such as {json.dumps(shown)} "
        f"or a CSV file with a line such as {_csv_line(shown)}, from the data set's label to the model's label or class index (0 to "
        f"{count - 1})."
    )
    if otherwise is not None:
        sentences.append(otherwise)
    elif head_init == "keep":
        sentences.append(
            'head_init="keep" keeps the head; "linear_probe" or "random" would replace it by one for the data set\'s labels.'
        )
    else:
        sentences.append(
            f"Or replace the head by one for the data set's {len(names):,} labels on purpose: --head_init linear_probe."
        )
    return sentences


def with_test_labels(
    alignment: LabelAlignment,
    test_names: Sequence[str],
    observed: np.ndarray,
    id2label: Mapping[Any, str],
    label_map: LabelMap | None = None,
) -> LabelAlignment:
    """
    The alignment of training labels, extended by labels that only test images have, where the model has a class of each name.

    Args:
        alignment ([`LabelAlignment`]): of the training labels.
        test_names (`Sequence[str]`): names of labels that occur in the test images.
        observed (`np.ndarray`): the training labels.

    Returns:
        [`LabelAlignment`]: with new labels after the old ones, whose classes stay what they are. The same one where a new label
        names no class of the model, or labels are not matched by name.
    """
    if alignment.mapping is None or alignment.how != "name" or alignment.names is None:
        return alignment
    known = match_labels(test_names, ClassNames(alignment.names)).classes
    new = [name for name, label in zip(test_names, known) if label is None]
    if not new:
        return alignment
    try:
        extended = align_labels([*alignment.names, *new], observed, id2label, head_init="keep", label_map=label_map)
    except SMDError:
        return alignment
    if extended.mapping is None or (extended.mapping[: len(alignment.mapping)] != alignment.mapping).any():
        return alignment
    return extended


def _csv_line(example: Mapping[str, Any]) -> str:
    label, value = next(iter(example.items()))
    return ",".join(f'"{cell}"' if "," in str(cell) else str(cell) for cell in (label, value))


def check_same_labels(
    train_names: Sequence[str] | None,
    eval_names: Sequence[str] | None,
    observed: np.ndarray | None = None,
    *,
    split: str = "validation",
) -> np.ndarray | None:
    """
    Checks that an evaluation split has the training split's labels, and maps its label numbers to theirs.

    Args:
        train_names, eval_names (`Sequence[str]` or `None`): the label names of both splits; `None` for one without names.
        observed (`np.ndarray`, *optional*): the evaluation split's labels; a label that the training split does not
            know is then an error only where it occurs. All labels count as observed without it.

    Returns:
        `np.ndarray` or `None`: int64, from the evaluation split's label to the training split's (-1 for a label that
        does not occur and is unknown there); `None` where labels can be used as they are.
    """
    if train_names is None or eval_names is None:
        if observed is not None and train_names is not None:
            check_range(encode_labels(observed, train_names, split=split), len(train_names), split=split)
        return None
    if list(train_names) == list(eval_names):
        return None
    found = match_labels(eval_names, ClassNames(train_names)).classes
    if all(index is None for index in found):
        raise SMDError(
            f"The {split} split has no label in common with the training split: its labels are {some(eval_names)}, "
            f"the training split's are {some(train_names)}. Both must name the same classes."
        )
    occurring = range(len(eval_names))
    if observed is not None:
        values = encode_labels(observed, eval_names, split=split)
        check_range(values, len(eval_names), split=split)
        occurring = np.unique(values).tolist()
    unknown = [eval_names[label] for label in occurring if found[label] is None]
    if unknown:
        raise SMDError(
            f"The {split} split has labels that the training split does not know: {some(unknown)}. The training "
            f"split has {some(train_names)}. Remove these images or use the same names in both. (Where labels are matched to the "
            "model's classes by name, labels of its other classes are scored, too.)"
        )
    return np.array([-1 if index is None else index for index in found], dtype=np.int64)
