"""The ensemble as smd_hf makes, loads and runs it: the class that travels, with more checks, prefix replay and ways out."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from ...models.shared_tensors import separated
from ...remote_code import modeling_smd_ensemble
from ...remote_code.configuration_smd_ensemble import AUTO_MODELS, SMDEnsembleConfig
from ...remote_code.members_smd_ensemble import Change, SparseMember, segments_from_counts
from ..change_checks import check_members
from .building import config_of_children, config_of_models, names_in_memory, packed
from .child_passes import ChildPasses
from .code_files import AUTO_CONFIG, add_code, travelling_code
from .merging import merge_children, merge_models
from .weight_files import Headers, bounded, check_headers, read_headers


class SMDEnsembleForImageClassification(modeling_smd_ensemble.SMDEnsembleForImageClassification):
    """
    An ensemble of image classifiers. Make one by [`from_children`], [`from_models`] or `from_pretrained`.

    Predictions carry no gradient. Members run in the ensemble's own mode (`train()` or `eval()`). One instance may be
    called by several threads: they take turns. Do not call `parent` itself while another thread calls the ensemble.

    Args:
        config ([`SMDEnsembleConfig`]): with at least one member.
        models (list of [`PreTrainedModel`], *optional*): the parent, or each member; built from `config` by default.
        members (list of [`SparseMember`], *optional*): the children of `models[0]`.
        model_classes (list, *optional*): for each of the config's models its classes, where it has code of its own.
        headers (`dict`, *optional*): of the files that weights are about to be loaded from, see [`read_headers`].

    Raises:
        `ValueError`: where the configuration does not describe an ensemble, or the files do not fit it.
    """

    task = "image-classification"

    def __init__(
        self,
        config: SMDEnsembleConfig,
        models: Sequence[PreTrainedModel] | None = None,
        members: Sequence[SparseMember] | None = None,
        model_classes: Sequence[modeling_smd_ensemble.ModelClasses | None] | None = None,
        headers: Headers | None = None,
    ):
        with bounded(config, headers):
            super().__init__(config, models, members, model_classes)
        # Before a byte is allocated for their tensors: from_pretrained builds on the meta device.
        if headers is not None:
            check_headers(self, self.members if self.shares_parent else [], headers)
        self._start_passes()

    @classmethod
    def from_children(
        cls,
        parent_model: PreTrainedModel,
        children: Sequence[Mapping[str, Change]],
        member_weights: Sequence[float] | None = None,
        combination: str | None = None,
    ) -> "SMDEnsembleForImageClassification":
        """
        An ensemble of children of one parent.

        Args:
            parent_model ([`PreTrainedModel`]): becomes a part of the ensemble, in eval mode; it is not copied.
            children (sequence of mappings): for each, the name of a parameter in memory -> (indices, values): flat
                indices (int32 or int64, strictly increasing) or `None` for the whole tensor, and the new values in the
                parameter's dtype. They are copied. An empty mapping is the parent itself.
            member_weights (sequence of `float`, *optional*): defaults to equal weights.
            combination (`str`, *optional*): see [`SMDEnsembleConfig`].

        Raises:
            `ValueError`: for no child, or a change that does not fit the parent.
        """
        config = config_of_children(parent_model, children, member_weights, combination, cls.task)
        segments = segments_from_counts(parent_model, config)
        members = [packed(part, child, parent_model.device) for part, child in zip(segments, children)]
        return cls(config, models=[parent_model], members=members).eval()

    @classmethod
    def from_models(
        cls,
        models: Sequence[PreTrainedModel],
        member_weights: Sequence[float] | None = None,
        combination: str | None = None,
    ) -> "SMDEnsembleForImageClassification":
        """
        An ensemble of models of any architectures, stored whole.

        Args:
            models (sequence of [`PreTrainedModel`]): become parts of the ensemble, in eval mode; they are not copied.
                They must agree on the labels and on how images are prepared.
            member_weights (sequence of `float`, *optional*): defaults to equal weights.
            combination (`str`, *optional*): see [`SMDEnsembleConfig`].

        Raises:
            `ValueError`: for no model, the same model twice, or labels that differ.
        """
        config = config_of_models(models, member_weights, combination, cls.task)
        return cls(config, models=models).eval()

    @property
    def member_count(self) -> int:
        """How many members there are."""
        return len(self.config.member_weights)

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
        with self._lock:  # no other thread has a member in the parent's place
            merged = copy.deepcopy(self.models[0])
        if self.shares_parent:
            merge_children(merged, self.members, weights)
        else:
            merge_models(merged, self.members, weights)
        return merged

    def _children_logits(self, inputs: dict[str, Any]) -> list[torch.Tensor]:
        assert self._passes is not None
        return self._passes.logits(self.parent, self.members, inputs)

    def save_pretrained(self, save_directory: str | Path, is_main_process: bool = True, **kwargs: Any) -> None:
        """As in the class that travels; tensors that share memory are stored one by one."""
        if kwargs.get("state_dict") is None:
            tied = getattr(self, "all_tied_weights_keys", None) or ()
            with self._lock:  # no other thread has a member in the parent's place
                kwargs["state_dict"] = separated(self.state_dict(), tied)
        super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)

    def _save_code(self, folder: Path) -> None:
        code = travelling_code()
        for model, config in zip(self.models, self.config.model_configs):
            add_code(model, config, code, AUTO_MODELS[self.config.task])
        for name, content in code.items():
            (folder / name).write_bytes(content)
        if self.shares_parent:  # one that was saved before has none
            self.config.names_in_memory = names_in_memory(self.parent, self.config.changes)
        self.config.auto_map = {
            AUTO_CONFIG: f"configuration_smd_ensemble.{SMDEnsembleConfig.__name__}",
            AUTO_MODELS[self.config.task]: f"modeling_smd_ensemble.{type(self).__name__}",
        }

    @classmethod
    def _further_arguments(cls, name: str, variant: str | None, hub: dict[str, Any]) -> dict[str, Any]:
        return {"headers": read_headers(name, variant, **hub)}

    def _check_weights(self) -> None:
        """Also refuse changes that do not fit the parent."""
        super()._check_weights()
        if self.shares_parent:
            check_members(self.members, self.parent)

    def __getstate__(self) -> dict[str, Any]:
        # What was learned of the modules of this instance is of no use to a copy.
        return {key: value for key, value in super().__getstate__().items() if key != "_passes"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._start_passes()

    def _start_passes(self) -> None:
        self._passes = ChildPasses(self.parent, self.members) if self.shares_parent else None


class SMDEnsembleForSemanticSegmentation(SMDEnsembleForImageClassification):
    """The same of models for semantic segmentation: logits are of shape `(batch, classes, height, width)`."""

    task = "image-segmentation"


class SMDEnsembleForZeroShotImageClassification(SMDEnsembleForImageClassification):
    """The same of models that compare images with texts: `logits_per_image` are of shape `(batch, texts)`."""

    task = "zero-shot-image-classification"


class SMDEnsembleForDepthEstimation(SMDEnsembleForImageClassification):
    """The same of models for depth estimation: `predicted_depth` is of shape `(batch, height, width)`."""

    task = "depth-estimation"


ENSEMBLES = {
    each.task: each
    for each in (
        SMDEnsembleForImageClassification,
        SMDEnsembleForSemanticSegmentation,
        SMDEnsembleForZeroShotImageClassification,
        SMDEnsembleForDepthEstimation,
    )
}
"""By task."""
