"""Pushes a run to the Hub: its results, and its checkpoints during training."""

import tempfile
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, ModelCard
from transformers.trainer_utils import HubStrategy, SaveStrategy
from transformers.utils import logging
from transformers.utils.hub import PushInProgress

from ..arguments.evolution_arguments import EvolutionArguments
from ..errors import SMDError
from ..files import write_text
from ..messages import one_line
from ..reports.cards.model_card import CARD_NAME, render_card
from ..reports.run_result import RunResult
from ..scoring.bars import TickingBar
from .requests import persistently, push_command, repository_error
from .staging import stage_checkpoint, stage_model
from .upload import hub_api, make_branch, push_run, staging_folder

logger = logging.get_logger(__name__)

_BACKGROUND = hub_api()
"""Its thread pushes in the background, one push after the other."""


class Publisher:
    """
    Pushes what a run writes. It never uploads everything in `output_dir`, as Trainer would.

    Args:
        args ([`EvolutionArguments`]): `output_dir` and all arguments of the Hub.

    Attributes:
        repo_id (`str`, *optional*): the repository, once it is known.
        pushed (`dict[str, str]`): addresses of the last push: `"child"`, `"ensemble"`, `"children"`.
        failure (`str`, *optional*): why the push at the end of the run failed, and how to repeat it.
        in_progress ([`~transformers.utils.hub.PushInProgress`], *optional*): pushes of checkpoints in the background.
    """

    def __init__(self, args: EvolutionArguments, on_push_begin: Callable[[], Any]):
        self.args = args
        self.on_push_begin = on_push_begin
        self.repo_id: str | None = None
        self.pushed: dict[str, str] = {}
        self.failure: str | None = None
        self.in_progress: Any = None

    @property
    def repo_name(self) -> str:
        """The repository to push to: as known, as in the arguments, or named as the folder."""
        return self.repo_id or self.args.hub_model_id or self.args.folder.absolute().name

    def create_repo(self, token: str | None = None, private: bool | None = None) -> str:
        """
        Creates the repository if there is none yet.

        Args:
            token (`str`, *optional*): defaults to `hub_token`.
            private (`bool`, *optional*): defaults to `hub_private_repo`.

        Returns:
            `str`: its id.

        Raises:
            `SMDError`: if the Hub cannot be reached or refuses the request.
        """
        token = self.args.hub_token if token is None else token
        private = self.args.hub_private_repo if private is None else private
        name = self.repo_name
        try:
            url = persistently(partial(hub_api(token).create_repo, name, private=private, exist_ok=True))
        except Exception as error:
            raise repository_error(error, name, push_command(self.args.folder, name), token) from error
        self.repo_id = url.repo_id
        return url.repo_id

    def push(
        self,
        result: RunResult,
        commit_message: str | None,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
    ) -> CommitInfo:
        """
        Pushes the evolved model as it is saved; the ensemble and deltas too, if `push_ensemble` and `push_children` are set.

        Args:
            result ([`RunResult`]): says which artifacts this run has written, and whether its report is in `output_dir`.

        Raises:
            `SMDError`: if the Hub cannot be reached or refuses the push.
        """
        args, artifacts = self.args, result.artifacts
        self.on_push_begin()
        if self.in_progress is not None and not self.in_progress.is_done():
            logger.info("Waiting for the current checkpoint push to be finished, this might take a couple of minutes.")
            self.in_progress.wait_until_done()
        pushed = push_run(
            args.folder,
            self.repo_name,
            ensemble=args.push_ensemble and bool(artifacts.members),
            children=min(args.push_children, len(artifacts.deltas)),
            private=args.hub_private_repo if private is None else private,
            revision=args.hub_revision if revision is None else revision,
            token=args.hub_token if token is None else token,
            commit_message=commit_message,
            # If this trainer has not written the report in output_dir, it describes other weights.
            describe=result.report is not None,
        )
        self.pushed = {name: str(commit.repo_url) for name, commit in pushed.items()}
        self.repo_id = pushed["child"].repo_url.repo_id
        return pushed["child"]

    def push_at_end(self, result: RunResult) -> None:
        """Pushes at the end of a run. A push that fails does not fail the run: all is saved, and a warning says what to do."""
        try:
            with TickingBar("Pushing to the Hub", not self.args.disable_tqdm):
                self.push(result, "End of training")
        except SMDError as error:
            self.failure = str(error)
            logger.warning(self.failure)

    def push_checkpoint(self, checkpoint: Path, global_step: int) -> None:
        """Pushes a checkpoint in the background, as in Trainer. If that fails, the push at the end repeats it."""
        args, strategy = self.args, self.args.hub_strategy
        if strategy == HubStrategy.END:
            return
        busy = self.in_progress is not None and not self.in_progress.is_done()
        if busy and not args.hub_always_push:
            return
        self.on_push_begin()
        # Links, because training continues meanwhile and may delete checkpoints.
        temporary = staging_folder(args.folder)
        stage_model(checkpoint, Path(temporary.name))
        if strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            name = "last-checkpoint" if strategy == HubStrategy.CHECKPOINT else checkpoint.name
            stage_checkpoint(checkpoint, Path(temporary.name, name))
        unit = "step" if args.save_strategy == SaveStrategy.STEPS else "epoch"
        job = in_background(self._push_staged, temporary, f"Training in progress, {unit} {global_step}")
        if self.in_progress is not None and busy:
            self.in_progress.jobs.append(job)
        else:
            self.in_progress = PushInProgress([job])  # pyright: ignore[reportArgumentType]

    def _push_staged(self, temporary: tempfile.TemporaryDirectory, message: str) -> None:
        api, args = hub_api(self.args.hub_token), self.args
        with temporary as folder:
            try:
                if args.hub_revision is not None:
                    make_branch(api, self.repo_name, args.hub_revision)
                upload = partial(
                    api.upload_folder,
                    repo_id=self.repo_name,
                    folder_path=folder,
                    commit_message=message,
                    revision=args.hub_revision,
                )
                persistently(upload)
            except Exception as error:
                logger.warning(f"The push of a checkpoint failed ({one_line(str(error))}). The run continues.")

    def write_card(
        self,
        report: dict[str, Any] | None,
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
            finetuned_from (`str`, *optional*): Hub id of the parent.
            dataset_tags (`str` or list, *optional*): Hub ids of the data sets.

        Raises:
            `SMDError`: if the run was not measured on test data.
        """
        if report is None:
            raise SMDError(
                "No model card can be written yet, because it reports the comparison with the parent at the end of train(). "
                "Pass an eval_dataset and train first."
            )
        folder = self.args.folder
        card: ModelCard = render_card("child", folder, report, repo_id=self.repo_id)
        data: Any = card.data
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


def in_background(push: Callable, *args: Any) -> Future:
    """Runs a push after those that are in progress, in one thread."""
    return _BACKGROUND.run_as_future(push, *args)
