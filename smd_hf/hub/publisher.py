"""The Hub methods of `EvolutionTrainer`. They have Trainer's arguments, but make their own uploads."""

import tempfile
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, ModelCard
from transformers.trainer_utils import HubStrategy, SaveStrategy
from transformers.utils import logging
from transformers.utils.hub import PushInProgress

from ..errors import SMDError
from ..files import write_text
from ..messages import one_line
from ..reports.cards.model_card import CARD_NAME, render_card
from ..scoring.bars import TickingBar
from .requests import persistently, push_command, repository_error
from .staging import stage_checkpoint, stage_model
from .upload import hub_api, make_branch, push_run, staging_folder

logger = logging.get_logger(__name__)

_BACKGROUND = hub_api()
"""Its thread pushes in the background, one push after the other."""


class HubMixin:
    """
    The Hub methods of an [`EvolutionTrainer`]. They replace Trainer's, which would upload everything in `output_dir`.

    Attributes:
        pushed (`dict[str, str]`): addresses of the last push: `"child"`, `"ensemble"`, `"children"`.
        push_failure (`str`, *optional*): why the push at the end of the run failed, and how to repeat it.
        collected (`dict[str, int]`): how many members and deltas this run has saved besides the evolved model.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        self.pushed: dict[str, str] = {}
        self.push_failure: str | None = None
        self.collected: dict[str, int] = {}
        super().__init__(*args, **kwargs)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """
        Creates the repository, as in Trainer.

        Args:
            token (`str`, *optional*): defaults to `hub_token`.
            private (`bool`, *optional*): defaults to `hub_private_repo`.

        Raises:
            `SMDError`: if the Hub cannot be reached or refuses the request.
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
        Saves and pushes the evolved model, and also the ensemble and deltas if `push_ensemble` and `push_children` are set.

        Args:
            commit_message (`str`, *optional*, defaults to `"End of training"`): message of each commit.
            blocking (`bool`, *optional*, defaults to `True`): returns after the upload.
            token (`str`, *optional*): defaults to `hub_token`.
            revision (`str`, *optional*): the branch. Defaults to `hub_revision`.
            private (`bool`, *optional*): whether new repositories are private. Defaults to `hub_private_repo`.
            kwargs: passed to [`~HubMixin.create_model_card`].

        Returns:
            `CommitInfo` of the evolved model, or its `Future` with `blocking=False`. `None` on all processes but the main one.

        Raises:
            `SMDError`: if the Hub cannot be reached or refuses the push. All files are saved, and the message has the commands
                to push them later.
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
            ensemble=self.args.push_ensemble and bool(self.collected.get("ensemble")),
            children=min(self.args.push_children, self.collected.get("children", 0)),
            private=self.args.hub_private_repo if private is None else private,
            revision=self.args.hub_revision if revision is None else revision,
            token=self.args.hub_token if token is None else token,
            commit_message=commit_message,
            # If this trainer has not written the report in output_dir, it describes other weights.
            describe=self.report is not None,
        )
        self.pushed = {name: str(commit.repo_url) for name, commit in pushed.items()}
        self.hub_model_id = pushed["child"].repo_url.repo_id
        return pushed["child"]

    def _push_at_end(self) -> None:
        """Pushes at the end of a run. If it fails, the run does not: all is saved, and a warning says what to do."""
        if not self.args.push_to_hub or not self.is_world_process_zero():
            return
        try:
            with TickingBar("Pushing to the Hub", not self.args.disable_tqdm):
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
        Writes the card of the evolved model into `output_dir`. The arguments replace the run's metadata.

        Args:
            language (`str` or list, *optional*), license (`str`, *optional*): of the model.
            tags (`str` or list, *optional*): additional tags.
            model_name (`str`, *optional*): name in the list of results.
            finetuned_from (`str`, *optional*): Hub id of the parent.
            tasks (`str`, *optional*): the model's pipeline.
            dataset_tags (`str` or list, *optional*): Hub ids of the data sets.
            dataset (`str`, *optional*), dataset_args (`dict`, *optional*): name and arguments of the test data.

        Raises:
            `SMDError`: if the run was not measured on test data.
        """
        if not self.is_world_process_zero():
            return
        if self.report is None:
            raise SMDError(
                "No model card can be written yet, because it reports the comparison with the parent at the end of train(). "
                "Pass an eval_dataset and train first."
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
        """Pushes a checkpoint in the background, as in Trainer. If it fails, the push at the end repeats it."""
        strategy, args = self.args.hub_strategy, self.args
        if not self.is_world_process_zero() or strategy == HubStrategy.END:
            return
        busy = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if busy and not args.hub_always_push:
            return
        self.callback_handler.on_push_begin(args, self.state, self.control)
        checkpoint = Path(checkpoint_folder)
        # Links, because training continues meanwhile and may delete checkpoints.
        temporary = staging_folder(Path(args.output_dir))
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
                    make_branch(api, self.hub_model_id, args.hub_revision)
                upload = partial(
                    api.upload_folder,
                    repo_id=self.hub_model_id,
                    folder_path=folder,
                    commit_message=message,
                    revision=args.hub_revision,
                )
                persistently(upload)
            except Exception as error:
                logger.warning(f"The push of a checkpoint failed ({one_line(str(error))}). The run continues.")
