"""
Loading an image classifier and its image processor: from the Hub or a folder; transformers, timm or custom code.

`AutoModelForImageClassification` does the work. In addition, weights come from safetensors only, code of a
repository runs only with the caller's consent (without a prompt), a checkpoint that lacks weights is refused
instead of completed at random, and everything that a user can fix is an [`SMDError`] of one paragraph.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoTokenizer,
    BaseImageProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    TimmWrapperImageProcessor,
)
from transformers.utils import (
    CONFIG_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    cached_file,
    extract_commit_hash,
    is_timm_config_dict,
    logging,
)

from ..errors import SMDError
from ..messages import one_line
from .adapters import check_no_adapter_file
from .declared import declared_kind
from .head_classes import name_classes
from .loading_errors import explain_loading_error
from .tasks import BACKBONE, CLASSIFIER, PRETRAINING, Kind, check_task, checkpoint_tasks, foreign_weights, remedy
from .two_towers import ImageTextProcessor, has_two_towers

logger = logging.get_logger(__name__)

DTYPES = {
    "auto": "auto",
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def is_timm_model(model: nn.Module) -> bool:
    """Whether the model is a timm model inside transformers' wrapper."""
    return isinstance(model, TimmWrapperForImageClassification)


def num_channels(model: PreTrainedModel) -> int:
    """Number of channels of the images that the model takes; 3 unless its configuration says otherwise."""
    if is_timm_model(model):
        return (model.config.model_args or {}).get("in_chans", 3)
    config = model.config
    return getattr(config, "num_channels", getattr(getattr(config, "vision_config", None), "num_channels", 3))


def load_model(
    name_or_path: str | os.PathLike,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    trust_remote_code: bool = False,
    dtype: str | torch.dtype = "auto",
    cache_dir: str | os.PathLike | None = None,
) -> PreTrainedModel:
    """
    Loads a trained image model, in eval mode: a classifier, or a model of another task that its config.json names.

    Args:
        name_or_path (`str` or `os.PathLike`): a model id on the Hub (`google/vit-base-patch16-224`,
            `timm/resnet18.a1_in1k`) or a folder written by transformers or timm.
        revision (`str`, *optional*): branch, tag or commit.
        token (`str` or `bool`, *optional*): access token for private and gated models.
        trust_remote_code (`bool`, *optional*, defaults to `False`): run the Python files of the repository, if they
            define the model.
        dtype (`str` or `torch.dtype`, *optional*, defaults to `"auto"`): `"auto"` (that of the checkpoint), `"float32"`,
            `"bfloat16"` or `"float16"`.
        cache_dir (`str` or `os.PathLike`, *optional*): where downloads are kept.

    Returns:
        `PreTrainedModel`: the model, on the CPU. `requires_grad` of its parameters is as the library left it.

    Raises:
        `SMDError`: if the model does not exist, cannot be reached, is for no known task, needs code that is not trusted,
            has no safetensors weights, or has weights that do not fit its configuration or lack some, the head included.
    """
    model, missing_head = load_model_for_new_head(
        name_or_path,
        revision=revision,
        token=token,
        trust_remote_code=trust_remote_code,
        dtype=dtype,
        cache_dir=cache_dir,
        kind=None,
    )
    if missing_head:
        raise SMDError(
            f"The checkpoint '{name_or_path}' ({type(model).__name__}) has no trained classifier: it lacks "
            f"{_enumerate(missing_head)}. Expected a model that was trained to classify images: choose one that was "
            "fine-tuned for classification."
        )
    return model


