"""Giving back to the Hub: a saved folder, a whole run, and what `EvolutionTrainer` does of it by itself."""

import tempfile
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import CommitInfo, HfApi, ModelCard
from transformers.trainer_utils import HubStrategy, SaveStrategy
from transformers.utils import logging
from transformers.utils.hub import PushInProgress

from . import __version__
from .checkpoints import weights_hash
from .delta_config import DeltaConfig
from .errors import SMDError
from .files import write_text
from .hub_files import model_files, saved_kind, stage_checkpoint, stage_deltas, stage_description, stage_model
from .hub_requests import persistently, push_command, push_error, repository_error
from .messages import one_line
from .model_card import CARD_NAME, render_card
from .models import load_model

logger = logging.get_logger(__name__)

TITLE_LENGTH = 60
"""Of a collection, as the Hub takes it."""

# Deltas of an earlier push, which a new one may not have: they would be taken for its own.
_OLD_DELTAS = ["[0-9][0-9][0-9][0-9]/smd_delta*"]


def hub_api(token: str | bool | None = None) -> HfApi:
    """A client that says who it is."""
    return HfApi(token=token, library_name="smd_hf", library_version=__version__)


_BACKGROUND = hub_api()
"""Its thread makes pushes in the background, one after the other."""


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
    Uploads a saved folder as one commit: model, code, card, report, plots and example, no other files. Doing it again makes
    no second commit.

    Args:
        folder (`str` or `Path`): the `output_dir` of a run (its evolved model), its `ensemble` or `children`, one delta, or
            any image classifier in safetensors.
        repo_id (`str`): `user/name`; the repository is made if need be.
        private (`bool`, *optional*): whether a new repository is private; defaults to the account's setting.
        revision (`str`, *optional*): the branch, made if need be; defaults to the main one.
        token (`str` or `bool`, *optional*): access token; defaults to that of `hf auth login` or `HF_TOKEN`.
        commit_message (`str`, *optional*): of the commit.
        create_pr (`bool`, *optional*, defaults to `False`): propose the commit as a pull request.

    Returns:
        `CommitInfo`: with `repo_url`, `commit_url` and `pr_url`.

    Raises:
        `SMDError`: if the folder holds nothing to push, or the Hub cannot be reached or refuses; with the command to push
            the folder later.
    """
    folder = Path(folder).expanduser()
    options = {"private": private, "revision": revision, "create_pr": create_pr}
    try:
        return _push(folder, repo_id, token=token, commit_message=commit_message, **options)
    except SMDError:
        raise
    # Which exceptions a broken connection raises depends on the HTTP library under huggingface_hub.
    except Exception as error:
        raise push_error(error, repo_id, [push_command(folder, repo_id, **options)], token) from error


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
    Uploads what a run has left: the evolved model, the ensemble to `{repo_id}-ensemble`, the best children to
    `{repo_id}-children`. Where there are several, a collection ties them together, if the account may make one.

    Args:
        output_dir (`str` or `Path`): of the run.
        repo_id (`str`): `user/name`, of the evolved model.
        ensemble (`bool`, *optional*, defaults to `False`): push `output_dir/ensemble`.
        children (`int`, *optional*, defaults to 0): push so many of the deltas in `output_dir/children`.
        private, revision, token, commit_message: as for [`push_folder`].
        describe (`bool`, *optional*, defaults to `True`): push report, plots, example and card, too.

    Returns:
        `dict[str, CommitInfo]`: of `"child"`, and of `"ensemble"` and `"children"` where they were asked for.

    Raises:
        `SMDError`: as for [`push_folder`], with a command for each folder that is not there yet.
    """
    folder = Path(output_dir).expanduser()
    options = {"private": private, "revision": revision}
    parts = [("child", folder, repo_id, {"describe": describe})]
    if ensemble:
        parts.append(("ensemble", folder / "ensemble", f"{repo_id}-ensemble", {}))
    if children:
        parts.append(("children", folder / "children", f"{repo_id}-children", {"count": children}))
    pushed: dict[str, CommitInfo] = {}
    for name, place, where, more in parts:
        try:
            pushed[name] = _push(place, where, token=token, commit_message=commit_message, **options, **more)
        except SMDError:
            raise
        except Exception as error:
            left = [push_command(place, where, **options) for _, place, where, _ in parts[len(pushed) :]]
            raise push_error(error, where, left, token) from error
    if len(pushed) > 1:
        _tie_together(hub_api(token), {name: commit.repo_url.repo_id for name, commit in pushed.items()}, private)
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
    """[`push_folder`] with the exceptions of huggingface_hub; of `count` deltas only, and without a description."""
    kind, api = saved_kind(folder), hub_api(token)
    with _staging(folder) as staged:
        if kind != "delta":
            stage_model(folder, staged)
        repo_id = persistently(partial(api.create_repo, repo_id, private=private, exist_ok=True)).repo_id
        if revision is not None:
            _make_branch(api, repo_id, revision)
        if kind == "delta":
            stage_deltas(folder, staged, count, _Bases(api, repo_id, create_pr).place)
        if describe and stage_description(kind, folder, staged, repo_id):
            logger.warning(f"{folder / CARD_NAME} was changed since the run wrote it, and goes up as it is.")
        upload = partial(
            api.upload_folder,
            repo_id=repo_id,
            folder_path=staged,
            commit_message=commit_message or f"Upload {kind} evolved by smd_hf",
            revision=revision,
            create_pr=create_pr,
            delete_patterns=_OLD_DELTAS if kind == "delta" else None,
        )
        return persistently(upload)


