"""uint8 in the place of pixel values: exact, or not at all."""

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from smd_hf.data.pixels import PixelCodec, codec_for
from smd_hf.models.load import load_image_processor
from tests.tiny import save_tiny_checkpoint

KINDS = ("ViT", "DeiT", "Beit", "ConvNext", "MobileNetV2", "Bit", "CLIP", "Levit", "PoolFormer", "Siglip", "MobileViT")


def images(count=3, size=(50, 60), seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (count, *size, 3), dtype=np.uint8)
    return [Image.fromarray(image) for image in noise]


def pixels_of(processor, **kwargs):
    return processor(images=images(**kwargs), return_tensors="pt")["pixel_values"]


@pytest.mark.parametrize("backend", ["", "Pil"])
@pytest.mark.parametrize("kind", KINDS)
def test_pixel_values_of_transformers_processors_come_back_to_the_bit(kind, backend):
    processor = getattr(transformers, f"{kind}ImageProcessor{backend}")()
    codec = codec_for(processor)
    for seed in range(2):
        values = pixels_of(processor, seed=seed)
        compact = codec.encode(values)
        assert compact.dtype == torch.uint8 and compact.shape == values.shape
        decoded = codec.decode(compact)
        assert decoded.dtype == torch.float32 and torch.equal(decoded, values)


@pytest.mark.parametrize("kind", ["timm_vit", "timm_resnet"])
def test_pixel_values_of_timm_come_back_to_the_bit(kind, tmp_path):
    processor = load_image_processor(save_tiny_checkpoint(kind, tmp_path))
    values = pixels_of(processor)
    codec = codec_for(processor)
    assert torch.equal(codec.decode(codec.encode(values)), values)


def test_a_processor_without_normalisation():
    processor = transformers.ViTImageProcessor(do_normalize=False)
    values = pixels_of(processor)
    codec = codec_for(processor)
    assert torch.equal(codec.decode(codec.encode(values)), values) and values.max() <= 1


@pytest.mark.parametrize("backend", ["", "Pil"])
def test_what_is_normalised_twice_stays_as_it_is(backend):
    processor = getattr(transformers, f"EfficientNetImageProcessor{backend}")(include_top=True)
    assert codec_for(processor).encode(pixels_of(processor)) is None


def test_what_did_not_come_from_uint8_stays_as_it_is():
    codec = PixelCodec([0.5] * 3, [0.25] * 3, 1 / 255)
    values = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert codec.encode(values) is None
    assert codec.encode(values.double()) is None
    assert codec.encode(torch.full((2, 3, 8, 8), float("nan"))) is None
    assert codec.encode(torch.zeros(2, 6, 8, 8)) is None
    assert codec_for(transformers.ViTImageProcessor(do_rescale=False)) is None and codec_for(None) is None


@settings(max_examples=50, deadline=None)
@given(
    mean=st.lists(st.floats(0.0, 1.0, width=32), min_size=3, max_size=3),
    std=st.lists(st.floats(0.0625, 1.0, width=32), min_size=3, max_size=3),
    rescale=st.sampled_from([1 / 255, 1 / 127.5, 1.0, 1 / 256]),
)
def test_all_256_values_come_back_for_any_normalisation(mean, std, rescale):
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    wide = (pixels * rescale - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)
    codec = PixelCodec(mean, std, rescale)
    compact = codec.encode(wide)
    assert compact is not None and torch.equal(compact, pixels)
    assert torch.equal(codec.decode(compact), wide)
