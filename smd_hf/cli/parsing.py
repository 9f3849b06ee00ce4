"""Arguments of commands that need no dataclass; mistakes are an [`SMDError`]."""

import os
import re
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from ..errors import SMDError
from ..messages import did_you_mean


class SimpleParser(ArgumentParser):
    """
    An `ArgumentParser` for a command whose arguments are not a dataclass. Every mistake is an [`SMDError`].

    Args:
        command (`str`): its name.
        description (`str`): for `--help`.
    """

    def __init__(self, command: str, description: str):
        super().__init__(f"smd-hf {command}", description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise SMDError(f"{message}.{near_choice(message)} `{self.prog} --help` lists the arguments.")

    def parse_args(self, args: Sequence[str] | None = None, namespace: Namespace | None = None) -> Namespace:
        """As argparse's, but an unknown option is answered with similar ones."""
        try:
            found, unknown = self.parse_known_args(args, namespace)
        except SMDError as error:
            # An option without its dashes or misspelt leaves a required one missing: say the first.
            options = [each for each in args or () if each.startswith("--")]
            strange = next(
                (each for each in options if each.partition("=")[0] not in self._option_string_actions), None
            )
            if strange is None:
                raise
            raise SMDError(self._no_such(strange)) from error
        if unknown:
            raise SMDError(self._no_such(next((each for each in unknown if each.startswith("-")), unknown[0])))
        return found  # pyright: ignore[reportReturnType]

    def _no_such(self, option: str) -> str:
        names = [each for each in self._option_string_actions if each.startswith("--") and each != "--help"]
        near = did_you_mean(option.partition("=")[0], names)
        return f"there is no argument '{option}'.{near} `{self.prog} --help` lists the arguments."


def add_loading_arguments(parser: ArgumentParser, whose: str) -> None:
    """The arguments of a command that loads a model from the Hub. `whose` Python files `--trust_remote_code` runs."""
    parser.add_argument("--trust_remote_code", action="store_true", help=f"run the Python files of {whose}")
    parser.add_argument("--revision", help="branch, tag or commit on the Hub")
    parser.add_argument("--token", help="access token (better: log in with `hf auth login`, or set HF_TOKEN)")


def near_choice(message: str) -> str:
    """A question with similar choices, after a space, for argparse's message about an invalid choice; else nothing."""
    found = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
    return "" if found is None else did_you_mean(found[1], [each.strip(" '") for each in found[2].split(",")])


@contextmanager
def hub_token(token: str | None) -> Iterator[None]:
    """Within it, requests to the Hub use the token, by the variable that its client reads. It is not kept elsewhere."""
    before = os.environ.get("HF_TOKEN")
    try:
        if token is not None:
            os.environ["HF_TOKEN"] = token
        yield
    finally:
        if token is not None:
            os.environ.pop("HF_TOKEN")
            if before is not None:
                os.environ["HF_TOKEN"] = before
