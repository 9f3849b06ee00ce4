"""Multi-label classification: any number of labels an image."""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from ..arguments.evolution_arguments import EvolutionArguments
from ..data.label_sets import LABEL_SET_COLUMNS, LabelSetCollator, declared_names, model_classes
from ..data.preparation import PreparedData
from ..data.rows import find_column, find_image_column
from ..errors import SMDError
from ..metrics.multi_label import METRICS, MultiLabelMeasure, label_sums
from ..models.inputs import input_names
from ..models.linear_head import HeadInputs
from ..models.load import num_channels
from ..models.tasks import CLASSIFIER
from ..remote_code.members_smd_ensemble import logits_of
from ..scoring.reading import SamplesAll
from ..scoring.scores import Cell, Score
from .common import check_rows
from .protocol import GivenData, Loss

PROBLEM_TYPE = "multi_label_classification"


class MultiLabelClassification(SamplesAll):
    """
    Image classifiers whose `config.problem_type` says that each label is there or not. Scores are binary cross-entropy, F1 and
    mean average precision.

    Predictions are logits of shape `(batch, labels)`, labels 0 and 1 of the same shape.
    """

    kind = CLASSIFIER
    title = "multi-label classification"
    metrics = METRICS
    keeps_labels = False
    keeps_predictions = True
    head_inputs = HeadInputs

    def configure(self, model: Any, args: EvolutionArguments) -> None:
        pass

    def prepare(self, model: Any, args: EvolutionArguments, given: GivenData) -> PreparedData:
        splits = check_rows(given, self.kind, needs_processor=given.data_collator is None)
        if given.missing_head:
            raise SMDError(
                f"The checkpoint has no trained classifier ({', '.join(given.missing_head)}), and one for several labels an image is not "
                "fitted. Choose a checkpoint that was trained for multi-label classification."
            )
        of_model = [model.config.id2label[place] for place in range(model.config.num_labels)]
        reference = next(iter(splits.values()))
        if given.data_collator is not None:
            _check_targets(given.data_collator, reference, len(of_model))
            return PreparedData(given.data_collator, None, None, given.eval_dataset, None)
        image = find_image_column(reference, args.image_column_name)
        if args.label_columns:
            columns = [find_column(reference, "label", name, ()) for name in args.label_columns]
            twice = next((name for name in columns if columns.count(name) > 1), None)
            if twice is not None:
                raise SMDError(f"label_columns names {twice!r} twice. Name each column once.")
            classes = model_classes(columns, of_model, "label_columns:")
        else:
            columns = [find_column(reference, "label", args.label_column_name, LABEL_SET_COLUMNS)]
            declared = {what: declared_names(split, columns[0]) for what, split in splits.items()}
            names = declared[next(iter(splits))]
            other = next((what for what, each in declared.items() if each != names), None)
            if other is not None:
                raise SMDError(
                    f"The labels of {other} have other names, or another order of them, than those of {next(iter(splits))}. Give both the "
                    "same ClassLabel feature."
                )
            classes = None if names is None else model_classes(names, of_model, "The data set's labels")
        collator = LabelSetCollator(
            given.processing_class,
            image,
            names=of_model,
            columns=columns,
            classes=classes,
            are_columns=bool(args.label_columns),
            channels=num_channels(model),
            input_names=input_names(model),
        )
        return PreparedData(collator, image, None, given.eval_dataset, None, check_row=collator.problem)

    # ---- Reading of outputs ------------------------------------------------------------------------------------------

    def prediction(self, output: Any) -> torch.Tensor:
        return logits_of(output)

    def width(self, model: Any) -> int:
        return model.config.num_labels

    def cell(self, prediction: torch.Tensor, labels: torch.Tensor, keep: bool) -> Cell:
        logits = prediction.cpu().float()
        sums = label_sums(logits, labels)
        kept = logits.numpy() if keep else None
        return Cell(None, float(sums[:, 0].sum()), bool(torch.isfinite(logits).all()), kept, sums)

    def flipped(self, parent: torch.Tensor, child: torch.Tensor) -> torch.Tensor:
        return ((parent > 0) != (child > 0)).double().mean(-1)

    # ---- Loss and metrics --------------------------------------------------------------------------------------------

    def loss(self, args: EvolutionArguments) -> Loss:
        smoothing = args.label_smoothing_factor

        def binary_cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            """The mean over the labels of each image, summed over images."""
            smooth = targets.to(logits.dtype) * (1 - smoothing) + smoothing / 2
            return F.binary_cross_entropy_with_logits(logits, smooth, reduction="none").mean(-1).sum()

        return binary_cross_entropy

    def head_loss(self, args: EvolutionArguments) -> Loss:
        """What a fit of the head lowers: the sum over the labels of each image, a logistic regression for each label."""
        mean = self.loss(args)
        return lambda logits, targets: logits.shape[-1] * mean(logits, targets)

    def measured(self, score: Score) -> MultiLabelMeasure:
        return MultiLabelMeasure(score.sums, score.logits)


def is_multi_label(config: Any) -> bool:
    """Whether a configuration, or the content of a config.json, says that each label is there or not."""
    found = config.get("problem_type") if isinstance(config, dict) else getattr(config, "problem_type", None)
    return found == PROBLEM_TYPE


def _check_targets(collator: Callable, dataset: Any, num_labels: int) -> None:
    """Collates the first row, and refuses labels that are not one number a label."""
    labels = collator([dataset[0]]).get("labels")
    found = (
        f"{labels.dtype} of shape {tuple(labels.shape)}" if isinstance(labels, torch.Tensor) else repr(type(labels))
    )
    if not isinstance(labels, torch.Tensor) or not labels.is_floating_point() or labels.shape != (1, num_labels):
        raise SMDError(
            f"From the first row, the data_collator makes labels of type {found}; the model is for multi-label classification. Expected "
            f"a float tensor of shape (images, {num_labels}): 1 for each label that an image has, and 0 for the others."
        )
