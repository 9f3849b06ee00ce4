"""
What an ensemble's checkpoint holds besides weights: the code of its models, and the headers of its weight files.

Both are looked at before a model is built: code runs only where the user trusts it, and nothing is allocated for
tensors that the files do not have.

This file travels with an ensemble's checkpoint: it imports transformers, torch and safetensors alone.
"""

import copy
import inspect
import json
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers import CONFIG_MAPPING, AutoModelForImageClassification, PreTrainedConfig, PreTrainedModel
from transformers.dynamic_module_utils import get_class_from_dynamic_module, get_relative_import_files
from transformers.utils import (
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    TRANSFORMERS_DYNAMIC_MODULE_NAME,
    cached_file,
)

from .sparse_member import SparseMember

AUTO_CONFIG, AUTO_MODEL = "AutoConfig", "AutoModelForImageClassification"

MAX_INDEX_BYTES = 64 * 2**20
LARGEST_INTEGER = 2**20
"""In the configuration of a small model: no number of layers, pixels or tokens is larger."""
SLACK = 10**5

ModelClasses = tuple[type[PreTrainedConfig], type[PreTrainedModel]]
Headers = dict[str, tuple[str, tuple[int, ...]]]
"""Name of a tensor -> its dtype as safetensors writes it ("F32", "I64") and its shape."""


def remote_classes(
    config: dict[str, Any], name_or_path: str, trust_remote_code: bool | None, **hub_kwargs
) -> ModelClasses | None:
    """
    The classes of a model with code of its own, imported from the ensemble's folder.

    Args:
        config (`dict`): the model's configuration, checked by [`SMDEnsembleConfig`]: its `auto_map` names no other
            place.
        name_or_path (`str`): of the ensemble.
        trust_remote_code (`bool` or `None`): whether the user allows code from there to run.
        hub_kwargs: as for `cached_file`.

    Returns:
        A pair of a configuration and a model class; `None` where the model is one that this process knows by itself.

    Raises:
        `ValueError`: where the model needs its code and the user does not trust it.
    """
    auto_map = config.get("auto_map") or {}
    if AUTO_MODEL not in auto_map or AUTO_CONFIG not in auto_map:
        return None
    if trust_remote_code:
        config_class = get_class_from_dynamic_module(auto_map[AUTO_CONFIG], name_or_path, **hub_kwargs)
        model_class = get_class_from_dynamic_module(auto_map[AUTO_MODEL], name_or_path, **hub_kwargs)
        config_class.register_for_auto_class()
        model_class.register_for_auto_class(AUTO_MODEL)
        return config_class, model_class
    if config["model_type"] in CONFIG_MAPPING:
        return None
    raise ValueError(
        f"The ensemble {name_or_path} is built on a model with code of its own ({auto_map[AUTO_MODEL]}), which lies "
        "in the ensemble's folder and was not run. Read it, and pass trust_remote_code=True to from_pretrained if you "
        "trust it."
    )


def build_model(
    config: dict[str, Any],
    classes: ModelClasses | None,
    attn_implementation: str | None = None,
    stored: int | None = None,
) -> PreTrainedModel:
    """
    A model from its configuration, with weights that are to be loaded later, in the default dtype and on the default
    device.

    Args:
        config (`dict`): the model's configuration.
        classes (pair of classes or `None`): [`remote_classes`]'s; `None` for a model that this process knows by
            itself.
        attn_implementation (`str`, *optional*): of attention, as for `from_pretrained`; defaults to the model's own
            choice.
        stored (`int`, *optional*): how many numbers the files hold that weights are to be loaded from; a model that would
            be far larger is not built to its end.

    Raises:
        `ValueError`: where no such model can be built.
    """
    # `from_dict` of some configurations takes entries out of what it is given.
    config = copy.deepcopy(config)
    model_type = config["model_type"]
    if classes is None and model_type not in CONFIG_MAPPING:
        raise ValueError(
            f"The ensemble is built on a model of type {model_type!r}, which this version of transformers does not "
            "know. Where the ensemble's folder carries its code, load it with from_pretrained and "
            "trust_remote_code=True."
        )
    dtype = torch.get_default_dtype()
    try:
        with _bounded(config, stored):
            return _build(config, classes, attn_implementation, dtype)
    # Whatever a hostile or broken configuration makes of the model's own constructor.
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"No {model_type} model can be built from its configuration in the ensemble's config.json: {error}"
        ) from error


