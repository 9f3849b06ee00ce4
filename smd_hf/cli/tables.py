"""Tables for the terminal, by rich."""

from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

WIDTH_IN_A_FILE = 120


def console() -> Console:
    """Standard output; a fixed width where that is a file or a pipe."""
    found = Console(highlight=False, markup=False)
    return found if found.is_terminal else Console(highlight=False, markup=False, width=WIDTH_IN_A_FILE)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[str] = ()) -> None:
    """
    Prints a table.

    Args:
        numbers (sequence of `str`, *optional*): the columns that are aligned to the right.
    """
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in columns:
        table.add_column(
            name, justify="right" if name in numbers else "left", overflow="fold", no_wrap=name in numbers
        )
    for row in rows:
        table.add_row(*row)
    console().print(table)


def print_pairs(pairs: Sequence[tuple[str, str]]) -> None:
    """Prints names and values, the values one below the other."""
    width = max(len(name) for name, _ in pairs)
    for name, value in pairs:
        print(f"{name.ljust(width)}  {value}")


def short_names(first: str, second: str) -> tuple[str, str]:
    """The last parts of two ids or folders, as many as needed to distinguish them; numbered if they are equal."""
    one, other = Path(first).parts, Path(second).parts
    for count in range(1, max(len(one), len(other)) + 1):
        names = "/".join(one[-count:]), "/".join(other[-count:])
        if names[0] != names[1]:
            return names
    return f"{first} (1)", f"{second} (2)"
