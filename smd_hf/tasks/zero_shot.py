"""Zero-shot image classification: classes are texts, which a model compares with images."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..arguments.evolution_arguments import EvolutionArguments
from ..data.class_names import ClassNames
from ..data.labels import label_maps, label_names
from ..data.preparation import PreparedData
from ..data.rows import find_label_column
from ..errors import SMDError
from ..models.members import models_of
from ..models.tasks import KINDS
from ..models.two_towers import TEXT_PARAMETERS, compare_with_texts, tokenized
from .classification import ImageClassification
from .common import check_rows, leave_ensemble_out, leave_head_alone, refuse
from .protocol import GivenData

DEFAULT_TEMPLATE = "This is a photo of {}."
"""As in transformers' pipeline."""


class ZeroShotImageClassification(ImageClassification):
    """
    Classification among candidate labels, by a model with an image and a text tower. The texts are encoded once, and only what
    images pass through evolves. Scores are those of image classification, by softmax over the candidate labels.
    """

    kind = KINDS["zero-shot-image-classification"]
    title = kind.pipeline_tag
    template = DEFAULT_TEMPLATE
    head_inputs = None

    def configure(self, model: Any, args: Any) -> None:
        super().configure(model, args)
        if not isinstance(args, EvolutionArguments):
            return
        given = {
            "save_children": bool(args.save_children),
            "head_init": args.head_init not in (None, "keep"),
        }
        refuse(given, "classifiers with a head", self)
        if "siglip" in model.config.model_type:
            leave_ensemble_out(
                args, model, "transformers' pipeline pads texts by the type of the model, which an ensemble's is not"
            )
        leave_head_alone(args, self)
        # The texts are encoded once, so a change of these weights would show in no score.
        if TEXT_PARAMETERS not in (args.frozen_parameters or []):
            args.frozen_parameters = [*(args.frozen_parameters or []), TEXT_PARAMETERS]

    def prepare(self, model: Any, args: EvolutionArguments, given: GivenData) -> PreparedData:
        splits = check_rows(given, self.kind)
        images = self.compare(model, args, given.processing_class, next(iter(splits.values())))
        return super().prepare(model, args, replace(given, processing_class=images, missing_head=()))

    def compare(self, model: Any, args: Any, processing_class: Any, dataset: Any) -> Any:
        """
        Turns the model into a classifier among the candidate labels, in place.

        Args:
            args: has `candidate_labels`, `hypothesis_template` and `label_column_name`.
            processing_class: has an `image_processor` and a `tokenizer`.
            dataset: whose labels are the candidates if neither the arguments nor the model name any.

        Returns:
            The image processor.

        Raises:
            `SMDError`: for candidates that cannot be told apart, or a template without a place for them.
        """
        images, tokenizer = (getattr(processing_class, name, None) for name in ("image_processor", "tokenizer"))
        if images is None or tokenizer is None:
            raise SMDError(
                f"The processing_class ({type(processing_class).__name__}) has no {'image_processor' if images is None else 'tokenizer'}; "
                "a zero-shot model needs both. Pass processing_class=AutoProcessor.from_pretrained(...), or give the model by name."
            )
        labels = list(args.candidate_labels or _named(model) or _of_data(dataset, args.label_column_name))
        self.template = args.hypothesis_template or DEFAULT_TEMPLATE
        texts = check_candidates(labels, self.template)
        for each in models_of(model):
            compare_with_texts(each, tokenized(each, tokenizer, texts))
        model.config.id2label, model.config.label2id = label_maps(labels)
        return images


def check_candidates(labels: Sequence[str], template: str) -> list[str]:
    """
    The texts of candidate labels.

    Raises:
        `SMDError`: for fewer than two labels, a label that is empty or given twice, or a template without `{}`.
    """
    if len(labels) < 2:
        raise SMDError(f"candidate_labels has {len(labels)} label; expected at least two to choose from.")
    if not all(isinstance(label, str) and label.strip() for label in labels):
        raise SMDError(
            f"candidate_labels holds {next(label for label in labels if not (isinstance(label, str) and label.strip()))!r}; expected texts that are not empty."
        )
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        raise SMDError(
            f"candidate_labels names {twice!r} twice. Name each label once: their probabilities add up to 1."
        )
    try:
        texts = [template.format(label) for label in labels]
    except (IndexError, KeyError, ValueError):
        texts = []
    if len(set(texts)) < len(labels):
        raise SMDError(
            f"hypothesis_template is {template!r}; expected a text with {{}} where the label goes, such as {DEFAULT_TEMPLATE!r}."
        )
    return texts


def _named(model: Any) -> list[str] | None:
    """The candidate labels of the run that the model comes from."""
    names = ClassNames.of(model.config.id2label or {})
    return None if names.are_generic else list(names.names)


def _of_data(dataset: Any, label_column_name: str | None) -> list[str]:
    names = label_names(dataset, find_label_column(dataset, label_column_name))
    if names is None:
        raise SMDError(
            "There are no candidate_labels, and the data set's labels are numbers without names. Give candidate_labels: a text for "
            "each number, in their order."
        )
    return names
