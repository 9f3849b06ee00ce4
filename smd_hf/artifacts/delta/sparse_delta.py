"""
Stores a child as a small artifact: the coordinates in which it differs from its base, and the hashes of base and child.

A delta holds the child's *new values*. So applying and restoring are copies, exact in every dtype. Its keys are the names in a
checkpoint, which depend neither on the release of transformers nor on how the model was built. A delta belongs to one base:
the hash of the base's weights is checked before it is applied, and the hash of the child's afterwards.
"""

import copy
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from huggingface_hub import CommitInfo, HfApi
from transformers import PreTrainedModel
from transformers.utils import logging

from ... import __version__
from ...errors import SMDError
from ...models.checkpoints import checkpoint_names, weights_hash
from ...models.load import load_model
from ...remote_code.members_smd_ensemble import keepers
from ...scoring.changes import Change
from .config import DeltaConfig, shown
from .storage import cached_commit, check, read_delta, write_delta
from .weights import AppliedDelta, checkpoint_tensors, same_bits, smallest_change

logger = logging.get_logger(__name__)


class SparseDelta:
    """
    A child as its difference from a base. Made by [`~SparseDelta.from_changes`], [`~SparseDelta.between`] or
    [`~SparseDelta.from_pretrained`].

    Attributes:
        config ([`~smd_hf.artifacts.delta.config.DeltaConfig`]): base, hashes, density, seed, generation, child and `record`.
        changes (`dict` of `str` to (indices, values)): by checkpoint name, on the CPU. `indices` are flat and strictly
            increasing (int32; int64 for a tensor of 2^31 coordinates or more), or `None` for the whole tensor. `values` are
            the child's values at these coordinates, in the tensor's dtype.

    Example:

    ```python
    child = SparseDelta.from_pretrained("user/child").merge()

    with SparseDelta.from_pretrained("user/child").apply_to(parent):
        logits = parent(pixel_values).logits
    ```
    """

    def __init__(self, config: DeltaConfig, changes: Mapping[str, Change], from_hub: bool = False):
        self.config = config
        self.changes = dict(changes)
        self._from_hub = from_hub

    @classmethod
    def from_changes(cls, model: PreTrainedModel, changes: Iterable[tuple[str, Change]], **info: Any) -> "SparseDelta":
        """
        Makes the delta of a child from its changes.

        Args:
            model ([`~transformers.PreTrainedModel`]): holds the base's weights, before and after the call.
            changes (iterable of (name in memory, (indices, values))): from [`~smd_hf.search.mutation.Mutation.changes`].
                Coordinates with the base's value are left out.
            base_model (`str` or `os.PathLike`, *optional*): Hub id or folder of the base. Defaults to the place that the model
                was loaded from. Required if the model's weights have changed since then.
            base_revision (`str`, *optional*): the base's commit, or a branch or tag whose commit is in the cache. Defaults to
                the commit that the model was loaded from, if it is known. Otherwise the delta names no commit, and its base
                is loaded from the main branch.
            density (`float`, *optional*): defaults to the share of the model's parameters that differ.
            seed (`int`, *optional*), generation (`int`, *optional*), child (`int`, *optional*), record (`dict`, *optional*):
                see [`~smd_hf.artifacts.delta.config.DeltaConfig`].

        Raises:
            `SMDError`: if a change does not fit the model or is not finite, or an argument has a wrong type.
        """
        names = checkpoint_names(model)
        by_name: dict[str, Change] = {}
        for name, change in changes:
            key = names.get(name, name)
            if key in by_name:
                raise SMDError(f"The child changes {shown(name)} twice. Expected one change for each tensor.")
            by_name[key] = change
        return cls._of(model, by_name, info)

    @classmethod
    def between(cls, base_model: PreTrainedModel, child_model: PreTrainedModel, **info: Any) -> "SparseDelta":
        """
        Makes the delta between two models of the same architecture. It includes persistent buffers (of BatchNorm, for example).

        Args:
            base_model ([`~transformers.PreTrainedModel`]): the base. The delta names the place that it was loaded from.
            child_model ([`~transformers.PreTrainedModel`]): the child.
            info: the arguments of [`~SparseDelta.from_changes`], except `base_model` and `base_revision`.

        Raises:
            `SMDError`: if a tensor has no counterpart with the same shape and dtype in the other model.
        """
        base, child = checkpoint_tensors(base_model), checkpoint_tensors(child_model)
        if base.keys() != child.keys():
            raise SMDError(
                f"The base and the child do not have the same architecture: only one of them has the tensors "
                f"{', '.join(sorted(base.keys() ^ child.keys())[:4])}. Expected two models with the same configuration."
            )
        for name, tensor in base.items():
            if child[name].shape != tensor.shape or child[name].dtype != tensor.dtype:
                raise SMDError(
                    f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)} in the base, and {child[name].dtype} of shape "
                    f"{tuple(child[name].shape)} in the child. Expected two models with the same configuration and dtype."
                )
        changed = {name: (None, tensor) for name, tensor in child.items() if not same_bits(tensor, base[name])}
        return cls._of(base_model, changed, info)

    @classmethod
    def _of(cls, model: PreTrainedModel, given: Mapping[str, Change], info: dict[str, Any]) -> "SparseDelta":
        tensors = checkpoint_tensors(model)
        changes, changed = {}, 0
        for name, (indices, values) in given.items():
            if name not in tensors:
                raise SMDError(
                    f"The child changes {shown(name)}, but {type(model).__name__} has no such tensor. Expected names of its "
                    "parameters, as in model.named_parameters()."
                )
            smallest, count = smallest_change(name, tensors[name], indices, values)
            if count:
                changes[name] = smallest
                changed += count
        base_hash = weights_hash(model)
        with AppliedDelta(tensors, changes):
            child_hash = weights_hash(model)
        total = sum(parameter.numel() for parameter in model.parameters())
        config = DeltaConfig.checked(
            base_hash=base_hash,
            child_hash=child_hash,
            dtype=str(model.dtype).removeprefix("torch."),
            changes={name: None if indices is None else len(indices) for name, (indices, _) in changes.items()},
            base_custom_code=bool(model.is_remote_code() or getattr(model.config, "auto_map", None)),
            smd_hf_version=__version__,
            **{"density": min(1.0, changed / total), **info, **_base(model, info)},
        )
        return cls(config, changes)

    @classmethod
    def from_pretrained(
        cls,
        repo_or_folder: str | os.PathLike,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike | None = None,
        subfolder: str = "",
    ) -> "SparseDelta":
        """
        Reads a delta from a folder or the Hub: two files, no code, no pickle. Does not load the base yet.

        Args:
            repo_or_folder (`str` or `os.PathLike`): a repository of the Hub or a folder.
            revision (`str`, *optional*): branch, tag or commit.
            token (`str` or `bool`, *optional*): access token for private repositories.
            cache_dir (`str` or `os.PathLike`, *optional*): folder for downloads.
            subfolder (`str`, *optional*, defaults to `""`): subfolder of the delta, in a repository with several.

        Raises:
            `SMDError`: if there is no delta, or if it is damaged, was tampered with or has an unknown format.
        """
        name = os.fspath(repo_or_folder)
        expanded = os.path.expanduser(name)
        source = {"revision": revision, "token": token, "cache_dir": cache_dir}
        return cls(*read_delta(expanded if os.path.exists(expanded) else name, source, subfolder))

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """
        Writes `smd_delta.safetensors` and `smd_delta_config.json`.

        Args:
            folder (`str` or `os.PathLike`): is created if it does not exist. Files in it are replaced atomically.

        Raises:
            `SMDError`: if the folder cannot be written to.
        """
        write_delta(folder, self.config, self.changes)

    def apply_to(self, model: PreTrainedModel) -> AppliedDelta:
        """
        Turns the base into the child, in place.

        Args:
            model ([`~transformers.PreTrainedModel`]): the base, on any device.

        Returns:
            [`AppliedDelta`]: `.restore()`, or the end of `with delta.apply_to(model):`, restores the base bit for bit.

        Raises:
            `SMDError`: if the model is not the delta's base, if changes do not fit it, or if the result is not the child. The
                model is then unchanged.
        """
        found, config = weights_hash(model), self.config
        if found != config.base_hash:
            hint = " (it is already the child)" if found == config.child_hash else ""
            where = f"{config.base_model} at {config.base_revision}" if config.base_revision else config.base_model
            raise SMDError(
                f"The delta belongs to a base whose weights have the hash {config.base_hash}, but the hash of the model's "
                f"weights is {found}{hint}. Expected the unchanged weights of {where or 'the base'} in {config.dtype}: load "
                "them and apply the delta to them."
            )
        tensors = checkpoint_tensors(model)
        for name, (indices, values) in self.changes.items():
            if name not in tensors:
                raise SMDError(
                    f"The delta changes {shown(name)}, but its base {type(model).__name__} has no such tensor. The delta is "
                    "refused: get it again from its source."
                )
            check(name, indices, values, tensors[name].shape, tensors[name].dtype)
        applied = AppliedDelta(tensors, self.changes, keepers(model))
        try:
            made = weights_hash(model)
            if made != config.child_hash:
                raise SMDError(
                    f"The delta does not give the child that it names: the weights would have the hash {made}, expected "
                    f"{config.child_hash}. It is damaged or was edited, and the model is unchanged: get the delta again from "
                    "its source."
                )
        except BaseException:
            applied.restore()
            raise
        return applied

    def merge(
        self,
        model: PreTrainedModel | None = None,
        trust_remote_code: bool = False,
        *,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike | None = None,
    ) -> PreTrainedModel:
        """
        Returns the child as a plain model, in eval mode.

        Args:
            model ([`~transformers.PreTrainedModel`], *optional*): the base, which stays unchanged. By default it is loaded
                from the place that the delta names.
            trust_remote_code (`bool`, *optional*, defaults to `False`): allows the Python files of the base to run.
            token (`str` or `bool`, *optional*), cache_dir (`str` or `os.PathLike`, *optional*): for loading the base.

        Raises:
            `SMDError`: as in [`~SparseDelta.apply_to`], or if the base cannot be loaded, or the delta does not name its place.
        """
        if model is None:
            child = self._load_base(trust_remote_code, token, cache_dir)
        else:
            child = copy.deepcopy(model)
        self.apply_to(child)
        # These weights are not stored at the base's place: a delta made of this child must not name it.
        child.config._name_or_path = child.name_or_path = ""
        child.config._commit_hash = None
        return child.eval()

    def _load_base(
        self, trust_remote_code: bool, token: str | bool | None, cache_dir: str | os.PathLike | None
    ) -> PreTrainedModel:
        base = self.config.base_model
        if base is None:
            raise SMDError(
                "The delta does not name its base, because it was made from a model that was not on the Hub. Expected the "
                f"base itself, whose weights have the hash {self.config.base_hash}: pass it, merge(model)."
            )
        if self._from_hub and self.config.base_is_folder:
            raise SMDError(
                f"The delta comes from the Hub, but names a folder as its base ({shown(base)}), which is not read. Load "
                f"the base, whose weights have the hash {self.config.base_hash}, and pass it: merge(model)."
            )
        return load_model(
            base,
            revision=self.config.base_revision,
            token=token,
            trust_remote_code=trust_remote_code,
            dtype=getattr(torch, self.config.dtype),
            cache_dir=cache_dir,
        )

    def push_to_hub(
        self,
        repo_id: str,
        *,
        token: str | bool | None = None,
        private: bool | None = None,
        commit_message: str = "Upload sparse delta",
        revision: str | None = None,
    ) -> CommitInfo:
        """
        Uploads the delta as one commit. The repository is created if it does not exist.

        The upload does not name a base that is a local folder: users of the delta must pass the base to `merge`.

        Args:
            repo_id (`str`): `user/name`.
            token (`str` or `bool`, *optional*): access token. Defaults to the token of `hf auth login`.
            private (`bool`, *optional*): whether a new repository is private. Defaults to the account's setting.
            commit_message (`str`, *optional*, defaults to `"Upload sparse delta"`): the commit's message.
            revision (`str`, *optional*): the branch.

        Returns:
            `CommitInfo`: with the commit's URL.

        Raises:
            `SMDError`: if the Hub cannot be reached or refuses the push.
        """
        config = self.config
        if config.base_is_folder:
            logger.warning(
                f"The base of this delta is a local folder ({config.base_model}), which the upload does not name. To make the "
                "delta load by itself, push the base and make the delta with base_model='user/name'."
            )
            config = replace(config, base_model=None)
        api = HfApi(token=token, library_name="smd_hf", library_version=__version__)
        with tempfile.TemporaryDirectory() as folder:
            write_delta(folder, config, self.changes)
            try:
                repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
                return api.upload_folder(
                    repo_id=repo_id, folder_path=folder, commit_message=commit_message, revision=revision
                )
            # The exceptions of a broken connection depend on the HTTP library of huggingface_hub.
            except Exception as error:
                reason = (str(error).strip().splitlines() or [""])[0]
                if isinstance(token, str) and token:
                    reason = reason.replace(token, "***")
                raise SMDError(
                    f"The delta could not be pushed to '{repo_id}' ({type(error).__name__}: {shown(reason, quote=False)}). Check the name, the "
                    "network and your write access (`hf auth login`, or token=...). Nothing is lost: save it with "
                    f"save_pretrained(folder), and push later with `hf upload {repo_id} folder`."
                ) from error


def _base(model: PreTrainedModel, info: Mapping[str, Any]) -> dict[str, str | None]:
    """The place of the base: as given, or as the model remembers it."""
    base = info.get("base_model", model.name_or_path or None)
    base = None if base is None else str(base)
    if base is not None and os.path.isdir(folder := os.path.expanduser(base)):
        # A relative path is not valid in another process, and could be taken for a Hub id.
        return {"base_model": os.path.abspath(folder), "base_revision": None}
    revision = info.get("base_revision")
    if revision is None and base == model.name_or_path:
        # Some releases of transformers do not store the commit that a model was loaded from.
        revision = getattr(model.config, "_commit_hash", None)
    return {"base_model": base, "base_revision": revision if base is None else cached_commit(base, revision)}
