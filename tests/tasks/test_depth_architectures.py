"""Every class that `AutoModelForDepthEstimation` maps, as a tiny random model, through a whole run."""

import pytest
import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_DEPTH_ESTIMATION_MAPPING_NAMES

from smd_hf import EvolutionTrainer
from tests.plain import plain_arguments
from tests.tasks.depth import make_rows, tiny_backbone
from tests.tasks.stranger import stranger  # noqa: F401

DPT = {"size": {"height": 56, "width": 84}, "keep_aspect_ratio": False, "ensure_multiple_of": 14}
SQUARE = {"size": {"height": 64, "width": 64}, "keep_aspect_ratio": False, "ensure_multiple_of": 16}
NECK = {
    "reassemble_hidden_size": 16,
    "neck_hidden_sizes": [8, 8, 16, 16],
    "fusion_hidden_size": 8,
    "head_hidden_size": 8,
}
STAGES = {
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "patch_size": 16,
    "image_size": 64,
}
OUT = {"out_features": ["stage1", "stage2", "stage3", "stage4"], "reshape_hidden_states": False}


def dinov2(size):
    return transformers.Dinov2Config(
        image_size=size, patch_size=16, hidden_size=16, num_hidden_layers=4, num_attention_heads=2, mlp_ratio=2
    )


CONFIGS = {
    "chmv2": lambda: {
        "backbone_config": transformers.DINOv3ViTConfig(
            **STAGES, **OUT | {"reshape_hidden_states": True}, return_class_token=True, apply_layernorm=True
        ),
        "post_process_channels": [8, 8, 16, 16],
        "fusion_hidden_size": 8,
        "head_hidden_size": 8,
        "number_output_channels": 16,
    },
    "depth_anything": lambda: {"backbone_config": tiny_backbone(), **NECK},
    "depth_pro": lambda: {
        **{f"{name}_model_config": dinov2(32) for name in ("image", "patch", "fov")},
        "patch_size": 32,
        "fusion_hidden_size": 8,
        "intermediate_hook_ids": [3, 1],
        "intermediate_feature_dims": [8, 8],
        "scaled_images_feature_dims": [16, 16, 8],
        "use_fov_model": True,
        "num_fov_head_layers": 2,
    },
    "dpt": lambda: {
        **STAGES,
        "backbone_out_indices": [0, 1, 2, 3],
        "neck_hidden_sizes": [8, 8, 16, 16],
        "fusion_hidden_size": 8,
    },
    "glpn": lambda: {
        "depths": [1, 1, 1, 1],
        "hidden_sizes": [8, 8, 16, 16],
        "num_attention_heads": [1, 1, 2, 2],
        "decoder_hidden_size": 8,
    },
    "prompt_depth_anything": lambda: {"backbone_config": tiny_backbone(), **NECK},
    "tipsv2_dpt": lambda: {
        "backbone_config": transformers.Tipsv2VisionConfig(
            **(STAGES | {"patch_size": 14, "image_size": 56}), **OUT, apply_layernorm=True
        ),
        "neck_hidden_sizes": [8, 8, 16, 16],
        "fusion_hidden_size": 8,
        "num_depth_bins": 16,
    },
    "zoedepth": lambda: {
        "backbone_config": transformers.BeitConfig(**STAGES, **OUT),
        "neck_hidden_sizes": [8, 8, 16, 16],
        "fusion_hidden_size": 8,
        "bottleneck_features": 8,
        "num_relative_features": 8,
        "bin_embedding_dim": 8,
        "num_attractors": [4, 2, 2, 1],
        "bin_configurations": [{"n_bins": 8, "min_depth": 0.001, "max_depth": 10.0, "name": "nyu"}],
    },
}
PROCESSORS = {
    "chmv2": lambda: transformers.CHMv2ImageProcessor(**SQUARE, do_resize=True),
    "depth_anything": lambda: transformers.DPTImageProcessor(**DPT),
    "depth_pro": lambda: transformers.DepthProImageProcessor(size={"height": 128, "width": 128}),
    "dpt": lambda: transformers.DPTImageProcessor(**SQUARE),
    "glpn": lambda: transformers.GLPNImageProcessor(size_divisor=32),
    "prompt_depth_anything": lambda: transformers.PromptDepthAnythingImageProcessor(**DPT),
    "tipsv2_dpt": lambda: transformers.Tipsv2DptImageProcessor(size={"height": 56, "width": 56}),
    "zoedepth": lambda: transformers.ZoeDepthImageProcessor(size={"height": 64, "width": 64}, keep_aspect_ratio=False),
}
APART: dict[str, str] = {}
"""Model types that no run is made of, and why."""


def test_every_class_is_known():
    assert set(MODEL_FOR_DEPTH_ESTIMATION_MAPPING_NAMES) == CONFIGS.keys() | APART.keys()


@pytest.mark.slow
@pytest.mark.parametrize("model_type", CONFIGS)
def test_a_run_of_each(model_type, tmp_path, stranger):  # noqa: F811
    torch.manual_seed(0)
    config = transformers.CONFIG_MAPPING[model_type](**CONFIGS[model_type]())
    model = getattr(transformers, MODEL_FOR_DEPTH_ESTIMATION_MAPPING_NAMES[model_type])(config).eval()
    if model_type == "depth_pro":
        # As it begins, depth and the field of view are 0.
        for name, parameter in model.named_parameters():
            if name.startswith("head"):
                torch.nn.init.constant_(parameter, 0.3) if parameter.ndim == 1 else torch.nn.init.kaiming_normal_(
                    parameter
                )
            elif name.startswith("fov_model.head") and parameter.ndim == 1:
                torch.nn.init.constant_(parameter, 30)  # degrees
    model.save_pretrained(tmp_path / "parent")
    PROCESSORS[model_type]().save_pretrained(tmp_path / "parent")
    args = plain_arguments(
        str(tmp_path / "out"), population_size=4, sigma=0.3, elitism=False, per_device_eval_batch_size=4, use_cpu=True,
        report_to="none", disable_tqdm=True,
    )  # fmt: skip
    size = (64, 96) if model_type == "glpn" else (48, 72)
    test = make_rows(6, seed=1, size=size)
    trainer = EvolutionTrainer(
        str(tmp_path / "parent"), args, train_dataset=make_rows(10, size=size), eval_dataset=test
    )
    trainer.train()
    assert trainer.report["task"] == "depth-estimation" and trainer.report["recombination"] == "gauss_newton"
    image = test[0]["image"]
    found = torch.tensor(stranger.predict("depth-estimation", tmp_path / "out", image)["predicted_depth"])
    batch = trainer.data_collator([test[0]])
    labels = batch.pop("labels")
    trainer.model.eval()
    with torch.no_grad():
        prediction = trainer.task.prediction(trainer.model(**batch))
    measured = trainer.task.resized(prediction[0], labels.shape[1:])
    assert found.shape == measured.shape == size and measured.std() > 0
    assert torch.allclose(found, measured, rtol=1e-4, atol=1e-5)
