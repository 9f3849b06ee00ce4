"""`smd-hf show RUN`: the page of a run in the browser, also while it is under way."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import SMDError
from ..reports.saved_run import read_run
from .parsing import SimpleParser


def make_parser() -> SimpleParser:
    parser = SimpleParser(
        "show",
        "Open the page of a run in the browser: try parent, evolved model and ensemble on an image, read the report, and watch the "
        "generations, also while the run is under way. `smd-hf push RUN --space user/name` puts the same page on the Hub.",
    )
    parser.add_argument("run", help="the output_dir of a run")
    parser.add_argument("--parent", help="id or folder of the parent (default: what the run's files say)")
    parser.add_argument("--port", type=int, default=7860, help="of the page on this machine (default: 7860)")
    parser.add_argument("--no_browser", action="store_true", help="only print the address")
    parser.add_argument("--trust_remote_code", action="store_true", help="run the Python files of the models")
    return parser


def run(argv: Sequence[str]) -> int:
    """
    Serves the page until Ctrl-C.

    Raises:
        `SMDError`: if the folder is not a run, gradio is not installed, or the port is taken.
    """
    arguments = make_parser().parse_args(argv)
    found = read_run(arguments.run)
    if importlib.util.find_spec("gradio") is None:
        raise SMDError("The page needs gradio, which is not installed. Install it with pip install 'smd-hf[space]'.")
    # These take seconds to import: help and mistakes in arguments come before them.
    from ..hub.space.app import theme
    from ..hub.space.stage_space import page_models, page_task
    from .terminal import quiet_libraries

    page_task(found.folder)
    quiet_libraries()
    page = make_page(found.folder, arguments.parent, arguments.trust_remote_code)
    try:
        page.launch(
            server_name="127.0.0.1", server_port=arguments.port, inbrowser=not arguments.no_browser, theme=theme(), quiet=True,
            prevent_thread_lock=True, show_error=True, allowed_paths=[str(found.folder.resolve())], footer_links=[],
        )  # fmt: skip
    except OSError as error:
        raise SMDError(
            f"The page cannot be served on port {arguments.port} ({error}). Choose another with --port."
        ) from error
    print(f"The page of {found.folder} ({found.state}) is at {page.local_url} until Ctrl-C.", flush=True)
    if all(entry["title"] != "parent" for entry in page_models(found.folder, arguments.parent)):
        print(
            "The parent is not shown: the run's files do not say where it is. Give its id or folder by --parent.",
            flush=True,
        )
    page.block_thread()
    return 0


def make_page(folder: Path, parent: str | None, trust_remote_code: bool) -> Any:
    """The page of a run's folder, with the models that are there when an image is given."""
    from ..artifacts.loading import load_with_processor
    from ..hub.space.app import Models, build_page
    from ..hub.space.stage_space import page_models, page_task

    def load(entry: dict[str, Any]) -> tuple[Any, Any]:
        name = str(entry.get("folder") or entry["repo_id"])
        return load_with_processor(name, trust_remote_code=trust_remote_code)

    def entries() -> list[dict[str, Any]]:
        # Importing this package has registered the class of ensembles: theirs is not remote code here.
        found: list[dict[str, Any]] = []
        for entry in page_models(folder, parent):
            found.append(entry | {"trust_remote_code": trust_remote_code})
            if "folder" in entry:  # The page takes relative folders for its own.
                found[-1]["folder"] = entry["folder"].resolve()
        return found

    models = Models(entries, load, lambda: page_task(folder))
    return build_page(folder, models, f"{folder.resolve().name}: a run of smd_hf", live=True)