def _build(
    config: dict[str, Any], classes: ModelClasses | None, attn_implementation: str | None, dtype: torch.dtype
) -> PreTrainedModel:
    model_config = (CONFIG_MAPPING[config["model_type"]] if classes is None else classes[0]).from_dict(config)
    if attn_implementation is not None:
        model_config._attn_implementation = attn_implementation
    if classes is None:
        return AutoModelForImageClassification.from_config(model_config, dtype=dtype, trust_remote_code=False)
    return classes[1](model_config)


@contextmanager
def _bounded(config: dict[str, Any], stored: int | None) -> Iterator[None]:
    """
    Within it, a model is built by this thread as far as files of so many numbers can reach.

    Layers by the million would take time and memory even on the meta device. Some slack is for parameters that a model
    makes twice or ties; [`check_headers`] counts exactly.
    """
    if stored is None:
        yield
        return
    if _largest_integer(config) > max(stored, LARGEST_INTEGER):
        raise ValueError(
            f"it describes a model of a size of {_largest_integer(config)}, but the files hold {stored} numbers."
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


def read_headers(name_or_path: str, variant: str | None = None, **hub_kwargs) -> Headers:
    """
    The names, dtypes and shapes of the tensors in an ensemble's safetensors files, without reading the tensors.

    Args:
        name_or_path (`str`): folder or repository.
        variant (`str`, *optional*): as for `from_pretrained`.
        hub_kwargs: as for `cached_file`.

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
    return list(found.values())


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


def check_headers(ensemble: PreTrainedModel, members: Sequence[SparseMember], headers: Headers) -> None:
    """
    Refuse files whose tensors are not those of the members, or hold less than the ensemble needs.

    Args:
        ensemble ([`PreTrainedModel`]): built on the meta device, with [`SparseMember`]s named `member_0`,
            `member_1`, ...
        members (sequence of [`SparseMember`]): those; empty where members are stored whole.
        headers (`dict`): of its files.

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
    stored = sum(torch.Size(shape).numel() for _, shape in headers.values())
    if sum(state.values()) > stored:
        raise ValueError(
            f"The ensemble's config.json describes models and members of {sum(state.values())} numbers, but its "
            f"files hold {stored}."
        )


def copy_code(model: PreTrainedModel, config: dict[str, Any], folder: Path, reserved: dict[str, bytes]) -> None:
    """
    Write the code of a model into an ensemble's folder, and name it in the model's configuration; nothing for a model
    that transformers or an installed package defines.

    Args:
        model ([`PreTrainedModel`]): the parent or a member.
        config (`dict`): its configuration within the ensemble's; its `auto_map` is set, or taken out.
        folder (`Path`): of the ensemble.
        reserved (`dict[str, bytes]`): contents of the code files that have their names already; added to.

    Raises:
        `ValueError`: where two different files of code have the same name.
    """
    config.pop("auto_map", None)
    if not model.is_remote_code() and not type(model).__module__.startswith(TRANSFORMERS_DYNAMIC_MODULE_NAME):
        return
    files = {AUTO_CONFIG: Path(inspect.getfile(type(model.config))), AUTO_MODEL: Path(inspect.getfile(type(model)))}
    config["auto_map"] = {
        AUTO_CONFIG: f"{files[AUTO_CONFIG].stem}.{type(model.config).__name__}",
        AUTO_MODEL: f"{files[AUTO_MODEL].stem}.{type(model).__name__}",
    }
    for source in files.values():
        for file in [source, *map(Path, get_relative_import_files(source))]:
            content = file.read_bytes()
            if reserved.setdefault(file.name, content) != content:
                raise ValueError(
                    f"Two models of the ensemble bring different files of code named {file.name}, which cannot lie in "
                    "one folder. Rename one of them, with the imports of it, and load its model again."
                )
            shutil.copyfile(file, folder / file.name)
