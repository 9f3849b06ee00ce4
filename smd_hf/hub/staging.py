"""
Collects the files of a saved folder that are pushed: the model, its code, the report, the plots, the example and the card.

Only files on a list in this module are pushed. Everything else in a folder (checkpoints, logs, scripts, keys) stays local.
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
from ..reports.cards.benchmark import RESULTS_PATH, benchmark_results
from ..reports.cards.model_card import CARD_NAME, EXAMPLE_NAME, PLOTS, render_card, write_card
from ..reports.gain_report import REPORT_NAME
from ..run.state import STATE_NAME

CONFIG_NAME = "config.json"
PROCESSOR_NAMES = ("preprocessor_config.json", "processor_config.json")
TOKENIZER_NAMES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "vocab.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model"),
)
TRAINER_STATE_NAME = "trainer_state.json"


def saved_kind(folder: Path) -> str:
    """
    The kind of a folder: `"child"` (any image classifier), `"ensemble"`, or `"delta"` (one, or one in each subfolder).
    """
    if not folder.is_dir():
        raise SMDError(
            f"The folder '{folder}' does not exist. Expected the output_dir of a run, its ensemble or children, or a folder "
            "written by save_pretrained."
        )
    if delta_folders(folder):
        return "delta"
    config = _read_config(folder / CONFIG_NAME)
    if config is None:
        raise SMDError(
            f"'{folder}' holds nothing to push: neither {CONFIG_NAME} of a model nor {DELTA_CONFIG_NAME} of a delta. Expected "
            "the output_dir of a run, its ensemble or children, or a folder written by save_pretrained."
        )
    return "ensemble" if config.get("model_type") == SMDEnsembleConfig.model_type else "child"


def delta_folders(folder: Path) -> list[Path]:
    """The folder itself if it is a delta, else its subfolders that are deltas, sorted by name."""
    if (folder / DELTA_CONFIG_NAME).is_file():
        return [folder]
    return sorted(
        path.parent for path in folder.glob(f"*/{DELTA_CONFIG_NAME}") if not path.parent.name.startswith(".")
    )


def model_files(folder: Path) -> list[str]:
    """The names of a model's or an ensemble's files: configuration, safetensors, image processor and Python files."""
    names = [CONFIG_NAME, *(name for name in (*PROCESSOR_NAMES, *TOKENIZER_NAMES) if (folder / name).is_file())]
    # As in transformers: shards next to a whole file are left from an earlier save.
    if (folder / SAFETENSORS_SINGLE_FILE).is_file():
        names.append(SAFETENSORS_SINGLE_FILE)
    elif (index := _read_config(folder / SAFETENSORS_INDEX_FILE)) is not None:
        names += [SAFETENSORS_INDEX_FILE, *sorted(set(index.get("weight_map", {}).values()))]
    else:
        raise SMDError(
            f"'{folder}' has no {SAFETENSORS_SINGLE_FILE}: only weights in safetensors are pushed. Save the model into it with "
            "save_pretrained."
        )
    for name in (CONFIG_NAME, *PROCESSOR_NAMES):
        for module in _modules(_read_config(folder / name)):
            names += _code_files(folder, module)
    names = list(dict.fromkeys(names))
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise SMDError(
                f"'{folder}' has no file '{name}', but its configuration names it. Save the model into it again."
            )
    return names


def _modules(config: Any) -> Iterator[str]:
    """The modules in the `auto_map`s of a configuration and of the configurations inside it."""
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
    """A module's file and the files that it imports, directly or indirectly."""
    path = folder / f"{module}.py"
    if not path.is_file():
        return [path.name]
    imported = [Path(each).name for each in get_relative_import_files(path)]
    return [path.name, *sorted(imported)]


def _read_config(path: Path) -> dict[str, Any] | None:
    """Reads a JSON object; `None` if the file does not exist."""
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


# ---- A folder that is uploaded unchanged ------------------------------------------------------------------------------


def stage_model(folder: Path, staged: Path) -> None:
    """Copies the files of a model or an ensemble into another folder."""
    for name in model_files(folder):
        _put(folder / name, staged / name)


def stage_checkpoint(folder: Path, staged: Path) -> None:
    """Copies the files that a run resumes from into another folder."""
    stage_model(folder, staged)
    for name in (TRAINER_STATE_NAME, STATE_NAME):
        _put(folder / name, staged / name)


def stage_deltas(
    folder: Path, staged: Path, count: int | None, place: Callable[[DeltaConfig], tuple[str | None, str | None]]
) -> None:
    """
    Copies deltas into another folder.

    Args:
        place (`Callable`): maps the configuration of a delta with a local base to the base's Hub id and commit. It is called
            once per base.
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
    Copies report, plots, example and card into the staged folder, and the entry for a benchmark's leaderboard, if there is one.

    The card is rendered again for its repository. A card that the user has changed is copied unchanged, and so is the card of a
    folder without a report.

    Returns:
        `bool`: whether the user has changed the card.
    """
    report = _read_config(folder / REPORT_NAME)
    if report is None and kind == "delta" and (folder / DELTA_CONFIG_NAME).is_file():
        siblings = _read_config(folder.parent / REPORT_NAME)  # one report for all deltas of a run
        report = siblings if siblings is not None and folder.name in siblings.get("deltas", {}) else None
    for name in (*PLOTS, EXAMPLE_NAME):
        if (folder / name).is_file():
            _put(folder / name, staged / name)
    card = folder / CARD_NAME
    if report is not None:
        report = _without_places(report)
        write_json(staged / REPORT_NAME, report)
        if (results := benchmark_results(kind, report, repo_id)) is not None:
            (staged / RESULTS_PATH).parent.mkdir()
            write_text(staged / RESULTS_PATH, results)
        if not card.is_file() or _as_written(card.read_text(encoding="utf-8"), kind, folder, report):
            write_card(kind, staged, report, repo_id=repo_id)
            return False
    if card.is_file():
        _put(card, staged / CARD_NAME)
    return card.is_file() and report is not None


def _as_written(text: str, kind: str, folder: Path, report: dict[str, Any]) -> bool:
    """Whether a card is unchanged since the run wrote it, except for "Use", which depends on the folder's path."""

    def without_use(card: str) -> str:
        before, _, rest = card.partition("\n## Use\n")
        return before + rest.partition("\n## ")[2]

    return without_use(text) == without_use(str(render_card(kind, folder, report)))


def _without_places(report: dict[str, Any]) -> dict[str, Any]:
    """The report without local paths: each is cut to its last part."""

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: clean(each) for key, each in value.items()}
        if isinstance(value, list):
            return [clean(each) for each in value]
        return Path(value).name if isinstance(value, str) and os.path.isabs(os.path.expanduser(value)) else value

    named = ("parent_name", "arguments", "all_arguments")
    return report | {name: clean(report[name]) for name in named if name in report}


def _put(source: Path, target: Path) -> None:
    """Copies a file. Weights are hard-linked instead: the link keeps its content when the source is replaced."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.suffix == ".safetensors":
        try:
            os.link(source.resolve(), target)
            return
        except OSError:  # another file system, or one without links
            pass
    shutil.copyfile(source, target)
