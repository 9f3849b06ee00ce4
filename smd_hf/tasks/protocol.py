"""What a task is: how rows become inputs, and how a model's outputs become scores, reports and cards."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..arguments.evolution_arguments import EvolutionArguments
from ..data.preparation import PreparedData
from ..metrics.resampling import Measured, Metric
from ..models.tasks import Kind
from ..scoring.reading import Reading
from ..scoring.scores import Score

Loss = Callable[..., Any]
"""From predictions and labels, as [`Reading.sampled`] and [`Reading.sampled_labels`] give them, to a sum over images."""


@dataclass(frozen=True)
class GivenData:
    """
    What a run is given to read.

    Args:
        missing_head (sequence of `str`, *optional*): weights of the head that the checkpoint lacks.
        has_own_metrics (`bool`, *optional*, defaults to `False`): whether the user passes a `compute_metrics`.
        otherwise (`str`, *optional*): the remedy for labels that are not the model's, where its head cannot be replaced.
    """

    processing_class: Any
    train_dataset: Any = None
    eval_dataset: Any = None
    data_collator: Callable | None = None
    missing_head: Sequence[str] = ()
    has_own_metrics: bool = False
    otherwise: str | None = None


class Task(Reading, Protocol):
    """
    A task of the Hub.

    Attributes:
        kind ([`~smd_hf.models.tasks.Kind`]): what its models are, and how they are loaded.
    """

    kind: Kind

    def configure(self, model: Any, args: EvolutionArguments) -> None:
        """Takes what it needs to know of the model and the arguments. Raises `SMDError` for arguments that do not fit."""
        ...

    def prepare(self, model: Any, args: EvolutionArguments, given: GivenData) -> PreparedData:
        """Finds the columns and makes the collator. Raises `SMDError` for rows that do not fit the model."""
        ...


class MeasuredTask(Task, Protocol):
    """
    A task other than image classification: its metrics come from the sums of cells.

    Attributes:
        metrics (tuple of [`~smd_hf.metrics.resampling.Metric`]): what is reported, the most important first.
        head_inputs (`type`, *optional*): a [`~smd_hf.models.linear_head.HeadInputs`], where heads of such models can be fitted; `None` where they have none. For a head of
            pixels, `balances` gives the class weights to try by name of the fitness, for one of queries `set_loss` matches objects to
            them, and for others `head_loss` is what fits lower.
        notes (tuple of `str`, *optional*): sentences on how it was measured, for reports and cards. See [`notes_of`].
    """

    metrics: tuple[Metric, ...]

    def loss(self, args: EvolutionArguments) -> Loss:
        """The loss that a Gauss-Newton step lowers. Raises `SMDError` with the reason if there is none."""
        ...

    def measured(self, score: Score) -> Measured:
        """The metrics of one model on the images that it was scored on."""
        ...


def notes_of(task: Task) -> list[str]:
    """What a reader of a task's metrics must know; empty for most tasks."""
    return list(getattr(task, "notes", ()))


def title_of(task: Task) -> str:
    """What a task is called in messages: its name on the Hub, unless it has another title."""
    return getattr(task, "title", task.kind.pipeline_tag)


def headline_of(metrics: Sequence[Metric], fitness: str) -> Metric:
    """The metric that a verdict is about: the one that children were chosen by, or the first one if that is the loss."""
    chosen = metric_named(metrics, fitness)
    return metrics[0] if chosen is None or chosen.key == "loss" else chosen


def metric_named(metrics: Sequence[Metric], name: str) -> Metric | None:
    """The metric with this name; `nll` is the loss of any task."""
    name = name.removeprefix("eval_")
    name = "loss" if name == "nll" else name
    return next((metric for metric in metrics if metric.key == name), None)
