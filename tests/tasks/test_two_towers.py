"""Models of two towers as classifiers of images among texts: logits of the whole model, for every architecture."""

import inspect

import pytest
import torch
from transformers import CLIPModel
from transformers.models.auto.modeling_auto import MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES as MAPPING

from smd_hf.errors import SMDError
from smd_hf.models.inputs import input_names, noise_inputs
from smd_hf.models.two_towers import compare_with_texts, tokenized

from .two_towers import SETTINGS, make, tokenizer

TEXTS = ["this is a photo of cat .", "red dog", "blue"]
REFUSED = {
    "Blip2ForImageTextRetrieval": "images and texts meet in one transformer",
    "VideoPrismClipModel": "takes videos",
}


def test_every_architecture_of_the_pipeline_is_tried_or_refused_with_a_reason():
    assert set(MAPPING.values()) == SETTINGS.keys() | REFUSED.keys()


@pytest.mark.parametrize("architecture", SETTINGS)
def test_logits_are_those_of_the_whole_model(architecture):
    model = make(architecture)
    images, inputs = noise_inputs(model), tokenized(model, tokenizer(), TEXTS)
    with torch.no_grad():
        expected = model(**images, **inputs).logits_per_image
        compare_with_texts(model, inputs)
        found = model(**images).logits
        assert torch.equal(found, expected) and found.std() > 0
        # With texts of its own, and after other candidates, it is the model that it was.
        others = tokenized(model, tokenizer(), TEXTS[::-1])
        assert torch.equal(model(**images, **others).logits_per_image, expected.flip(-1))
        compare_with_texts(model, others)
        assert torch.equal(model(**images).logits, expected.flip(-1))
    assert not any("candidate" in name for name in model.state_dict())
    assert {"pixel_values"} <= input_names(model) and not {"input_ids", "attention_mask"} & input_names(model)


def test_texts_are_encoded_once():
    model = make()
    compare_with_texts(model, tokenized(model, tokenizer(), TEXTS))
    with torch.no_grad():
        before = model(**noise_inputs(model)).logits
        for parameter in model.text_model.parameters():
            parameter.zero_()
        assert torch.equal(model(**noise_inputs(model)).logits, before)
    assert type(model) is CLIPModel and "input_ids" in inspect.signature(type(model).forward).parameters


def test_a_model_without_a_text_tower_is_refused():
    with pytest.raises(SMDError, match="A Linear has no text tower of its own"):
        compare_with_texts(torch.nn.Linear(1, 1), {})
