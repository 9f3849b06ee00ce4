"""The console script `smd-hf`: finds the command and turns a user's mistakes into errors of one paragraph."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from .. import __version__
from ..errors import SMDError
from ..messages import did_you_mean, dropped
from ..parallel.stopping import Terminated

COMMANDS = {
    "demo": "see it work: evolve a small classifier of digits, without network, in about a minute",
    "evolve": "evolve an image classifier on your images and save it",
    "evaluate": "score a model, or compare two on the same images",
    "inspect": "show what a run did, what it found, and what to do next",
    "show": "open the page of a run in the browser, also while it is under way",
    "compare": "compare the results and arguments of several runs",
    "merge": "make one plain model of an ensemble or a delta",
    "export": "export a model to ONNX or OpenVINO",
    "push": "upload a saved model, ensemble or delta to the Hub, or a Space that shows it",
    "presets": "list the recipes that --preset takes",
    "env": "print versions and the machine, to paste into an issue",
    "completion": "print a completion script for your shell",
}
"""Each command with its summary. The module of that name in this package has `run(argv)` and is imported on use."""

MISTAKE, INTERRUPTED = 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """
    Runs one command.

    Returns:
        `int`: 0; 2 for a user's mistake, explained in one paragraph on stderr; 130 after Ctrl-C, 143 after SIGTERM during a run.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    program = "smd-hf"
    try:
        command, rest = _find_command(argv)
        program = f"smd-hf {command}"
        # Where torchao is installed, transformers imports it, which torch has two notes on for torchao's developers.
        with dropped("torch.utils._pytree"):
            return import_module(f".{command}", __package__).run(rest)
    except SMDError as error:
        print(f"{program}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return MISTAKE
    except KeyboardInterrupt as interrupt:
        print(f"\n{program}: interrupted. {interrupt or 'Nothing was saved.'}", file=sys.stderr)
        return INTERRUPTED
    except Terminated as end:
        print(f"\n{program}: terminated. {end or 'Nothing was saved.'}", file=sys.stderr)
        return end.code  # pyright: ignore[reportReturnType]
    except SystemExit as end:  # argparse, after --help and --version
        return int(end.code or 0)


def _find_command(argv: list[str]) -> tuple[str, list[str]]:
    if argv and argv[0] in COMMANDS:
        return argv[0], argv[1:]
    if argv and not argv[0].startswith("-"):
        near = did_you_mean(argv[0], COMMANDS)
        raise SMDError(f"there is no command '{argv[0]}'.{near} Expected one of {', '.join(COMMANDS)}.")
    width = max(map(len, COMMANDS))
    parser = argparse.ArgumentParser(
        "smd-hf",
        usage="smd-hf COMMAND [arguments]",
        description="Fine-tune image classifiers from the Hugging Face Hub with forward passes only.",
        epilog="commands:\n"
        + "\n".join(f"  {name.ljust(width)}  {summary}" for name, summary in COMMANDS.items())
        + "\n\n`smd-hf COMMAND --help` lists the arguments of a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"smd-hf {__version__}")
    _, unknown = parser.parse_known_args(argv)
    problem = f"there is no option '{unknown[0]}'" if unknown else "no command is given"
    raise SMDError(f"{problem}. Expected one of {', '.join(COMMANDS)}, or --help or --version.")
