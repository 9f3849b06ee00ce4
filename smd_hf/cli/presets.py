"""`smd-hf presets`: the recipes that `--preset` takes."""

from collections.abc import Sequence

from ..arguments.recipes import PRESETS, describe_recipe, read_recipe
from ..errors import SMDError
from ..messages import did_you_mean
from .parsing import SimpleParser
from .tables import console, print_pairs


def make_parser() -> SimpleParser:
    parser = SimpleParser("presets", "List the recipes that --preset takes, with their arguments.")
    parser.add_argument("name", nargs="?", help="show this one only")
    return parser


def run(argv: Sequence[str]) -> int:
    """
    Prints each recipe: what it is for, and its arguments.

    Raises:
        `SMDError`: for a name that is not a recipe.
    """
    name = make_parser().parse_args(argv).name
    if name is not None and name not in PRESETS:
        raise SMDError(
            f"there is no preset '{name}'.{did_you_mean(name, PRESETS)} Expected one of {', '.join(PRESETS)}."
        )
    for preset in PRESETS if name is None else [name]:
        console().print(f"{preset}: {describe_recipe(preset)}")
        values = read_recipe(preset).items()
        print_pairs(
            [
                (f"  --{key}", " ".join(map(str, value)) if isinstance(value, list) else str(value))
                for key, value in values
            ]
        )
    print("Arguments that you give beside --preset override the recipe's.")
    return 0
