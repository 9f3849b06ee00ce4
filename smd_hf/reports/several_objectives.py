"""What `EvolutionTrainer` does for several objectives, and for images of another distribution."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..arguments.evolution_arguments import EvolutionArguments
from ..errors import SMDError
from ..metrics.classification import ComputeMetrics
from ..metrics.ood import OOD_METRICS, compare_auroc
from ..run.run_images import DataMixin
from ..search.evolution import Evolution
from ..search.pareto.objectives import Objectives
from ..search.pareto.pareto_evolution import ParetoEvolution
from ..search.pareto.run_front import RunFront, run_front
from .front import write_front


class ObjectivesMixin(DataMixin):
    """
    Several objectives and the second data set of an [`EvolutionTrainer`].

    Attributes:
        objectives ([`Objectives`], *optional*): what candidates are compared by, where there are several.
        front ([`RunFront`], *optional*): what a run by several objectives has found.
        ood_report (`dict`, *optional*): AUROC of parent and evolved model on the test parts of both data sets.
    """

    objectives: Objectives | None = None
    front: RunFront | None = None
    ood_report: dict[str, Any] | None = None
    _parent_ood_logits: np.ndarray | None = None

    def _take_objectives(
        self, args: EvolutionArguments, metrics: ComputeMetrics | None, ood_dataset: Any | None
    ) -> None:
        """The objectives that arguments name; [`SMDError`] where they are about a second data set, and there is none."""
        if args.objectives is not None:
            self.objectives = Objectives(args.objectives, metrics)
        self.ood_dataset = ood_dataset
        about = [name for name in args.objectives or [args.fitness] if name.removeprefix("eval_") in OOD_METRICS]
        if about and ood_dataset is None:
            raise SMDError(
                f"{' and '.join(about)} of a model is measured on a second data set, of images that are of none of its classes, and "
                "there is none. Pass ood_dataset to EvolutionTrainer (on the command line: ood_dataset_name, ood_dir or ood_file)."
            )

    def _look_at_parent(self) -> None:
        """What has to be known of the parent before it changes: its weights, and its logits on images of another distribution."""
        if self.objectives is not None:
            self._first_weights = {name: each.detach().clone() for name, each in self.mutation.parameters.items()}
        if self.ood is not None:
            self._check_images(self.ood_dataset, self.ood_image_column, "ood_dataset")
            if self.test_batches is not None:
                self._parent_ood_logits = self.evaluator.logits(self.ood.test)

    def _make_evolution(self, *args: Any, **kwargs: Any) -> Evolution:
        """An [`Evolution`], by several objectives where there are any."""
        kind = Evolution
        if self.objectives is not None:
            kind = partial(ParetoEvolution, self.objectives, self._first_weights, lambda: self.run.generations)
        return kind(*args, ood=self.ood, **kwargs)

    def _find_front(self, evolution: Evolution) -> None:
        """The front that the run ends with; its members are scored on the test images, on all processes."""
        if isinstance(evolution, ParetoEvolution):
            size = self.args.ensemble_size if self.args.ensemble_selection == "front" else 0
            self.front = run_front(evolution, self.test_batches, size)

    def _write_front(self) -> None:
        if self.front is not None:
            write_front(self.front.table, Path(self.args.output_dir))

    def _measure_ood(self, evolved_logits: np.ndarray | None) -> None:
        """Compares evolved model and parent on images of another distribution; a collective call."""
        if self._parent_ood_logits is not None and evolved_logits is not None:
            self.ood_report = {"images": self.ood.sizes} | compare_auroc(
                (self.parent_test_logits, self._parent_ood_logits),
                (evolved_logits, self.evaluator.logits(self.ood.test)),
            )
