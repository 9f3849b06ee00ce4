"""What a run comes to: parent and evolved model on the test images, ensemble, deltas, front, and the report of it all."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel
from transformers.utils import logging

from ..arguments.evolution_arguments import EvolutionArguments
from ..artifacts.collect import Artifacts, collect_artifacts
from ..artifacts.first_parent import FirstParent
from ..data.batches import ImageBatches
from ..metrics.ood import compare_auroc
from ..run.found_step import FoundStep
from ..run.run_images import RunImages
from ..scoring.scores import Score
from ..search.evolution import Evolution
from ..search.mutation import zero_share
from ..search.pareto.pareto_evolution import ParetoEvolution
from ..search.pareto.run_front import RunFront, run_front
from ..tasks.classification import ImageClassification
from ..tasks.protocol import Task
from .predictions import Predictions, predictions

logger = logging.get_logger(__name__)


@dataclass
class TestScores:
    """
    Parent and evolved model on the test images.

    Attributes:
        parent, evolved (`numpy.ndarray`): for image classification, their logits, float32, of shape `(n, num_labels)`.
    """

    batches: ImageBatches
    parent_score: Score
    evolved_score: Score

    @cached_property
    def parent(self) -> np.ndarray:
        return self.parent_score.logits

    @cached_property
    def evolved(self) -> np.ndarray:
        return self.evolved_score.logits

    @property
    def labels(self) -> np.ndarray:
        return self.batches.labels


@dataclass
class RunResult:
    """
    Measures a run and holds what was found.

    [`RunResult.measure_parent`] comes before the first generation, [`RunResult.collect`] and [`RunResult.measure_evolved`]
    after the last one. All processes must call these three.

    Args:
        batch_size_search (`dict`, *optional*): from [`~smd_hf.run.batch_size.settle_batch_size`].

    Attributes:
        parent_score ([`Score`], *optional*): on the test images.
        test ([`TestScores`], *optional*): the same of parent and evolved model.
        ood (`dict`, *optional*): AUROC of parent and evolved model on the test parts of both data sets.
        parent_zero_share (`float`): share of the mutable weights that are zero in the first parent.
        first_parent ([`~transformers.PreTrainedModel`], *optional*): a copy, if deltas are wanted.
        artifacts ([`Artifacts`]): ensemble and deltas.
        front ([`RunFront`], *optional*): the front of a run by several objectives.
        statistics, warm_start ([`FoundStep`], *optional*): what came before the first generation: BatchNorm statistics, then the head.
        refit_head ([`FoundStep`], *optional*): the head that came after the last one.
        drawn_before, drawn_after ([`Predictions`], *optional*): for some test images, by parent and evolved model; in the process
            that writes files.
        stopped (`dict`, *optional*): which limit ended the run, and after how many generations.
        report (`dict`, *optional*): the contents of `gain_report.json`.
    """

    args: EvolutionArguments
    images: RunImages
    parent: FirstParent
    processing_class: Any | None = None
    batch_size_search: dict[str, int] | None = None
    task: Task = field(default_factory=ImageClassification)
    parent_score: Score | None = field(default=None, init=False)
    test: TestScores | None = field(default=None, init=False)
    ood: dict[str, Any] | None = field(default=None, init=False)
    parent_zero_share: float = field(default=0.0, init=False)
    first_parent: PreTrainedModel | None = field(default=None, init=False)
    artifacts: Artifacts = field(default_factory=Artifacts, init=False)
    front: RunFront | None = field(default=None, init=False)
    statistics: FoundStep | None = field(default=None, init=False)
    warm_start: FoundStep | None = field(default=None, init=False)
    refit_head: FoundStep | None = field(default=None, init=False)
    stopped: dict[str, Any] | None = field(default=None, init=False)
    report: dict[str, Any] | None = field(default=None, init=False)
    drawn_before: Predictions | None = field(default=None, init=False)
    drawn_after: Predictions | None = field(default=None, init=False)
    _parent_ood_logits: np.ndarray | None = field(default=None, init=False)

    @property
    def folder(self) -> Path:
        return self.args.folder

    @property
    def first_steps(self) -> tuple[FoundStep | None, FoundStep | None]:
        """What came before the first generation: statistics and head."""
        return self.statistics, self.warm_start

    def measure_parent(self, evolution: Evolution) -> None:
        """Scores the parent on the test images and copies what is needed of it later."""
        images, evaluator = self.images, evolution.evaluator
        self.parent_zero_share = zero_share(evolution.mutation.parameters)
        if images.test is not None:
            self.parent_score = evaluator.score_model(images.test)
            self.drawn_before = self._drawn(evolution)
            if images.ood is not None:
                self._parent_ood_logits = evaluator.logits(images.ood.test)
        if self.args.save_children:
            self.first_parent = self.parent.copy(self.processing_class, self.folder, self.args.should_save)

    def collect(self, evolution: Evolution) -> None:
        """Builds the front, the ensemble and the deltas that the arguments ask for."""
        args, test = self.args, self.images.test
        if isinstance(evolution, ParetoEvolution):
            size = args.ensemble_size if args.ensemble_selection == "front" else 0
            self.front = run_front(evolution, test, size)
        if not args.ensemble_size and not args.save_children:
            return
        if evolution.last is None:
            logger.warning("No generation was run, so there are no children for an ensemble or deltas.")
            return
        self.artifacts = collect_artifacts(evolution, args, test, self.first_parent, self.front, self.task)

    def measure_evolved(self, evolution: Evolution) -> None:
        """Scores the evolved model on the test images."""
        images, evaluator = self.images, evolution.evaluator
        if images.test is None or self.parent_score is None:
            return
        self.test = test = TestScores(images.test, self.parent_score, evaluator.score_model(images.test))
        self.drawn_after = self._drawn(evolution)
        if images.ood is not None and self._parent_ood_logits is not None:
            self.ood = {"images": images.ood.sizes} | compare_auroc(
                (test.parent, self._parent_ood_logits), (test.evolved, evaluator.logits(images.ood.test))
            )

    def _drawn(self, evolution: Evolution) -> Predictions | None:
        if not self.args.should_save or self.images.test is None:
            return None
        return predictions(evolution.evaluator, self.task, self.images.test, self.processing_class)
