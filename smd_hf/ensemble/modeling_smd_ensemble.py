"""
An ensemble of image classifiers as one model: one parent with its children as sparse changes, or models stored whole.

A child predicts by putting its changes into the parent, in place, and taking them out again, so that memory is that of
the parent and the changes, however many members there are. What is put back are copies of what stood there: exact
bytes.

This file travels with an ensemble's checkpoint, and with it the files that it imports relatively.
"""

import copy
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.dynamic_module_utils import get_relative_import_files
from transformers.modeling_outputs import ImageClassifierOutput

from .checkpoint_files import (
    Headers,
    ModelClasses,
    build_model,
    check_headers,
    copy_code,
    read_headers,
    remote_classes,
)
from .child_passes import ChildPasses, model_logits
from .combination import combine
from .config_of_models import config_of_children, config_of_models
from .configuration_smd_ensemble import SMDEnsembleConfig
from .merging import merge_children, merge_models
from .shared_tensors import separated
from .sparse_member import Change, SparseMember, changeable_tensors, segments_from_counts

# What `from_pretrained` takes to find files on the Hub.
_HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
# What `push_to_hub` takes of what `save_pretrained` is given.
_PUSH_ARGUMENTS = ("commit_message", "create_pr", "private", "revision", "token")


@dataclass
class SMDEnsembleOutput(ImageClassifierOutput):
    """
    Output of an [`SMDEnsembleForImageClassification`].

    Args:
        loss (`torch.FloatTensor`, *optional*): mean negative log-probability of the labels, where `labels` are given.
        logits (`torch.FloatTensor`): log-probabilities of the combination, of shape `(batch, classes)`.
        member_logits (`torch.FloatTensor`, *optional*): each member's logits, of shape `(batch, members, classes)`,
            with `output_members=True`.
    """

    member_logits: torch.FloatTensor | None = None


