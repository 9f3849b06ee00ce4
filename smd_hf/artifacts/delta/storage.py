"""
The two files of a delta: finds them in a folder or on the Hub, reads and checks them, and writes them atomically.

No other file of the repository is opened. The files are not trusted: reading is bounded by their sizes, and they are checked
against each other, so a delta that has been read is consistent. Whether it fits a model is checked when it is applied.
"""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HTTPError, LocalEntryNotFoundError
from huggingface_hub.file_download import _CACHED_NO_EXIST, repo_folder_name
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers.utils import extract_commit_hash

from ...errors import SMDError
from ...files import followed
from ...models.loading_errors import explain_loading_error
from ...scoring.changes import Change
from ..change_checks import check_change
from .config import DELTA_CONFIG_NAME, MAX_CONFIG_BYTES, DeltaConfig, is_repo_id, shown

DELTA_WEIGHTS_NAME = "smd_delta.safetensors"
VALUE_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
}
"""The possible dtypes of a classifier's tensors. Integers are BatchNorm's counters."""

_INDEX_DTYPES = ("I32", "I64")
_MAX_DIMENSIONS = 64  # PyTorch's limit
_ANY_SHAPE = torch.Size([2**63 - 1])


def find_file(
    name: str, filename: str, source: Mapping[str, Any], subfolder: str = "", unreachable_is_missing: bool = False
) -> Path | None:
    """
    The path of a file in a folder or a Hub repository. Downloads it if it is not in the cache.

    Args:
        unreachable_is_missing (`bool`, *optional*, defaults to `False`): whether a file that is not in the cache counts as
            missing if the Hub cannot be reached.

    Returns:
        `Path` or `None`: `None` if the file does not exist.
    """
    if os.path.isdir(name):
        path = Path(name, subfolder, filename)
        return path if os.path.lexists(path) else None
    where = {"filename": f"{subfolder}/{filename}" if subfolder else filename, "cache_dir": source["cache_dir"]}
    revision = source["revision"]
    try:
        return Path(hf_hub_download(name, **where, revision=revision, token=source["token"], library_name="smd_hf"))
    except LocalEntryNotFoundError as error:
        # The Hub cannot be reached. The cache may know from an earlier request that the file does not exist.
        known = try_to_load_from_cache(name, **where, revision=revision)
        if unreachable_is_missing or known is _CACHED_NO_EXIST:
            return None
        raise SMDError(explain_loading_error(name, error, "delta", dict(source))) from error
    except EntryNotFoundError:
        return None
    except (OSError, ValueError, HTTPError) as error:
        raise SMDError(explain_loading_error(name, error, "delta", dict(source))) from error


def cached_commit(repo_id: str, revision: str | None) -> str | None:
    """
    The commit of a cached revision, without a request to the Hub.

    Args:
        revision (`str`, *optional*): a commit, branch or tag; `None` for the commit that is in the cache.

    Returns:
        `str` or `None`: the commit; `None` if the cache has no commit or several. A revision that is not in the cache is
        returned unchanged.
    """
    if not is_repo_id(repo_id):
        return revision
    if revision is not None:
        path = try_to_load_from_cache(repo_id, "config.json", revision=revision)
        return (extract_commit_hash(path, None) if isinstance(path, str) else None) or revision
    snapshots = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=repo_id, repo_type="model"), "snapshots")
    commits = sorted(path.parent.name for path in snapshots.glob("*/config.json"))
    return commits[0] if len(commits) == 1 else None


def read_delta(
    name: str, source: Mapping[str, Any], subfolder: str = ""
) -> tuple[DeltaConfig, dict[str, Change], bool]:
    """
    Finds, reads and checks a delta.

    Returns:
        `tuple[DeltaConfig, dict[str, Change], bool]`: its configuration, its changes by checkpoint name (on the CPU), and
        whether it came from the Hub.

    Raises:
        `SMDError`: if the delta does not exist, or is incomplete or inconsistent.
    """
    config_path = _required_file(name, DELTA_CONFIG_NAME, source, subfolder)
    from_hub = not os.path.isdir(name)
    if from_hub:
        # Read both files from one commit, even if something is pushed in between.
        source = {**source, "revision": extract_commit_hash(str(config_path), None) or source["revision"]}
    config = DeltaConfig.from_json(_read_bounded(config_path))
    weights_path = _required_file(name, DELTA_WEIGHTS_NAME, source, subfolder)
    return config, _read_changes(weights_path, config), from_hub


def _required_file(name: str, filename: str, source: Mapping[str, Any], subfolder: str) -> Path:
    path = find_file(name, filename, source, subfolder)
    if path is None:
        place = f"'{name}'" + (f", folder '{subfolder}'," if subfolder else "")
        raise SMDError(
            f"{place} has no {filename}. Expected a sparse delta: {DELTA_CONFIG_NAME} and {DELTA_WEIGHTS_NAME}, written by "
            "SparseDelta.save_pretrained. Check the name and the revision (smd_hf.load loads children, deltas and ensembles)."
        )
    real = followed(name, path)
    if not real.is_file():
        raise SMDError(f"{filename} in '{name}' is not a regular file. Expected the file that save_pretrained writes.")
    return real if os.path.isdir(name) else path


