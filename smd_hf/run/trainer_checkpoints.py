"""The checkpoints of `EvolutionTrainer`: safetensors and JSON, nothing else."""

from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..files import write_json
from ..models.checkpoints import load_weights, save_checkpoint, weights_hash

ARGUMENTS_NAME = "evolution_args.json"


class CheckpointMixin:
    """How an [`EvolutionTrainer`] saves and loads, in place of Trainer's pickles and optimizer states."""

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """The model in the form it came, and the arguments as JSON: no pickle, and no token in any file."""
        if not self.args.should_save:
            return
        folder = Path(output_dir if output_dir is not None else self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        save_checkpoint(self.model, self.processing_class, folder)
        write_json(folder / ARGUMENTS_NAME, self.args.non_default())

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if self.args.should_save:
            folder = Path(self._get_output_dir(trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            folder.mkdir(parents=True, exist_ok=True)
            # Trainer writes its state last: a checkpoint without one is not whole.
            (folder / TRAINER_STATE_NAME).unlink(missing_ok=True)
            self.run.save(folder, self._identity, weights_hash(self.model))
        super()._save_checkpoint(model, trial)

    # Trainer reads a checkpoint by the names in memory, and leaves out every weight that has another one in the file.

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_weights(self.model, resume_from_checkpoint)

    def _load_best_model(self) -> None:
        load_weights(self.model, self.state.best_model_checkpoint)

    # Evolution has no optimizer, and its random numbers are keyed: there is no further state to keep.

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        pass

    def _save_scaler(self, output_dir: str) -> None:
        pass

    def _save_rng_state(self, output_dir: str) -> None:
        pass
