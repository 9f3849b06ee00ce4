import numpy as np
import torch

from smd_hf.data.batches import ImageBatches
from smd_hf.data.rows import ImageCollator
from smd_hf.models.linear_head import HeadInputs
from smd_hf.scoring.bars import ScoringBar
from smd_hf.scoring.evaluator import Evaluator
from smd_hf.search.head import features
from smd_hf.search.head.features import features_of
from tests.test_trainer import make_dataset
from tests.tiny import tiny_model, tiny_processor


class Steps(ScoringBar):
    """A bar that remembers each of its steps."""

    def __init__(self, description, shown):
        super().__init__(description, shown)
        self.seen = []

    def advance(self, images):
        self.seen.append(images)
        super().advance(images)


def test_features_are_the_same_by_logits_of_unit_weights():
    model = tiny_model("resnet").eval()
    evaluator = Evaluator(model, torch.device("cpu"))
    batches = ImageBatches(make_dataset(60, 1), ImageCollator(tiny_processor(), "image", "label"), 16)
    head = HeadInputs(model, evaluator.inputs(batches.first_batch()))
    expected, labels = features_of(evaluator, head, batches)
    found, same = features._as_logits(evaluator, head, batches)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_array_equal(same, labels)
    for way in (features_of, features._as_logits):
        bar = Steps("Features", shown=False)
        way(evaluator, head, batches, bar)
        assert len(bar.seen) >= 4 and sum(bar.seen) == bar.total
    assert evaluator.images_forwarded == 0 and evaluator.full_passes == 0
