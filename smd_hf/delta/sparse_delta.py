"""
A child as a small artifact: the coordinates in which it differs from its base, and a hash of each.

A delta holds the child's *new values*, so that applying it and taking it back are copies, exact in every dtype. It is
keyed by the names in a checkpoint, which neither the release of transformers nor the way the model was built changes, and
it belongs to one base: the hash of the base's weights is checked before anything is written, and the child's afterwards.
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

from .. import __version__
from ..ensemble.derived_weights import keepers
from ..errors import SMDError
from ..models.checkpoints import checkpoint_names, weights_hash
from ..models.load import load_model
from ..mutation import Change
from .config import DeltaConfig, shown
from .files import cached_commit, check, read_delta, write_delta
from .weights import AppliedDelta, checkpoint_tensors, same_bits, smallest_change

logger = logging.get_logger(__name__)


class SparseDelta:
    """
    A child as its difference from a base. Made by [`~SparseDelta.from_changes`], [`~SparseDelta.between`] or
    [`~SparseDelta.from_pretrained`].

    Attributes:
        config ([`~smd_hf.delta.config.DeltaConfig`]): base, hashes, density, seed, generation, child and `record`.
        changes (`dict` of `str` to (indices, values)): by checkpoint name, on the CPU: flat indices (int32; int64 for a
            tensor of 2^31 coordinates or more), strictly increasing, or `None` for the whole tensor, and the child's values
            there, in the tensor's dtype.

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
        The delta of a child in memory.

        Args:
            model ([`~transformers.PreTrainedModel`]): holds the base's weights, before and after the call.
            changes (iterable of (name in memory, (indices, values))): as [`~smd_hf.mutation.Mutation.changes`] yields them;
                coordinates whose value is the base's are left out.
            base_model (`str` or `os.PathLike`, *optional*): Hub id or folder of the base; defaults to where the model says
                it was loaded from. It must be given where the model's weights have changed since.
            base_revision (`str`, *optional*): the base's commit, or a branch or tag of which the cache knows the commit.
                Defaults to the commit that the model was loaded from, where that can be told; otherwise the delta names
                none, and its base is looked for on the main branch.
            density (`float`, *optional*): defaults to the share of the model's parameters that differ.
            seed (`int`, *optional*), generation (`int`, *optional*), child (`int`, *optional*), record (`dict`, *optional*):
                see [`~smd_hf.delta.config.DeltaConfig`].

        Raises:
            `SMDError`: for a change that does not fit the model or is not finite, or information of a wrong type.
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
        The delta that makes one model out of another of the same architecture, buffers such as BatchNorm's included.

        Args:
            base_model ([`~transformers.PreTrainedModel`]): where it starts. Where it was loaded from is taken from it.
            child_model ([`~transformers.PreTrainedModel`]): where it leads.
            info: as for [`~SparseDelta.from_changes`], but `base_model` and `base_revision`.

        Raises:
            `SMDError`: for tensors that have no counterpart of the same shape and dtype in the other model.
        """
        base, child = checkpoint_tensors(base_model), checkpoint_tensors(child_model)
        if base.keys() != child.keys():
            raise SMDError(
                f"The base and the child are not of one architecture: {', '.join(sorted(base.keys() ^ child.keys())[:4])} "
                "are tensors of one of them alone. Expected two models with the same configuration."
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
                    f"The child changes {shown(name)}, which {type(model).__name__} does not have. Expected names of its "
                    "parameters, as model.named_parameters() gives them."
                )
            smallest, count = smallest_change(name, tensors[name], indices, values)
            if count:
                changes[name] = smallest
                changed += count
        base_hash = weights_hash(model)
        with AppliedDelta(tensors, changes):
            child_hash = weights_hash(model)
        total = sum(parameter.numel() for parameter in model.parameters())
        config = DeltaConfig(
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
        Read a delta from a folder or the Hub: two files, no code, no pickle. The base is not loaded yet.

        Args:
            repo_or_folder (`str` or `os.PathLike`): a repository of the Hub or a folder.
            revision (`str`, *optional*): branch, tag or commit.
            token (`str` or `bool`, *optional*): access token for private repositories.
            cache_dir (`str` or `os.PathLike`, *optional*): where downloads are kept.
            subfolder (`str`, *optional*, defaults to `""`): where in it, for a repository of several deltas.

        Raises:
            `SMDError`: if there is no delta, or it is damaged, tampered with or of an unknown format.
        """
        name = os.fspath(repo_or_folder)
        expanded = os.path.expanduser(name)
        source = {"revision": revision, "token": token, "cache_dir": cache_dir}
        return cls(*read_delta(expanded if os.path.exists(expanded) else name, source, subfolder))

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """
        Write `smd_delta.safetensors` and `smd_delta_config.json`.

        Args:
            folder (`str` or `os.PathLike`): where to; made if need be. Each file is complete before it takes its place.

        Raises:
            `SMDError`: if the folder cannot be written.
        """
        write_delta(folder, self.config, self.changes)

    def apply_to(self, model: PreTrainedModel) -> AppliedDelta:
        """
        Make the child out of its base, in place.

        Args:
            model ([`~transformers.PreTrainedModel`]): the base, on any device.

        Returns:
            [`AppliedDelta`]: `.restore()` puts the base back to the bit, as does leaving `with delta.apply_to(model):`.

        Raises:
            `SMDError`: for another base, with both hashes named; for changes that do not fit; for a result that is not the
                child. The model is then as it was.
        """
        found, config = weights_hash(model), self.config
        if found != config.base_hash:
            hint = " (it is the child already)" if found == config.child_hash else ""
            where = f"{config.base_model} at {config.base_revision}" if config.base_revision else config.base_model
            raise SMDError(
                f"The delta belongs to a base whose weights have the hash {config.base_hash}, but the hash of the model's "
                f"weights is {found}{hint}. Expected the weights of {where or 'the base'} in {config.dtype}, unchanged: load "
                "those and apply the delta to them."
            )
        tensors = checkpoint_tensors(model)
        for name, (indices, values) in self.changes.items():
            if name not in tensors:
                raise SMDError(
                    f"The delta changes {shown(name)}, which its base {type(model).__name__} does not have. It is refused: "
                    "get it again from where it was made."
                )
            check(name, indices, values, tensors[name].shape, tensors[name].dtype)
        applied = AppliedDelta(tensors, self.changes, keepers(model))
        try:
            made = weights_hash(model)
            if made != config.child_hash:
                raise SMDError(
                    f"The delta does not make the child it says: the weights would have the hash {made}, expected "
                    f"{config.child_hash}. It is damaged or was edited, and the model is as it was: get the delta again from "
                    "where it was made."
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
        The child as a plain model, in eval mode.

        Args:
            model ([`~transformers.PreTrainedModel`], *optional*): the base; it stays as it is. Loaded from where the delta
                says if not given.
            trust_remote_code (`bool`, *optional*, defaults to `False`): run the Python files of the base, where it is
                defined by them.
            token (`str` or `bool`, *optional*), cache_dir (`str` or `os.PathLike`, *optional*): for loading the base.

        Raises:
            `SMDError`: as for [`~SparseDelta.apply_to`]; if the base cannot be loaded, or the delta does not say from where.
        """
        if model is None:
            child = self._load_base(trust_remote_code, token, cache_dir)
        else:
            child = copy.deepcopy(model)
        self.apply_to(child)
        # The base's place is not where these weights lie: a delta made of this child must not claim so.
        child.config._name_or_path = child.name_or_path = ""
        child.config._commit_hash = None
        return child.eval()

    def _load_base(
        self, trust_remote_code: bool, token: str | bool | None, cache_dir: str | os.PathLike | None
    ) -> PreTrainedModel:
        base = self.config.base_model
        if base is None:
            raise SMDError(
                "The delta does not say where its base is: it was made of a model that had no place on the Hub. Expected the "
                f"base itself, whose weights have the hash {self.config.base_hash}: pass it, merge(model)."
            )
        if self._from_hub and self.config.base_is_folder:
            raise SMDError(
                f"The delta comes from the Hub, but names a folder as its base ({shown(base)}), which is not looked at. Load "
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
        Upload the delta as one commit; the repository is made if need be.

        A base that is a folder of this machine is not named in the upload: whoever uses it passes the base to `merge`.

        Args:
            repo_id (`str`): `user/name`.
            token (`str` or `bool`, *optional*): access token; defaults to that of `hf auth login`.
            private (`bool`, *optional*): whether a new repository is private; defaults to the account's setting.
            commit_message (`str`, *optional*, defaults to `"Upload sparse delta"`): of the commit.
            revision (`str`, *optional*): the branch.

        Returns:
            `CommitInfo`: with the commit's URL.

        Raises:
            `SMDError`: if the Hub cannot be reached or refuses.
        """
        config = self.config
        if config.base_is_folder:
            logger.warning(
                f"The base of this delta is a folder of this machine ({config.base_model}), which the upload does not name. "
                "Push the base, and make the delta with base_model='user/name', to have it load by itself."
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
            # Which exceptions a broken connection raises depends on the HTTP library under huggingface_hub.
            except Exception as error:
                reason = (str(error).strip().splitlines() or [""])[0]
                if isinstance(token, str) and token:
                    reason = reason.replace(token, "***")
                raise SMDError(
                    f"The delta could not be pushed to '{repo_id}' ({type(error).__name__}: {shown(reason, quote=False)}). Check the name, the "
                    "network and that you may write there (`hf auth login`, or token=...). Nothing is lost: save it with "
                    f"save_pretrained(folder), and push later with `hf upload {repo_id} folder`."
                ) from error


def _base(model: PreTrainedModel, info: Mapping[str, Any]) -> dict[str, str | None]:
    """Where the base is: as told, or as the model remembers."""
    base = info.get("base_model", model.name_or_path or None)
    base = None if base is None else os.fspath(base)
    if base is not None and os.path.isdir(folder := os.path.expanduser(base)):
        # A relative path means nothing to another process, and would look like the id of a model on the Hub.
        return {"base_model": os.path.abspath(folder), "base_revision": None}
    revision = info.get("base_revision")
    if revision is None and base == model.name_or_path:
        # Not every release of transformers keeps the commit that a model was loaded from.
        revision = getattr(model.config, "_commit_hash", None)
    return {"base_model": base, "base_revision": revision if base is None else cached_commit(base, revision)}
