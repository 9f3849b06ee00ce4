"""
What MkDocs does not do by itself: pages that live elsewhere in the repository, and tables made from the code.

- `examples/` and `model_cards/` are part of the site, so that a page links to a study or a card as it does on GitHub:
  `../examples/...`.
- `<!-- arguments -->`, `<!-- help: COMMAND -->` and `<!-- contributing -->` are replaced by what the code (or a file) says now.
"""

import contextlib
import io
import os
import re
from dataclasses import MISSING, fields
from inspect import get_annotations
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
SHARED = ("examples", "model_cards")
LEFT_OUT = {".jsonl"}


def on_files(files: Any, config: Any) -> Any:
    """Adds the shared folders to the site."""
    for name in SHARED:
        for path in sorted((ROOT / name).rglob("*")):
            if path.is_file() and path.suffix not in LEFT_OUT and "__pycache__" not in path.parts:
                place = path.relative_to(ROOT).as_posix()
                files.append(File.generated(config, place, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Replaces the markers, and leads links to where the shared folders are on the site."""
    place = page.file.src_uri
    depth = place.count("/")
    if place.startswith(SHARED):
        # `docs/` is the root of the site.
        markdown = markdown.replace(f"]({'../' * depth}docs/", f"]({'../' * depth}")
        # Links of a README to what is not on the site (the measurements themselves) are left as text.
        return re.sub(r"\[([^\]]*)\]\([^)]*\.jsonl\)", r"\1", markdown)
    up, here = "../" * (depth + 1), "../" * depth
    for name in SHARED:
        markdown = markdown.replace(f"]({up}{name}/", f"]({here}{name}/")
    markdown = markdown.replace("<!-- arguments -->", arguments_tables())
    markdown = re.sub(r"<!-- help: (\w+) -->", lambda found: f"```text\n{command_help(found[1])}```", markdown)
    return markdown.replace("<!-- contributing -->", contributing())


def arguments_tables() -> str:
    """A table for each group of arguments: name, type, default and help of each field of `EvolutionArguments`."""
    from transformers import TrainingArguments

    from smd_hf import EvolutionArguments
    from smd_hf.arguments.inherited_arguments import HIDDEN

    homes = {name: kind for kind in reversed(EvolutionArguments.__mro__) for name in get_annotations(kind)}
    groups: dict[type, list[Any]] = {}
    for argument in fields(EvolutionArguments):
        groups.setdefault(homes[argument.name], []).append(argument)
    own = [kind for kind in groups if kind is not TrainingArguments]
    parts = []
    for kind in [*reversed(own), TrainingArguments]:
        heading = (vars(kind).get("_argument_group_name") or (kind.__doc__ or "").strip().splitlines()[0]).rstrip(".")
        if kind is TrainingArguments:
            heading = "Arguments of transformers' Trainer"
        parts.append(f"## {heading}\n\n| argument | type | default | meaning |\n| --- | --- | --- | --- |")
        rows = []
        for argument in groups[kind]:
            unused = kind is TrainingArguments and argument.name in HIDDEN
            text = (
                argument.metadata.get("help", "") if not unused else "Has no effect: an evolution takes no gradients."
            )
            text = " ".join(str(text).replace("%%", "%").split())
            rows.append(
                f"| `{argument.name}` | {_cell(_type(argument.type))} | {_cell(_default(argument))} | {text.replace('|', '&#124;')} |"
            )
        parts[-1] += "\n" + "\n".join(rows)
    return "\n\n".join(parts)


def command_help(command: str) -> str:
    """What `smd-hf COMMAND --help` prints, 100 columns wide."""
    from smd_hf.cli.main import main

    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "100"
    try:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            main([command, "--help"])
    finally:
        os.environ.pop("COLUMNS") if before is None else os.environ.update(COLUMNS=before)
    return printed.getvalue().replace(os.path.expanduser("~"), "~")


def contributing() -> str:
    """CONTRIBUTING.md without its heading."""
    return (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("\n")[2]


def _type(kind: Any) -> str:
    text = kind if isinstance(kind, str) else getattr(kind, "__name__", str(kind))
    if not isinstance(kind, str) and not isinstance(kind, type):
        text = str(kind).replace("typing.", "")
    return re.sub(r"[\w.]+\.(\w+)", r"\1", text)


def _default(argument: Any) -> str:
    from smd_hf.arguments.recipes import BY_PRESET

    if argument.name in BY_PRESET:
        return "by preset"
    if argument.default is not MISSING:
        return repr(getattr(argument.default, "value", argument.default))
    return "" if argument.default_factory is MISSING else repr(argument.default_factory())


def _cell(text: str) -> str:
    escaped = text.replace("|", "&#124;").replace("<", "&lt;")
    return f"<code>{escaped}</code>" if text else ""
