"""Every backbone of images that `AutoModel` maps, as a tiny random model, through a whole run and the Hub."""

import numpy as np
import pytest
import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_MAPPING_NAMES as MAPPING

from tests.architectures.configs import SMALL, TRANSFORMER, image_processor, image_size
from tests.architectures.steps import enliven
from tests.tasks import runs
from tests.tasks.stranger import stranger  # noqa: F401
from tests.test_trainer import make_dataset
from tests.tiny import tiny_config

CONFIGS = {name: SMALL[name] for name in MAPPING if name in SMALL} | {
    "aimv2_vision_model": TRANSFORMER,
    "dinov3_convnext": {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 16, 16]},
    "dinov3_vit": TRANSFORMER | {"num_register_tokens": 1},
    "mlcd": TRANSFORMER,
    "mlcd_vision_model": TRANSFORMER,
    "pixio": TRANSFORMER,
    "siglip_vision_model": TRANSFORMER,
    "tipsv2_vision_model": TRANSFORMER,
    "vit_mae": TRANSFORMER
    | {"decoder_num_hidden_layers": 1, "decoder_hidden_size": 24, "decoder_num_attention_heads": 2},
}
TINY = ("efficientnet", "mobilenet_v2", "regnet", "resnet", "timm_wrapper")
APART = {
    **dict.fromkeys(["timesformer", "videomae", "videoprism_vision_model", "vivit"], "takes videos"),
    **dict.fromkeys(
        ["conditional_detr", "dab-detr", "deformable_detr", "detr", "table-transformer", "yolos"],
        "makes queries of objects, not features of an image: a backbone within a detector",
    ),
    **dict.fromkeys(
        ["cohere2_vision", "llama4", "mllama"], "the eyes of a language model, which takes tiles of an image"
    ),
    **dict.fromkeys(
        ["depth_pro", "dpt", "glpn", "swin2sr", "vitdet"], "makes maps for a decoder: no features of an image"
    ),
    "dinat": "needs natten, which is compiled for one version of torch and CUDA",
    "timm_backbone": "a part of other models: timm's models load as timm_wrapper",
}


def test_every_class_is_known():
    assert set(MAPPING) == CONFIGS.keys() | set(TINY) | APART.keys()


def small(model_type):
    if model_type in TINY:
        return tiny_config("timm_resnet" if model_type == "timm_wrapper" else model_type)
    size = image_size(model_type)
    sides = [size, size] if model_type in ("hiera", "pvt_v2") else size
    return transformers.CONFIG_MAPPING[model_type](**CONFIGS[model_type] | {"image_size": sides})


@pytest.mark.slow
@pytest.mark.parametrize("model_type", [*CONFIGS, *TINY])
def test_a_run_of_each(model_type, tmp_path, stranger):  # noqa: F811
    torch.manual_seed(0)
    model = getattr(transformers, MAPPING[model_type])(small(model_type)).eval()
    enliven(model, image_size(model_type))
    model.save_pretrained(tmp_path / "parent")
    if (processor := image_processor(model_type)) is not None:
        processor.save_pretrained(tmp_path / "parent")
    data = make_dataset(16, 1), make_dataset(12, 2)
    tag = "image-feature-extraction"
    trainer = runs.evolve(
        tmp_path / "parent", tmp_path / "out", data, task=tag, sigma=0.3, elitism=False, per_device_eval_batch_size=4
    )
    assert trainer.report["task"] == tag
    found = np.array(stranger.predict(tag, tmp_path / "out", data[1][0]["image"]))
    batch = trainer.data_collator([data[1][0]])
    with torch.no_grad():
        output = trainer.model.eval()(**{name: value for name, value in batch.items() if name != "labels"})
    expected = output[0].numpy()
    if model_type == "vit_mae":  # it shuffles the patches
        found, expected = (
            np.concatenate([each[:, :1], np.sort(each[:, 1:], axis=1)], axis=1) for each in (found, expected)
        )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
