"""
What a model's classes are called: names, synonyms and WordNet ids.

ImageNet describes a class by a list of synonyms ("tench, Tinca tinca"), and WordNet gives each class an id ("n01440764").
timm has the ids, synonyms and definitions of all ImageNet label sets; they are read only where the names do not decide.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from typing import Any

WORDNET_ID = re.compile(r"n\d{8}(?![^\W_])")
"""At the beginning of a label: `n01440764`, and also `n01440764-tench`, as in the folders of Stanford Dogs."""

_SMALLEST = 1000
"""Classes of the smallest of ImageNet's label sets."""

_AGREEING_SHARE = 0.5
"""Share of a model's names that must equal ImageNet's at the same index for its classes to be ImageNet's."""


def normalise(name: str) -> str:
    """A name without regard to case, apostrophes, underscores, hyphens and runs of spaces; commas stay."""
    text = re.sub(r"[\s_\-]+", " ", re.sub("['\u2019]", "", str(name)))
    return re.sub(r"\s*,\s*", ", ", text).strip().casefold()


def synonyms(name: str) -> list[str]:
    """The parts of a list of synonyms, normalised: `["tench", "tinca tinca"]`."""
    return [part for part in normalise(name).split(", ") if part]


def words(text: str) -> list[str]:
    """The words of a name, normalised; numbers are words of their own (`"crane2"` has two)."""
    return re.findall(r"[^\W\d_]+|\d+", normalise(text))


def wordnet_id(label: str) -> str | None:
    """The WordNet id that a label begins with, if any."""
    found = WORDNET_ID.match(str(label).strip())
    return found and found[0]


def wordnet_names(synset: str) -> str | None:
    """The synonyms of a WordNet id, `"tench, Tinca tinca"`; `None` for an id that no ImageNet label set has."""
    return _described(synset, detailed=False)


def wordnet_definition(synset: str) -> str:
    """WordNet's definition of an id; empty for an id that no ImageNet label set has."""
    names, detailed = _described(synset, detailed=False), _described(synset, detailed=True)
    return (detailed or "").removeprefix(f"{names}: ")


def _described(synset: str, detailed: bool) -> str | None:
    try:
        return _imagenet("imagenet-1k").label_name_to_description(synset, detailed=detailed)
    except KeyError:
        return None


@cache
def _imagenet(subset: str) -> Any:
    # Importing timm takes seconds, and few runs need its lists.
    from timm.data import ImageNetInfo

    return ImageNetInfo(subset)


def _imagenet_ids(count: int) -> list[str]:
    """The WordNet ids of ImageNet's label set with `count` classes, in order; empty if there is none."""
    if count < _SMALLEST:
        return []
    from timm.data import infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": count})
    return [] if subset is None else _imagenet(subset).label_names()


class ClassNames:
    """
    The names of a model's classes, and which classes a text may name.

    Args:
        names (`Sequence[str]`): one for each class, in the order of the classes.
    """

    def __init__(self, names: Sequence[str]):
        self.names = [str(name) for name in names]

    @classmethod
    def of(cls, id2label: Mapping[Any, str]) -> "ClassNames":
        """Of a configuration's `id2label`, whose keys may be strings in any order."""
        return cls([name for _, name in sorted((int(index), name) for index, name in id2label.items())])

    def __len__(self) -> int:
        return len(self.names)

    @property
    def are_generic(self) -> bool:
        """Whether they are transformers' placeholders, `LABEL_0` and so on."""
        return all(re.fullmatch(r"label_\d+", name, re.IGNORECASE) for name in self.names)

    @cached_property
    def named(self) -> dict[str, list[int]]:
        """Classes by their whole name, and by its first synonym."""
        return self._index(lambda index: {normalise(self.names[index]), *synonyms(self.names[index])[:1]})

    @cached_property
    def by_synonym(self) -> dict[str, list[int]]:
        """Classes by every synonym, in their name and in WordNet."""
        return self._index(lambda index: {*synonyms(self.names[index]), *synonyms(self._wordnet_names(index))})

    @cached_property
    def wordnet_ids(self) -> list[str | None]:
        """The WordNet id of each class: in its name, or by its place in an ImageNet label set that has the same names."""
        own = [wordnet_id(name) for name in self.names]
        if any(own):
            return own
        # Models of TensorFlow have a class "background" before those of ImageNet.
        skipped = int(self.names[:1] != [] and normalise(self.names[0]) == "background")
        ids = _imagenet_ids(len(self.names) - skipped)
        names = self.names[skipped:]
        agreeing = sum(
            not set(synonyms(name)).isdisjoint(synonyms(wordnet_names(synset) or ""))
            for name, synset in zip(names, ids)
        )
        return [None] * skipped + ids if ids and agreeing >= _AGREEING_SHARE * len(ids) else own

    @cached_property
    def by_wordnet_id(self) -> dict[str, int]:
        """Classes by their WordNet id, where they have one."""
        return {synset: index for index, synset in enumerate(self.wordnet_ids) if synset is not None}

    def definition(self, index: int) -> str:
        """WordNet's definition of a class; empty where it has no WordNet id."""
        synset = self.wordnet_ids[index]
        return "" if synset is None else wordnet_definition(synset)

    def description_words(self, index: int) -> set[str]:
        """Every word of a class's name, synonyms and definition."""
        return {*words(self.names[index]), *words(self._wordnet_names(index)), *words(self.definition(index))}

    def described(self, index: int) -> str:
        """A class for a message: its index, name and definition."""
        definition = self.definition(index)
        name = self.names[index] if wordnet_id(self.names[index]) is None else self._wordnet_names(index)
        return f"{index} ({name}{f': {definition}' if definition else ''})"

    def _wordnet_names(self, index: int) -> str:
        synset = self.wordnet_ids[index]
        return "" if synset is None else wordnet_names(synset) or ""

    def _index(self, keys_of: Any) -> dict[str, list[int]]:
        found = defaultdict(list)
        for index in range(len(self.names)):
            for key in keys_of(index):
                found[key].append(index)
        return dict(found)
