"""Image feature extraction: a backbone whose features are near to each other where labels are equal."""

from collections import Counter
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from transformers.utils import logging

from ..arguments.evolution_arguments import EvolutionArguments
from ..data.labelled import LabelledCollator, labels_of, names_of
from ..data.preparation import PreparedData
from ..data.rows import find_columns
from ..errors import SMDError
from ..messages import one_line
from ..metrics.retrieval import METRICS, NEIGHBOURS, RetrievalMeasure
from ..models.inputs import input_names
from ..models.load import num_channels
from ..models.tasks import KINDS
from ..scoring.reading import SamplesAll
from ..scoring.scores import Cell, Score
from .common import check_rows, leave_gauss_newton_out
from .protocol import GivenData, Loss

logger = logging.get_logger(__name__)

POOLER, FIRST, MEAN = "pooler_output", "first", "mean"
_WORDS = {
    POOLER: "the model's pooler_output",
    FIRST: "the first token of the model's last_hidden_state",
    MEAN: "the mean of the model's last_hidden_state over the image",
}


class ImageFeatureExtraction(SamplesAll):
    """
    Scores are recall@k and nearest-neighbour accuracy of features, among the images of a split.

    Predictions are features of shape `(batch, width)`, labels are numbers of shape `(batch,)`.
    """

    kind = KINDS["image-feature-extraction"]
    metrics = METRICS
    keeps_labels, keeps_predictions = False, True
    taken = POOLER
    size = 0

    def configure(self, model: Any, args: EvolutionArguments) -> None:
        self.first = any("cls_token" in name for name, _ in model.named_parameters())
        if args is None or not hasattr(args, "recombination"):
            return
        leave_gauss_newton_out(args, self)
        if getattr(model.config, "mask_ratio", None):
            logger.warning(
                f"mask_ratio is set to 0 (it was {model.config.mask_ratio:g}), also in the saved config.json: features of a model that "
                "hides a random part of each image differ from run to run."
            )
            model.config.mask_ratio = 0.0

    @property
    def notes(self) -> tuple[str, ...]:
        return (
            f"Features are {_WORDS[self.taken]}. Each test image was looked up among the other test images by cosine similarity; "
            f"nearest-neighbour accuracy is that of the {NEIGHBOURS} nearest images' weighted votes.",
        )

    def prepare(self, model: Any, args: EvolutionArguments, given: GivenData) -> PreparedData:
        splits = check_rows(given, self.kind, needs_processor=given.data_collator is None)
        reference = next(iter(splits.values()))
        if given.data_collator is not None:
            collator = given.data_collator
            data = PreparedData(collator, None, None, given.eval_dataset, None)
        else:
            image, label = find_columns(reference, args.image_column_name, args.label_column_name)
            for what, split in splits.items():
                _check_pairs(labels_of(split, label), label, what)
            collator = LabelledCollator(
                given.processing_class,
                image,
                label,
                names=names_of(splits.values(), label),
                channels=num_channels(model),
                input_names=input_names(model),
                noise=_patches(model),
            )
            data = PreparedData(collator, image, None, given.eval_dataset, None, check_row=collator.problem)
        self._look_at(model, collator, reference, bool(given.missing_head))
        return data

    def _look_at(self, model: Any, collator: Any, dataset: Any, lacks_pooler: bool) -> None:
        """Finds out what features the model makes, from one image that can be read."""
        for row in range(len(dataset)):
            try:
                batch = collator([dataset[row]])
                break
            except (SMDError, TypeError, ValueError, KeyError):  # reported with its index, when rows are checked
                continue
        else:
            return
        inputs = {name: value.to(model.device) for name, value in batch.items() if name != "labels"}
        model.eval()
        with torch.no_grad():
            output = model(**inputs)
        pooled = getattr(output, "pooler_output", None)
        hidden = getattr(output, "last_hidden_state", None)
        if pooled is None and hidden is None:
            raise SMDError(
                f"The model ({type(model).__name__}) returns {one_line(', '.join(getattr(output, 'keys', list)()))}, and neither "
                "pooler_output nor last_hidden_state. Choose a backbone of images, such as DINOv2, ViT or ConvNeXt."
            )
        if pooled is not None and not lacks_pooler:
            self.taken = POOLER
        else:
            self.taken = FIRST if self.first and hidden is not None and hidden.ndim == 3 else MEAN
        self.size = self.prediction(output).shape[1]

    # ---- Reading of outputs ------------------------------------------------------------------------------------------

    def prediction(self, output: Any) -> torch.Tensor:
        if self.taken == POOLER:
            return output.pooler_output.flatten(1)
        hidden = output.last_hidden_state
        if self.taken == FIRST:
            return hidden[:, 0]
        # Tokens come before channels, and places of a map after them.
        return hidden.mean(1) if hidden.ndim == 3 else hidden.flatten(2).mean(-1)

    def width(self, model: Any) -> int:
        return self.size

    def cell(self, prediction: torch.Tensor, labels: torch.Tensor, keep: bool) -> Cell:
        features = prediction.cpu().float()
        sums = labels.cpu().double().numpy()[:, None]
        return Cell(None, 0.0, bool(torch.isfinite(features).all()), features.numpy() if keep else None, sums)

    def flipped(self, parent: torch.Tensor, child: torch.Tensor) -> torch.Tensor:
        """How far an image's feature moves on the unit sphere, as a share of its diameter."""
        first, second = (F.normalize(each.float(), dim=-1) for each in (parent, child))
        return (first - second).double().norm(dim=-1) / 2

    # ---- Loss and metrics --------------------------------------------------------------------------------------------

    def loss(self, args: EvolutionArguments) -> Loss:
        raise SMDError(
            "recombination='gauss_newton' takes a step by the slope and curvature of a loss that adds up over images, and features have "
            "none: whether an image's neighbours have its label depends on the features of all images, and on their order alone. "
            "Choose recombination='top_k_sum', 'best', 'top_k_mean' or 'greedy_soup'."
        )

    def measured(self, score: Score) -> RetrievalMeasure:
        return RetrievalMeasure(score.logits, np.asarray(score.sums)[:, 0])


def _patches(model: Any) -> int | None:
    """The number of patches of a model that masks them in the order of a noise."""
    if "noise" not in (input_names(model) or ()):
        return None
    size, patch = model.config.image_size, model.config.patch_size
    (height, width), (down, right) = (
        each if isinstance(each, (list, tuple)) else (each, each) for each in (size, patch)
    )
    return (height // down) * (width // right)


def _check_pairs(labels: list[Any], column: str, what: str) -> None:
    known = [value for value in labels if isinstance(value, (str, int, np.integer))]
    if known and max(Counter(known).values()) < 2:
        raise SMDError(
            f"No two images of {what} have the same label in the column {column!r} ({len(known):,} images), so no image has a neighbour "
            "that is right. Expected labels that images share, such as a class, a product or a place. Choose the column with "
            "label_column_name."
        )
