"""One call for whatever a run gave back: a child (or any image classifier), a sparse delta, or an ensemble."""

import json
import os
from pathlib import Path

import torch
from transformers import PreTrainedModel

from ..ensemble import SMDEnsembleConfig, SMDEnsembleForImageClassification
from ..errors import SMDError
from ..files import check_entries
from ..models.load import DTYPES, load_model
from ..models.loading_errors import explain_loading_error
from .delta.config import DELTA_CONFIG_NAME, shown
from .delta.sparse_delta import SparseDelta
from .delta.storage import find_file

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
    Load an image classifier in whichever of three forms it is stored, in eval mode.

    A folder or repository with `smd_delta_config.json` is a [`SparseDelta`]: its base is loaded and the child made of it.
    One whose `config.json` is an ensemble's is a [`~smd_hf.ensemble.SMDEnsembleForImageClassification`]. Anything else is
    left to [`load_model`].

    Args:
        repo_or_path (`str` or `os.PathLike`): a repository of the Hub or a folder.
        revision (`str`, *optional*): branch, tag or commit.
        token (`str` or `bool`, *optional*): access token for private repositories, a delta's base included.
        trust_remote_code (`bool`, *optional*, defaults to `False`): run the Python files of the model, of a delta's base or
            of an ensemble's members, where they are defined by some.
        dtype (`str` or `torch.dtype`, *optional*, defaults to `"auto"`): `"auto"` (as stored), `"float32"`, `"bfloat16"` or
            `"float16"`. A delta is merged in the dtype it was made in, and then cast.
        cache_dir (`str` or `os.PathLike`, *optional*): where downloads are kept.
        subfolder (`str`, *optional*, defaults to `""`): where in a repository of several deltas the one to load is.

    Returns:
        `PreTrainedModel`: the model, on the CPU.

    Raises:
        `SMDError`: if there is none of the three, it is damaged or tampered with, or needs code that is not trusted.
    """
    if isinstance(dtype, str) and dtype not in DTYPES:
        raise SMDError(f"dtype is '{dtype}'; expected one of {', '.join(DTYPES)}.")
    dtype = DTYPES[dtype] if isinstance(dtype, str) else dtype
    name = os.fspath(repo_or_path)
    name = expanded if os.path.exists(expanded := os.path.expanduser(name)) else name
    source = {"revision": revision, "token": token, "cache_dir": cache_dir}
    # A checkpoint in the cache loads without a network, although nothing there says that it is no delta.
    config = None if subfolder else find_file(name, "config.json", source, unreachable_is_missing=True)
    delta = find_file(name, DELTA_CONFIG_NAME, source, subfolder, unreachable_is_missing=config is not None)
    if delta is not None or subfolder:
        child = SparseDelta.from_pretrained(name, **source, subfolder=subfolder).merge(
            trust_remote_code=trust_remote_code, token=token, cache_dir=cache_dir
        )
        return child if dtype == "auto" else child.to(dtype)
    if config is None:
        raise SMDError(
            f"'{name}' holds none of what can be loaded: no config.json of an image classifier or an ensemble, and no "
            f"{DELTA_CONFIG_NAME} of a sparse delta. Check the name and the revision; of a repository with several deltas, "
            "name one with subfolder=..."
        )
    if _model_type(config, name) == SMDEnsembleConfig.model_type:
        check_entries(name)
        try:
            return SMDEnsembleForImageClassification.from_pretrained(
                name, **source, trust_remote_code=trust_remote_code, dtype=dtype
            ).eval()
        except Exception as error:  # a configuration may make transformers stumble anywhere
            raise SMDError(explain_loading_error(name, error, "ensemble", source)) from error
    return load_model(name, **source, trust_remote_code=trust_remote_code, dtype=dtype)


def _model_type(config: Path, name: str) -> str | None:
    """The model type in a `config.json`; `None` for a file that cannot be read, which the loading of it will say better."""
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
