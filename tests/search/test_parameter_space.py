import pytest
import torch

from smd_hf import SMDError
from smd_hf.search.parameter_space import matching_parameters, parameter_space
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def vit():
    return tiny_model("vit")


def test_everything_is_mutable_by_default_in_depth_order(vit):
    space = parameter_space(vit)
    assert sorted(space.names) == sorted(name for name, _ in vit.named_parameters())
    assert list(space.blocks) == sorted(space.blocks)
    assert space.total == sum(parameter.numel() for parameter in vit.parameters())


@pytest.mark.parametrize("kind", ["vit", "resnet", "convnext", "timm_vit", "timm_efficientnet", "timm_mobilenetv3"])
def test_groups_mean_the_same_in_every_architecture(kind):
    model = tiny_model(kind)
    norms = matching_parameters(model, ["norms"], "mutable_parameters")
    modules = dict(model.named_modules())
    for name in norms:
        assert "norm" in type(modules[name.rpartition(".")[0]]).__name__.lower()
    assert all(name.endswith("bias") for name in matching_parameters(model, ["biases"], "mutable_parameters"))
    head = matching_parameters(model, ["head"], "mutable_parameters")
    assert {dict(model.named_parameters())[name].shape[0] for name in head} == {model.config.num_labels}


def test_patterns_match_names_in_memory_and_on_disk(vit):
    in_memory = matching_parameters(vit, ["*attention*q_proj*"], "mutable_parameters")
    on_disk = matching_parameters(vit, ["vit.encoder.layer.*.attention.attention.query.*"], "mutable_parameters")
    assert in_memory == on_disk and in_memory


def test_frozen_wins_over_mutable(vit):
    space = parameter_space(vit, ["norms", "head"], ["*bias"])
    assert space.names and not any(name.endswith("bias") for name in space.names)


def test_buffers_and_integers_are_never_mutable():
    model = tiny_model("resnet")
    assert not any("running" in name for name in parameter_space(model).names)
    model.register_parameter("counter", torch.nn.Parameter(torch.zeros(3, dtype=torch.int64), requires_grad=False))
    assert "counter" not in parameter_space(model).names


def test_a_pattern_without_a_match_names_some_that_exist(vit):
    with pytest.raises(SMDError, match=r"frozen_parameters: 'layer9' matches no parameter.*classifier"):
        parameter_space(vit, frozen_parameters=["layer9"])
