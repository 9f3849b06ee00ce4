"""Loads any artifact of a run: a child (or any image classifier), a sparse delta, or an ensemble."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from transformers import BaseImageProcessor, PreTrainedModel
from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME

from ..errors import SMDError
from ..files import check_entries
from ..models.load import DTYPES, load_image_processor, load_model
from ..models.loading_errors import explain_loading_error
from .delta.config import DELTA_CONFIG_NAME, shown
from .delta.sparse_delta import SparseDelta
from .delta.storage import find_file
from .ensemble import ENSEMBLES, SMDEnsembleConfig

_MAX_CONFIG_BYTES = 64 * 2**20


def load(
    repo_or_path: str | os.PathLike,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    trust_remote_code: bool = False,
    dtype: str | torch.dtype = "auto",
    cache_dir: str | os.PathLike | None = None,
    subfolder: str = "",
) -> PreTrainedModel:
    """
    Loads an image classifier in any of its three forms, in eval mode.

    A folder or repository with `smd_delta_config.json` is a [`SparseDelta`]: its base is loaded and turned into the child. If
    `config.json` belongs to an ensemble, it is a [`~smd_hf.ensemble.SMDEnsembleForImageClassification`]. Anything else is
    loaded by [`load_model`].

    Args:
        repo_or_path (`str` or `os.PathLike`): a repository of the Hub or a folder.
        revision (`str`, *optional*): branch, tag or commit.
        token (`str` or `bool`, *optional*): access token for private repositories, also for a delta's base.
        trust_remote_code (`bool`, *optional*, defaults to `False`): allows the Python files of the model, of a delta's base or
            of an ensemble's members to run.
        dtype (`str` or `torch.dtype`, *optional*, defaults to `"auto"`): `"auto"` (as stored), `"float32"`, `"bfloat16"` or
            `"float16"`. A delta is merged in the dtype it was made in, and then cast.
        cache_dir (`str` or `os.PathLike`, *optional*): folder for downloads.
        subfolder (`str`, *optional*, defaults to `""`): subfolder of the delta, in a repository with several.

    Returns:
        `PreTrainedModel`: the model, on the CPU.

    Raises:
        `SMDError`: if there is none of the three, if it is damaged or was tampered with, or if it needs code that is not
            trusted.
    """
    source = {"revision": revision, "token": token, "cache_dir": cache_dir}
    return _load(os.fspath(repo_or_path), source, trust_remote_code, dtype, subfolder)[0]


def load_with_processor(
    repo_or_path: str | os.PathLike,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    trust_remote_code: bool = False,
    dtype: str | torch.dtype = "auto",
    cache_dir: str | os.PathLike | None = None,
) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """
    Loads a model as [`load`] does, with its image processor. A delta without an image processor has that of its base.

    Raises:
        `SMDError`: as in [`load`], or if there is no image processor.
    """
    source = {"revision": revision, "token": token, "cache_dir": cache_dir}
    name = expanded(os.fspath(repo_or_path))
    model, delta = _load(name, source, trust_remote_code, dtype)
    if delta is not None and find_file(name, IMAGE_PROCESSOR_NAME, source, unreachable_is_missing=True) is None:
        name, source = str(delta.config.base_model), source | {"revision": delta.config.base_revision}
    return model, load_image_processor(name, model=model, trust_remote_code=trust_remote_code, **source)


def stored_form(name: str, source: dict[str, Any], subfolder: str = "") -> str | None:
    """
    The form of a folder or repository by its configuration: `"delta"`, `"ensemble"` or `"model"`; `None` without one.
    """
    if subfolder:
        return "delta"
    # A cached checkpoint loads without network, although the cache does not say that the repository has no delta.
    config = find_file(name, CONFIG_NAME, source, unreachable_is_missing=True)
    if find_file(name, DELTA_CONFIG_NAME, source, unreachable_is_missing=config is not None) is not None:
        return "delta"
    if config is None:
        return None
    return "ensemble" if _model_type(config, name) == SMDEnsembleConfig.model_type else "model"


def _load(
    name: str, source: dict[str, Any], trust_remote_code: bool, dtype: str | torch.dtype, subfolder: str = ""
) -> tuple[PreTrainedModel, SparseDelta | None]:
    """The model, and its delta, if any."""
    if isinstance(dtype, str) and dtype not in DTYPES:
        raise SMDError(f"dtype is '{dtype}'; expected one of {', '.join(DTYPES)}.")
    dtype = DTYPES[dtype] if isinstance(dtype, str) else dtype
    name = expanded(name)
    form = stored_form(name, source, subfolder)
    if form == "delta":
        delta = SparseDelta.from_pretrained(name, **source, subfolder=subfolder)
        child: Any = delta.merge(
            trust_remote_code=trust_remote_code, token=source["token"], cache_dir=source["cache_dir"]
        )
        return child if dtype == "auto" else child.to(dtype), delta
    if form is None:
        raise SMDError(
            f"'{name}' holds nothing that can be loaded: no config.json of an image classifier or an ensemble, and no "
            f"{DELTA_CONFIG_NAME} of a sparse delta. Check the name and the revision. If a repository has several deltas, "
            "choose one with subfolder=...; if a folder has several, give the folder of one."
        )
    if form == "ensemble":
        check_entries(name)
        try:
            config = SMDEnsembleConfig.from_pretrained(name, **source)
            ensemble: Any = ENSEMBLES[config.task].from_pretrained(
                name, **source, trust_remote_code=trust_remote_code, dtype=dtype
            )
        except Exception as error:  # a bad configuration may make transformers fail anywhere
            raise SMDError(explain_loading_error(name, error, "ensemble", source)) from error
        return ensemble.eval(), None
    return load_model(name, **source, trust_remote_code=trust_remote_code, dtype=dtype), None


def expanded(name: str) -> str:
    """Expands `~` if the result exists; otherwise returns the name unchanged."""
    path = os.path.expanduser(name)
    return path if os.path.exists(path) else name


def _model_type(config: Path, name: str) -> str | None:
    """The model type in a `config.json`; `None` if the file cannot be read, because loading it gives a better error."""
    try:
        if not config.is_file() or config.stat().st_size > _MAX_CONFIG_BYTES:
            return None
        entries = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    model_type = entries.get("model_type") if isinstance(entries, dict) else entries
    if not isinstance(entries, dict) or not isinstance(model_type, str | None):
        raise SMDError(
            f"config.json of '{name}' does not name a type of model: model_type is {shown(model_type)}. Expected a checkpoint "
            "as `save_pretrained` writes it: download or save it again."
        )
    return model_type