def _read_bounded(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise SMDError(f"{path} cannot be read ({error.strerror}). Fix its permissions, or get it again.") from error
    if len(content) > MAX_CONFIG_BYTES:
        raise SMDError(
            f"{DELTA_CONFIG_NAME} is larger than {MAX_CONFIG_BYTES} bytes, more than any delta's configuration needs. "
            "It is not read: get the file again from its source."
        )
    return content


def _read_changes(path: Path, config: DeltaConfig) -> dict[str, Change]:
    try:
        with safe_open(path, framework="pt") as file:
            _check_header(file, config)
            # Copies, because a tensor of `safe_open` maps the file, which may still change.
            changes = {
                name: (
                    None if count is None else file.get_tensor(f"{name}.indices").clone(),
                    file.get_tensor(f"{name}.values").clone(),
                )
                for name, count in config.changes.items()
            }
    except (SafetensorError, OSError) as error:
        raise SMDError(
            f"{DELTA_WEIGHTS_NAME} is not a complete safetensors file ({shown(error, quote=False)}). Get it again from its "
            "source."
        ) from error
    for name, (indices, values) in changes.items():
        check(name, indices, values, values.shape if indices is None else _ANY_SHAPE, values.dtype)
    return changes


def _check_header(file: Any, config: DeltaConfig) -> None:
    """Compares the names, dtypes and shapes of a file with the configuration, before any tensor is read."""
    expected = {f"{name}.values" for name in config.changes}
    expected |= {f"{name}.indices" for name, count in config.changes.items() if count is not None}
    found = set(file.keys())
    if expected != found:
        kind = "lacks" if expected - found else "has the unknown tensors"
        names = sorted(expected - found) or sorted(found - expected)
        raise SMDError(
            f"{DELTA_WEIGHTS_NAME} {kind} {', '.join(map(shown, names[:4]))}: it and {DELTA_CONFIG_NAME} do not belong to the "
            "same delta. Get both again from their source."
        )
    for name, count in config.changes.items():
        values = file.get_slice(f"{name}.values")
        if values.get_dtype() not in VALUE_DTYPES:
            raise _wrong(f"{name}.values", values, f"dtype {' or '.join(VALUE_DTYPES)}")
        if len(values.get_shape()) > _MAX_DIMENSIONS:
            raise _wrong(f"{name}.values", values, f"at most {_MAX_DIMENSIONS} dimensions")
        if count is None:
            continue
        indices = file.get_slice(f"{name}.indices")
        if indices.get_dtype() not in _INDEX_DTYPES or indices.get_shape() != [count]:
            raise _wrong(f"{name}.indices", indices, f"{' or '.join(_INDEX_DTYPES)} of shape [{count}]")
        if values.get_shape() != [count]:
            raise _wrong(f"{name}.values", values, f"shape [{count}]")


def _wrong(name: str, part: Any, expected: str) -> SMDError:
    return SMDError(
        f"{DELTA_WEIGHTS_NAME}: {shown(name)} is {part.get_dtype()} of shape {shown(part.get_shape())}; expected "
        f"{expected}. The file is damaged or was edited: get it again from its source."
    )


def check(
    name: str, indices: torch.Tensor | None, values: torch.Tensor, shape: torch.Size, dtype: torch.dtype
) -> None:
    """Calls [`check_change`] and turns its `ValueError` into an [`SMDError`]."""
    fault = None
    # Differences of negative indices can overflow and then look increasing.
    if indices is not None and indices.numel() and bool((indices < 0).any()):
        fault = f"The change of {shown(name)} has indices below 0."
    try:
        if fault is None:
            check_change(shown(name), indices, values, shape, dtype)
    except ValueError as error:
        fault = str(error)
    if fault is not None:
        raise SMDError(
            f"The delta is refused. {fault} Expected new values for coordinates of the base: get the delta again from its "
            "source, or fix the program that made it."
        )


def write_delta(folder: str | os.PathLike, config: DeltaConfig, changes: Mapping[str, Change]) -> None:
    """Writes a delta's two files. Existing files are replaced atomically."""
    folder = Path(folder)
    tensors = {f"{name}.values": values for name, (_, values) in changes.items()}
    tensors |= {f"{name}.indices": indices for name, (indices, _) in changes.items() if indices is not None}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as temporary:
            save_file(tensors, Path(temporary, DELTA_WEIGHTS_NAME), metadata={"format": "pt"})
            Path(temporary, DELTA_CONFIG_NAME).write_text(config.to_json(), encoding="utf-8")
            for filename in (DELTA_WEIGHTS_NAME, DELTA_CONFIG_NAME):
                os.replace(Path(temporary, filename), folder / filename)
    except (OSError, SafetensorError) as error:
        raise SMDError(
            f"The delta cannot be saved in '{folder}' ({getattr(error, 'strerror', None) or error}). Expected a folder that "
            "can be created and written to: choose another one, fix its permissions or free some space on the disk."
        ) from error
