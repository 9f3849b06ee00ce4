"""
Configuration of an ensemble of image models, and the checks of it that need no weights.

It travels with the checkpoint. A configuration counts as hostile: nothing in it may name a file outside its folder.
"""

import re
from typing import Any

from transformers import PreTrainedConfig

FORMAT_VERSION = 1
MAX_WEIGHT = 1e30

# "module.Class" in the checkpoint's own folder: neither a path nor another repository ("user/name--module.Class").
_CODE_REFERENCE = re.compile(r"[A-Za-z_]\w*\.[A-Za-z_]\w*")
_ABSOLUTE_PATH = re.compile(r"[/\\~]|[A-Za-z]:[/\\]|file:")
# The class of transformers that loads an ensemble and its models, by task, and how predictions are combined, by default first.
AUTO_MODELS = {
    "image-classification": "AutoModelForImageClassification",
    "image-segmentation": "AutoModelForSemanticSegmentation",
    "zero-shot-image-classification": "AutoModelForZeroShotImageClassification",
    "depth-estimation": "AutoModelForDepthEstimation",
}
OF_CLASSES = ("mean_probabilities", "mean_logits", "majority_vote")
COMBINATIONS = dict.fromkeys(AUTO_MODELS, OF_CLASSES) | {"depth-estimation": ("mean",)}
# timm takes a model from a folder or a repository by such a prefix, and by these arguments a file or a download.
_TIMM_SOURCES = ("local-dir:", "hf-hub:", "hf_hub:")
_TIMM_FILE_ARGUMENTS = ("checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")


class SMDEnsembleConfig(PreTrainedConfig):
    """
    Configuration of an ensemble: of children of one parent (`parent_config` and `changes`), or of models of their own
    (`member_configs`). One that contradicts itself, is of an unknown format or names files elsewhere is a `ValueError`.

    Args:
        member_weights (`list[float]`, *optional*, defaults to `[]`): one for each member, at least 0 and not all 0.
        combination (`str`, *optional*): of `COMBINATIONS[task]`; the first by default, `"mean_probabilities"` of classes.
        task (`str`, *optional*, defaults to `"image-classification"`): of `AUTO_MODELS`.
        parent_config (`dict`, *optional*): of the parent, with its `auto_map` where it has code of its own.
        changes (`dict[str, list[int | None]]`, *optional*, defaults to `{}`): for each of the parent's tensors that
            some member changes, by its name in a checkpoint of the parent, the number of coordinates that each member
            changes: 0 for none, `None` where the whole tensor is stored, without indices.
        names_in_memory (`dict[str, str]`, *optional*, defaults to `{}`): of tensors of `changes`, if not the same.
        member_configs (`list[dict]`, *optional*): the configurations of members which are stored whole.
        format_version (`int`, *optional*, defaults to 1): of the layout of configuration and weights.
    """

    model_type = "smd_ensemble"

    def __init__(
        self,
        member_weights: list[float] | None = None,
        combination: str | None = None,
        parent_config: dict[str, Any] | None = None,
        changes: dict[str, list[int | None]] | None = None,
        member_configs: list[dict[str, Any]] | None = None,
        format_version: int = FORMAT_VERSION,
        names_in_memory: dict[str, str] | None = None,
        task: str = "image-classification",
        **kwargs,
    ):
        self.member_weights = [] if member_weights is None else member_weights
        self.combination = combination or COMBINATIONS.get(task, OF_CLASSES)[0]
        self.task = task
        self.parent_config = parent_config
        self.changes = {} if changes is None else changes
        self.names_in_memory = {} if names_in_memory is None else names_in_memory
        self.member_configs = member_configs
        self.format_version = format_version
        super().__init__(**kwargs)
        self.check()

    @property
    def model_configs(self) -> list[dict[str, Any]]:
        """Of all models that are stored: the parent, or each member."""
        return [self.parent_config] if self.parent_config is not None else list(self.member_configs or [])

    def check(self) -> None:
        """Refuse a configuration that cannot be an ensemble's: a `ValueError`, see [`SMDEnsembleConfig`]."""
        # Not `!=` alone: True and 1.0 equal 1.
        if type(self.format_version) is not int or self.format_version != FORMAT_VERSION:
            raise ValueError(
                f"This ensemble has format version {self.format_version!r}, but this code reads version "
                f"{FORMAT_VERSION}. Install a newer smd_hf, or save the ensemble again with this one."
            )
        if self.task not in AUTO_MODELS:
            raise ValueError(f"task is {self.task!r}; expected one of {', '.join(AUTO_MODELS)}.")
        known = COMBINATIONS[self.task]
        if self.combination not in known:
            raise ValueError(f"combination is {self.combination!r}; expected one of {', '.join(known)}.")
        check_weights(self.member_weights)
        check_code_references("config.json", getattr(self, "auto_map", None))
        if getattr(self, "transformers_weights", None) is not None:
            raise ValueError(
                f"config.json names {self.transformers_weights!r} as the file of the weights (transformers_weights). "
                "An ensemble's weights are in model.safetensors: take the entry out."
            )
        self._check_members()
        for config in self.model_configs:
            _check_model_config(config)

    def _check_members(self) -> None:
        count = len(self.member_weights)
        if count and (self.parent_config is None) == (self.member_configs is None):
            raise ValueError(
                "An ensemble's config.json holds either parent_config, for children of one parent, or member_configs, "
                "for members stored whole; this one has both or neither."
            )
        configs, names = self.member_configs, self.names_in_memory
        if configs is not None and (not isinstance(configs, list) or len(configs) != count):
            raise ValueError(f"config.json has {count} member_weights, but another number of member_configs.")
        if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
            raise ValueError("names_in_memory in config.json must map names of tensors to names of tensors.")
        if not isinstance(self.changes, dict):
            raise ValueError("changes in config.json must map names of tensors to lists of counts.")
        for name, counts in self.changes.items():
            if not isinstance(counts, list) or len(counts) != count:
                raise ValueError(f"changes of {name} in config.json has not {count} counts, one for each member.")
            if not all(n is None or (type(n) is int and n >= 0) for n in counts):
                expected = "integers of at least 0, or null for a whole tensor"
                raise ValueError(f"changes of {name} in config.json holds {counts}; expected {expected}.")


