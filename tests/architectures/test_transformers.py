"""Every class that `AutoModelForImageClassification` maps, as a tiny random model, through a whole run."""

import pytest
import torch
import transformers

from tests.architectures.configs import all_classes, image_processor, image_size, small_config
from tests.architectures.steps import enliven, go_through, recorded

REFUSED: dict[str, str] = {}
"""From class to a part of the message with which it is refused before anything is scored."""


@pytest.mark.slow
@pytest.mark.parametrize(("model_type", "class_name"), all_classes(), ids=lambda each: each)
def test_transformers_class(model_type, class_name, tmp_path, fresh):
    with recorded(class_name, REFUSED):
        checkpoint = tmp_path / "checkpoint"
        torch.manual_seed(0)
        model = getattr(transformers, class_name)(small_config(model_type, class_name)).eval()
        enliven(model, image_size(model_type))
        model.save_pretrained(checkpoint)
        processor = image_processor(model_type)
        if processor is not None:
            processor.save_pretrained(checkpoint)
        go_through(checkpoint, tmp_path / "run", fresh, image_size(model_type))
