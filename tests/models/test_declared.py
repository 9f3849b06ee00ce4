"""The task of a checkpoint whose configuration does not name one."""

import json

import pytest
from transformers import DetrConfig, DetrModel, ResNetConfig

from smd_hf import SMDError
from smd_hf.models.load import load_model
from smd_hf.tasks.registry import find_task
from tests.tasks.detector import save_detector


def say(folder, tag, architectures=None):
    """Writes the card of a folder, and takes the architectures out of its config.json or changes them."""
    (folder / "README.md").write_text(f"---\npipeline_tag: {tag}\n---\n# A model\n")
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.pop("architectures")
    path.write_text(json.dumps(config | ({"architectures": architectures} if architectures else {})))
    return folder


@pytest.fixture
def silent(tmp_path):
    return say(save_detector(tmp_path), "object-detection")


def test_the_card_says_what_the_configuration_does_not(silent):
    assert find_task(None, str(silent), {}).kind.pipeline_tag == "object-detection"
    assert type(load_model(silent)).__name__ == "YolosForObjectDetection"


@pytest.mark.parametrize("tag", ["text-to-image", "image-classification", "[broken"])
def test_a_card_that_names_no_task_of_ours_changes_nothing(tag, silent):
    say_again = f"---\npipeline_tag: {tag}\n---\n"
    (silent / "README.md").write_text(say_again)
    assert find_task(None, str(silent), {}).kind.pipeline_tag == "image-classification"


def test_the_configuration_comes_before_the_card(tmp_path):
    save_detector(tmp_path)
    (tmp_path / "README.md").write_text("---\npipeline_tag: image-segmentation\n---\n")
    assert find_task(None, str(tmp_path), {}).kind.pipeline_tag == "object-detection"


def test_a_backbone_says_what_it_lacks_for_its_task(tmp_path):
    backbone = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], out_features=["stage2"])
    sizes = dict.fromkeys(
        ("encoder_layers", "decoder_layers", "encoder_attention_heads", "decoder_attention_heads"), 1
    )
    sizes |= {"d_model": 16, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "num_queries": 4}
    DetrModel(DetrConfig(backbone_config=backbone, **sizes)).save_pretrained(tmp_path)
    say(tmp_path, "object-detection", ["DetrModel"])
    with pytest.raises(SMDError, match="lacks weights of DetrForObjectDetection") as error:
        load_model(tmp_path)
    assert "bbox_predictor" in str(error.value) and "an object detector that was trained" in str(error.value)
