"""Image classification that adapts to images without labels."""

from dataclasses import replace
from typing import Any

import torch

from ..arguments.evolution_arguments import EvolutionArguments
from ..data.ood_images import unlabelled_collator
from ..data.preparation import PreparedData, check_not_empty, check_problem_type
from ..data.rows import ImageCollator, find_image_column
from ..errors import SMDError
from ..models.inputs import input_names
from ..models.load import num_channels
from ..scoring.scores import Cell
from .classification import ImageClassification
from .protocol import GivenData

NO_LABEL = -1


class UnlabeledClassification(ImageClassification):
    """
    Scores of images without labels are the entropies of their predictions, as the loss. Test images have labels, and are scored as in
    image classification.
    """

    head_inputs = None

    def prepare(self, model: Any, args: EvolutionArguments, given: GivenData) -> PreparedData:
        if given.missing_head:
            raise SMDError(
                f"The checkpoint has no trained classifier ({', '.join(given.missing_head)}), and images without labels do not train "
                "one. Give labels (without unlabeled), or a checkpoint with a trained classifier."
            )
        train = given.train_dataset
        if train is not None:
            check_not_empty(train, "train_dataset")
        data = self._prepared(model, args, given)
        if data.new_labels is not None:
            raise SMDError(
                "No label of eval_dataset is a class of the model, so that a new head would be needed, and images without labels do not "
                "train one. Give test images of the model's classes, name these with label_map, or leave eval_dataset out."
            )
        if train is None:
            return data
        collator, column = unlabelled_collator(data.collator, train, data.image_column, NO_LABEL)
        if column != data.image_column:
            raise SMDError(
                f"The images are in the column {column!r} of train_dataset, and {data.image_column!r} of eval_dataset. Rename one."
            )
        return replace(data, train_collator=collator)

    def _prepared(self, model: Any, args: EvolutionArguments, given: GivenData) -> PreparedData:
        """The test data as in image classification; without them, a collator of images alone."""
        reads_rows = given.data_collator is not None or given.processing_class is None
        if given.eval_dataset is not None or given.train_dataset is None or reads_rows:
            return super().prepare(model, args, replace(given, train_dataset=None))
        check_problem_type(model)
        column = find_image_column(given.train_dataset, args.image_column_name)
        collator = ImageCollator(
            given.processing_class, column, channels=num_channels(model), input_names=input_names(model)
        )
        return PreparedData(collator, column, None, None, None)

    def cell(self, prediction: torch.Tensor, labels: torch.Tensor, keep: bool) -> Cell:
        if int(labels[0]) != NO_LABEL:
            return super().cell(prediction, labels, keep)
        logits = prediction.cpu()
        entropy = torch.special.entr(logits.double().softmax(-1)).sum(-1)
        return Cell(
            None,
            float(entropy.sum()),
            bool(torch.isfinite(logits).all()),
            logits.float().numpy() if keep else None,
            entropy[:, None].numpy(),
        )
