"""Pushes a saved folder, or all artifacts of a run, to the Hub."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import CommitInfo, HfApi
from transformers.utils import logging

from .. import __version__
from ..artifacts.delta.config import DeltaConfig
from ..errors import SMDError
from ..messages import one_line
from ..models.checkpoints import weights_hash
from ..models.load import load_model
from ..reports.cards.benchmark import RESULTS_PATH
from ..reports.cards.model_card import CARD_NAME
from .requests import explained_push, persistently, push_command
from .staging import saved_kind, stage_deltas, stage_description, stage_model

logger = logging.get_logger(__name__)

TITLE_LENGTH = 60
"""The maximum length of a collection's title on the Hub."""

# Deltas of an earlier push are deleted: they would be taken for deltas of the new one. So is a result of an earlier model.
_OLD_DELTAS = ["[0-9][0-9][0-9][0-9]/smd_delta*"]


def hub_api(token: str | bool | None = None) -> HfApi:
    """A Hub client that identifies itself as smd_hf."""
    return HfApi(token=token, library_name="smd_hf", library_version=__version__)


# ---- A folder --------------------------------------------------------------------------------------------------------


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
) -> CommitInfo:
    """
    Uploads a saved folder as one commit: model, code, card, report, plots and example, and no other files. A second push of
    the same files makes no second commit.

    Args:
        folder (`str` or `Path`): the `output_dir` of a run (its evolved model), its `ensemble` or `children`, one delta, or
            any image classifier in safetensors.
        repo_id (`str`): `user/name`. The repository is created if it does not exist.
        private (`bool`, *optional*): whether a new repository is private. Defaults to the account's setting.
        revision (`str`, *optional*): the branch, which is created if it does not exist. Defaults to the main branch.
        token (`str` or `bool`, *optional*): access token. Defaults to the token of `hf auth login` or `HF_TOKEN`.
        create_pr (`bool`, *optional*, defaults to `False`): opens a pull request with the commit.

    Returns:
        `CommitInfo`: with `repo_url`, `commit_url` and `pr_url`.

    Raises:
        `SMDError`: if the folder holds nothing to push, or the Hub cannot be reached or refuses the push. The message has the
            command to push the folder later.
    """
    folder = Path(folder).expanduser()
    options: dict[str, Any] = {"private": private, "revision": revision, "create_pr": create_pr}
    with explained_push(repo_id, [push_command(folder, repo_id, **options)], token):
        return _push(folder, repo_id, token=token, commit_message=commit_message, **options)


def push_run(
    output_dir: str | Path,
    repo_id: str,
    *,
    ensemble: bool = False,
    children: int = 0,
    private: bool | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    commit_message: str | None = None,
    describe: bool = True,
) -> dict[str, CommitInfo]:
    """
    Uploads the artifacts of a run: the evolved model, the ensemble to `{repo_id}-ensemble`, the best children to
    `{repo_id}-children`. If it uploads several, it adds them to a collection, if the account may create one.

    Args:
        repo_id (`str`): `user/name` of the evolved model.
        ensemble (`bool`, *optional*, defaults to `False`): pushes `output_dir/ensemble`.
        children (`int`, *optional*, defaults to 0): pushes this many of the deltas in `output_dir/children`.
        describe (`bool`, *optional*, defaults to `True`): pushes report, plots, example and card, too.

    Returns:
        `dict[str, CommitInfo]`: for `"child"`, and for `"ensemble"` and `"children"` if they are pushed.

    Raises:
        `SMDError`: as for [`push_folder`]. The message has a command for each folder that is not pushed yet.
    """
    folder = Path(output_dir).expanduser()
    options: dict[str, Any] = {"private": private, "revision": revision}
    parts: list[tuple[str, Path, str, dict[str, Any]]] = [("child", folder, repo_id, {"describe": describe})]
    if ensemble:
        parts.append(("ensemble", folder / "ensemble", f"{repo_id}-ensemble", {}))
    if children:
        parts.append(("children", folder / "children", f"{repo_id}-children", {"count": children}))
    pushed: dict[str, CommitInfo] = {}
    for name, place, where, more in parts:
        left = [push_command(each, its_id, **options) for _, each, its_id, _ in parts[len(pushed) :]]
        with explained_push(where, left, token):
            pushed[name] = _push(place, where, token=token, commit_message=commit_message, **options, **more)
    if len(pushed) > 1:
        _make_collection(hub_api(token), {name: commit.repo_url.repo_id for name, commit in pushed.items()}, private)
    return pushed


