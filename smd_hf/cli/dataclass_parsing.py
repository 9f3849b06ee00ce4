"""Arguments from the command line and from a YAML or JSON file into dataclasses; mistakes are an [`SMDError`]."""

import json
from argparse import SUPPRESS, Namespace
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from inspect import get_annotations
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

import yaml
from transformers import HfArgumentParser, TrainingArguments
from transformers.hf_argparser import string_to_bool

from ..arguments.recipes import BY_PRESET
from ..errors import SMDError
from ..messages import did_you_mean, near_path
from .parsing import near_choice


class CommandParser(HfArgumentParser):
    """
    `HfArgumentParser` for one command: a first argument without dashes is a file of arguments, which the others override.
    """

    def __init__(self, command: str, dataclass_types: Iterable[Any], description: str, hidden: Collection[str] = ()):
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
            if action.type is string_to_bool and action.nargs is None:
                # One that may also be left open: without a value it is true, as all others are.
                action.nargs, action.const = "?", True
            if action.dest in BY_PRESET:
                # The help names the presets' values: no default is to be added to it.
                action.help = f"{action.help}%(default).0s"

    def _add_dataclass_arguments(self, dtype: Any) -> None:
        """As in `HfArgumentParser`, with a heading for each dataclass that declares arguments: the first line of its docstring."""
        hints, groups = get_type_hints(dtype), {}
        homes = {name: kind for kind in reversed(dtype.__mro__) for name in get_annotations(kind)}
        for argument in sorted(fields(dtype), key=lambda each: homes[each.name] is TrainingArguments):
            home = homes[argument.name]
            if home not in groups:
                groups[home] = self.add_argument_group(_heading(home))
            if argument.init:
                argument.type = hints[argument.name]
                self._parse_dataclass_field(groups[home], argument)
                if argument.type is bool and argument.default is None:
                    # HfArgumentParser makes this one only for a default of True.
                    groups[home].add_argument(
                        f"--no_{argument.name}",
                        action="store_false",
                        dest=argument.name,
                        default=None,
                        help=f"Do not: overrides {argument.name} of the preset.%(default).0s",
                    )

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Namespace | None = None):
        """As argparse's, with lists from a file of arguments for options of one value."""
        return super().parse_known_args(args, Namespace(**self._lists))

    def error(self, message: str) -> NoReturn:
        raise SMDError(message + near_choice(message))

    def parse(self, argv: Sequence[str]) -> tuple[Any, ...]:
        """One instance of each dataclass."""
        argv = list(argv)
        if argv and not argv[0].startswith("-"):
            path = Path(argv[0]).expanduser()
            argv = [*self._options(read_arguments(path), path), *argv[1:]]
        try:
            *instances, unknown = self.parse_args_into_dataclasses(
                argv, return_remaining_strings=True, look_for_args_file=False
            )
        except SMDError:
            raise
        except (
            ValueError,
            ImportError,
        ) as error:  # TrainingArguments raises these for arguments that do not fit together
            raise SMDError(str(error)) from error
        if unknown:
            option = next((each for each in unknown if each.startswith("-")), unknown[0])
            raise SMDError(f"there is no argument '{option}'.{self._near(option.partition('=')[0], '--')}")
        return tuple(instances)

    def _near(self, option: str, dashes: str = "") -> str:
        names = [each[2:] for each in self._option_string_actions if each.startswith("--") and "-" not in each[2:]]
        near = did_you_mean(dashes + option.lstrip("-").replace("-", "_"), [dashes + name for name in names])
        return near or f" `{self.prog} --help` lists all arguments."

    def _options(self, values: Mapping[str, Any], source: Path | str) -> Iterator[str]:
        """Arguments of a file as options of the command line."""
        for key, value in values.items():
            option = f"--{str(key).replace('-', '_')}"
            action = self._option_string_actions.get(option)
            if action is None:
                raise SMDError(f"'{source}' sets '{key}', which is not an argument.{self._near(option)}")
            if value is None:
                continue
            if not isinstance(value, list):
                yield f"{option}={_as_text(value)}"
            elif action.nargs == "+":
                yield from (option, *map(_as_text, value))
            elif action.type is str:  # such as report_to: one for HfArgumentParser, several for Trainer
                self._lists[action.dest] = [str(each) for each in value]
            else:
                raise SMDError(f"'{source}' sets '{key}' to a list; expected one value.")


def _heading(dataclass: type) -> str:
    """The name of its group, or the first line of its docstring without the full stop."""
    if dataclass is TrainingArguments:
        return "Parameters of transformers' Trainer"
    if "_argument_group_name" in vars(dataclass):
        return vars(dataclass)["_argument_group_name"]
    return (dataclass.__doc__ or dataclass.__name__).strip().splitlines()[0].rstrip(".")


def read_arguments(path: Path) -> dict[str, Any]:
    """A mapping from a YAML or JSON file."""
    if not path.is_file():
        raise SMDError(
            f"there is no file '{path}'.{near_path(path)} Arguments begin with --; a first one without -- is a YAML or JSON file of "
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
    """The value of a required argument; [`SMDError`] if it is missing."""
    value = getattr(arguments, name)
    if value is None:
        raise SMDError(f"--{name} is missing. {arguments.__dataclass_fields__[name].metadata['help']}")
    return value


def _as_text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, bool | dict) else str(value)
