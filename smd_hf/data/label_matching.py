"""
Which class of a model each label of a data set names.

A label names a class by its WordNet id, its whole name, its first synonym, or else any synonym. Where that is true of two
classes (ImageNet has two called "crane"), the other labels decide, in this order: is one of the two taken by another label;
which fits a fuller description ("crane bird"); how do the other labels spell names (whole lists or first words, with
capitals or without); are they in the order of the model's classes. What remains ambiguous is left open: a guess would be
a wrong label on every image of a class.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from .class_names import ClassNames, normalise, synonyms, wordnet_id, wordnet_names, words

_ORDERED = 6
"""Labels that must be in the order of the model's classes before their order counts as evidence: by chance, 1 in 720 are."""


@dataclass(eq=False)
class LabelMatch:
    """
    What [`match_labels`] found.

    Args:
        classes (list of `int`, *optional*): for each label its class; `None` where it has none or several.
        ambiguous (dict of `int` to list of `int`): by label, the classes that it may mean.
    """

    classes: list[int | None]
    ambiguous: dict[int, list[int]] = field(default_factory=dict)
    shared: dict[int, list[int]] = field(default_factory=dict)
    settled: dict[int, str] = field(default_factory=dict)

    @property
    def missing(self) -> list[int]:
        """The labels that name no class."""
        several = {label for labels in self.shared.values() for label in labels}
        return [
            label
            for label, index in enumerate(self.classes)
            if index is None and label not in self.ambiguous and label not in several
        ]


def match_labels(labels: Sequence[str], classes: ClassNames, given: Mapping[int, int] | None = None) -> LabelMatch:
    """
    Finds the class that each label names.

    Args:
        given (mapping of `int` to `int`, *optional*): classes of some labels, from a label map; -1 for none. Only here may
            several labels have the same class.
    """
    given = given or {}
    readings = {label: _Reading(name, classes) for label, name in enumerate(labels) if label not in given}
    found = {label: each.classes[0] for label, each in readings.items() if len(each.classes) == 1}
    still_open = {label: each for label, each in readings.items() if len(each.classes) > 1}
    settled = _settle(still_open, _Others(labels, classes, readings, found, given))
    found |= {label: index for label, (index, _) in settled.items()}

    match = LabelMatch([given.get(label, found.get(label)) for label in range(len(labels))])
    match.settled = {label: why for label, (_, why) in settled.items()}
    match.ambiguous = {label: each.classes for label, each in still_open.items() if label not in settled}
    claims = defaultdict(list)
    for label, index in enumerate(match.classes):
        if index is not None and index >= 0:
            claims[index].append(label)
    match.shared = {i: each for i, each in claims.items() if len(each) > 1 and any(label in found for label in each)}
    for each in match.shared.values():
        for label in each:
            match.classes[label] = None
    return match


class _Reading:
    """A label as the name of classes: which, and what it says beyond their common name."""

    def __init__(self, label: str, names: ClassNames):
        self.text, self.extra, self.is_name = str(label), [], False
        synset = wordnet_id(self.text)
        if synset is not None:
            index = names.by_wordnet_id.get(synset)
            if index is not None or names.by_wordnet_id:
                self.classes = [] if index is None else [index]
                return
            # The model has no ids: its names may have WordNet's name for this one.
            self.text = wordnet_names(synset) or self.text.strip()[len(synset) :].lstrip(" _-.,:")
        self.classes = self._named(names) or self._by_synonym(names) or self._described(names)

    def _named(self, names: ClassNames) -> list[int]:
        key, parts = normalise(self.text), synonyms(self.text)
        if key in names.named:
            self.is_name = True
            return names.named[key]
        self.extra = [word for part in parts[1:] for word in words(part)]
        return names.named.get(parts[0], []) if parts else []

    def _by_synonym(self, names: ClassNames) -> list[int]:
        self.extra = []
        for key in (normalise(self.text), *synonyms(self.text)):
            if key in names.by_synonym:
                return names.by_synonym[key]
        return []

    def _described(self, names: ClassNames) -> list[int]:
        """Classes of a common name that is part of the label: "crane" of "crane bird" or "construction crane"."""
        own = words(self.text)
        for cut in range(len(own) - 1, 0, -1):
            for common, extra in ((own[:cut], own[cut:]), (own[-cut:], own[:-cut])):
                classes = names.named.get(" ".join(common), [])
                if len(classes) > 1:
                    self.extra = extra
                    return classes
        return []


