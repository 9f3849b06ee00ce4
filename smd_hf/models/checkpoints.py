"""
Checkpoints: names of weights in the files, a hash of the weights, and saving.

transformers 5 gives many weights other names in memory than in the file. Hashes and deltas use the names in the file,
which depend neither on the library's version nor on how the model was built.
"""

import copy
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel, TimmWrapperImageProcessor
from transformers.core_model_loading import revert_weight_conversion

from ..errors import SMDError
from ..messages import one_line
from ..remote_code.members_smd_ensemble import forget_derived, keepers
from .load import is_timm_model
from .quantized import drop_one_way_conversions, is_plain, scales_of, stored_parts
from .shared_tensors import separated

_TIMM_PREFIX = "timm_model."
_REMOTE_SEPARATOR = "--"


def checkpoint_names(model: PreTrainedModel) -> dict[str, str]:
    """
    The name in the saved safetensors file of every parameter and buffer; scales go by the name of what they scale.

    Returns:
        `dict[str, str]`: from the name in memory to the name in the file. A tensor that has no counterpart of its own in the
        file (not saved, or saved merged with others) is under its own name.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    tensors = parameters | dict(model.named_buffers(remove_duplicate=False))
    scales = {scale: name for name, tensor in parameters.items() for scale, _ in scales_of(name, tensor)}
    if is_timm_model(model):
        # timm reads its own names. Whether transformers would write a prefix depends on how the model was made.
        return {name: name.removeprefix(_TIMM_PREFIX) for name in [*tensors, *scales]}
    drop_one_way_conversions(model)
    saved = model.state_dict(keep_vars=True).keys() & tensors.keys()
    # On the meta device the conversion costs nothing, and a renaming returns the same tensor.
    stand_ins = {
        name: torch.empty(tensors[name].shape, dtype=tensors[name].dtype, device="meta") for name in sorted(saved)
    }
    origin = {id(stand_in): name for name, stand_in in stand_ins.items()}
    names = {name: name for name in tensors}
    for target, stand_in in revert_weight_conversion(model, stand_ins).items():
        if id(stand_in) in origin:
            names[origin[id(stand_in)]] = target
    return names | {scale: names[name] + scale.removeprefix(name) for scale, name in scales.items()}


def weights_hash(model: PreTrainedModel) -> str:
    """
    A hash of the weights: equal for equal bytes, on any device, before saving and after loading.

    It covers all parameters and persistent buffers, each with its checkpoint name, dtype, shape and bytes, in the order of
    the names. One tensor at a time is copied to the CPU.
    """
    names = checkpoint_names(model)
    digest = hashlib.sha256()
    state = {names.get(name, name): tensor for name, tensor in model.state_dict().items()}
    for name in sorted(state):
        for part, value in stored_parts(name, state[name]):
            if not isinstance(value, torch.Tensor):
                digest.update(f"{part}\0{value}\0".encode())
                continue
            digest.update(f"{part}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
            # NumPy has no bfloat16: hash a flat view as unsigned bytes.
            digest.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_weights(model: PreTrainedModel, folder: str | os.PathLike) -> None:
    """Put the weights of a saved checkpoint into a model of the same class, in place."""
    config = copy.deepcopy(model.config)
    quantization = getattr(config, "quantization_config", None)
    if quantization is not None and not isinstance(quantization, dict):
        # A dict, as in the file, says that the weights there are already quantised.
        config.quantization_config = quantization.to_dict()
    try:
        loaded: Any = type(model).from_pretrained(
            folder,
            config=config,
            dtype=model.dtype,
            use_safetensors=True,
            output_loading_info=True,
        )
        saved, info = loaded
        wrong = sorted(
            str(name) for key in ("missing_keys", "unexpected_keys", "mismatched_keys") for name in info[key]
        )
        problem = f"it lacks or adds {', '.join(wrong[:4])}" if wrong else None
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        problem = one_line(str(error))
    if problem is not None:
        raise SMDError(
            f"'{os.fspath(folder)}' is not a checkpoint of this {type(model).__name__}: {problem}. Expected the folder that a run "
            "of the same model wrote."
        )
    values = saved.state_dict()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if is_plain(tensor):
                tensor.copy_(values[name])
            else:
                saved_scales = dict(scales_of(name, values[name]))
                for scale, mine in scales_of(name, tensor):
                    mine.copy_(saved_scales[scale])
    forget_derived(keepers(model))


def save_checkpoint(model: PreTrainedModel, processor: Any | None, folder: str | os.PathLike) -> None:
    """
    Saves a model in its original form, so that it loads without this package.

    Args:
        model (`PreTrainedModel`): the model; with custom code, its Python files are copied along. A timm model is written
            as timm reads it too (`timm.create_model("local-dir:FOLDER", pretrained=True)`).
        processor (image processor, *optional*): its image processor. That of a timm model needs no file: the model's
            `config.json` holds it.
        folder (`str` or `os.PathLike`): where to; made if missing. Each file is complete before it replaces one
            of the same name.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as temporary:
            _write(model, processor, Path(temporary))
            for path in sorted(Path(temporary).iterdir()):
                os.replace(path, folder / path.name)
    except OSError as error:
        raise SMDError(
            f"The model cannot be saved in '{folder}' ({error.strerror or error}). Expected a writable folder: "
            "choose another, or fix its permissions or the space left on the disk."
        ) from error