class SMDEnsembleForImageClassification(PreTrainedModel):
    """
    An ensemble of image classifiers. Make one by [`from_children`], [`from_models`] or `from_pretrained`.

    Predictions carry no gradient. Members run in the ensemble's own mode (`train()` or `eval()`). One instance may be
    called by several threads: they take turns. `parent` itself is not to be called by one thread while another calls
    the ensemble.

    Args:
        config ([`SMDEnsembleConfig`]): with at least one member.
        models (list of [`PreTrainedModel`], *optional*): the parent, or each member, in place of models built from
            `config`.
        members (list of [`SparseMember`], *optional*): the children of `models[0]`.
        model_classes (list, *optional*): for each of the config's models its classes, see [`remote_classes`].
        headers (`dict`, *optional*): of the files that weights are about to be loaded from, see [`read_headers`].

    Raises:
        `ValueError`: where the configuration does not describe an ensemble, or the files do not fit it.
    """

    config_class = SMDEnsembleConfig
    base_model_prefix = ""
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    accepts_loss_kwargs = False
    _tied_weights_keys: dict[str, str] = {}  # noqa: RUF012 (transformers reads it from the class)
    # What one of the members supports is decided by the member.
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True

    def __init__(
        self,
        config: SMDEnsembleConfig,
        models: Sequence[PreTrainedModel] | None = None,
        members: Sequence[SparseMember] | None = None,
        model_classes: Sequence[ModelClasses | None] | None = None,
        headers: Headers | None = None,
    ):
        config.check()
        if not config.member_weights:
            raise ValueError("An ensemble needs at least one member: its config.json has no member_weights.")
        # As the user asked for it. transformers puts a choice for the ensemble in place of `None`, which is not its
        # models'.
        attention = config._attn_implementation
        super().__init__(config)
        config._attn_implementation = attention
        # 1. The models that are stored: the parent, or each member.
        if models is None:
            classes = model_classes or [None] * len(config.model_configs)
            stored = None if headers is None else sum(torch.Size(shape).numel() for _, shape in headers.values())
            models = [build_model(*pair, attention, stored) for pair in zip(config.model_configs, classes)]
        for model in models:
            if model.config.num_labels != config.num_labels:
                raise ValueError(
                    f"The ensemble has {config.num_labels} labels, but a model of it has {model.config.num_labels}."
                )
        # 2. The members. They are named one by one, not in a ModuleList, for transformers looks for what a model needs
        # (tied weights, tensors to keep in float32) in its own children.
        self.shares_parent = config.parent_config is not None
        if self.shares_parent:
            self.parent = models[0]
            if members is None:
                segments = segments_from_counts(self.parent, config.changes, len(config.member_weights))
                members = [SparseMember.blank(part) for part in segments]
        for i, member in enumerate(members if self.shares_parent else models):
            self.add_module(f"member_{i}", member)
        # 3. The files, before a byte is allocated for their tensors (from_pretrained builds on the meta device).
        if headers is not None:
            check_headers(self, members if self.shares_parent else [], headers)
        self._start_passes()
        self.post_init()

    def init_weights(self) -> None:
        """Nothing to do: every model in it has initialised itself, and from_children is given finished weights."""

    @classmethod
    def from_children(
        cls,
        parent_model: PreTrainedModel,
        children: Sequence[Mapping[str, Change]],
        member_weights: Sequence[float] | None = None,
        combination: str = "mean_probabilities",
    ) -> "SMDEnsembleForImageClassification":
        """
        An ensemble of children of one parent.

        Args:
            parent_model ([`PreTrainedModel`]): becomes a part of the ensemble, in eval mode; it is not copied.
            children (sequence of mappings): for each, the name of a parameter in memory -> (indices, values): flat
                indices (int32 or int64, strictly increasing) or `None` for the whole tensor, and the new values in the
                parameter's dtype. They are copied. An empty mapping is the parent itself.
            member_weights (sequence of `float`, *optional*): defaults to equal weights.
            combination (`str`, *optional*, defaults to `"mean_probabilities"`): see [`SMDEnsembleConfig`].

        Raises:
            `ValueError`: for no child, or a change that does not fit the parent.
        """
        config = config_of_children(parent_model, children, member_weights, combination)
        segments = segments_from_counts(parent_model, config.changes, len(children))
        members = [SparseMember.packed(part, child, parent_model.device) for part, child in zip(segments, children)]
        return cls(config, models=[parent_model], members=members).eval()

    @classmethod
    def from_models(
        cls,
        models: Sequence[PreTrainedModel],
        member_weights: Sequence[float] | None = None,
        combination: str = "mean_probabilities",
    ) -> "SMDEnsembleForImageClassification":
        """
        An ensemble of models of any architectures, stored whole.

        Args:
            models (sequence of [`PreTrainedModel`]): become parts of the ensemble, in eval mode; they are not copied.
                They must agree on the labels and on how images are prepared.
            member_weights (sequence of `float`, *optional*): defaults to equal weights.
            combination (`str`, *optional*, defaults to `"mean_probabilities"`): see [`SMDEnsembleConfig`].

        Raises:
            `ValueError`: for no model, the same model twice, or labels that differ.
        """
        config = config_of_models(models, member_weights, combination)
        return cls(config, models=models).eval()

    @property
    def member_count(self) -> int:
        """How many members there are."""
        return len(self.config.member_weights)

    @property
    def members(self) -> list[nn.Module]:
        """The members: [`SparseMember`]s, or models."""
        return [getattr(self, f"member_{i}") for i in range(self.member_count)]

    @property
    def models(self) -> list[PreTrainedModel]:
        """The models that are stored: the parent alone, or every member."""
        return [self.parent] if self.shares_parent else self.members

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_members: bool = False,
        return_dict: bool | None = None,
        **kwargs,
    ) -> SMDEnsembleOutput | tuple[torch.Tensor, ...]:
        """
        Args:
            pixel_values (`torch.Tensor`, *optional*): of shape `(batch, channels, height, width)`, or what the members take by
                this name; cast to their dtype. Left out where the members take something else.
            labels (`torch.Tensor`, *optional*): classes, int64 of shape `(batch,)`.
            output_members (`bool`, *optional*, defaults to `False`): also return each member's logits.
            return_dict (`bool`, *optional*): `False` for a tuple; defaults to the configuration's `return_dict`.
            kwargs: passed to each member's forward: its other inputs (`input_ids`, `pixel_attention_mask`), cast alike where
                they are floating-point, and options (`interpolate_pos_encoding`).

        Returns:
            [`SMDEnsembleOutput`]: computed in float32 at least, whatever the dtype of the weights, and without
            gradients.
        """
        member_logits = self._member_logits([] if pixel_values is None else [pixel_values], kwargs)
        weights = torch.tensor(self.config.member_weights, device=member_logits.device)
        logits = combine(member_logits, weights, self.config.combination)
        loss = None if labels is None else nn.functional.nll_loss(logits, labels.to(logits.device))
        output = SMDEnsembleOutput(loss=loss, logits=logits, member_logits=member_logits if output_members else None)
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    # In-place changes of weights are nothing that a compiler could make faster; under torch.compile they run as they
    # are.
    @torch.compiler.disable
    @torch.no_grad()
    def _member_logits(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.Tensor:
        """Each member's logits, of shape `(batch, members, classes)`."""
        if self._passes is not None:
            logits = self._passes.logits(self.parent, self.members, args, kwargs)
        else:
            logits = [model_logits(model, args, kwargs) for model in self.members]
        return torch.stack(logits, dim=1)

    def member(self, index: int) -> PreTrainedModel:
        """
        One member as a model of its own.

        Args:
            index (`int`): from 0; negative ones count from the end.

        Returns:
            [`PreTrainedModel`]: a copy, of the class of the parent or of the member.
        """
        member = self.members[index]
        return copy.deepcopy(member) if self._passes is None else self._passes.child(self.parent, member)

    def merge(self) -> PreTrainedModel:
        """
        One model of a member's size, whose weights are the weighted mean of the members' (a "model soup").

        Means are taken in float64 and rounded once. It is another classifier than the ensemble, and may be better or
        worse.

        Raises:
            `ValueError`: for members stored whole that have not the same architecture.
        """
        total = sum(self.config.member_weights)
        weights = [weight / total for weight in self.config.member_weights]
        with self._turn():
            merged = copy.deepcopy(self.models[0])
        if self.shares_parent:
            merge_children(merged, self.members, weights)
        else:
            merge_models(merged, self.members, weights)
        return merged

    def save_pretrained(self, save_directory: str | Path, is_main_process: bool = True, **kwargs) -> None:
        """
        Save weights, configuration and all code that loading needs where smd_hf is not installed.

        Args:
            save_directory (`str` or `Path`): the folder; made where it does not exist.
            is_main_process (`bool`, *optional*, defaults to `True`): `False` saves nothing but is needed on other
                ranks.
            kwargs: as for [`~PreTrainedModel.save_pretrained`].
        """
        if kwargs.pop("push_to_hub", False):
            # Saved once more by `push_to_hub`: here, transformers would leave out files that it did not write itself.
            hub = {key: kwargs.pop(key) for key in _PUSH_ARGUMENTS if key in kwargs}
            repo_id = kwargs.pop("repo_id", Path(save_directory).name)
            self.save_pretrained(save_directory, is_main_process, **kwargs)
            if is_main_process:
                self.push_to_hub(repo_id, **hub)
            return
        if is_main_process:
            Path(save_directory).mkdir(parents=True, exist_ok=True)
            own_code = [__file__, *get_relative_import_files(__file__)]
            reserved = {Path(file).name: Path(file).read_bytes() for file in own_code}
            for model, config in zip(self.models, self.config.model_configs):
                copy_code(model, config, Path(save_directory), reserved)
        with self._turn():
            if kwargs.get("state_dict") is None:
                kwargs["state_dict"] = separated(self.state_dict(), getattr(self, "all_tied_weights_keys", None) or ())
            super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *model_args,
        config: PreTrainedConfig | None = None,
        trust_remote_code: bool | None = None,
        output_loading_info: bool = False,
        **kwargs,
    ) -> "SMDEnsembleForImageClassification":
        """
        Load an ensemble from a folder or the Hub, from safetensors files alone, and check it before it can predict.

        Args:
            pretrained_model_name_or_path (`str` or `Path`): the folder or repository.
            config ([`SMDEnsembleConfig`], *optional*): defaults to the one there.
            trust_remote_code (`bool`, *optional*): `True` allows the code of a parent or member that lies in the
                folder to run; without it, an ensemble that needs such code is refused.
            output_loading_info (`bool`, *optional*, defaults to `False`): also return transformers' report.
            kwargs: `combination` and `member_weights` take the place of what is stored; the others are those of
                [`~PreTrainedModel.from_pretrained`].

        Raises:
            `ValueError`: for an ensemble that is not whole, contradicts itself, or needs code that is not trusted.
        """
        name = str(pretrained_model_name_or_path)
        hub = {key: kwargs[key] for key in _HUB_ARGUMENTS if kwargs.get(key) is not None}
        overrides = {key: kwargs.pop(key) for key in ("combination", "member_weights") if key in kwargs}
        if config is None:
            config = cls.config_class.from_pretrained(name, **hub, **overrides)
        else:
            config = copy.deepcopy(config)
            config.update(overrides)
        config.check()
        model, info = super().from_pretrained(
            name,
            *model_args,
            config=config,
            model_classes=[remote_classes(part, name, trust_remote_code, **hub) for part in config.model_configs],
            headers=read_headers(name, kwargs.get("variant"), **hub),
            output_loading_info=True,
            **{**kwargs, "use_safetensors": True, "ignore_mismatched_sizes": True},
        )
        faults = {
            "missing": sorted(info["missing_keys"]),
            "unexpected": sorted(info["unexpected_keys"]),
            "of another shape": sorted(entry[0] for entry in info["mismatched_keys"]),
        }
        found = [f"{kind}: {', '.join(names[:5])}" for kind, names in faults.items() if names]
        if found:
            raise ValueError(
                f"The weights of {name} are not those its config.json describes. Tensors {'; '.join(found)}."
            )
        model._check_weights()
        return (model, info) if output_loading_info else model

    def _check_weights(self) -> None:
        """Refuse values that are NaN, and changes that do not fit the parent."""
        for name, tensor in self.state_dict().items():  # statistics of BatchNorm included
            if tensor.is_floating_point() and tensor.isnan().any():
                raise ValueError(f"{name} of the ensemble has values that are NaN.")
        if self.shares_parent:
            tensors = changeable_tensors(self.parent)
            for i, member in enumerate(self.members):
                try:
                    member.check(tensors)
                except ValueError as error:
                    raise ValueError(f"Member {i} of the ensemble is refused. {error}") from error

    def __getstate__(self) -> dict[str, Any]:
        # Its lock can neither be pickled nor copied, and it has learned of the modules of this instance alone.
        return {key: value for key, value in self.__dict__.items() if key != "_passes"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._start_passes()

    def _start_passes(self) -> None:
        self._passes = ChildPasses(self.parent, self.members) if self.shares_parent else None

    def _turn(self) -> AbstractContextManager:
        """Within the block, no other thread has a member in the parent's place."""
        return nullcontext() if self._passes is None else self._passes.lock
