"""
What of a saved folder goes to the Hub: the model, its code, the report, the plots, the example and the card, and nothing else.

A file goes up because it is on a list here, never because it is not on one: whatever else lies in a folder (checkpoints,
logs, scripts, keys) stays.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub.constants import SAFETENSORS_INDEX_FILE, SAFETENSORS_SINGLE_FILE
from transformers.dynamic_module_utils import get_relative_import_files

from ..artifacts.delta.config import DELTA_CONFIG_NAME, DeltaConfig
from ..artifacts.delta.storage import DELTA_WEIGHTS_NAME
from ..artifacts.ensemble import SMDEnsembleConfig
from ..errors import SMDError
from ..files import write_json, write_text
from ..reports.cards.model_card import CARD_NAME, EXAMPLE_NAME, PLOTS, render_card, write_card
from ..reports.gain_report import REPORT_NAME
from ..run.state import STATE_NAME

CONFIG_NAME = "config.json"
PROCESSOR_NAMES = ("preprocessor_config.json", "processor_config.json")
TRAINER_STATE_NAME = "trainer_state.json"


def saved_kind(folder: Path) -> str:
    """
    What a folder holds: `"child"` (or any image classifier), `"ensemble"`, or `"delta"` (one, or one in each sub-folder).

    Raises:
        `SMDError`: if it holds none of them.
    """
    if not folder.is_dir():
        raise SMDError(
            f"There is no folder '{folder}' to push. Expected the output_dir of a run, its ensemble or children, or a folder "
            "that save_pretrained has written."
        )
    if delta_folders(folder):
        return "delta"
    config = _read_config(folder / CONFIG_NAME)
    if config is None:
        raise SMDError(
            f"'{folder}' holds nothing to push: neither {CONFIG_NAME} of a model nor {DELTA_CONFIG_NAME} of a delta. Expected "
            "the output_dir of a run, its ensemble or children, or a folder that save_pretrained has written."
        )
    return "ensemble" if config.get("model_type") == SMDEnsembleConfig.model_type else "child"


def delta_folders(folder: Path) -> list[Path]:
    """The folder itself where it is a delta, else those of its sub-folders that are, in the order of their names."""
    if (folder / DELTA_CONFIG_NAME).is_file():
        return [folder]
    return sorted(
        path.parent for path in folder.glob(f"*/{DELTA_CONFIG_NAME}") if not path.parent.name.startswith(".")
    )


def model_files(folder: Path) -> list[str]:
    """
    The names of the files that make up a model or an ensemble: configuration, safetensors, image processor, Python files.

    Raises:
        `SMDError`: if there are no safetensors, a shard or a Python file is missing.
    """
    names = [CONFIG_NAME, *(name for name in PROCESSOR_NAMES if (folder / name).is_file())]
    # As in transformers: shards beside a whole file are what an earlier save has left.
    if (folder / SAFETENSORS_SINGLE_FILE).is_file():
        names.append(SAFETENSORS_SINGLE_FILE)
    elif (index := _read_config(folder / SAFETENSORS_INDEX_FILE)) is not None:
        names += [SAFETENSORS_INDEX_FILE, *sorted(set(index.get("weight_map", {}).values()))]
    else:
        raise SMDError(
            f"'{folder}' has no {SAFETENSORS_SINGLE_FILE}: only weights in safetensors are pushed. Save the model there with "
            "save_pretrained."
        )
    for name in (CONFIG_NAME, *PROCESSOR_NAMES):
        for module in _modules(_read_config(folder / name)):
            names += _code_files(folder, module)
    names = list(dict.fromkeys(names))
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise SMDError(
                f"'{folder}' has no file '{name}', which its configuration names. Save the model there again."
            )
    return names


def _modules(config: Any) -> Iterator[str]:
    """The modules that a configuration's `auto_map`s name, those of the configurations in it included."""
    if isinstance(config, list):
        for each in config:
            yield from _modules(each)
    elif isinstance(config, dict):
        for key, value in config.items():
            if key != "auto_map":
                yield from _modules(value)
                continue
            for reference in value.values() if isinstance(value, dict) else ():
                references = reference if isinstance(reference, list) else [reference]  # slow and fast processors
                # `owner/name--module.Class` is code that stays in another repository.
                yield from (each.split(".")[0] for each in references if each and "--" not in each)


def _code_files(folder: Path, module: str) -> list[str]:
    """A module's file and those that it imports, directly or not."""
    path = folder / f"{module}.py"
    if not path.is_file():
        return [path.name]
    imported = [Path(each).name for each in get_relative_import_files(path)]
    return [path.name, *sorted(imported)]


