"""Arguments from the command line and from a YAML or JSON file into dataclasses; every mistake is an [`SMDError`]."""

import json
import os
from argparse import SUPPRESS, Namespace
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser

from ..errors import SMDError
from ..messages import did_you_mean


class Given(Namespace):
    """What was on the command line alone: argparse fills in no default where there seems to be a value."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("_"):
            raise AttributeError(name)

    def __delattr__(self, name: str) -> None:
        vars(self).pop(name, None)


class CommandParser(HfArgumentParser):
    """
    `HfArgumentParser` for one command: a first argument without dashes is a file of arguments, which the others override.

    Args:
        command (`str`): its name.
        dataclass_types (iterable of `type`): dataclasses that the arguments fill.
        description (`str`): for `--help`.
        hidden (collection of `str`, *optional*): arguments that are accepted and that `--help` leaves out.
    """

    def __init__(self, command: str, dataclass_types: Iterable[type], description: str, hidden: Collection[str] = ()):
        super().__init__(
            list(dataclass_types),
            prog=f"smd-hf {command}",
            usage=f"smd-hf {command} [ARGUMENTS.yaml] [--name value ...]",
            description=description,
            allow_abbrev=False,
        )
        self._lists: dict[str, list[str]] = {}
        for action in self._actions:
            if action.dest in hidden:
                action.help = SUPPRESS

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Namespace | None = None):
        """As argparse's, but what is not given is left to the dataclasses, which can then tell it from what is."""
        return super().parse_known_args(args, Given(**self._lists) if namespace is None else namespace)

    def error(self, message: str) -> None:
        raise SMDError(message)

    def parse(self, argv: Sequence[str]) -> tuple[Any, ...]:
        """
        One instance of each dataclass.

        Args:
            argv (`Sequence[str]`): the command's arguments.

        Raises:
            `SMDError`: for an unknown argument (naming similar ones), a value of the wrong kind, a file of arguments that
                cannot be read, and whatever the dataclasses refuse.
        """
        argv = list(argv)
        if argv and not argv[0].startswith("-"):
            argv = [*self._file_arguments(Path(argv[0]).expanduser()), *argv[1:]]
        try:
            *instances, unknown = self.parse_args_into_dataclasses(
                argv, return_remaining_strings=True, look_for_args_file=False
            )
        except SMDError:
            raise
        except (ValueError, ImportError) as error:  # what TrainingArguments raises for choices that do not go together
            raise SMDError(str(error)) from error
        if unknown:
            option = next((each for each in unknown if each.startswith("-")), unknown[0])
            raise SMDError(f"there is no argument '{option}'.{self._near(option.partition('=')[0])}")
        return tuple(instances)

    def _near(self, option: str) -> str:
        names = [each[2:] for each in self._option_string_actions if each.startswith("--") and "-" not in each[2:]]
        near = did_you_mean(option.lstrip("-").replace("-", "_"), names)
        return near or f" `{self.prog} --help` lists those there are."

    def _file_arguments(self, path: Path) -> Iterator[str]:
        for key, value in read_arguments(path).items():
            option = f"--{str(key).replace('-', '_')}"
            action = self._option_string_actions.get(option)
            if action is None:
                raise SMDError(f"'{path}' sets '{key}', which is no argument.{self._near(option)}")
            if value is None:
                continue
            if not isinstance(value, list):
                yield f"{option}={_as_text(value)}"
            elif action.nargs == "+":
                yield from (option, *map(_as_text, value))
            elif action.type is str:  # such as report_to, which HfArgumentParser takes one of, and Trainer several
                self._lists[action.dest] = [str(each) for each in value]
            else:
                raise SMDError(f"'{path}' sets '{key}' to a list; expected one value.")


def read_arguments(path: Path) -> dict[str, Any]:
    """
    A mapping from a YAML or JSON file.

    Raises:
        `SMDError`: if there is no such file (naming similar ones), or it holds something else.
    """
    if not path.is_file():
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise SMDError(
            f"there is no file '{path}'.{did_you_mean(path.name, siblings)} Arguments begin with --; a first one that does not is a YAML or JSON file of "
            "arguments."
        )
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise SMDError(f"'{path}' cannot be read as a YAML or JSON file of arguments: {error}") from error
    if not isinstance(values, dict):
        raise SMDError(f"'{path}' holds {type(values).__name__}; expected arguments with values, such as sigma: 0.3.")
    return values


def required(arguments: Any, name: str) -> Any:
    """The value of an argument that has no default; [`SMDError`] where it is missing."""
    value = getattr(arguments, name)
    if value is None:
        raise SMDError(f"--{name} is missing. {arguments.__dataclass_fields__[name].metadata['help']}")
    return value


@contextmanager
def hub_token(token: str | None) -> Iterator[None]:
    """The token for every request to the Hub meanwhile, by the variable that its client reads; kept nowhere else."""
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


def _as_text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, bool | dict) else str(value)
