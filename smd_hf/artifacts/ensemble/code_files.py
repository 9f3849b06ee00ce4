"""The code that is saved with an ensemble's weights: its own, and that of its models, if any."""

import inspect
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from transformers.dynamic_module_utils import get_relative_import_files
from transformers.utils import TRANSFORMERS_DYNAMIC_MODULE_NAME

from ...remote_code import configuration_smd_ensemble, members_smd_ensemble, modeling_smd_ensemble

AUTO_CONFIG = modeling_smd_ensemble.AUTO_CONFIG


def travelling_code() -> dict[str, bytes]:
    """The files of `smd_hf.remote_code`, by name."""
    modules = (configuration_smd_ensemble, members_smd_ensemble, modeling_smd_ensemble)
    files = [Path(str(module.__file__)) for module in modules]
    return {file.name: file.read_bytes() for file in files}


def add_code(model: PreTrainedModel, config: dict[str, Any], code: dict[str, bytes], auto_model: str) -> None:
    """
    Add the files of a model's own code, and name them in its configuration, by the Auto class that loads it; nothing for a
    model that transformers or an installed package defines.

    Raises:
        `ValueError`: where two different files of code have the same name.
    """
    config.pop("auto_map", None)
    if not model.is_remote_code() and not type(model).__module__.startswith(TRANSFORMERS_DYNAMIC_MODULE_NAME):
        return
    files = {AUTO_CONFIG: Path(inspect.getfile(type(model.config))), auto_model: Path(inspect.getfile(type(model)))}
    config["auto_map"] = {
        AUTO_CONFIG: f"{files[AUTO_CONFIG].stem}.{type(model.config).__name__}",
        auto_model: f"{files[auto_model].stem}.{type(model).__name__}",
    }
    for source in files.values():
        for file in [source, *map(Path, get_relative_import_files(source))]:
            content = file.read_bytes()
            if code.setdefault(file.name, content) != content:
                raise ValueError(
                    f"Two models of the ensemble bring different files of code named {file.name}, which cannot lie in "
                    "one folder. Rename one of them, with the imports of it, and load its model again."
                )
