"""`smd-hf completion SHELL`: a script that completes commands, options and choices."""

import argparse
from collections.abc import Sequence
from importlib import import_module

import shtab

from ..errors import SMDError
from ..messages import did_you_mean
from .parsing import SimpleParser

SHELLS = ("bash", "zsh", "fish", "tcsh")


def make_parser() -> SimpleParser:
    parser = SimpleParser(
        "completion",
        'Print a completion script. For bash: add eval "$(smd-hf completion bash)" to ~/.bashrc, or save the output.',
    )
    parser.add_argument("shell", help=f"one of {', '.join(SHELLS)}")
    return parser


def run(argv: Sequence[str]) -> int:
    """
    Prints the script.

    Raises:
        `SMDError`: for another shell.
    """
    shell = make_parser().parse_args(argv).shell
    if shell not in SHELLS:
        raise SMDError(
            f"there is no completion for '{shell}'.{did_you_mean(shell, SHELLS)} Expected one of {', '.join(SHELLS)}."
        )
    print(shtab.complete(whole_parser(), shell))
    return 0


def whole_parser() -> argparse.ArgumentParser:
    """All commands in one parser, which only completion uses: each command is imported."""
    from .main import COMMANDS

    parser = argparse.ArgumentParser("smd-hf")
    commands = parser.add_subparsers()
    for name, summary in COMMANDS.items():
        made = import_module(f".{name}", __package__).make_parser()
        for action in made._actions:
            action.help = _short(action.help)
        commands.add_parser(name, help=summary, description=summary, add_help=False, parents=[made])
    return parser


def _short(text: str | None) -> str | None:
    """The first sentence of a help text: shells show one line."""
    return (
        text if text in (None, argparse.SUPPRESS) else text.split(". ")[0][:100].replace("%%", "%").replace("%", "%%")
    )
