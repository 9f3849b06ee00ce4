"""
An ensemble of image models as one model: one parent with its children as sparse changes, or models stored whole.

A child predicts by putting its changes into the parent, in place, and then what stood there before, byte for byte. This file
travels with the checkpoint. smd_hf loads it by a class of its own, which also makes ensembles and predicts faster.
"""

import copy
import inspect
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput

from .configuration_smd_ensemble import AUTO_MODELS, SMDEnsembleConfig
from .members_smd_ensemble import SparseMember, combine, logits_of, segments_from_counts

AUTO_CONFIG = "AutoConfig"
OF_LABELS = "multi_label_classification"
PREDICTION_NAMES = {"zero-shot-image-classification": "logits_per_image", "depth-estimation": "predicted_depth"}
# What `from_pretrained` takes to find files on the Hub, and `push_to_hub` of what `save_pretrained` is given.
_HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
_PUSH_ARGUMENTS = ("commit_message", "create_pr", "private", "revision", "token")

ModelClasses = tuple[type[PreTrainedConfig], type[PreTrainedModel]]


@dataclass
class SMDEnsembleOutput(ImageClassifierOutput):
    """Log-probabilities `(batch, classes, ...)`, logits of labels, or depths; and each member's own, `(batch, members, ...)`."""

    logits_per_image: torch.FloatTensor | None = None
    predicted_depth: torch.FloatTensor | None = None
    member_logits: torch.FloatTensor | None = None