def load_model_for_new_head(
    name_or_path: str | os.PathLike,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    trust_remote_code: bool = False,
    dtype: str | torch.dtype = "auto",
    cache_dir: str | os.PathLike | None = None,
    kind: Kind | None = CLASSIFIER,
) -> tuple[PreTrainedModel, list[str]]:
    """
    As [`load_model`], but accepts a checkpoint without a classifier head, for a caller who replaces the head. A model of
    another `kind` needs its head; for `None`, the checkpoint says what it is ([`declared_kind`]).

    Returns:
        `tuple[PreTrainedModel, list[str]]`: the model, in eval mode, and the names of the head's weights that the checkpoint
        lacks, whose values are random (empty for a complete checkpoint).
    """
    if isinstance(dtype, str) and dtype not in DTYPES:
        raise SMDError(f"dtype is '{dtype}'; expected one of {', '.join(DTYPES)}.")
    name = _expand(name_or_path)
    source = {"revision": revision, "token": token, "cache_dir": cache_dir}
    config_dict = read_config(name, source)
    kind = kind or declared_kind(name, config_dict, source)
    check_task(name, config_dict, kind)
    _check_kind(name, config_dict, trust_remote_code, kind)
    with _plain_errors(name, source), _quiet():
        config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code, **source)
        _check_has_class(name, config, config_dict, kind)
        _mend_timm_config(config, kind)
        if kind is CLASSIFIER:
            name_classes(config, f"'{name}'", config_dict)
        _check_safetensors(name, source)
        model, info = kind.auto.from_pretrained(
            name,
            config=config,
            trust_remote_code=trust_remote_code,
            dtype=DTYPES[dtype] if isinstance(dtype, str) else dtype,
            use_safetensors=True,
            output_loading_info=True,
            # A mismatch is reported below, by name, rather than as "see the report above".
            ignore_mismatched_sizes=True,
            **source,
        )
    # transformers 5 no longer keeps it, and a delta is pinned by it.
    model.config._commit_hash = extract_commit_hash(cached_file(name, CONFIG_NAME, **source), None)
    return model.eval(), _check_weights(name, model, info, config_dict, kind)


def load_image_processor(
    name_or_path: str | os.PathLike,
    *,
    model: PreTrainedModel | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    trust_remote_code: bool = False,
    cache_dir: str | os.PathLike | None = None,
) -> BaseImageProcessor:
    """
    Load the image processor of a checkpoint; with the tokenizer, for a model that compares images with texts.

    Args:
        name_or_path (`str` or `os.PathLike`): a model id on the Hub or a folder.
        model (`PreTrainedModel`, *optional*): the model that was loaded from there; a timm model carries all that its
            processor needs.
        revision, token, trust_remote_code, cache_dir: as for [`load_model`].

    Raises:
        `SMDError`: if there is none, or if it needs code that is not trusted.
    """
    name = _expand(name_or_path)
    if (
        model is not None
        and is_timm_model(model)
        and (pretrained_cfg := getattr(model.config, "pretrained_cfg", None))
    ):
        return TimmWrapperImageProcessor(pretrained_cfg=pretrained_cfg, architecture=model.config.architecture)
    source = {"revision": revision, "token": token, "cache_dir": cache_dir}
    with _plain_errors(name, source, "image processor"), _quiet():
        images = AutoImageProcessor.from_pretrained(name, trust_remote_code=trust_remote_code, **source)
    if not has_two_towers(model):
        return images
    with _plain_errors(name, source, "tokenizer"), _quiet():
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code, **source)
    return ImageTextProcessor(images, tokenizer)  # pyright: ignore[reportReturnType]


def _expand(name_or_path: str | os.PathLike) -> str:
    """The folder, with `~` expanded, or the name unchanged."""
    expanded = os.path.expanduser(os.fspath(name_or_path))
    return expanded if os.path.exists(expanded) else os.fspath(name_or_path)