def _read_config(path: Path) -> dict[str, Any] | None:
    """A JSON object; `None` where there is no file."""
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SMDError(
            f"{path} cannot be read as JSON ({type(error).__name__}). Save the model there again."
        ) from error
    if not isinstance(config, dict):
        raise SMDError(f"{path} holds {type(config).__name__}; expected a JSON object. Save the model there again.")
    return config


# ---- A folder that is uploaded as it is ------------------------------------------------------------------------------


def stage_model(folder: Path, staged: Path) -> None:
    """Puts the files of a model or an ensemble into another folder."""
    for name in model_files(folder):
        _put(folder / name, staged / name)


def stage_checkpoint(folder: Path, staged: Path) -> None:
    """Puts what a run resumes from into another folder."""
    stage_model(folder, staged)
    for name in (TRAINER_STATE_NAME, STATE_NAME):
        _put(folder / name, staged / name)


def stage_deltas(
    folder: Path, staged: Path, count: int | None, place: Callable[[DeltaConfig], tuple[str | None, str | None]]
) -> None:
    """
    Puts deltas into another folder.

    Args:
        folder (`Path`), staged (`Path`): from where to where.
        count (`int`, *optional*): how many, in the order of their names; all by default.
        place (`Callable`): from a delta whose base is a folder of this machine to id and commit of that base on the Hub;
            called once a base.
    """
    places: dict[str, tuple[str | None, str | None]] = {}
    for each in delta_folders(folder)[:count]:
        target = staged / each.relative_to(folder)
        _put(each / DELTA_WEIGHTS_NAME, target / DELTA_WEIGHTS_NAME)
        config = DeltaConfig.from_json((each / DELTA_CONFIG_NAME).read_bytes())
        if config.base_is_folder:
            if config.base_hash not in places:
                places[config.base_hash] = place(config)
            base_model, base_revision = places[config.base_hash]
            config = replace(config, base_model=base_model, base_revision=base_revision)
        write_text(target / DELTA_CONFIG_NAME, config.to_json())


def stage_description(kind: str, folder: Path, staged: Path, repo_id: str) -> bool:
    """
    Puts report, plots, example and card beside the staged files.

    The card is written anew for its place on the Hub. One that the user has changed goes up as it is, and so does that of a
    folder without a report.

    Returns:
        `bool`: whether the card is a changed one.
    """
    report = _read_config(folder / REPORT_NAME)
    if report is None and kind == "delta" and (folder / DELTA_CONFIG_NAME).is_file():
        siblings = _read_config(folder.parent / REPORT_NAME)  # that of all the deltas of a run
        report = siblings if siblings is not None and folder.name in siblings.get("deltas", {}) else None
    for name in (*PLOTS, EXAMPLE_NAME):
        if (folder / name).is_file():
            _put(folder / name, staged / name)
    card = folder / CARD_NAME
    if report is not None:
        report = _without_places(report)
        write_json(staged / REPORT_NAME, report)
        if not card.is_file() or _as_written(card.read_text(encoding="utf-8"), kind, folder, report):
            write_card(kind, staged, report, repo_id=repo_id)
            return False
    if card.is_file():
        _put(card, staged / CARD_NAME)
    return card.is_file() and report is not None


def _as_written(text: str, kind: str, folder: Path, report: dict[str, Any]) -> bool:
    """Whether a card is the one that the run has written; how to load the model depends on where the folder lay."""

    def without_use(card: str) -> str:
        before, _, rest = card.partition("\n## Use\n")
        return before + rest.partition("\n## ")[2]

    return without_use(text) == without_use(str(render_card(kind, folder, report)))


def _without_places(report: dict[str, Any]) -> dict[str, Any]:
    """The report without the places of this machine: of a path, its last part."""

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: clean(each) for key, each in value.items()}
        if isinstance(value, list):
            return [clean(each) for each in value]
        return Path(value).name if isinstance(value, str) and os.path.isabs(os.path.expanduser(value)) else value

    named = ("parent_name", "arguments", "all_arguments")
    return report | {name: clean(report[name]) for name in named if name in report}


def _put(source: Path, target: Path) -> None:
    """A copy; of large files a second name for the same file, which stays what it is when the first one is replaced."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.suffix == ".safetensors":
        try:
            os.link(source.resolve(), target)
            return
        except OSError:  # another file system, or one without links
            pass
    shutil.copyfile(source, target)
