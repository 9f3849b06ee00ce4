"""The class head of each detector is found, and its features are what the logits of its queries are linear in."""

import numpy as np
import pytest
import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES

from smd_hf import SMDError
from smd_hf.data.batches import ImageBatches
from smd_hf.data.boxes import BoxCollator, find_objects
from smd_hf.models.query_head import QueryHeadInputs
from smd_hf.scoring.evaluator import Evaluator
from smd_hf.search.head import features
from smd_hf.search.head.features import features_of
from smd_hf.search.head.linear import LinearHead
from smd_hf.tasks.detection import ObjectDetection
from tests.tasks.detector import NAMES, make_rows
from tests.tasks.test_detection_architectures import CONFIGS, QUERIES, SIZE

ROWS = 5
# A softmax with "no object", and a sigmoid with a number that is added to all logits of a query.
FAST = ("yolos", "d_fine")


def make_model(model_type):
    torch.manual_seed(0)
    config = transformers.CONFIG_MAPPING[model_type](**CONFIGS[model_type], id2label=dict(enumerate(NAMES)))
    model = getattr(transformers, MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES[model_type])(config).eval()
    for name, parameter in model.named_parameters():
        if "reg_conf" in name:  # zeros before they are trained
            torch.nn.init.normal_(parameter)
    return model


def evaluator_and_batches(model):
    processor = transformers.YolosImageProcessor(size={"height": SIZE, "width": SIZE})
    rows = make_rows(ROWS)
    collator = BoxCollator(processor, "image", find_objects(rows, "objects", dict(enumerate(NAMES))))
    task = ObjectDetection()
    task.configure(model, None)
    batches = ImageBatches(rows, collator, 2, keep_labels=False)
    return Evaluator(model, torch.device("cpu"), reading=task), batches


@pytest.mark.parametrize(
    "model_type",
    [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS],
)
def test_logits_of_queries_are_linear_in_the_features(model_type, monkeypatch):
    model = make_model(model_type)
    evaluator, batches = evaluator_and_batches(model)
    head = QueryHeadInputs(model, evaluator.inputs(batches.first_batch()))
    found, objects = features_of(evaluator, head, batches)
    width = head.layer.weight.shape[1]
    assert found.shape == (ROWS, QUERIES, width + 5) and objects.shape == (ROWS, 2, 5) and found.dtype == np.float32
    logits = LinearHead(*head.numbers()).logits(found[..., :-5].reshape(-1, width)).reshape(ROWS, QUERIES, -1)
    assert (np.abs(found[..., -5]).max() > 0.01) == (model_type in ("d_fine", "deimv2"))
    logits += found[..., -5:-4]
    for number, batch in ((batch.number, batch) for group in batches.groups() for batch in group):
        rows = slice(2 * number, 2 * number + len(batch))
        with torch.inference_mode():
            expected = model(**evaluator.inputs(batch))
        torch.testing.assert_close(torch.from_numpy(logits[rows]), expected.logits, rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(found[rows, :, -4:], expected.pred_boxes.numpy())
        assert (objects[rows, : batch.labels.shape[1]] == batch.labels.numpy()).all()
        assert (objects[rows, batch.labels.shape[1] :] == -1).all()

    # Where there are many images, fewer queries of each are read: the most confident ones.
    monkeypatch.setattr(features, "MAX_NUMBERS", ROWS * width * 7)
    fewer, _ = features_of(evaluator, head, batches)
    sure = evaluator.reading.set_loss.confidence(
        torch.cat([torch.from_numpy(logits), torch.zeros(ROWS, QUERIES, 4)], -1)
    )
    for image, kept in enumerate(sure.topk(7, dim=1).indices.sort(dim=1).values):
        np.testing.assert_array_equal(fewer[image], found[image, kept])


def test_logits_that_no_layer_makes_are_an_error():
    model = make_model("yolos")
    model.class_labels_classifier.register_forward_hook(lambda layer, args, output: output.relu())
    evaluator, batches = evaluator_and_batches(model)
    with pytest.raises(SMDError, match="class logits of its queries are not those of one linear layer"):
        QueryHeadInputs(model, evaluator.inputs(batches.first_batch()))