@dataclass(eq=False)
class _Others:
    """The labels whose class is known, as witnesses for the others."""

    labels: Sequence[str]
    names: ClassNames
    readings: Mapping[int, _Reading]
    found: Mapping[int, int]
    given: Mapping[int, int]

    def __post_init__(self) -> None:
        votes: dict[tuple[bool, bool], int] = defaultdict(int)
        for label, index in self.found.items():
            if self.readings[label].is_name:
                for style in _STYLES:
                    votes[style] += _spelt(self.names.names[index], style) == _spaced(self.readings[label].text)
        best = max(votes.values(), default=0)
        self.styles = [style for style, count in votes.items() if count == best > 0]
        self.known = sorted([*self.found.items(), *((label, i) for label, i in self.given.items() if i >= 0)])
        order = [index for _, index in self.known]
        in_place = sum(label == index for label, index in self.known)
        self.in_order = len(order) >= _ORDERED and all(a < b for a, b in pairwise(order))
        self.in_place = len(self.labels) == len(self.names) and 2 * in_place >= len(self.known)

    def rules(self, label: int, reading: _Reading, candidates: list[int]) -> Iterator[tuple[str, list[int]]]:
        """What may settle which of the candidates a label means, with the candidates that each leaves."""
        extra = {word for word in reading.extra if not word.isdecimal()}
        if extra:
            yield (
                "by its description",
                [index for index in candidates if extra <= self.names.description_words(index)],
            )
        if reading.is_name and self.styles:
            text = _spaced(reading.text)
            yield (
                "as the other labels are spelt",
                [i for i in candidates if any(_spelt(self.names.names[i], style) == text for style in self.styles)],
            )
        if self.in_place:
            yield "by its place", [index for index in candidates if index == label]
        elif self.in_order:
            before = max((index for other, index in self.known if other < label), default=-1)
            after = min((index for other, index in self.known if other > label), default=len(self.names))
            yield "by its place among the labels", [index for index in candidates if before < index < after]


def _settle(still_open: Mapping[int, _Reading], others: _Others) -> dict[int, tuple[int, str]]:
    """Class, and how it was chosen, of the open labels of which only one is possible."""
    taken = {index: label for label, index in others.known}
    settled: dict[int, tuple[int, str]] = {}
    progress = True
    while progress:
        progress = False
        for label, reading in still_open.items():
            if label in settled:
                continue
            choice = _choice(label, reading, taken, others)
            if choice is not None:
                settled[label], taken[choice[0]], progress = choice, label, True
    return settled


def _choice(label: int, reading: _Reading, taken: Mapping[int, int], others: _Others) -> tuple[int, str] | None:
    free = [index for index in reading.classes if index not in taken]
    if len(free) == 1:
        [other, *_] = [taken[index] for index in reading.classes if index in taken]
        return free[0], f"as {others.labels[other]!r} is the other"
    for why, left in others.rules(label, reading, free):
        if len(left) == 1:
            return left[0], why
        free = left or free
    return None


# first synonym alone, lower case
_STYLES = [(first, lower) for first in (False, True) for lower in (False, True)]


def _spelt(name: str, style: tuple[bool, bool]) -> str:
    """A class's name as labels of a style give it."""
    first, lower = style
    text = _spaced(name.split(",")[0] if first else name)
    return text.lower() if lower else text


def _spaced(name: str) -> str:
    """A name with its case, but without regard to underscores and spaces."""
    return ", ".join(" ".join(part.replace("_", " ").replace("-", " ").split()) for part in str(name).split(","))