def read_config(name: str, source: dict[str, Any]) -> dict[str, Any]:
    """The checkpoint's `config.json`, read before any code can run."""
    if os.path.isfile(name):
        raise SMDError(
            f"'{name}' is a file. Expected a model id of the Hub or the folder of a checkpoint (config.json and "
            "model.safetensors): give the folder that holds it."
        )
    with _plain_errors(name, source):
        check_no_adapter_file(name, source)
        config_dict, _ = PreTrainedConfig.get_config_dict(name, **source)
    if not isinstance(config_dict, dict):
        raise SMDError(
            f"The config.json of '{name}' holds {type(config_dict).__name__}, not an object. Expected the configuration of an "
            "image classifier: download or save the checkpoint again."
        )
    if not config_dict:
        raise SMDError(
            f"'{name}' has no config.json. Expected the checkpoint of an image classifier as transformers or timm saves it "
            "(config.json and model.safetensors): check the path, or save the model there with `save_pretrained`."
        )
    return config_dict


def _check_kind(name: str, config_dict: dict[str, Any], trust_remote_code: bool, kind: Kind) -> None:
    """Refuses code that is not trusted, and unknown architectures."""
    model_type = config_dict.get("model_type")
    if model_type in CONFIG_MAPPING or is_timm_config_dict(config_dict):
        return
    if "auto_map" not in config_dict:
        raise SMDError(
            f"'{name}' is not a checkpoint that can be loaded: its config.json names the model type "
            f"{one_line(repr(model_type))} and the architectures {one_line(repr(config_dict.get('architectures')))}, which "
            f"the installed transformers does not know. Expected {kind.a_model} of transformers, of timm, or with custom "
            "code (an auto_map): check the name, or upgrade transformers."
        )
    if not trust_remote_code:
        raise SMDError(
            f"'{name}' defines its model (type {one_line(repr(model_type))}) in its own Python files, which would run on this "
            "machine, and this was not allowed. Read those files first; if you trust them, pass --trust_remote_code (in "
            "Python: trust_remote_code=True), or choose a model that needs no custom code."
        )


def _check_has_class(name: str, config: PreTrainedConfig, config_dict: dict[str, Any], kind: Kind) -> None:
    auto_map = config_dict.get("auto_map") or {}
    if type(config) in kind.configs or kind.auto_class in auto_map:
        return
    found = one_line(", ".join(config_dict.get("architectures") or auto_map)) or "no architecture"
    raise SMDError(
        f"'{name}' is not {kind.a_model}: it holds {found} of model type '{config.model_type}'. Expected a checkpoint "
        f"that {kind.auto_class} loads: choose a model whose task on the Hub is {kind.pipeline_tag.replace('-', ' ')}."
    )


def _mend_timm_config(config: PreTrainedConfig, kind: Kind) -> None:
    """
    Makes timm's own configurations loadable, in place.

    timm's `save_for_hf` also writes the number of classes to the model's arguments, and transformers' wrapper, which
    passes it too, then raises "multiple values". And the wrapper builds no model of zero classes, as feature extractors are
    saved: such a model gets two, which the checkpoint then lacks.
    """
    if not isinstance(config, TimmWrapperConfig):
        return
    if config.model_args:
        config.model_args = {key: value for key, value in config.model_args.items() if key != "num_classes"}
    if config.num_labels == 0 and kind is not BACKBONE:
        config.num_labels = 2


def _check_safetensors(name: str, source: dict[str, Any]) -> None:
    """
    Refuse a checkpoint without safetensors weights.

    Otherwise `from_pretrained` would ask a service of the Hub to convert the repository, and load the result from a
    pull request.
    """
    for filename in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME):
        if cached_file(name, filename, _raise_exceptions_for_missing_entries=False, **source) is not None:
            return
    raise SMDError(
        f"'{name}' has no weights in the safetensors format. Only safetensors is loaded (model.safetensors), because pickle "
        "files such as pytorch_model.bin can run any code: choose a revision or a model that has them, or convert the "
        "weights in an environment that you trust by loading the model and saving it with `save_pretrained`."
    )


