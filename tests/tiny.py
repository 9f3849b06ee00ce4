"""
Tiny models of real architectures, with random weights, and checkpoints of them: what every test file builds upon.

Each kind is built from a configuration in milliseconds, takes images of `image_size` (32) pixels and has a few thousand
to a million parameters. Nothing is downloaded.
"""

import json
import textwrap
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image
from transformers import AutoModelForImageClassification, PreTrainedConfig, PreTrainedModel, ViTImageProcessor
from transformers.dynamic_module_utils import get_class_from_dynamic_module

LABELS = ("cat", "dog", "horse", "ship", "frog", "deer", "truck", "bird", "airplane", "automobile")

TRANSFORMERS_KINDS = (
    "vit",
    "deit",
    "swin",
    "convnext",
    "convnextv2",
    "resnet",
    "mobilenet_v2",
    "efficientnet",
    "beit",
    "regnet",
)

# kind -> (timm architecture, the arguments of `timm.create_model` that make it small)
TIMM_ARCHITECTURES = {
    "timm_resnet": ("resnet10t", {"channels": [8, 16, 16, 32], "stem_width": 8}),
    "timm_vit": ("vit_tiny_patch16_224", {"patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2}),
    "timm_deit": ("deit_tiny_distilled_patch16_224", {"patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2}),
    "timm_swin": (
        "swin_tiny_patch4_window7_224",
        {"patch_size": 2, "window_size": 4, "embed_dim": 8, "depths": [1, 1, 1], "num_heads": [1, 1, 2]},
    ),
    "timm_convnext": ("convnext_atto", {"depths": [1, 1, 1, 1], "dims": [8, 16, 16, 32]}),
    "timm_efficientnet": ("test_efficientnet", {}),
    "timm_mobilenetv3": ("mobilenetv3_small_050", {}),
    "timm_regnet": ("regnetx_002", {"depth": 6, "w0": 8, "wa": 8.0, "wm": 2.0, "group_size": 4}),
    "timm_densenet": ("densenet121", {"growth_rate": 4, "block_config": [2, 2, 2]}),
    "timm_xcit": ("xcit_nano_12_p16_224", {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}),
    "timm_nfnet": ("test_nfnet", {}),
    "timm_mambaout": ("test_mambaout", {}),
    "timm_dla": ("dla46_c", {}),
}
TIMM_KINDS = tuple(TIMM_ARCHITECTURES)

# Architectures whose layers are built for one size of image.
_SIZED_TIMM_KINDS = ("timm_vit", "timm_deit", "timm_swin", "timm_xcit")

CUSTOM_KINDS = ("custom",)
ALL_KINDS = TRANSFORMERS_KINDS + TIMM_KINDS + CUSTOM_KINDS

CUSTOM_CONFIGURATION = textwrap.dedent(
    '''
    """Configuration of a very small convolutional network."""

    from transformers import PreTrainedConfig


    class TinyCustomConfig(PreTrainedConfig):
        model_type = "tiny_custom"

        def __init__(self, width: int = 8, depth: int = 2, **kwargs):
            self.width = width
            self.depth = depth
            super().__init__(**kwargs)
    '''
).lstrip()

CUSTOM_LAYERS = textwrap.dedent(
    '''
    """The block of the network, in a file of its own: a relative import that has to travel with the checkpoint."""

    import torch
    from torch import nn


    class TinyCustomBlock(nn.Module):
        def __init__(self, width: int):
            super().__init__()
            self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
            self.norm = nn.BatchNorm2d(width)

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.norm(self.conv(hidden))) + hidden
    '''
).lstrip()

CUSTOM_MODELING = textwrap.dedent(
    '''
    """A very small convolutional network as a `transformers` model with custom code."""

    import torch
    from torch import nn
    from transformers import PreTrainedModel
    from transformers.modeling_outputs import ImageClassifierOutput

    from .configuration_tiny_custom import TinyCustomConfig
    from .layers_tiny_custom import TinyCustomBlock


    class TinyCustomForImageClassification(PreTrainedModel):
        config_class = TinyCustomConfig
        main_input_name = "pixel_values"
        base_model_prefix = ""

        def __init__(self, config: TinyCustomConfig):
            super().__init__(config)
            self.stem = nn.Conv2d(3, config.width, 3, stride=2, padding=1)
            self.blocks = nn.ModuleList([TinyCustomBlock(config.width) for _ in range(config.depth)])
            self.linear = nn.Linear(config.width, config.num_labels)
            self.post_init()

        def forward(self, pixel_values, labels=None, **kwargs):
            hidden = self.stem(pixel_values)
            for block in self.blocks:
                hidden = block(hidden)
            logits = self.linear(hidden.mean(dim=(2, 3)))
            loss = nn.functional.cross_entropy(logits, labels) if labels is not None else None
            return ImageClassifierOutput(loss=loss, logits=logits)
    '''
).lstrip()

_CUSTOM_FILES = {
    "configuration_tiny_custom.py": CUSTOM_CONFIGURATION,
    "layers_tiny_custom.py": CUSTOM_LAYERS,
    "modeling_tiny_custom.py": CUSTOM_MODELING,
}
_CUSTOM_AUTO_MAP = {
    "AutoConfig": "configuration_tiny_custom.TinyCustomConfig",
    "AutoModelForImageClassification": "modeling_tiny_custom.TinyCustomForImageClassification",
}


def label_names(num_labels: int = 4) -> list[str]:
    """The first `num_labels` names: "cat", "dog", ..., and "class_10", ... beyond the tenth."""
    return [LABELS[i] if i < len(LABELS) else f"class_{i}" for i in range(num_labels)]


def tiny_config(kind: str, num_labels: int = 4, image_size: int = 32) -> PreTrainedConfig:
    """
    The configuration of a tiny model.

    Args:
        kind (`str`): one of `TRANSFORMERS_KINDS` or `TIMM_KINDS`.
        num_labels (`int`, *optional*, defaults to 4): number of classes, named by [`label_names`].
        image_size (`int`, *optional*, defaults to 32): height and width of an image in pixels.
    """
    names = label_names(num_labels)
    if kind in TIMM_ARCHITECTURES:
        architecture, model_args = TIMM_ARCHITECTURES[kind]
        model_args = dict(model_args, img_size=image_size) if kind in _SIZED_TIMM_KINDS else dict(model_args)
        return transformers.TimmWrapperConfig.from_dict(
            {
                "architecture": architecture,
                "num_classes": num_labels,
                "label_names": names,
                "model_args": model_args,
                "pretrained_cfg": {
                    "input_size": [3, image_size, image_size],
                    "fixed_input_size": kind in _SIZED_TIMM_KINDS,
                    "interpolation": "bilinear",
                    "crop_pct": 1.0,
                    "mean": [0.5, 0.5, 0.5],
                    "std": [0.5, 0.5, 0.5],
                    "license": "apache-2.0",
                },
            }
        )
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    transformer = {
        "image_size": image_size,
        "patch_size": 8,
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 48,
    }
    match kind:
        case "vit":
            return transformers.ViTConfig(**transformer, **labels)
        case "deit":
            return transformers.DeiTConfig(**transformer, **labels)
        case "beit":
            return transformers.BeitConfig(
                **transformer, use_relative_position_bias=True, use_mean_pooling=True, **labels
            )
        case "swin":
            return transformers.SwinConfig(
                image_size=image_size,
                patch_size=2,
                window_size=4,
                embed_dim=8,
                depths=[1, 1, 1],
                num_heads=[1, 1, 2],
                **labels,
            )
        case "convnext":
            return transformers.ConvNextConfig(depths=[1, 1, 1], hidden_sizes=[8, 16, 24], num_stages=3, **labels)
        case "convnextv2":
            return transformers.ConvNextV2Config(depths=[1, 1, 1], hidden_sizes=[8, 16, 24], num_stages=3, **labels)
        case "resnet":
            return transformers.ResNetConfig(
                embedding_size=8, hidden_sizes=[8, 16, 24], depths=[1, 1, 1], layer_type="basic", **labels
            )
        case "regnet":
            return transformers.RegNetConfig(
                embedding_size=8, hidden_sizes=[8, 16, 24], depths=[1, 1, 1], groups_width=8, **labels
            )
        case "mobilenet_v2":
            return transformers.MobileNetV2Config(
                image_size=image_size, depth_multiplier=0.25, finegrained_output=False, **labels
            )
        case "efficientnet":
            return transformers.EfficientNetConfig(
                image_size=image_size,
                width_coefficient=0.25,
                depth_coefficient=0.2,
                hidden_dim=320,
                initializer_range=0.3,
                num_hidden_layers=7,
                **labels,
            )
    raise ValueError(f"{kind!r} is not a kind of tiny model with a built-in configuration")


def write_custom_code(folder: str | Path) -> None:
    """Write the three Python files of the custom-code model into `folder`."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, text in _CUSTOM_FILES.items():
        (Path(folder) / name).write_text(text)


def tiny_model(kind: str, num_labels: int = 4, image_size: int = 32, seed: int = 0) -> PreTrainedModel:
    """
    A tiny model with random weights, in eval mode.

    The weights are those of the architecture's own initialisation, changed so that a test on them means something: norms
    are not the identity, and the logits of images have mean 0 and a standard deviation of about 1 in each class.

    Args:
        kind (`str`): one of `TRANSFORMERS_KINDS` or `TIMM_KINDS`; for "custom" use [`save_tiny_checkpoint`].
        seed (`int`, *optional*, defaults to 0): the seed of the weights; the caller's random state is left alone.
    """
    config = tiny_config(kind, num_labels, image_size)
    # Two classes answer for DeiT, and `from_config` chooses among them by this field.
    if kind == "deit":
        config.architectures = ["DeiTForImageClassification"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForImageClassification.from_config(config).eval()
        _enliven(model, image_size)
    return model


@torch.no_grad()
def _enliven(model: PreTrainedModel, image_size: int) -> None:
    """
    Give random weights the manners of trained ones, in place: norms and biases off their initial values, BatchNorm
    statistics measured on noise, and a head whose logits have mean 0 and standard deviation 1 over images.
    """
    for name, parameter in model.named_parameters():
        if parameter.ndim <= 1 or not parameter.any():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        elif name.endswith("layer_scale"):
            parameter.fill_(0.5)
    norms = [module for module in model.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train().momentum = 1.0
    pixels = torch.randn(16, 3, image_size, image_size)
    model(pixels)
    for norm, momentum in zip(norms, momenta):
        norm.eval().momentum = momentum
        norm.running_mean.add_(torch.randn_like(norm.running_mean) * 0.1)
        norm.running_var.mul_(1 + torch.rand_like(norm.running_var))
    # The classifier is the last layer; DeiT has two of them, averaged.
    layers = [module for module in model.modules() if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)]
    heads = [layer for layer in layers[-2:] if len(layer.weight) == model.config.num_labels and layer.bias is not None]
    spread = model(pixels).logits.std(0).mean()
    for head in heads:
        head.weight.div_(spread)
        head.bias.zero_()
    centre = model(pixels).logits.mean(0)
    for head in heads:
        head.bias.sub_(centre)


def tiny_processor(image_size: int = 32) -> ViTImageProcessor:
    """An image processor which resizes to `image_size` and normalises to -1 ... 1."""
    return ViTImageProcessor(size={"height": image_size, "width": image_size})


def save_tiny_checkpoint(
    kind: str,
    folder: str | Path,
    num_labels: int = 4,
    image_size: int = 32,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> str:
    """
    Write a tiny checkpoint (config, safetensors, image processor, custom code where the kind has it) as the Hub would hold it.

    A timm kind is written as timm writes it: weight names without a prefix, and no preprocessor file. The kind "custom" loads
    with `trust_remote_code=True` alone.

    Returns:
        `str`: the folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if kind in TIMM_ARCHITECTURES:
        model = tiny_model(kind, num_labels, image_size, seed).to(dtype)
        # A checkpoint of the Hub names the weights as timm does.
        names = dict(model.timm_model.state_dict())
        model.save_pretrained(folder, state_dict=names, save_original_format=False)
        return str(folder)
    if kind in CUSTOM_KINDS:
        model = _custom_model(folder, num_labels, image_size, seed).to(dtype)
        model.save_pretrained(folder)
        _add_auto_map(folder)
    else:
        tiny_model(kind, num_labels, image_size, seed).to(dtype).save_pretrained(folder)
    tiny_processor(image_size).save_pretrained(folder)
    return str(folder)


def _custom_model(folder: Path, num_labels: int, image_size: int, seed: int) -> PreTrainedModel:
    write_custom_code(folder)
    names = label_names(num_labels)
    config_class = get_class_from_dynamic_module(_CUSTOM_AUTO_MAP["AutoConfig"], str(folder))
    model_class = get_class_from_dynamic_module(_CUSTOM_AUTO_MAP["AutoModelForImageClassification"], str(folder))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(
            config_class(id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)})
        ).eval()
        _enliven(model, image_size)
    return model


def _add_auto_map(folder: Path) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["auto_map"] = _CUSTOM_AUTO_MAP
    path.write_text(json.dumps(config, indent=2))


def aligned(model: torch.nn.Module) -> torch.nn.Module:
    """
    The model itself, with its tensors at addresses as torch allocates them. Loaded ones lie where a safetensors file is
    mapped to, and on some processors a convolution rounds otherwise there.
    """
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data = tensor.data.clone()
    return model


def tiny_pixels(batch: int = 2, image_size: int = 32, seed: int = 0, channels: int = 3) -> torch.Tensor:
    """Random pixel values of shape `(batch, channels, image_size, image_size)`, float32, standard normal."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, channels, image_size, image_size, generator=generator)


def tiny_images(count: int, image_size: int = 32, seed: int = 0) -> list[Image.Image]:
    """`count` random RGB images."""
    noise = np.random.default_rng(seed).integers(0, 256, (count, image_size, image_size, 3), dtype=np.uint8)
    return [Image.fromarray(image) for image in noise]
