"""Parts of messages to the user: a library's own words on one line, and the names that may have been meant."""

import difflib
import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def dropped(logger: str) -> Iterator[None]:
    """Silences a logger within the context."""

    def nothing(record: logging.LogRecord) -> bool:
        return False

    named = logging.getLogger(logger)
    named.addFilter(nothing)
    try:
        yield
    finally:
        named.removeFilter(nothing)


def one_line(text: str, limit: int = 300) -> str:
    """A library's message as one line of printable characters, without tokens and without a final full stop."""
    text = "".join(character if character.isprintable() else "?" for character in " ".join(text.split()))
    text = re.sub(r"\bhf_\w+", "hf_***", text).rstrip(".")
    return text if len(text) <= limit else text[:limit] + "..."


def closest(name: str, candidates: Any) -> str | None:
    """The candidate with the most similar name; `None` if no name is similar."""
    return next(iter(difflib.get_close_matches(name, [str(candidate) for candidate in candidates], n=1)), None)


def did_you_mean(name: str, candidates: Any) -> str:
    """A question with up to three similar names, after a space; empty if no name is similar."""
    return suggestion(_similar(name, candidates))


def near_path(path: Path) -> str:
    """[`did_you_mean`] for a path that does not exist: paths beside it, as they would be typed."""
    beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    return suggestion(str(path.parent / name) for name in _similar(path.name, beside))


def _similar(name: str, candidates: Any) -> list[str]:
    return difflib.get_close_matches(name, [str(candidate) for candidate in candidates], n=3)


def suggestion(near: Iterable[str]) -> str:
    """A question with these names, after a space; empty if there are none."""
    choices = " or ".join(map(repr, near))
    return f" Did you mean {choices}?" if choices else ""
