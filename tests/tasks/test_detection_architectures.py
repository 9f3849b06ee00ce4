"""Every class that `AutoModelForObjectDetection` maps, as a tiny random model, through a whole run."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES

from smd_hf import SMDError
from smd_hf.metrics.detection import DETECTIONS
from smd_hf.tasks.detection import ObjectDetection
from tests.tasks import runs
from tests.tasks.detector import NAMES, make_rows
from tests.tasks.stranger import stranger  # noqa: F401

SIZE = 64
QUERIES = 12
LAYERS = {"embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [1] * 4, "layer_type": "basic"}
RESNET = transformers.ResNetConfig(**LAYERS, out_features=["stage4"])
TWO_LEVELS = transformers.ResNetConfig(**LAYERS, out_features=["stage3", "stage4"])
PYRAMID = transformers.RTDetrResNetConfig(**LAYERS, out_indices=[2, 3, 4])
TRANSFORMER = {
    "backbone_config": RESNET,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "num_queries": QUERIES,
}
HYBRID = TRANSFORMER | {
    "backbone_config": PYRAMID,
    "encoder_in_channels": [8, 16, 16],
    "encoder_hidden_dim": 16,
    "decoder_in_channels": [16] * 3,
}
WINDOWS = {"image_size": SIZE, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 16}
GROUPS = {
    "d_model": 16,
    "decoder_layers": 2,
    "decoder_self_attention_heads": 2,
    "decoder_cross_attention_heads": 2,
    "decoder_ffn_dim": 16,
    "num_queries": QUERIES,
    "group_detr": 2,
}
CONFIGS = {
    "conditional_detr": TRANSFORMER,
    "d_fine": HYBRID,
    "dab-detr": {name: value for name, value in TRANSFORMER.items() if name != "d_model"} | {"hidden_size": 16},
    "deformable_detr": TRANSFORMER | {"backbone_config": TWO_LEVELS, "num_feature_levels": 2, "d_model": 32},
    "deimv2": HYBRID,
    "detr": TRANSFORMER,
    "lw_detr": GROUPS
    | {
        "backbone_config": WINDOWS | {"model_type": "lw_detr_vit", "out_indices": [1, 2], "window_block_indices": [0]},
        "projector_scale_factors": [1.0],
    },
    "rf_detr": GROUPS
    | {"backbone_config": WINDOWS | {"model_type": "rf_detr_dinov2", "out_indices": [1, 2], "num_windows": 2}},
    "rt_detr": HYBRID,
    "rt_detr_v2": HYBRID,
    "table-transformer": TRANSFORMER,
    "yolos": WINDOWS | {"image_size": [SIZE, SIZE], "intermediate_size": 48, "num_detection_tokens": QUERIES},
}
PROCESSORS = {
    "conditional_detr": "ConditionalDetr",
    "deformable_detr": "DeformableDetr",
    "dab-detr": "ConditionalDetr",
    "detr": "Detr",
    "lw_detr": "DeformableDetr",
    "rf_detr": "RfDetr",
    "table-transformer": "Detr",
    "yolos": "Yolos",
}
"""As in the checkpoints of the Hub; all others are read by RT-DETR's."""
APART = {
    **dict.fromkeys(
        ["pp_ocrv5_mobile_det", "pp_ocrv5_server_det", "pp_ocrv6_medium_det", "pp_ocrv6_small_det"],
        "detects regions of text as a map of pixels: there are no boxes of queries to score",
    ),
    **dict.fromkeys(
        ["pp_doclayout_v2", "pp_doclayout_v3", "pp_doclayout_v4"],
        "reads the order of a page beside its boxes, which would be evolved without being scored",
    ),
}


def test_every_class_is_known():
    assert set(MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES) == CONFIGS.keys() | APART.keys()


def save_model(model_type, folder):
    torch.manual_seed(0)
    config = transformers.CONFIG_MAPPING[model_type](**CONFIGS[model_type], id2label=dict(enumerate(NAMES)))
    model = getattr(transformers, MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES[model_type])(config)
    model.save_pretrained(folder)
    name = f"{PROCESSORS.get(model_type, 'RTDetr')}ImageProcessor"
    processor = getattr(transformers, name)(size={"height": SIZE, "width": SIZE})
    processor.save_pretrained(folder)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", CONFIGS)
def test_a_run_of_each(model_type, tmp_path, stranger):  # noqa: F811
    save_model(model_type, tmp_path / "parent")
    data = make_rows(8), make_rows(5, seed=1)
    trainer = runs.evolve(
        tmp_path / "parent", tmp_path / "out", data, fitness="map", sigma=0.05, per_device_eval_batch_size=4
    )
    assert trainer.report["task"] == "object-detection"
    found = stranger.predict("object-detection", tmp_path / "out", data[1][0]["image"], threshold=0.0)
    found = sorted(found, key=lambda each: -each["score"])
    measured = trainer.result.test.evolved_score.logits[0].reshape(DETECTIONS, 3)
    measured = measured[measured[:, 1] >= 0]
    assert len(found) >= QUERIES
    count = min(len(found), len(measured))
    np.testing.assert_allclose([each["score"] for each in found[:count]], measured[:count, 0], atol=1e-5)
    names = [NAMES[int(label)] for label in measured[:count, 1]]
    assert sorted(each["label"] for each in found[:count]) == sorted(names)


@pytest.mark.parametrize("model_type", APART)
def test_those_apart_are_refused_with_the_reason(model_type):
    model = SimpleNamespace(config=transformers.CONFIG_MAPPING[model_type]())
    with pytest.raises(SMDError, match="Choose a detector like DETR") as error:
        ObjectDetection().configure(model, None)
    assert ("no boxes of queries" if "ocr" in model_type else "reads the order") in str(error.value)
