"""Tiny models of real architectures that compare images with texts, a tokenizer of a few words, and images to classify."""

import numpy as np
import torch
import transformers
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import CLIPImageProcessor, PreTrainedTokenizerFast, Siglip2ImageProcessor

NAMES = ["red", "green", "blue"]
WORDS = (
    "[pad]",
    "[bos]",
    "this",
    "is",
    "a",
    "photo",
    "of",
    ".",
    "cat",
    "dog",
    "red",
    "green",
    "blue",
    "[unk]",
    "[eos]",
)
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
TEXT = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": len(WORDS),
    "max_position_embeddings": 80,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": len(WORDS) - 1,
}
TOWERS = {"text_config": TEXT, "vision_config": VISION, "projection_dim": 8}
SETTINGS = {
    "CLIPModel": TOWERS,
    "SiglipModel": {"text_config": TEXT | {"projection_size": 16}, "vision_config": VISION},
    "Siglip2Model": {
        "text_config": TEXT | {"projection_size": 16},
        "vision_config": {name: VISION[name] for name in VISION if name != "image_size"} | {"num_patches": 16},
    },
    "MetaClip2Model": TOWERS,
    "AltCLIPModel": TOWERS | {"text_config": TEXT | {"project_dim": 16, "max_position_embeddings": 90}},
    "ChineseCLIPModel": TOWERS,
    "CLIPSegModel": TOWERS,
    "BlipModel": TOWERS | {"text_config": TEXT | {"encoder_hidden_size": 16, "projection_dim": 8}},
    "AlignModel": {
        # What the last layer of an image tower of this width has.
        "projection_dim": 80,
        "text_config": TEXT,
        "vision_config": {"image_size": 32, "width_coefficient": 0.25, "depth_coefficient": 0.25, "hidden_dim": 16},
    },
    "Tipsv2Model": {"text_config": TEXT, "vision_config": VISION},
}


def tokenizer():
    found = Tokenizer(WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="[unk]"))
    found.pre_tokenizer = Whitespace()
    eos = len(WORDS) - 1
    found.post_processor = TemplateProcessing(single="[bos] $A [eos]", special_tokens=[("[bos]", 1), ("[eos]", eos)])
    tokens = {"pad_token": "[pad]", "bos_token": "[bos]", "eos_token": "[eos]", "unk_token": "[unk]"}
    return PreTrainedTokenizerFast(tokenizer_object=found, **tokens)


def make(architecture="CLIPModel"):
    kind = getattr(transformers, architecture)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind(kind.config_class(**SETTINGS[architecture])).eval()
        # Large enough that texts and images differ.
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.3)
        return model


def save_two_towers(folder, architecture="CLIPModel"):
    make(architecture).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    images = CLIPImageProcessor(size={"height": 32, "width": 32}, do_center_crop=False)
    if architecture == "Siglip2Model":
        images = Siglip2ImageProcessor(patch_size=8, max_num_patches=16)
    images.save_pretrained(folder)
    return folder


def make_rows(count, seed=0):
    rng = np.random.default_rng(seed)
    rows = {"image": [], "label": []}
    for place in range(count):
        pixels = rng.integers(0, 60, (12, 12, 3))
        pixels[..., place % 3] += 180
        rows["image"].append(PILImage.fromarray(pixels.astype(np.uint8)))
        rows["label"].append(place % 3)
    return Dataset.from_dict(rows, features=Features({"image": Image(), "label": ClassLabel(names=NAMES)}))
