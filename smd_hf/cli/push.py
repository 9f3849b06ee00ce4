"""`smd-hf push`: upload a saved folder to the Hub."""

from collections.abc import Sequence

from huggingface_hub.utils import are_progress_bars_disabled

from ..errors import SMDError
from .parsing import SimpleParser


def make_parser() -> SimpleParser:
    parser = SimpleParser(
        "push",
        "Upload the result of a run to the Hugging Face Hub as one commit: the model with its code, card, report and "
        "plots, and no other files. Pushing the same files again makes no second commit.",
    )
    parser.add_argument(
        "path",
        help="the output_dir of a run (its evolved model), its ensemble or children, one delta, or any image classifier that "
        "save_pretrained has written",
    )
    parser.add_argument("--repo_id", help="user/name; the repository is created if it does not exist")
    parser.add_argument(
        "--space",
        metavar="USER/NAME",
        help="push a Gradio Space instead, whose page compares parent, evolved model and ensemble",
    )
    parser.add_argument(
        "--parent", help="with --space: id or folder of the parent (default: what the run's files say)"
    )
    parser.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    parser.add_argument("--revision", help="the branch, created if it does not exist (default: main)")
    parser.add_argument(
        "--token",
        help="access token that may write there (better: log in with `hf auth login`, or set HF_TOKEN); it is neither printed "
        "nor saved",
    )
    parser.add_argument("--commit_message", help="message of the commit")
    parser.add_argument("--disable_tqdm", action="store_true", help="show no progress bar")
    parser.add_argument("--create_pr", action="store_true", help="propose the commit as a pull request")
    return parser


def run(argv: Sequence[str]) -> int:
    """
    Pushes, and prints the address.

    Raises:
        `SMDError`: as [`~smd_hf.hub.upload.push_folder`], and for wrong arguments.
    """
    arguments = vars(make_parser().parse_args(argv))
    space, parent = arguments.pop("space"), arguments.pop("parent")
    if (space is None) == (arguments["repo_id"] is None):
        raise SMDError(
            "Expected either --repo_id user/name, for a model, or --space user/name, for a page that shows it."
        )
    # These take seconds to import: help and mistakes in arguments come before them.
    from ..hub.space.stage_space import push_space
    from ..hub.upload import push_folder
    from ..scoring.bars import TickingBar
    from .terminal import quiet_libraries

    quiet_libraries()
    shown = not (arguments.pop("disable_tqdm") or are_progress_bars_disabled())
    if space is not None:
        for name in ("revision", "create_pr"):
            if arguments[name]:
                raise SMDError(f"--{name} is for models, but --space is given. Leave one of them out.")
        chosen = {name: arguments[name] for name in ("private", "token", "commit_message")}
        with TickingBar(f"Pushing to {space}", shown=shown):
            print(push_space(arguments["path"], space, parent=parent, **chosen).repo_url)
        return 0
    with TickingBar(f"Pushing to {arguments['repo_id']}", shown=shown):
        commit = push_folder(arguments.pop("path"), **arguments)
    print(commit.pr_url or commit.repo_url)
    return 0
