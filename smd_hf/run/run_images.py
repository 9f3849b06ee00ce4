"""The images of a run: three disjoint sets to score children, to choose and to report on; and out-of-distribution images."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from ..arguments.evolution_arguments import EvolutionArguments
from ..data.batches import ImageBatches
from ..data.fitness_samples import FreshSamples, split_indices
from ..data.image_checks import check_images
from ..data.ood_images import OODImages, ood_collator, ood_images
from ..data.pixels import codec_for
from ..data.preparation import PreparedData
from ..data.reading import spare_threads
from ..errors import SMDError
from ..models.inputs import input_names
from ..parallel.processes import Processes


@dataclass(frozen=True)
class BatchMaker:
    """
    Makes batches of a data set as the arguments say.

    Args:
        args ([`EvolutionArguments`]): batch size, caches, and how images are read.
        model ([`~transformers.PreTrainedModel`]): decides which columns of the collator are inputs.
        keep_labels (`bool`, *optional*, defaults to `True`): as for [`ImageBatches`].
    """

    args: EvolutionArguments
    model: PreTrainedModel
    collator: Callable[[list[Any]], dict[str, torch.Tensor]]
    processing_class: Any | None
    device: torch.device
    keep_labels: bool = True

    def __call__(
        self,
        dataset: Any,
        rows: np.ndarray | None = None,
        cache_share: float = 0.0,
        collator: Callable | None = None,
        weights: np.ndarray | None = None,
    ) -> ImageBatches:
        """
        Batches of some rows.

        Args:
            dataset: map-style.
            rows (`numpy.ndarray`, *optional*): which rows, in this order. Defaults to all.
            cache_share (`float`, *optional*, defaults to 0): the share of `image_cache_gb` that these batches may use.
            weights (`numpy.ndarray`, *optional*): as for [`ImageBatches`].
        """
        args = self.args
        return ImageBatches(
            dataset,
            collator or self.collator,
            args.eval_batch_size,
            rows,
            cache_bytes=int(cache_share * args.image_cache_gb * 1e9),
            num_workers=args.dataloader_num_workers,
            codec=codec_for(self.processing_class),
            device=self.device if args.image_cache_on_device else None,
            pin_memory=self.device.type == "cuda" and args.dataloader_pin_memory,
            input_names=input_names(self.model),
            prefetch_factor=args.dataloader_prefetch_factor,
            threads=args.reading_threads,
            spare=spare_threads(self.device),
            keep_labels=self.keep_labels,
            weights=weights,
        )


class RunImages:
    """
    The images of a run.

    Args:
        args ([`EvolutionArguments`]): how the training images are split, and the seed.
        data ([`PreparedData`]): the image column, labels to split by, and the test data. Of several data sets in a dict, the
            first is tested on.
        train_dataset (*optional*): the images to score children and to choose with.
        left_out (`dict[str, int]`, *optional*): how many unreadable rows of each data set were left out.

    Attributes:
        selection ([`ImageBatches`], *optional*): choose among candidates. `None` if the fitness images choose.
        test ([`ImageBatches`], *optional*): reported on, never used to choose.
        ood ([`OODImages`], *optional*): the parts of `ood_dataset`.
        fresh ([`FreshSamples`], *optional*): the fitness images of each generation, if it does not use all of them.

    Raises:
        `SMDError`: if a set would be empty.
    """

    def __init__(
        self,
        args: EvolutionArguments,
        make_batches: BatchMaker,
        data: PreparedData,
        train_dataset: Any | None = None,
        ood_dataset: Any | None = None,
        left_out: dict[str, int] | None = None,
    ):
        self.args = args
        self.make_batches = make_batches
        self.train_dataset: Any = train_dataset
        self.test_dataset = first_of(data.eval_dataset)
        self.ood_dataset: Any = ood_dataset
        self.left_out = left_out
        self.image_column = data.image_column
        self.ood_image_column: str | None = None
        self.train_classes = data.train_classes
        self.check_row = data.check_row
        self.train_collator = data.train_collator or make_batches.collator
        self.selection: ImageBatches | None = None
        self.ood: OODImages | None = None
        self.fresh: FreshSamples | None = None
        self._fitness: ImageBatches | None = None
        # Read once for the parent and once for the evolved model: not worth keeping in memory.
        self.test = None if self.test_dataset is None else make_batches(self.test_dataset)
        if train_dataset is not None:
            self._split(data.train_labels)
            if ood_dataset is not None:
                self._split_ood()

    @property
    def fitness(self) -> ImageBatches:
        """
        The images that score children. Each prefix of their order has balanced classes.

        Raises:
            `SMDError`: if there is no `train_dataset`.
        """
        if self._fitness is None:
            raise SMDError("There is no train_dataset to score children on. Pass one to EvolutionTrainer.")
        return self._fitness

    def _split(self, labels: np.ndarray | None) -> None:
        size, seed = len(self.train_dataset), self.args.seed
        labels = np.zeros(size, dtype=np.int64) if labels is None else labels
        fraction, samples = self.args.selection_fraction, self.args.fitness_samples_per_generation
        fitness, selection = split_indices(labels, fraction, seed)
        if samples:
            self.fresh = FreshSamples(fitness, labels[fitness], samples, seed)
        self._fitness = self.of_training(fitness, self._fitness_cache_share)
        if fraction > 0:
            self.selection = self.of_training(selection, fraction * self._train_share)

    def of_training(
        self, rows: np.ndarray, cache_share: float = 0.0, weights: np.ndarray | None = None
    ) -> ImageBatches:
        """Batches of these rows of the training data, with this share of the cache."""
        return self.make_batches(self.train_dataset, rows, cache_share, self.train_collator, weights)

    def _split_ood(self) -> None:
        collator, self.ood_image_column = ood_collator(
            self.make_batches.collator, self.ood_dataset, self.args.image_column_name
        )
        self.ood = ood_images(
            self.ood_dataset,
            lambda dataset, rows, share: self.make_batches(dataset, rows, share * (1 - self._train_share), collator),
            selects=self.selection is not None,
            seed=self.args.seed,
        )

    @property
    def _train_share(self) -> float:
        """The share of the cache that is for images of `train_dataset`."""
        others = 0 if self.ood_dataset is None else len(self.ood_dataset)
        return len(self.train_dataset) / (len(self.train_dataset) + others)

    @property
    def _fitness_cache_share(self) -> float:
        # A fresh sample shares it with all fitness images, which calibrate sigma.
        share = (1 - self.args.selection_fraction) / (1 if self.fresh is None else 2)
        return share * self._train_share

    def of_generation(self, generation: int) -> ImageBatches:
        """The fitness images of one generation, counted from 0."""
        if self.fresh is None:
            return self.fitness
        rows, weights = self.fresh.sample(generation)
        return self.of_training(rows, self._fitness_cache_share, weights)

    @property
    def needs_slopes(self) -> bool:
        """Whether the images of a generation are to be drawn by importance, and are not all of them."""
        some = self.fresh is not None and self.fresh.size < self.fitness.num_images
        return some and self.args.fitness_sampling == "importance"

    def draw_by_importance(self, slopes: np.ndarray) -> None:
        """From now on, generations see an image the more often, the steeper its loss is."""
        assert self.fresh is not None
        self.fresh = self.fresh.by_importance(slopes)

    @property
    def per_generation(self) -> int:
        """The number of fitness images of each generation."""
        return self.fitness.num_images if self.fresh is None else self.fresh.size

    @property
    def per_candidate(self) -> int:
        """The number of images that each candidate is scored on."""
        return self.per_generation if self.selection is None else self.selection.num_images

    def check(self, processes: Processes) -> None:
        """
        Decodes all images once, so that a damaged one is found before anything is scored. All processes must call it.

        Raises:
            `SMDError`: for the first image that cannot be read. With `on_bad_images="skip"`, such rows are left out already.
        """
        if self.args.on_bad_images != "raise":
            return
        for what, dataset, column in (
            ("train_dataset", self.train_dataset, self.image_column),
            ("eval_dataset", self.test_dataset, self.image_column),
            ("ood_dataset", self.ood_dataset, self.ood_image_column),
        ):
            if dataset is not None and column is not None:
                check_images(
                    dataset,
                    column,
                    what=what,
                    processes=processes,
                    progress=not self.args.disable_tqdm,
                    check_row=None if what == "ood_dataset" else self.check_row,
                )

    def classes_present(self) -> np.ndarray | None:
        """
        The model's classes of the training images, sorted; of some of them, if only a collator knows the labels. `None` if these have
        no labels.
        """
        if self.args.unlabeled:
            return None
        if self.train_classes is not None:
            return self.train_classes
        # With fresh samples, most images were never read, and would be read only for their labels.
        parts = [self.selection, None if self.fresh is not None else self.fitness]
        return np.unique(np.concatenate([[], *(part.labels for part in parts if part is not None)]).astype(np.int64))


def first_of(eval_dataset: Any) -> Any | None:
    """The data set that is reported on: the first, if there are several in a dict."""
    return next(iter(eval_dataset.values()), None) if isinstance(eval_dataset, dict) else eval_dataset
