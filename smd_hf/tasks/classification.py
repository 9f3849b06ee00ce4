"""Image classification: one class an image."""

from typing import Any

from ..arguments.evolution_arguments import EvolutionArguments
from ..data.preparation import PreparedData, check_problem_type, prepare_data
from ..errors import SMDError
from ..metrics.classification import check_scorers
from ..metrics.comparison import CLASSIFICATION_METRICS
from ..models.tasks import CLASSIFIER
from ..scoring.reading import ReadsClasses
from .protocol import GivenData


class ImageClassification(ReadsClasses):
    """
    Scores are negative log-likelihood, accuracy, and any metric of logits and labels. Labels are matched to the model's by
    name, and a head for other labels is fitted.
    """

    kind = CLASSIFIER
    metrics = CLASSIFICATION_METRICS

    def configure(self, model: Any, args: EvolutionArguments) -> None:
        if getattr(args, "label_columns", None):
            raise SMDError(
                "label_columns is for multi-label classification, and the model has one label an image (config.problem_type is "
                f"{getattr(model.config, 'problem_type', None)!r}). Name the one column of labels with label_column_name, or choose a model "
                "whose config.problem_type is 'multi_label_classification'."
            )

    def prepare(self, model: Any, args: EvolutionArguments, given: GivenData) -> PreparedData:
        sets = (given.train_dataset, given.eval_dataset, given.data_collator)
        data = prepare_data(model, args, given.processing_class, *sets, given.missing_head, given.otherwise)
        check_problem_type(model, data.new_labels)
        check_scorers(args, len(data.new_labels or ()) or model.config.num_labels or 0, given.has_own_metrics)
        return data