def _check_weights(
    name: str, model: PreTrainedModel, info: dict[str, Any], config_dict: dict[str, Any], kind: Kind
) -> list[str]:
    """Refuses weights that do not fit, belong to another task or lack a part of the body; returns those missing in the head."""
    mismatched = sorted(str(key[0]) if isinstance(key, tuple) else str(key) for key in info["mismatched_keys"])
    if mismatched:
        raise SMDError(
            f"The weights of '{name}' do not fit its config.json: {_enumerate(mismatched)} have other shapes than "
            f"{type(model).__name__} with {model.config.num_labels} labels. Expected weights and configuration of one model: "
            "save the checkpoint again, or correct config.json."
        )
    # Counters of batches seen in training: older checkpoints lack them, and no prediction depends on them.
    missing = sorted(key for key in info["missing_keys"] if not key.endswith("num_batches_tracked"))
    _check_foreign_weights(name, model, missing, info["unexpected_keys"], config_dict, kind)
    head = [key for key in missing if _belongs_to_head(key, model)]
    if kind is BACKBONE and all("pooler" in key for key in missing):
        # Features do without it then.
        return missing
    if kind is not CLASSIFIER and missing:
        raise SMDError(
            f"The checkpoint '{name}' lacks weights of {type(model).__name__}: {_enumerate(missing)}. Expected {kind.a_model} that "
            f"was trained: choose one that was fine-tuned for {kind.words}."
        )
    body = [key for key in missing if key not in head]
    pretrained = [each for each, task in checkpoint_tasks(config_dict).items() if task in PRETRAINING]
    if body and pretrained:
        raise SMDError(
            f"'{name}' is a backbone ({one_line(pretrained[0])}) that lacks more than the classifier: {_enumerate(body)} of "
            f"{type(model).__name__}. Only a classifier can be replaced: choose a checkpoint that was fine-tuned for image "
            "classification."
        )
    if body:
        raise SMDError(
            f"The weights of '{name}' are incomplete: {_enumerate(body)} of {type(model).__name__} are missing. Expected a "
            "checkpoint of the whole model: download or save it again, or check that config.json belongs to these weights."
        )
    return head


def _check_foreign_weights(
    name: str,
    model: PreTrainedModel,
    missing: list[str],
    unexpected: Iterable[str],
    config_dict: dict[str, Any],
    wanted: Kind,
) -> None:
    """Refuses another task's weights; warns if a complete model has further weights."""
    foreign = foreign_weights(model, list(unexpected), config_dict)
    if not foreign:
        return
    kind = type(model).__name__
    if missing:
        raise SMDError(
            f"The weights of '{name}' are not those of {wanted.a_model}: they lack {_enumerate(missing)} of {kind}, and "
            f"hold {_enumerate(foreign)}, which it does not have. They were trained for another task. {remedy(wanted)}"
        )
    logger.warning(
        f"'{name}' holds weights that {kind} does not have and that are left out: {_enumerate(foreign)}. The evolved model "
        "will not have them either."
    )


def _belongs_to_head(key: str, model: PreTrainedModel) -> bool:
    """Whether a parameter belongs to the head, by the libraries' own definition."""
    if is_timm_model(model):
        timm_model: Any = model.timm_model
        classifier = timm_model.get_classifier()
        layers = classifier if isinstance(classifier, tuple | list) else [classifier]
        parameters = {id(parameter) for layer in layers for parameter in layer.parameters()}
        return id(model.get_parameter(key)) in parameters
    prefix = model.base_model_prefix
    return bool(prefix) and model.base_model is not model and not key.startswith(f"{prefix}.")


def _enumerate(names: list[str], limit: int = 4) -> str:
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides the libraries' loading reports: errors say what matters in them."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


@contextmanager
def _plain_errors(name: str, source: dict[str, Any], what: str = "model") -> Iterator[None]:
    """Turns errors of the libraries into an [`SMDError`] of one paragraph."""
    try:
        yield
    except SMDError:
        raise
    except Exception as error:  # a damaged or hostile config.json may make the libraries fail anywhere
        raise SMDError(explain_loading_error(name, error, what, source)) from error