@contextmanager
def _staging(folder: Path) -> Iterator[Path]:
    """A folder of the same name for what goes up; on the same file system where that can be, for links to large files."""
    with _temporary(folder) as temporary:
        staged = Path(temporary, folder.resolve().name)
        staged.mkdir()
        yield staged


def _temporary(folder: Path) -> tempfile.TemporaryDirectory:
    try:
        return tempfile.TemporaryDirectory(prefix=".push-", dir=folder)
    except OSError:  # nothing can be written there
        return tempfile.TemporaryDirectory(prefix="smd-hf-push-")


def _make_branch(api: HfApi, repo_id: str, branch: str) -> None:
    if branch != "main" and not branch.startswith("refs/"):
        persistently(partial(api.create_branch, repo_id, branch=branch, exist_ok=True))


class _Bases:
    """
    Where the bases of deltas are on the Hub. One that is but a folder of this machine goes up with the deltas, into a branch
    of the same repository, and the deltas name its commit: so they load from anywhere, and main holds nothing but deltas.
    """

    def __init__(self, api: HfApi, repo_id: str, is_proposal: bool):
        self.api, self.repo_id, self.is_proposal = api, repo_id, is_proposal
        self._commits: dict[str, str | None] = {}

    def place(self, config: DeltaConfig) -> tuple[str | None, str | None]:
        """Id and commit of a delta's base; `None` for both where it has no place there."""
        key = config.base_hash
        if key not in self._commits:
            self._commits[key] = None if self._why_not(config) else self._push(config)
        commit = self._commits[key]
        return (None, None) if commit is None else (self.repo_id, commit)

    def _why_not(self, config: DeltaConfig) -> str | None:
        folder = Path(config.base_model)
        try:
            if self.is_proposal:
                reason = "a pull request has no place for it"
            elif not folder.is_dir():
                reason = "that folder is gone"
            elif not model_files(folder) or not _is_base(folder, config):
                reason = "the weights there are no longer those that the deltas belong to"
            else:
                return None
        except SMDError as error:
            reason = str(error)
        logger.warning(
            f"The base of the deltas, {folder}, is not pushed with them: {reason.rstrip('.')}. Whoever uses the deltas has to "
            "pass the base: SparseDelta.from_pretrained(...).merge(base)."
        )
        return reason

    def _push(self, config: DeltaConfig) -> str:
        branch, folder = f"parent-{config.base_hash[:8]}", Path(config.base_model)
        _make_branch(self.api, self.repo_id, branch)
        with _staging(folder) as staged:
            stage_model(folder, staged)
            upload = partial(
                self.api.upload_folder,
                repo_id=self.repo_id,
                folder_path=staged,
                commit_message="The parent of the deltas",
                revision=branch,
            )
            return persistently(upload).oid


