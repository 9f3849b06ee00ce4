import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from smd_hf.errors import SMDError
from smd_hf.models.blocks import Block, contiguous_runs, find_blocks

from ..tiny import TIMM_KINDS, TRANSFORMERS_KINDS, tiny_model


@pytest.mark.parametrize("kind", TRANSFORMERS_KINDS + TIMM_KINDS)
def test_each_parameter_is_in_one_block(kind):
    model = tiny_model(kind)
    found = [name for block in find_blocks(model) for name in block.parameter_names]
    assert len(found) == len(set(found))
    assert set(found) == dict(model.named_parameters()).keys()


@pytest.mark.parametrize(
    "kind, blocks",
    [
        ("vit", ["vit.embeddings", "vit.layers.0", "vit.layers.1", "vit.layers.2", "vit.layernorm", "classifier"]),
        (
            "swin",
            [
                *("swin.embeddings", "swin.encoder.layers.0.blocks.0", "swin.encoder.layers.0.downsample"),
                *("swin.encoder.layers.1.blocks.0", "swin.encoder.layers.1.downsample"),
                *("swin.encoder.layers.2.blocks.0", "swin.layernorm", "classifier"),
            ],
        ),
        (
            "timm_efficientnet",
            [
                *("timm_model.conv_stem", "timm_model.bn1", "timm_model.blocks.0", "timm_model.blocks.1.0"),
                *("timm_model.blocks.2.0", "timm_model.blocks.3.0", "timm_model.blocks.4.0"),
                *("timm_model.conv_head", "timm_model.bn2", "timm_model.classifier"),
            ],
        ),
    ],
)
def test_stages_are_opened_and_residual_blocks_are_not(kind, blocks):
    assert [block.name for block in find_blocks(tiny_model(kind))] == blocks


@pytest.mark.parametrize("kind", ["resnet", "regnet", "timm_nfnet", "timm_regnet"])
def test_a_residual_block_with_inner_lists_stays_in_one_piece(kind):
    model = tiny_model(kind)
    owners = {}
    for block in find_blocks(model):
        owners.update(dict.fromkeys(block.parameter_names, block.name))
    residual = [
        name
        for name, module in model.named_modules()
        if type(module).__name__ in ("ResNetBasicLayer", "RegNetXLayer", "RegNetYLayer", "NormFreeBlock", "Bottleneck")
    ]
    assert residual
    for prefix in residual:
        assert len({owner for name, owner in owners.items() if name.startswith(f"{prefix}.")}) == 1


def test_tied_and_own_parameters():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))
            self.layers = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
            self.layers[1].weight = self.layers[0].weight

    assert find_blocks(Tied()) == [
        Block("layers.0", ("scale", "layers.0.weight", "layers.0.bias")),
        Block("layers.1", ("layers.1.bias",)),
    ]


@pytest.mark.parametrize("kind", ["timm_vit", "timm_xcit", "swin"])
def test_what_a_container_owns_is_no_block_of_its_own(kind):
    """A class token alone would cost a whole pass to score, as much as all that comes after it."""
    model = tiny_model(kind)
    containers = {name for name, module in model.named_modules() if any(module.children())}
    opened = {name for name in containers if any(block.name.startswith(f"{name}.") for block in find_blocks(model))}
    assert opened and not opened & {block.name for block in find_blocks(model)}


def test_own_parameters_that_nothing_follows():
    class Scaled(nn.Module):
        def __init__(self, *layers):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))
            self.layers = nn.ModuleList(layers)

    assert find_blocks(Scaled(nn.ReLU())) == [Block("", ("scale",))]
    nested = nn.Sequential(nn.Linear(2, 2), nn.Sequential(Scaled(nn.ReLU())))
    assert [name for block in find_blocks(nested) for name in block.parameter_names] == [
        "0.weight",
        "0.bias",
        "1.0.scale",
    ]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=8), st.data())
def test_runs_are_the_most_even(sizes, data):
    n = data.draw(st.integers(1, len(sizes)))
    runs = contiguous_runs(sizes, n)
    assert len(runs) == n and all(runs)
    assert list(itertools.chain(*runs)) == list(range(len(sizes)))

    def unevenness(edges):
        return sum(sum(sizes[start:end]) ** 2 for start, end in itertools.pairwise(edges))

    every = ((0, *cuts, len(sizes)) for cuts in itertools.combinations(range(1, len(sizes)), n - 1))
    assert unevenness([0, *(run.stop for run in runs)]) == min(map(unevenness, every))


@pytest.mark.parametrize("n", [0, 4])
def test_too_many_runs(n):
    with pytest.raises(SMDError, match="3 blocks"):
        contiguous_runs([1, 2, 3], n)
