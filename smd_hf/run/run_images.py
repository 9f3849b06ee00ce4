"""The data side of `EvolutionTrainer`: the three disjoint sets of images, and the head that fits their labels."""

from collections.abc import Callable
from typing import Any

import numpy as np

from ..arguments.evolution_arguments import EvolutionArguments
from ..data.batches import ImageBatches
from ..data.fitness_samples import FreshSamples, split_indices
from ..data.image_checks import check_images
from ..data.ood_images import OODImages, ood_collator, ood_images
from ..data.pixels import codec_for
from ..data.reading import spare_threads
from ..errors import SMDError
from ..models.heads import replace_head
from ..models.inputs import input_names
from ..scoring.bars import TickingBar
from ..scoring.costs import suffix_costs


class DataMixin:
    """
    The data side of an [`EvolutionTrainer`].

    Attributes:
        fitness_batches, selection_batches, test_batches ([`ImageBatches`], *optional*): the images that score children, choose
            among candidates, and are reported on.
        fresh_samples ([`FreshSamples`], *optional*): which of the fitness images each generation is scored on, if not all.
        new_head (`str`, *optional*): how a new head is made, where the parent's is replaced: `"linear_probe"` or `"random"`.
        train_classes (`numpy.ndarray`, *optional*): the model's classes that training images are of, where labels are ours to match.
        ood_dataset (*optional*): out-of-distribution images; `ood` ([`OODImages`]) holds their parts.
    """

    args: EvolutionArguments
    fitness_batches: ImageBatches | None = None
    selection_batches: ImageBatches | None = None
    test_batches: ImageBatches | None = None
    fresh_samples: FreshSamples | None = None
    ood_dataset: Any | None = None
    ood_image_column: str | None = None
    ood: OODImages | None = None
    new_head: str | None = None
    train_classes: np.ndarray | None = None

    def _batches(
        self, dataset: Any, indices: np.ndarray | None, cache_share: float, collator: Callable | None = None
    ) -> ImageBatches:
        return ImageBatches(
            dataset,
            collator or self.data_collator,
            self.args.eval_batch_size,
            indices,
            cache_bytes=int(cache_share * self.args.image_cache_gb * 1e9),
            num_workers=self.args.dataloader_num_workers,
            codec=codec_for(self.processing_class),
            device=self.args.device if self.args.image_cache_on_device else None,
            pin_memory=self.args.device.type == "cuda" and self.args.dataloader_pin_memory,
            input_names=input_names(self.model),
            prefetch_factor=self.args.dataloader_prefetch_factor,
            threads=self.args.reading_threads,
            spare=spare_threads(self.args.device),
        )

    def _split_train_dataset(self, labels: np.ndarray | None) -> None:
        """Fitness and selection images, disjoint and stratified, each in an order whose every prefix is balanced."""
        size, seed = len(self.train_dataset), self.args.seed
        labels = np.zeros(size, dtype=np.int64) if labels is None else labels
        fraction, samples = self.args.selection_fraction, self.args.fitness_samples_per_generation
        fitness, selection = split_indices(labels, fraction, seed)
        if samples is not None:
            self.fresh_samples = FreshSamples(fitness, labels[fitness], samples, seed)
        self.fitness_batches = self._batches(self.train_dataset, fitness, self._fitness_cache_share)
        if fraction > 0:
            self.selection_batches = self._batches(self.train_dataset, selection, fraction * self._inside_share)

    def _deal_out(self, ood_dataset: Any) -> None:
        """The parts of a second data set, of images of another distribution."""
        collator, self.ood_image_column = ood_collator(self.data_collator, ood_dataset, self.args.image_column_name)
        self.ood = ood_images(
            ood_dataset,
            lambda dataset, rows, share: self._batches(dataset, rows, share * (1 - self._inside_share), collator),
            selects=self.selection_batches is not None,
            seed=self.args.seed,
        )

    @property
    def _inside_share(self) -> float:
        """The share of the images, and so of the cache, that is not of another distribution."""
        others = 0 if self.ood_dataset is None else len(self.ood_dataset)
        return len(self.train_dataset) / (len(self.train_dataset) + others)

    @property
    def _fitness_cache_share(self) -> float:
        # Fresh samples share it with all the images, which sigma is calibrated on.
        share = (1 - self.args.selection_fraction) / (1 if self.fresh_samples is None else 2)
        return share * self._inside_share

    @property
    def images_per_generation(self) -> int:
        """How many fitness images each generation is scored on."""
        return self.fitness_batches.num_images if self.fresh_samples is None else self.fresh_samples.size

    def _check_images(self, dataset: Any, column: str | None, what: str) -> None:
        """Finds now what cannot be read; where such rows are skipped, they are out already."""
        if column is not None and self.args.on_bad_images == "raise":
            bar = not self.args.disable_tqdm
            check_images(dataset, column, what=what, processes=self.evaluator.processes, progress=bar)

    def classes_with_images(self) -> np.ndarray:
        """The model's classes that training images are of, sorted; of some of them, where a collator alone knows."""
        if self.train_classes is not None:
            return self.train_classes
        # With fresh samples, most images were never read, and would be for their labels alone.
        parts = [self.selection_batches, None if self.fresh_samples is not None else self.fitness_batches]
        return np.unique(np.concatenate([[], *(part.labels for part in parts if part is not None)]).astype(np.int64))

    @property
    def reported_dataset(self) -> Any | None:
        """The data set that the gain is reported on."""
        if isinstance(self.eval_dataset, dict):
            return next(iter(self.eval_dataset.values()), None)
        return self.eval_dataset

    def _replace_head(self, names: list[str]) -> None:
        if self.new_head == "linear_probe" and self.fitness_batches is None:
            raise SMDError(
                "The head is to be replaced by a linear probe, which needs a train_dataset to be fitted on."
            )
        source = self.fitness_batches or self._batches_to_shape()
        shown = not self.args.disable_tqdm and self.args.process_index == 0
        # The fit that follows the last image counts nothing: only the time goes on.
        with TickingBar(f"Fitting a head for {len(names)} labels", shown, source.num_images) as bar:
            batches = (
                (batch.inputs(self.args.device, self.model.dtype), batch.labels.to(self.args.device))
                for batch in bar.counting(source)
            )
            replace_head(self.model, names, batches, head_init=self.new_head, seed=self.args.seed)

    def _suffix_costs(self) -> list[float]:
        if self.fitness_batches is None:
            raise SMDError(
                "allocation='cost' needs a train_dataset, whose first image shows the size of the model's input."
            )
        [batch] = self.fitness_batches.head(1)
        return suffix_costs(self.model, batch.inputs(self.args.device, self.model.dtype))

    def _batches_to_shape(self) -> ImageBatches:
        return self._batches(self.reported_dataset, np.arange(1), 0.0)