def check_weights(weights: list[float]) -> None:
    """Refuse, by a `ValueError`, all but a list of finite numbers of at least 0 which are not all 0."""
    # Compared, not converted: an integer in JSON may be too large for a float.
    numbers = isinstance(weights, list) and all(type(w) in (int, float) and 0 <= w <= MAX_WEIGHT for w in weights)
    if not numbers or (weights and not sum(weights) > 0):
        expected = f"a list of numbers from 0 to {MAX_WEIGHT:g}, not all of them 0"
        raise ValueError(f"member_weights is {weights!r}; expected {expected}.")


def check_code_references(where: str, auto_map: Any) -> None:
    """Refuse, by a `ValueError`, an `auto_map` that names anything else than `"module.Class"` in the own folder."""
    for reference in auto_map.values() if isinstance(auto_map, dict) else [] if auto_map is None else [auto_map]:
        if not isinstance(reference, str) or not _CODE_REFERENCE.fullmatch(reference):
            raise ValueError(
                f"auto_map in {where} names {reference!r}. Code must lie in the ensemble's own folder and be named as "
                "module.Class: a path, or a reference to another repository, is refused."
            )


def _check_model_config(config: Any) -> None:
    """Refuse a model's configuration if it has no type, is an ensemble's, or names files elsewhere."""
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise ValueError("A model's configuration in an ensemble's config.json must be an object with a model_type.")
    if config["model_type"] == SMDEnsembleConfig.model_type:
        raise ValueError("A member of an ensemble cannot be an ensemble itself: give its members instead.")
    check_code_references(f"the configuration of {config['model_type']}", config.get("auto_map"))
    if config["model_type"] == "timm_wrapper":
        if str(config.get("architecture")).startswith(_TIMM_SOURCES):
            raise ValueError(
                f"The timm architecture {config['architecture']!r} names another folder or repository; expected the "
                "plain name of an architecture."
            )
        refused = [name for name in _TIMM_FILE_ARGUMENTS if name in (config.get("model_args") or {})]
        if refused:
            raise ValueError(f"model_args of a timm model within an ensemble must not hold {', '.join(refused)}.")
    _check_paths(config["model_type"], config)


def _check_paths(where: str, value: Any) -> None:
    """Refuse absolute paths and ways out of the folder in a configuration, labels apart (they may begin "/m/")."""
    if isinstance(value, dict):
        for key, entry in value.items():
            if "label" not in str(key):
                _check_paths(f"{where}.{key}", entry)
    elif isinstance(value, list | tuple):
        for entry in value:
            _check_paths(where, entry)
    elif isinstance(value, str) and (_ABSOLUTE_PATH.match(value) or ".." in re.split(r"[/\\]", value)):
        raise ValueError(
            f"{where} in the ensemble's configuration is {value!r}, a path outside the ensemble's folder. Take the "
            "entry out of the model's configuration."
        )
