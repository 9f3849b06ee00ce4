"""`smd-hf push`: upload a saved folder to the Hub."""

import argparse
from collections.abc import Sequence

from huggingface_hub.utils import are_progress_bars_disabled

from ..errors import SMDError
from ..hub.upload import push_folder
from ..scoring.bars import TickingBar
from .terminal import quiet_libraries


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise SMDError(f"{message}. `{self.prog} --help` lists the arguments.")


def make_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        "smd-hf push",
        description="Upload the result of a run to the Hugging Face Hub as one commit: the model with its code, card, report and "
        "plots, and no other files. Pushing the same files again makes no second commit.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "path",
        help="the output_dir of a run (its evolved model), its ensemble or children, one delta, or any image classifier that "
        "save_pretrained has written",
    )
    parser.add_argument("--repo_id", required=True, help="user/name; the repository is created if it does not exist")
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
    quiet_libraries()
    shown = not (arguments.pop("disable_tqdm") or are_progress_bars_disabled())
    with TickingBar(f"Pushing to {arguments['repo_id']}", shown=shown):
        commit = push_folder(arguments.pop("path"), **arguments)
    print(commit.pr_url or commit.repo_url)
    return 0
