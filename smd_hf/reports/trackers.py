"""
What Trainer's callbacks for TensorBoard, trackio and MLflow do not log by themselves: the fitness of all children of a generation
as a histogram or table, its cost, and the report's figures at the end.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers import TrainerCallback
from transformers.integrations import MLflowCallback, TensorBoardCallback, TrackioCallback
from transformers.utils import logging

from ..messages import one_line
from ..run.state import RunState
from .cards.model_card import EXAMPLE_NAME
from .gain_report import metrics_of_report

logger = logging.get_logger(__name__)

CHILDREN = "children/fitness"


class _Tracker:
    """One tracker. `open` is called while its own callback has it open, `report` after that has closed it."""

    def __init__(self, callback: Any):
        self.callback = callback

    def open(self) -> None:
        """Notes what it takes to find the run again."""

    def generation(self, number: int, fitness: np.ndarray, cost: Mapping[str, float]) -> None:
        raise NotImplementedError

    def report(self, figures: Iterable[Path], scores: Mapping[str, float], number: int) -> None:
        raise NotImplementedError


class _TensorBoard(_Tracker):
    def generation(self, number: int, fitness: np.ndarray, cost: Mapping[str, float]) -> None:
        writer = self.callback.tb_writer
        writer.add_histogram(CHILDREN, fitness, number)
        for name, value in cost.items():
            writer.add_scalar(name, value, number)

    def report(self, figures: Iterable[Path], scores: Mapping[str, float], number: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(log_dir=self.callback.logging_dir) as writer:
            for name, value in scores.items():
                writer.add_scalar(name, value, number)
            for path in figures:
                writer.add_image(
                    f"report/{path.stem}", np.asarray(Image.open(path).convert("RGB")), number, dataformats="HWC"
                )


class _MLflow(_Tracker):
    def open(self) -> None:
        import mlflow

        run = mlflow.active_run()
        self.run_id = None if run is None else run.info.run_id

    def generation(self, number: int, fitness: np.ndarray, cost: Mapping[str, float]) -> None:
        import mlflow

        rows = {"generation": [number] * len(fitness), "child": list(range(len(fitness))), "fitness": fitness.tolist()}
        mlflow.log_table(rows, "children.json")
        mlflow.log_metrics(dict(cost), step=number)

    def report(self, figures: Iterable[Path], scores: Mapping[str, float], number: int) -> None:
        import mlflow

        client = mlflow.MlflowClient()
        for name, value in scores.items():
            client.log_metric(str(self.run_id), name, value, step=number)
        for path in figures:
            client.log_artifact(self.run_id, str(path), "report")


class _Trackio(_Tracker):
    def open(self) -> None:
        import trackio  # pyright: ignore[reportMissingImports]

        run = trackio.context_vars.current_run.get()
        self.place = None if run is None else {"project": run.project, "name": run.name}

    def generation(self, number: int, fitness: np.ndarray, cost: Mapping[str, float]) -> None:
        import trackio  # pyright: ignore[reportMissingImports]

        trackio.log({CHILDREN: trackio.Histogram(fitness), **cost}, step=number)

    def report(self, figures: Iterable[Path], scores: Mapping[str, float], number: int) -> None:
        import trackio  # pyright: ignore[reportMissingImports]

        trackio.init(**(self.place or {}), resume="must", embed=False)
        pictures = {f"report/{path.stem}": trackio.Image(str(path), caption=path.stem) for path in figures}
        trackio.log({**scores, **pictures}, step=number)
        trackio.finish()


_KINDS: dict[type, type[_Tracker]] = {
    TensorBoardCallback: _TensorBoard,
    MLflowCallback: _MLflow,
    TrackioCallback: _Trackio,
}


class TrackerCallback(TrainerCallback):
    """
    Logs children, cost and figures to the trackers among a Trainer's callbacks. A tracker that fails never ends a run.

    Args:
        callbacks (`Callable`): returns the Trainer's callbacks, when a run begins.
    """

    def __init__(self, callbacks: Callable[[], Iterable[TrainerCallback]], run: Callable[[], RunState]):
        self.callbacks = callbacks
        self.trackers: list[_Tracker] = []
        self.run = run

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.trackers = [_KINDS[type(each)](each) for each in self.callbacks() if type(each) in _KINDS]
            self._each("open")

    def on_step_end(self, args, state, control, **kwargs):
        if not state.is_world_process_zero:
            return
        run = self.run()
        values = [child["fitness"] for child in run.generations[-1]["children"]]
        fitness = np.array([value for value in values if value is not None], dtype=np.float64)
        cost = {"cost/images_forwarded": float(run.images_forwarded), "cost/seconds": run.seconds}
        if len(fitness):
            self._each("generation", state.global_step, fitness, cost)

    def on_report(self, report: Mapping[str, Any] | None, folder: Path, number: int) -> None:
        """
        Logs the report's scores and its figures, all PNG files in `folder` but the example.

        Args:
            folder (`Path`): `output_dir`.
        """
        scores = {
            f"report/{model}_{key}": float(report[model][key])
            for model in ("parent", "evolved")
            for key in (metric.key for metric in metrics_of_report(report or {}))
            if report is not None and report[model][key] is not None
        }
        figures = [path for path in sorted(folder.glob("*.png")) if path.name != EXAMPLE_NAME]
        self._each("report", figures, scores, number)

    def _each(self, method: str, *values: Any) -> None:
        for tracker in self.trackers:
            try:
                getattr(tracker, method)(*values)
            except Exception as error:  # of a server that cannot be reached, or a library of another version
                logger.warning(
                    f"{type(tracker).__name__[1:]} did not take the {method} ({one_line(str(error))}). The run continues."
                )