def _is_base(folder: Path, config: DeltaConfig) -> bool:
    """Whether a folder holds the weights of a delta's base. Python files are not run for it: who loads the delta, checks."""
    if config.base_custom_code:
        return True
    return weights_hash(load_model(str(folder), dtype=getattr(torch, config.dtype))) == config.base_hash


def _tie_together(api: HfApi, repo_ids: dict[str, str], private: bool | None) -> None:
    """A collection of what belongs together. It is an extra: where it cannot be made, a line in the log says so."""
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
    except Exception as error:  # of whatever kind: all models are pushed
        logger.warning(f"No collection was made of {', '.join(repo_ids.values())} ({one_line(str(error))}).")


# ---- A trainer -------------------------------------------------------------------------------------------------------


class HubMixin:
    """
    The Hub side of an [`EvolutionTrainer`], in place of that of Trainer, which would upload whatever lies in `output_dir`.

    Attributes:
        pushed (`dict[str, str]`): addresses of what was pushed last: `"child"`, `"ensemble"`, `"children"`.
        push_failure (`str`, *optional*): why the push at the end of the run failed, and how to make up for it.
        harvested (`dict[str, int]`): how many members and deltas this run has saved beside the evolved model.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        self.pushed: dict[str, str] = {}
        self.push_failure: str | None = None
        self.harvested: dict[str, int] = {}
        super().__init__(*args, **kwargs)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """
        Makes the repository, as in Trainer.

        Raises:
            `SMDError`: if the Hub cannot be reached or refuses.
        """
        if not self.is_world_process_zero():
            return
        token = self.args.hub_token if token is None else token
        private = self.args.hub_private_repo if private is None else private
        name = self._repo_name()
        try:
            url = persistently(partial(hub_api(token).create_repo, name, private=private, exist_ok=True))
        except Exception as error:
            raise repository_error(error, name, push_command(self.args.output_dir, name), token) from error
        self.hub_model_id = url.repo_id
        self.push_in_progress = None

    def _repo_name(self) -> str:
        return self.hub_model_id or self.args.hub_model_id or Path(self.args.output_dir).absolute().name

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> CommitInfo | Future | None:
        """
        Saves and pushes the evolved model, and what `push_ensemble` and `push_children` ask for.

        Args:
            commit_message (`str`, *optional*, defaults to `"End of training"`): of each commit.
            blocking (`bool`, *optional*, defaults to `True`): return when all is uploaded.
            token (`str`, *optional*): defaults to `hub_token`.
            revision (`str`, *optional*): the branch; defaults to `hub_revision`.
            private (`bool`, *optional*): of new repositories; defaults to `hub_private_repo`.
            kwargs: passed to [`~HubMixin.create_model_card`].

        Returns:
            `CommitInfo` of the evolved model, or with `blocking=False` the `Future` of it; `None` on other processes than
            the main one.

        Raises:
            `SMDError`: if the Hub cannot be reached or refuses; all files are saved, and the message has the commands that
                push them later.
        """
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        if kwargs:
            if self.hub_model_id is None:
                self.init_hf_repo(token=token, private=private)
            self.create_model_card(**kwargs)
        push = partial(self._push_saved, commit_message, token, revision, private)
        return push() if blocking else _BACKGROUND.run_as_future(push)

    def _push_saved(
        self,
        commit_message: str | None,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
    ) -> CommitInfo:
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        self._finish_current_push()
        pushed = push_run(
            self.args.output_dir,
            self._repo_name(),
            ensemble=self.args.push_ensemble and bool(self.harvested.get("ensemble")),
            children=min(self.args.push_children, self.harvested.get("children", 0)),
            private=self.args.hub_private_repo if private is None else private,
            revision=self.args.hub_revision if revision is None else revision,
            token=self.args.hub_token if token is None else token,
            commit_message=commit_message,
            # A report in output_dir that this trainer has not written is about other weights.
            describe=self.report is not None,
        )
        self.pushed = {name: str(commit.repo_url) for name, commit in pushed.items()}
        self.hub_model_id = pushed["child"].repo_url.repo_id
        return pushed["child"]

    def _push_at_end(self) -> None:
        """The push that ends a run. The run stands if it fails: everything is saved, and the message says what to do."""
        if not self.args.push_to_hub or not self.is_world_process_zero():
            return
        try:
            self._push_saved("End of training")
        except SMDError as error:
            self.push_failure = str(error)
            logger.warning(self.push_failure)

    def create_model_card(
        self,
        language: str | list[str] | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | None = None,
        dataset_args: dict[str, Any] | None = None,
    ) -> None:
        """
        Writes the card of the evolved model into `output_dir`, with other metadata than the run's own where they are given.

        Args:
            language (`str` or list, *optional*), license (`str`, *optional*): of the model.
            tags (`str` or list, *optional*): further ones.
            model_name (`str`, *optional*): under which the results are listed.
            finetuned_from (`str`, *optional*): Hub id of the parent.
            tasks (`str`, *optional*): the pipeline that the model is for.
            dataset_tags (`str` or list, *optional*): Hub ids of the data sets.
            dataset (`str`, *optional*), dataset_args (`dict`, *optional*): name and arguments of the test data.

        Raises:
            `SMDError`: if the run has not been measured on test data.
        """
        if not self.is_world_process_zero():
            return
        if self.report is None:
            raise SMDError(
                "There is nothing to say in a model card yet: it is written of the comparison with the parent, at the end of "
                "train(). Pass an eval_dataset and train first."
            )
        folder = Path(self.args.output_dir)
        card: ModelCard = render_card("child", folder, self.report, repo_id=self.hub_model_id)
        data = card.data
        changes = {
            "language": language,
            "license": license,
            "model_name": model_name,
            "base_model": finetuned_from,
            "pipeline_tag": tasks,
            "datasets": dataset_tags,
        }
        for name, value in changes.items():
            if value is not None:
                setattr(data, name, value)
        data.tags = list(dict.fromkeys([*data.tags, *([tags] if isinstance(tags, str) else tags or [])]))
        for result in data.eval_results or []:
            result.dataset_name = dataset or result.dataset_name
            result.dataset_args = dataset_args or result.dataset_args
        write_text(folder / CARD_NAME, str(card))

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """As in Trainer: pushes a checkpoint in the background. What fails there is made up for at the end."""
        strategy, args = self.args.hub_strategy, self.args
        if not self.is_world_process_zero() or strategy == HubStrategy.END:
            return
        busy = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if busy and not args.hub_always_push:
            return
        self.callback_handler.on_push_begin(args, self.state, self.control)
        checkpoint = Path(checkpoint_folder)
        # Links, since training goes on meanwhile and checkpoints may be deleted.
        temporary = _temporary(Path(args.output_dir))
        stage_model(checkpoint, Path(temporary.name))
        if strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            name = "last-checkpoint" if strategy == HubStrategy.CHECKPOINT else checkpoint.name
            stage_checkpoint(checkpoint, Path(temporary.name, name))
        unit = "step" if args.save_strategy == SaveStrategy.STEPS else "epoch"
        message = f"Training in progress, {unit} {self.state.global_step}"
        job = _BACKGROUND.run_as_future(self._push_staged, temporary, message)
        if busy:
            self.push_in_progress.jobs.append(job)
        else:
            self.push_in_progress = PushInProgress([job])

    def _push_staged(self, temporary: tempfile.TemporaryDirectory, message: str) -> None:
        api, args = hub_api(self.args.hub_token), self.args
        with temporary as folder:
            try:
                if args.hub_revision is not None:
                    _make_branch(api, self.hub_model_id, args.hub_revision)
                upload = partial(
                    api.upload_folder,
                    repo_id=self.hub_model_id,
                    folder_path=folder,
                    commit_message=message,
                    revision=args.hub_revision,
                )
                persistently(upload)
            except Exception as error:
                logger.warning(f"A push of a checkpoint failed ({one_line(str(error))}). The run goes on.")