def _write(model: PreTrainedModel, processor: Any | None, folder: Path) -> None:
    if is_timm_model(model):
        names = checkpoint_names(model)
        state = separated({names[name]: tensor for name, tensor in model.state_dict().items()})
        model.save_pretrained(folder, state_dict=state, save_original_format=False)
        _leave_out_no_arguments(folder / "config.json")
    else:
        if model.is_custom_code() and not model.is_remote_code():
            # Without this, the code of a class that was imported, not loaded by an Auto class, would not be saved.
            type(model).register_for_auto_class("AutoModelForImageClassification")
            type(model.config).register_for_auto_class()
        drop_one_way_conversions(model)
        state = model.state_dict()
        alone = separated(state, getattr(model, "all_tied_weights_keys", None) or ())
        # Without a state_dict, save_pretrained also handles quantised weights.
        unlike = any(alone[name] is not tensor for name, tensor in state.items())
        model.save_pretrained(folder, state_dict=alone if unlike else None)
    if processor is not None and not isinstance(processor, TimmWrapperImageProcessor):
        processor.save_pretrained(folder)
    for name in ("config.json", "preprocessor_config.json"):
        _own_code(folder / name)


def _leave_out_no_arguments(path: Path) -> None:
    """Takes `model_args` out of a configuration if it is null, which timm 1.0.31 and newer do not read."""
    config = json.loads(path.read_text(encoding="utf-8"))
    if config.get("model_args", {}) is None:
        del config["model_args"]
        _write_config(path, config)


def _write_config(path: Path, config: dict[str, Any]) -> None:
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _own_code(path: Path) -> None:
    """Makes a configuration refer to the Python files next to it instead of those of the repository that it came from."""
    if not path.is_file():
        return
    config = json.loads(path.read_text(encoding="utf-8"))
    auto_map = config.get("auto_map") or {}
    own = {key: _own_reference(reference, path.parent) for key, reference in auto_map.items()}
    if own != auto_map:
        config["auto_map"] = own
        _write_config(path, config)


def _own_reference(reference: Any, folder: Path) -> Any:
    """`"module.Class"` for `"owner/name--module.Class"`, if the module's file is in the folder."""
    if not isinstance(reference, str) or _REMOTE_SEPARATOR not in reference:
        return reference
    local = reference.split(_REMOTE_SEPARATOR, 1)[1]
    return local if (folder / f"{local.split('.', 1)[0]}.py").is_file() else reference