class SMDEnsembleForImageClassification(PreTrainedModel):
    """
    An ensemble of image classifiers: of `models` (the parent, or each member), built from `config` and `model_classes` by
    default, and of `members` that are children of the parent. Predictions carry no gradient. Several threads may call one
    instance: they take turns. Do not call `parent` itself meanwhile.
    """

    config_class = SMDEnsembleConfig
    base_model_prefix = ""
    main_input_name = "pixel_values"
    input_modalities = ["image"]  # noqa: RUF012
    accepts_loss_kwargs = False
    parent: Any
    _tied_weights_keys: dict[str, str] = {}  # noqa: RUF012 (transformers reads it from the class)
    # What one of the members supports is decided by the member.
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True

    def __init__(self, config: SMDEnsembleConfig, models=None, members=None, model_classes=None):
        config.check()
        if not config.member_weights:
            raise ValueError("An ensemble needs at least one member: its config.json has no member_weights.")
        # As the user asked for it: transformers puts a choice for the ensemble, not its models, in place of `None`.
        attention = getattr(config, "_attn_implementation", None)
        super().__init__(config)
        config._attn_implementation = attention
        if models is None:
            classes = model_classes or [None] * len(config.model_configs)
            models = [build_model(*pair, attention, config.task) for pair in zip(config.model_configs, classes)]
        for model in models:
            if model.config.num_labels != config.num_labels:
                raise ValueError(
                    f"The ensemble has {config.num_labels} labels, but a model of it has {model.config.num_labels}."
                )
        self.main_input_name = models[0].main_input_name
        self.prediction_name = PREDICTION_NAMES.get(config.task, "logits")
        self.shares_parent = config.parent_config is not None
        # By names, not in a ModuleList: transformers looks for tied weights and the like in a model's own children.
        if self.shares_parent:
            self.parent = models[0]
            if members is None:
                members = [SparseMember.blank(segments) for segments in segments_from_counts(self.parent, config)]
        for i, member in enumerate((members if self.shares_parent else models) or ()):
            self.add_module(f"member_{i}", member)
        self._lock = threading.RLock()
        self.post_init()

    def init_weights(self) -> None:
        """Nothing to do: every model in it has initialised itself."""

    @property
    def members(self) -> list[Any]:
        """The members: [`SparseMember`]s, or models."""
        return [getattr(self, f"member_{i}") for i in range(len(self.config.member_weights))]

    @property
    def models(self) -> list[Any]:
        """The models that are stored: the parent alone, or every member."""
        return [self.parent] if self.shares_parent else self.members

    def forward(
        self, pixel_values=None, labels=None, output_members=False, return_dict=None, **kwargs
    ) -> SMDEnsembleOutput | tuple[torch.Tensor, ...]:
        """
        Args:
            pixel_values (`torch.Tensor`, *optional*): as the members take it; cast to their dtype, like all floats.
            labels (`torch.Tensor`, *optional*): classes, int64, of images or of pixels.
            output_members (`bool`, *optional*, defaults to `False`): also return each member's logits.
            return_dict (`bool`, *optional*): `False` for a tuple; defaults to the configuration's `return_dict`.
            kwargs: other inputs of the members, and arguments such as `interpolate_pos_encoding`.
        """
        kwargs = kwargs if pixel_values is None else {"pixel_values": pixel_values, **kwargs}
        member_logits: Any = self._member_logits(kwargs)  # pyright: ignore
        weights = torch.tensor(self.config.member_weights, device=member_logits.device)
        found = combine(member_logits, weights, self.config.combination, self.config.problem_type == OF_LABELS)
        loss = None if labels is None else self._loss(found, labels.to(found.device))
        entries = {self.prediction_name: found, "member_logits": member_logits if output_members else None}
        output = SMDEnsembleOutput(loss=loss, **entries)  # pyright: ignore
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    def _loss(self, found: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if self.prediction_name == "predicted_depth":
            raise ValueError("An ensemble for depth estimation has no loss: leave labels out.")
        if self.config.problem_type == OF_LABELS:
            return nn.functional.binary_cross_entropy_with_logits(found, labels.to(found.dtype))
        if found.ndim == 4:
            found = nn.functional.interpolate(found, labels.shape[1:], mode="bilinear", align_corners=False)
        ignored = getattr(self.models[0].config, "semantic_loss_ignore_index", -100)
        return nn.functional.nll_loss(found, labels, ignore_index=ignored)

    # A compiler cannot make in-place changes of weights faster; under torch.compile they run as they are.
    @torch.compiler.disable
    @torch.no_grad()
    def _member_logits(self, inputs: Mapping[str, Any]) -> torch.Tensor:
        """Each member's predictions, of shape `(batch, members, ...)`."""
        if not self.shares_parent:
            return torch.stack([model_logits(model, cast_inputs(inputs, model)) for model in self.members], dim=1)
        with self._lock:
            return torch.stack(self._children_logits(cast_inputs(inputs, self.parent)), dim=1)

    def _children_logits(self, inputs: dict[str, Any]) -> list[torch.Tensor]:
        """The logits of each child of the parent, for inputs in the parent's dtype."""
        found = []
        for member in self.members:
            with member.within(self.parent):
                found.append(model_logits(self.parent, inputs))
        return found

    def member(self, index: int) -> PreTrainedModel:
        """A copy of one member as a model of its own, by an index from 0; negative ones count from the end."""
        member = self.members[index]
        if not self.shares_parent:
            return copy.deepcopy(member)
        with self._lock, torch.no_grad(), member.within(self.parent):
            return copy.deepcopy(self.parent)

    def save_pretrained(self, save_directory, is_main_process=True, push_to_hub=False, **kwargs) -> None:
        """Save weights, configuration and all code that loading needs."""
        if is_main_process:
            Path(save_directory).mkdir(parents=True, exist_ok=True)
            self._save_code(Path(save_directory))
        with self._lock:
            super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)
        if push_to_hub and is_main_process:
            # Saved once more: above, transformers would leave out the files that it did not write itself.
            given = {key: kwargs[key] for key in _PUSH_ARGUMENTS if key in kwargs}
            self.push_to_hub(kwargs.get("repo_id", Path(save_directory).name), **given)

    def _save_code(self, folder: Path) -> None:
        """Save the code that models were loaded with; transformers saves that of the ensemble."""
        for part in (part for model in self.models for part in (type(model), type(model.config))):
            if part.__module__.startswith("transformers_modules."):
                for file in Path(inspect.getfile(part)).parent.glob("[!_]*.py"):
                    (folder / file.name).write_bytes(file.read_bytes())

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, config=None, trust_remote_code=None, **kwargs):
        """
        Load an ensemble from safetensors files alone, and check it before it can predict: a `ValueError` if it is not whole,
        contradicts itself, or needs code that is not trusted. Arguments are those of [`~PreTrainedModel.from_pretrained`],
        and `combination` and `member_weights` in place of what is stored.
        """
        name = str(pretrained_model_name_or_path)
        hub = {key: kwargs[key] for key in _HUB_ARGUMENTS if kwargs.get(key) is not None}
        with_info = kwargs.pop("output_loading_info", False)
        config = SMDEnsembleConfig.from_pretrained(name, **hub) if config is None else copy.deepcopy(config)
        config.update({key: kwargs.pop(key) for key in ("combination", "member_weights") if key in kwargs})
        config.check()
        classes = [remote_classes(part, name, trust_remote_code, config.task, **hub) for part in config.model_configs]
        model, info = super().from_pretrained(  # pyright: ignore
            name,
            *args,
            config=config,
            model_classes=classes,
            output_loading_info=True,
            **cls._further_arguments(name, kwargs.get("variant"), hub),
            **{**kwargs, "use_safetensors": True, "ignore_mismatched_sizes": True},
        )
        faults = {"missing": info["missing_keys"], "unexpected": info["unexpected_keys"]}
        faults["of another shape"] = [entry[0] for entry in info["mismatched_keys"]]
        found = [f"{kind}: {', '.join(sorted(names)[:5])}" for kind, names in faults.items() if names]
        if found:
            raise ValueError(
                f"The weights of {name} are not those its config.json describes. Tensors {'; '.join(found)}."
            )
        model._check_weights()
        return (model, info) if with_info else model

    @classmethod
    def _further_arguments(cls, name: str, variant: str | None, hub: dict[str, Any]) -> dict[str, Any]:
        """What else a subclass is made with, from where its files are."""
        return {}

    def _check_weights(self) -> None:
        """Refuse values that are NaN."""
        for name, tensor in self.state_dict().items():  # statistics of BatchNorm included
            if tensor.is_floating_point() and tensor.isnan().any():
                raise ValueError(f"{name} of the ensemble has values that are NaN.")

    def __getstate__(self) -> dict[str, Any]:
        # A lock can neither be pickled nor copied.
        return {key: value for key, value in self.__dict__.items() if key != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._lock = threading.RLock()


class SMDEnsembleForSemanticSegmentation(SMDEnsembleForImageClassification):
    """The same of models for semantic segmentation: logits are of shape `(batch, classes, height, width)`."""


class SMDEnsembleForZeroShotImageClassification(SMDEnsembleForImageClassification):
    """The same of models that compare images with texts: `logits_per_image` are of shape `(batch, texts)`."""


class SMDEnsembleForDepthEstimation(SMDEnsembleForImageClassification):
    """The same of models for depth estimation: `predicted_depth` is of shape `(batch, height, width)`. There is no loss."""


def cast_inputs(inputs: Mapping[str, Any], model: PreTrainedModel) -> dict[str, Any]:
    """The inputs with floating-point tensors in the model's dtype."""
    floating = {key for key, value in inputs.items() if isinstance(value, torch.Tensor) and value.is_floating_point()}
    return {key: value.to(model.dtype) if key in floating else value for key, value in inputs.items()}


def model_logits(model: PreTrainedModel, inputs: Mapping[str, Any]) -> torch.Tensor:
    """A model's predictions, such as logits of shape `(batch, classes)`, in float32 at least."""
    logits = logits_of(model(**inputs))
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def remote_classes(
    config: dict[str, Any], name: str, trust: bool | None, task: str, **hub: Any
) -> ModelClasses | None:
    """
    The classes of a model with code of its own in the ensemble's folder; `None` for a model that this process knows; a
    `ValueError` for code that is not trusted. `config` is checked: it names no other place.
    """
    auto_map, auto_model = config.get("auto_map") or {}, AUTO_MODELS[task]
    if auto_model not in auto_map or AUTO_CONFIG not in auto_map:
        return None
    if trust:
        try:
            from transformers.dynamic_module_utils import get_class_from_dynamic_module as load
        except ImportError as error:
            raise ValueError(
                "The installed transformers has no dynamic_module_utils.get_class_from_dynamic_module, which loads a model's "
                "own code. Install the version that config.json names as transformers_version."
            ) from error
        config_class = load(auto_map[AUTO_CONFIG], name, **hub)
        model_class = load(auto_map[auto_model], name, **hub)
        config_class.register_for_auto_class()
        model_class.register_for_auto_class(auto_model)
        return config_class, model_class
    if config["model_type"] in CONFIG_MAPPING:
        return None
    raise ValueError(
        f"The ensemble {name} is built on a model with code of its own ({auto_map[auto_model]}) in the ensemble's "
        "folder, which was not run. Read it, and pass trust_remote_code=True to from_pretrained if you trust it."
    )


def build_model(config: dict[str, Any], classes: Any, attention: str | None, task: str) -> PreTrainedModel:
    """A model from its configuration and [`remote_classes`], or a `ValueError`; its weights are loaded later."""
    # `from_dict` of some configurations takes entries out of what it is given.
    config = copy.deepcopy(config)
    model_type = config["model_type"]
    if classes is None and model_type not in CONFIG_MAPPING:
        raise ValueError(
            f"The ensemble is built on a model of type {model_type!r}, which this version of transformers does not know. "
            "Where the ensemble's folder carries its code, load it with from_pretrained and trust_remote_code=True."
        )
    dtype = torch.get_default_dtype()
    try:
        model_config = (CONFIG_MAPPING[model_type] if classes is None else classes[0]).from_dict(config)
        if attention is not None:
            model_config._attn_implementation = attention
        if classes is not None:
            return classes[1](model_config)
        auto = getattr(transformers, AUTO_MODELS[task])
        return auto.from_config(model_config, dtype=dtype, trust_remote_code=False)
    # Whatever a hostile or broken configuration makes of the model's own constructor.
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        message = f"No {model_type} model can be built from its configuration in the ensemble's config.json: {error}"
        raise ValueError(message) from error
