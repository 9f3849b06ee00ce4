"""Which classes a user's label map gives to the labels of a data set."""

from collections.abc import Sequence

from ..arguments.label_map import LabelMap
from ..errors import SMDError
from ..messages import did_you_mean
from .class_names import ClassNames, normalise
from .label_matching import match_labels


def mapped_classes(label_map: LabelMap, labels: Sequence[str], classes: ClassNames) -> dict[int, int]:
    """
    The classes that a map gives to labels of a data set; entries for other labels have no effect.

    Returns:
        `dict` of `int` to `int`: from the label's number to the class; -1 for `None`.
    """
    spelt = {normalise(label): number for number, label in enumerate(labels)}
    exact = {label: number for number, label in enumerate(labels)}
    found: dict[int, int] = {}
    unknown = []
    for label, value in label_map.items():
        number = exact.get(label, spelt.get(normalise(label)))
        if number is None:
            unknown.append(label)
        elif number in found:
            raise SMDError(f"label_map gives the label {labels[number]!r} twice, in two spellings. Keep one of them.")
        else:
            found[number] = -1 if value is None else _class_of(label, value, classes)
    unmapped = [label for number, label in enumerate(labels) if number not in found]
    for label in unknown:
        near = did_you_mean(label, unmapped)
        if near:
            raise SMDError(
                f"label_map has the label {label!r}, which the data set does not have.{near} Correct or remove it."
            )
    return found


def _class_of(label: str, value: int | str, classes: ClassNames) -> int:
    count = len(classes)
    same = [index for index, name in enumerate(classes.names) if name == str(value)]
    if isinstance(value, int) and len(same) == 1 and same[0] != value < count:
        raise SMDError(
            f"label_map maps {label!r} to {value}, which is the index of one class ({classes.names[value]!r}) and the name of "
            f'another (index {same[0]}). Give the name as a string in JSON: "{classes.names[value]}" or "{value}".'
        )
    if len(same) == 1:
        return same[0]
    if isinstance(value, int) or (value.isdecimal() and not same):
        if not 0 <= int(value) < count:
            raise SMDError(
                f"label_map maps {label!r} to class {value}, but the model has {count:,} classes: expected 0 to {count - 1}."
            )
        return int(value)
    match = match_labels([value], classes)
    if match.classes[0] is not None:
        return match.classes[0]
    if match.ambiguous:
        several = " or ".join(classes.described(index) for index in match.ambiguous[0][:3])
        raise SMDError(
            f"label_map maps {label!r} to {value!r}, which may be the model's class {several}. Give the index of the class instead."
        )
    raise SMDError(
        f"label_map maps {label!r} to {value!r}, but no class of the model has this name.{did_you_mean(value, classes.named)} "
        f"Give the model's label, or the index of its class (0 to {count - 1})."
    )
