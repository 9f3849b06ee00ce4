"""The head of each class for semantic segmentation is found, and its features are what the logits are linear in."""

import numpy as np
import pytest
import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES

from smd_hf import SMDError
from smd_hf.data.batches import ImageBatches
from smd_hf.data.masks import MaskCollator
from smd_hf.models.pixel_head import PixelHeadInputs
from smd_hf.scoring.evaluator import Evaluator
from smd_hf.search.head import features
from smd_hf.search.head.features import features_of
from smd_hf.search.head.linear import LinearHead
from smd_hf.tasks.segmentation import PIXELS, SemanticSegmentation
from tests.tasks.segmenter import CLASSES, make_rows
from tests.tasks.test_segmentation_architectures import CONFIGS, SIZE


def make_model(model_type):
    torch.manual_seed(0)
    config = transformers.CONFIG_MAPPING[model_type](**CONFIGS[model_type], num_labels=CLASSES)
    return getattr(transformers, MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES[model_type])(config).eval()


def evaluator_and_batches(model, rows=5):
    processor = transformers.SegformerImageProcessor(size={"height": SIZE, "width": SIZE}, do_reduce_labels=False)
    collator = MaskCollator(processor, "image", "annotation", classes=CLASSES)
    task = SemanticSegmentation()
    task.configure(model, None)
    batches = ImageBatches(make_rows(rows), collator, 2, keep_labels=False)
    return Evaluator(model, torch.device("cpu"), reading=task), batches


# The others are like one of these: a convolution alone, resized, and resized with aligned corners; a linear layer over the last dimension.
FAST = ("segformer", "upernet", "dpt", "tipsv2_dpt")


@pytest.mark.parametrize(
    "model_type", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS]
)
def test_logits_of_pixels_are_linear_in_the_features(model_type, monkeypatch):
    model = make_model(model_type)
    evaluator, batches = evaluator_and_batches(model)
    head = PixelHeadInputs(model, evaluator.inputs(batches.first_batch()))
    found, labels = features_of(evaluator, head, batches)
    width = head.layer.weight.shape[1]
    assert found.shape == (5, PIXELS, width) and labels.shape == (5, PIXELS) and found.dtype == np.float32
    logits = LinearHead(*head.numbers()).logits(found.reshape(-1, width)).reshape(5, PIXELS, CLASSES)
    seen = {batch.number: batch for group in batches.groups() for batch in group}
    for number, batch in seen.items():
        with torch.inference_mode():
            expected = evaluator.reading.sampled(model(**evaluator.inputs(batch)).logits, batch)
        rows = slice(2 * number, 2 * number + len(batch))
        torch.testing.assert_close(torch.from_numpy(logits[rows]), expected, rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(labels[rows], evaluator.reading.sampled_labels(batch).numpy())

    # Where there are many images, fewer pixels of each are read: the first ones.
    monkeypatch.setattr(features, "MAX_NUMBERS", 5 * width * 7)
    fewer, _ = features_of(evaluator, head, batches)
    np.testing.assert_array_equal(fewer, found[:, :7])


def test_logits_that_no_layer_makes_are_an_error():
    model = make_model("segformer")
    model.decode_head.register_forward_hook(lambda layer, args, output: output.relu())
    evaluator, batches = evaluator_and_batches(model)
    with pytest.raises(
        SMDError, match="cannot be fitted on features: its logits are not those of one convolution of size 1"
    ):
        PixelHeadInputs(model, evaluator.inputs(batches.first_batch()))
