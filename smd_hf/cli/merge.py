"""`smd-hf merge`: one plain checkpoint from an ensemble or a delta."""

from collections.abc import Sequence
from pathlib import Path

from ..errors import SMDError
from ..files import check_output_dir
from .parsing import SimpleParser, add_loading_arguments, hub_token


def make_parser() -> SimpleParser:
    parser = SimpleParser(
        "merge",
        "Make one plain checkpoint: of an ensemble, the mean of its members' weights; of a delta, its base with the changes.",
    )
    parser.add_argument("path", help="an ensemble or a delta: a folder, or an id on the Hub")
    parser.add_argument("--output_dir", required=True, help="receives the checkpoint")
    add_loading_arguments(parser, "the members or the base")
    return parser


def run(argv: Sequence[str]) -> int:
    """
    Merges and saves.

    Raises:
        `SMDError`: if there is nothing to merge, or it does not load, or `output_dir` is not writable.
    """
    arguments = make_parser().parse_args(argv)
    path, folder = arguments.path, Path(arguments.output_dir)
    # These take seconds to import: help and mistakes in arguments come before them.
    from ..artifacts.ensemble import SMDEnsembleForImageClassification
    from ..artifacts.loading import expanded, load_with_processor, stored_form
    from ..models.checkpoints import save_checkpoint
    from .terminal import quiet_libraries

    quiet_libraries()
    with hub_token(arguments.token):
        form = stored_form(expanded(path), {"revision": arguments.revision, "token": None, "cache_dir": None})
        if form == "model":
            raise SMDError(
                f"'{path}' is one plain model already. Expected an ensemble (output_dir/ensemble of a run) or a delta "
                "(output_dir/children/0000)."
            )
        check_output_dir(folder)
        model, processor = load_with_processor(
            path, revision=arguments.revision, trust_remote_code=arguments.trust_remote_code
        )
    if isinstance(model, SMDEnsembleForImageClassification):
        count, model = model.member_count, model.merge()
        print(
            f"The mean of {count} members is in {folder}. It is one model: measure it with smd-hf evaluate before you use it."
        )
    else:
        print(f"The delta on its base is in {folder}.")
    save_checkpoint(model, processor, folder)
    return 0