def _push(
    folder: Path,
    repo_id: str,
    *,
    private: bool | None,
    revision: str | None,
    token: str | bool | None,
    commit_message: str | None,
    create_pr: bool = False,
    count: int | None = None,
    describe: bool = True,
) -> CommitInfo:
    """[`push_folder`] with huggingface_hub's exceptions. Can push only `count` deltas, and no description."""
    kind, api = saved_kind(folder), hub_api(token)
    with _staging(folder) as staged:
        if kind != "delta":
            stage_model(folder, staged)
        repo_id = persistently(partial(api.create_repo, repo_id, private=private, exist_ok=True)).repo_id
        if revision is not None:
            make_branch(api, repo_id, revision)
        if kind == "delta":
            stage_deltas(folder, staged, count, partial(_push_base, api, repo_id, create_pr))
        if describe and stage_description(kind, folder, staged, repo_id):
            logger.warning(f"{folder / CARD_NAME} was changed after the run wrote it. It is pushed unchanged.")
        upload = partial(
            api.upload_folder,
            repo_id=repo_id,
            folder_path=staged,
            commit_message=commit_message or f"Upload {kind} evolved by smd_hf",
            revision=revision,
            create_pr=create_pr,
            delete_patterns=_OLD_DELTAS if kind == "delta" else [RESULTS_PATH] if describe else None,
        )
        return persistently(upload)


@contextmanager
def _staging(folder: Path) -> Iterator[Path]:
    """A temporary folder of the same name for the files to upload, if possible on the same file system, for hard links."""
    with staging_folder(folder) as temporary:
        staged = Path(temporary, folder.resolve().name)
        staged.mkdir()
        yield staged


def staging_folder(folder: Path) -> tempfile.TemporaryDirectory:
    """A temporary folder in the given folder, or in the system's temporary folder if that is not writable."""
    try:
        return tempfile.TemporaryDirectory(prefix=".push-", dir=folder)
    except OSError:
        return tempfile.TemporaryDirectory(prefix="smd-hf-push-")


def make_branch(api: HfApi, repo_id: str, branch: str) -> None:
    """Creates a branch if it does not exist."""
    if branch != "main" and not branch.startswith("refs/"):
        persistently(partial(api.create_branch, repo_id, branch=branch, exist_ok=True))


def _push_base(api: HfApi, repo_id: str, create_pr: bool, config: DeltaConfig) -> tuple[str | None, str | None]:
    """
    Uploads the local base of deltas (a parent with a new head, for example) into a branch of their repository.

    So the deltas load from anywhere, and the main branch holds only deltas.

    Returns:
        `tuple`: the base's repository and commit; `None` for both if it cannot be uploaded.
    """
    branch, folder = f"parent-{config.base_hash[:8]}", Path(str(config.base_model))
    try:
        if create_pr:
            raise SMDError("a pull request cannot hold it")
        with _staging(folder) as staged:
            stage_model(folder, staged)
            # Do not run Python files for this check: loading the delta repeats it.
            dtype, is_custom = getattr(torch, config.dtype), config.base_custom_code
            if not is_custom and weights_hash(load_model(str(folder), dtype=dtype)) != config.base_hash:
                raise SMDError("its weights have changed since the deltas were made")
            make_branch(api, repo_id, branch)
            message = "The parent of the deltas"
            upload = partial(
                api.upload_folder, repo_id=repo_id, folder_path=staged, commit_message=message, revision=branch
            )
            return repo_id, persistently(upload).oid
    except SMDError as error:
        logger.warning(
            f"The base of the deltas, {folder}, is not pushed with them: {str(error).rstrip('.')}. Users of the deltas must "
            "pass the base: SparseDelta.from_pretrained(...).merge(base)."
        )
        return None, None


def _make_collection(api: HfApi, repo_ids: dict[str, str], private: bool | None) -> None:
    """Makes a collection of a run's repositories. If that fails, it only logs a warning."""
    namespace, name = repo_ids["child"].split("/")
    notes = {
        "child": "The evolved model",
        "ensemble": "Its ensemble",
        "children": "The best children, as sparse deltas",
    }
    try:
        title = f"{name}, evolved by smd_hf"
        title = title if len(title) < TITLE_LENGTH else name[: TITLE_LENGTH - 1]
        make = partial(api.create_collection, title, namespace=namespace, private=bool(private), exists_ok=True)
        slug = persistently(make).slug
        for kind, repo_id in repo_ids.items():
            add = partial(api.add_collection_item, slug, repo_id, "model", note=notes[kind], exists_ok=True)
            persistently(add)
    except Exception as error:  # all models are pushed already, so no error may end the run
        logger.warning(f"No collection of {', '.join(repo_ids.values())} could be created ({one_line(str(error))}).")
