"""
What the headers of an ensemble's weight files say, before a model is built and before a tensor is read.

Nothing is allocated for tensors that the files do not have, whatever a hostile configuration describes.
"""

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from ...remote_code.configuration_smd_ensemble import SMDEnsembleConfig

MAX_INDEX_BYTES = 64 * 2**20
LARGEST_INTEGER = 2**20
"""In the configuration of a small model: no number of layers, pixels or tokens is larger."""
SLACK = 10**5

Headers = dict[str, tuple[str, tuple[int, ...]]]
"""Name of a tensor -> its dtype as safetensors writes it ("F32", "I64") and its shape."""


@contextmanager
def bounded(config: SMDEnsembleConfig, headers: Headers | None) -> Iterator[None]:
    """
    Within it, models are built by this thread only as far as the files can reach; without headers, without a bound.

    Layers by the million would take time and memory even on the meta device. Some slack is for parameters that a model
    makes twice or ties; [`check_headers`] counts exactly.

    Raises:
        `ValueError`: where the configuration describes a far larger model.
    """
    if headers is None:
        yield
        return
    stored, largest = _numbers(headers), _largest_integer(config.model_configs)
    if largest > max(stored, LARGEST_INTEGER):
        raise ValueError(
            f"The ensemble's config.json describes a model of a size of {largest}, but its files hold {stored} numbers."
        )
    left, thread = 2 * stored + SLACK, threading.get_ident()

    def count(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter | None) -> None:
        nonlocal left
        if parameter is not None and threading.get_ident() == thread:
            left -= parameter.numel()
            if left < 0:
                raise ValueError(f"it describes a far larger model than the {stored} numbers in the files.")

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def _largest_integer(value: Any) -> int:
    """The largest integer in a configuration, labels apart."""
    if isinstance(value, dict):
        return max((_largest_integer(each) for key, each in value.items() if "label" not in str(key)), default=0)
    if isinstance(value, list | tuple):
        return max(map(_largest_integer, value), default=0)
    return value if type(value) is int else 0


def _numbers(headers: Headers) -> int:
    """How many numbers the files hold."""
    return sum(torch.Size(shape).numel() for _, shape in headers.values())


def read_headers(name_or_path: str, variant: str | None = None, **hub_kwargs) -> Headers:
    """
    The names, dtypes and shapes of the tensors in an ensemble's safetensors files, without reading the tensors.

    Raises:
        `ValueError`: for no safetensors file, an index that names files elsewhere, or a file that is not safetensors.
    """
    headers: Headers = {}
    for file in _weight_files(str(name_or_path), variant, hub_kwargs):
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 (safe_open is no mapping)
                    part = tensors.get_slice(name)
                    headers[name] = (part.get_dtype(), tuple(part.get_shape()))
        except Exception as error:  # safetensors' own exception derives from Exception alone
            raise ValueError(f"{Path(file).name} of the ensemble is not a whole safetensors file: {error}") from error
    return headers


def _weight_files(name_or_path: str, variant: str | None, hub_kwargs: dict[str, Any]) -> list[str]:
    def find(file: str) -> str | None:
        return cached_file(name_or_path, file, _raise_exceptions_for_missing_entries=False, **hub_kwargs)

    suffix = "" if variant is None else f"{variant}."
    single = find(SAFE_WEIGHTS_NAME.removesuffix("safetensors") + suffix + "safetensors")
    if single is not None:
        return [single]
    index = find(SAFE_WEIGHTS_INDEX_NAME.removesuffix("json") + suffix + "json")
    if index is None:
        raise ValueError(
            f"{name_or_path} has no {SAFE_WEIGHTS_NAME} and no {SAFE_WEIGHTS_INDEX_NAME}: an ensemble's weights are "
            "loaded from safetensors files alone."
        )
    files = _indexed_files(Path(index))
    for file in files:
        if Path(file).name != file or "\\" in file:
            raise ValueError(
                f"{SAFE_WEIGHTS_INDEX_NAME} names {file!r}, which is not a file of the ensemble's folder."
            )
    found = {file: find(file) for file in files}
    missing = [file for file, path in found.items() if path is None]
    if missing:
        raise ValueError(f"The ensemble lacks {', '.join(missing)}, named by {SAFE_WEIGHTS_INDEX_NAME}.")
    return [path for path in found.values() if path is not None]


def _indexed_files(index: Path) -> list[str]:
    """The names of the files that an index of weights names."""
    try:
        if index.stat().st_size > MAX_INDEX_BYTES:
            raise ValueError(f"it is larger than {MAX_INDEX_BYTES} bytes")
        return sorted({str(file) for file in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{index.name} is no index of weights, an object with a weight_map from tensors to files ({error})."
        ) from error


def check_headers(ensemble: PreTrainedModel, members: Sequence[Any], headers: Headers) -> None:
    """
    Refuse files whose tensors are not those of the members, or hold less than the ensemble needs.

    Args:
        ensemble ([`PreTrainedModel`]): built on the meta device, with [`SparseMember`]s named `member_0`,
            `member_1`, ...
        members (sequence of [`SparseMember`]): those; empty where members are stored whole.

    Raises:
        `ValueError`: naming the tensors.
    """
    expected = {}
    for i, member in enumerate(members):
        if member.indices is not None:
            dtype = "I64" if member.indices.dtype == torch.int64 else "I32"
            expected[f"member_{i}.indices"] = ((dtype,), tuple(member.indices.shape))
        if member.values is not None:
            expected[f"member_{i}.values"] = (("F64", "F32", "F16", "BF16"), tuple(member.values.shape))
    if members:
        differing = sorted({name for name in headers if name.startswith("member_")} ^ set(expected))
        if differing:
            raise ValueError(
                f"The ensemble's files and its config.json disagree on the members' tensors "
                f"{', '.join(differing[:5])}: they are missing, or belong to no member."
            )
    for name, (dtypes, shape) in expected.items():
        if headers[name][0] not in dtypes or headers[name][1] != shape:
            raise ValueError(
                f"{name} of the ensemble is {headers[name][0]} of shape {headers[name][1]}; its config.json wants "
                f"{' or '.join(dtypes)} of shape {shape}."
            )
    # However large the models of a hostile config.json, no more is allocated than the files hold.
    tied = {
        f"{child}.{name}"
        for child, module in ensemble.named_children()
        for name in getattr(module, "all_tied_weights_keys", {})
    }
    state = {id(t): t.numel() for name, t in ensemble.state_dict(keep_vars=True).items() if name not in tied}
    stored = _numbers(headers)
    if sum(state.values()) > stored:
        raise ValueError(
            f"The ensemble's config.json describes models and members of {sum(state.values())} numbers, but its "
            f"files hold {stored}."
        )
