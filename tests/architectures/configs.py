"""Tiny configurations of every architecture that `AutoModelForImageClassification` maps, and their image processors."""

import numpy as np
import transformers
from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

from tests.tiny import label_names, tiny_config

APART = {
    "dinat": "needs natten, which is compiled for one version of torch and CUDA",
    "shieldgemma2": "a language model of 4 billion weights behind a fixed prompt, which answers yes or no",
}

IMAGE_SIZES = dict.fromkeys(["hiera", "levit", "mobilevit", "mobilevitv2", "swiftformer", "perceiver"], 64)
"""Where 32 pixels are too few."""

TRANSFORMER = {
    "patch_size": 8,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
}
TEXT = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "projection_dim": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TWO_TOWERS = {"vision_config": TRANSFORMER | {"image_size": 32}, "text_config": TEXT, "projection_dim": 16}
WINDOWS = {"patch_size": 2, "window_size": 4, "embed_dim": 8, "depths": [1, 1, 1], "num_heads": [1, 1, 2]}
STAGES = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
PYRAMID = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 1, 2, 2]}

SMALL = {
    "beit": TRANSFORMER | {"use_mean_pooling": True},
    "bit": STAGES | {"num_groups": 4},
    "clip": TWO_TOWERS,
    "convnext": {"depths": [1, 1], "hidden_sizes": [8, 16], "num_stages": 2},
    "convnextv2": {"depths": [1, 1], "hidden_sizes": [8, 16], "num_stages": 2},
    "cvt": {"embed_dim": [8, 16, 24], "num_heads": [1, 2, 2], "depth": [1, 2, 3]},
    "data2vec-vision": TRANSFORMER | {"use_mean_pooling": True},
    "deit": TRANSFORMER,
    "dinov2": TRANSFORMER,
    "dinov2_with_registers": TRANSFORMER,
    "donut-swin": WINDOWS,
    "focalnet": {
        "embed_dim": 8,
        "hidden_sizes": [8, 16],
        "depths": [1, 1],
        "focal_levels": [1, 1],
        "focal_windows": [3, 3],
    },
    "hgnet_v2": {
        "embedding_size": 8,
        "depths": [1, 1, 1, 1],
        "hidden_sizes": [8, 16, 24, 32],
        "stem_channels": [3, 8, 8],
        "stage_in_channels": [8, 8, 16, 24],
        "stage_mid_channels": [8, 8, 8, 8],
        "stage_out_channels": [8, 16, 24, 32],
        "stage_num_blocks": [1, 1, 1, 1],
        "stage_numb_of_layers": [2, 2, 2, 2],
    },
    "hiera": {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]},
    "ijepa": TRANSFORMER,
    "imagegpt": {"vocab_size": 17, "n_positions": 64, "n_embd": 16, "n_layer": 2, "n_head": 2},
    "levit": {
        "hidden_sizes": [16, 24, 32],
        "num_attention_heads": [1, 2, 2],
        "depths": [1, 1, 1],
        "key_dim": [8, 8, 8],
    },
    "metaclip_2": TWO_TOWERS,
    "mobilenet_v1": {"depth_multiplier": 0.25},
    "mobilevit": {
        "hidden_sizes": [8, 8, 16],
        "neck_hidden_sizes": [4, 8, 8, 8, 8, 16, 32],
        "num_attention_heads": 2,
    },
    "mobilevitv2": {"width_multiplier": 0.25, "n_attn_blocks": [1, 1, 1], "base_attn_unit_dims": [32, 32, 32]},
    "perceiver": {
        "num_latents": 8,
        "d_latents": 16,
        "num_self_attends_per_block": 1,
        "num_self_attention_heads": 2,
        "num_cross_attention_heads": 1,
    },
    "poolformer": {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]},
    "pp_lcnet": {"scale": 0.25, "class_expand": 32},
    "pvt": PYRAMID | {"num_labels": 4},
    "pvt_v2": PYRAMID,
    "segformer": PYRAMID,
    "siglip": TWO_TOWERS,
    "siglip2": {
        "vision_config": TRANSFORMER | {"num_patches": 16},
        "text_config": TEXT | {"projection_size": 16},
    },
    "swiftformer": {"embed_dims": [8, 8, 16, 16], "depths": [1, 1, 1, 1]},
    "swin": WINDOWS,
    "swinv2": WINDOWS,
    "textnet": {
        "stem_out_channels": 8,
        "hidden_sizes": [8, 8, 8, 16, 16],
        "conv_layer_kernel_sizes": [[[3, 3]], [[3, 1]], [[1, 3]], [[3, 3]]],
        "conv_layer_strides": [[1], [2], [2], [2]],
    },
    "vit": TRANSFORMER,
    "vit_msn": TRANSFORMER,
}
_FROM_TINY = {
    "efficientnet": "efficientnet",
    "mobilenet_v2": "mobilenet_v2",
    "regnet": "regnet",
    "resnet": "resnet",
    "timm_wrapper": "timm_resnet",
}


def all_classes() -> list[tuple[str, str]]:
    """Model type and class of everything that `AutoModelForImageClassification` maps, but for those set apart."""
    pairs = []
    for model_type, classes in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES.items():
        if model_type not in APART:
            pairs += [(model_type, name) for name in ([classes] if isinstance(classes, str) else classes)]
    return pairs


def small_config(model_type: str, class_name: str) -> PreTrainedConfig:
    """A configuration of a few thousand weights with four classes, for images of [`image_size`]."""
    if model_type in _FROM_TINY:
        return tiny_config(_FROM_TINY[model_type])
    size = image_size(model_type)
    names = label_names(4)
    return CONFIG_MAPPING[model_type](
        **SMALL[model_type],
        image_size=[size, size] if model_type in ("hiera", "pvt_v2", "textnet") else size,
        id2label=dict(enumerate(names)),
        label2id={name: number for number, name in enumerate(names)},
        architectures=[class_name],
    )


def image_size(model_type: str) -> int:
    """Height and width of an image in pixels."""
    return IMAGE_SIZES.get(model_type, 32)


def image_processor(model_type: str) -> transformers.BaseImageProcessor | None:
    """The image processor that belongs to the architecture, for small images; `None` where the model has its own."""
    size = image_size(model_type)
    if model_type == "timm_wrapper":
        return None
    if model_type == "imagegpt":
        clusters = np.random.default_rng(0).uniform(-1, 1, (16, 3))
        return transformers.ImageGPTImageProcessor(clusters=clusters, size={"height": 8, "width": 8})
    if model_type == "siglip2":
        return transformers.Siglip2ImageProcessor(patch_size=8, max_num_patches=16)
    if model_type == "perceiver":
        return transformers.PerceiverImageProcessor(
            size={"height": size, "width": size}, crop_size={"height": size, "width": size}
        )
    return transformers.ViTImageProcessor(size={"height": size, "width": size})
