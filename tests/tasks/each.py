"""A small run of each task, for tests that hold for all of them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smd_hf import EvolutionTrainer
from tests import figures  # noqa: F401
from tests.tasks import backbone, depth, detector, runs, segmenter, tagged, two_towers
from tests.test_trainer import make_dataset


@dataclass(frozen=True)
class Small:
    """A checkpoint, its images, and the arguments of a run that changes the parent."""

    tag: str
    save: Callable[[Path], Path]
    rows: Callable[..., Any]
    options: dict[str, Any] = field(default_factory=dict)

    def trainer(self, folder: Path, checkpoint: Path | str, **options: Any) -> EvolutionTrainer:
        """14 training images, of which 11 score children in batches of 4, and 7 test images."""
        sizes = {"population_size": 5, "num_generations": 2, "per_device_eval_batch_size": 4, "elitism": False}
        data = self.rows(14), self.rows(7, seed=1)
        return runs.make_trainer(checkpoint, folder, data, **sizes | self.options | options)


TASKS = {
    "segmentation": Small(
        "image-segmentation",
        segmenter.save_segmenter,
        segmenter.make_rows,
        {
            "recombination": "gauss_newton",
            "fitness": "mean_iou",
            "sigma": 0.05,
            "warm_start": True,
            "refit_head": True,
        },
    ),
    "detection": Small(
        "object-detection", detector.save_detector, detector.make_rows, {"fitness": "map", "sigma": 0.1}
    ),
    "multi_label": Small(
        "image-classification",
        tagged.save_tiny,
        tagged.make_rows,
        {
            "recombination": "gauss_newton",
            "fitness": "f1_macro",
            "sigma": 0.05,
            "warm_start": True,
            "refit_head": True,
        },
    ),
    "zero_shot": Small(
        "zero-shot-image-classification",
        two_towers.save_two_towers,
        two_towers.make_rows,
        {"recombination": "best", "hypothesis_template": "a {} photo", "sigma": 0.1},
    ),
}
"""Those whose pictures a page shows."""

ALL = TASKS | {
    "detection_head": Small(
        "object-detection",
        detector.save_detector,
        detector.make_rows,
        {"fitness": "map", "sigma": 0.1, "warm_start": True, "refit_head": True},
    ),
    "depth": Small(
        "depth-estimation",
        depth.save_depth_model,
        depth.make_rows,
        {"recombination": "gauss_newton", "sigma": 0.1, "ensemble_size": 2},
    ),
    "features": Small(
        "image-feature-extraction",
        backbone.save_backbone,
        make_dataset,
        {"task": "image-feature-extraction", "sigma": 0.3},
    ),
}
