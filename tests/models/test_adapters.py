"""Adapters of PEFT are refused before anything is scored, with the remedy; tensors of zeros are not passed over silently."""

import pytest
import torch
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from torch import nn

from smd_hf import EvolutionTrainer, SMDError
from smd_hf.models.load import load_model
from smd_hf.search.mutation import Mutation
from smd_hf.search.parameter_space import parameter_space
from smd_hf.search.subspaces import make_decomposition
from tests.plain import plain_arguments
from tests.test_trainer import make_dataset
from tests.tiny import tiny_model, tiny_processor

LORA = {"r": 2, "target_modules": ["q_proj", "v_proj"], "modules_to_save": ["classifier"]}


def trainer_of(model, folder):
    arguments = plain_arguments(
        str(folder), population_size=2, sigma=0.1, use_cpu=True, report_to=[], disable_tqdm=True
    )
    data = make_dataset(8)
    return EvolutionTrainer(model, arguments, train_dataset=data, eval_dataset=data, processing_class=tiny_processor())


def refusal(call, *args):
    with pytest.raises(SMDError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_peft_model_is_refused_and_the_remedy_works(tmp_path):
    model = get_peft_model(tiny_model("vit"), LoraConfig(**LORA))
    message = refusal(trainer_of, model, tmp_path)
    assert "The model (PeftModel) has layers of a PEFT adapter" in message
    assert "pass model.merge_and_unload() instead" in message
    trainer = trainer_of(model.merge_and_unload(), tmp_path)
    trainer.train()
    assert load_model(tmp_path).config.num_labels == 4


def test_a_model_with_adapter_layers_inside_is_refused(tmp_path):
    model = inject_adapter_in_model(LoraConfig(r=2, target_modules=["q_proj"]), tiny_model("vit"))
    message = refusal(trainer_of, model, tmp_path)
    assert (
        "(ViTForImageClassification) has layers" in message and "PeftModel.from_pretrained(base, adapter)" in message
    )


@pytest.mark.parametrize("beside_a_model", [False, True])
def test_a_folder_with_an_adapter_is_refused(beside_a_model, tmp_path):
    get_peft_model(tiny_model("vit"), LoraConfig(**LORA)).save_pretrained(tmp_path)
    if beside_a_model:
        tiny_model("vit").save_pretrained(tmp_path)
    message = refusal(load_model, tmp_path)
    assert "holds a PEFT adapter (adapter_config.json)" in message and "merge_and_unload()" in message


class Zeros(nn.Module):
    """One tensor of zeros, as LoRA's B begins, beside one that is not."""

    def __init__(self):
        super().__init__()
        self.lora_A = nn.Parameter(torch.arange(6.0))
        self.lora_B = nn.Parameter(torch.zeros(6))


def make_mutation(patterns, **options):
    model = Zeros()
    space = parameter_space(model, patterns)
    return Mutation(model, make_decomposition("dense", space, 2), **options)


@pytest.fixture
def warnings(monkeypatch):
    said = []
    monkeypatch.setattr("smd_hf.search.mutation.logger.warning", said.append)
    return said


def test_a_tensor_of_zeros_under_relative_sigma_is_told_of(warnings):
    mutation = make_mutation(["all"])
    [message] = warnings
    assert "1 of 2 mutable tensors are zero (lora_B). They stay zero" in message
    assert "sigma_units='absolute'" in message and "frozen_parameters" in message
    [child, _] = mutation.children(0, 0.1)
    changes = dict(mutation.changes(child))
    assert torch.equal(changes["lora_B"][1], torch.zeros(6))
    assert not torch.equal(changes["lora_A"][1], torch.arange(6.0))


def test_where_every_tensor_is_zero_nothing_is_scored(warnings):
    assert "no child would differ from the parent" in refusal(make_mutation, ["lora_B"])


@pytest.mark.parametrize(
    "patterns, options",
    [(["all"], {"sigma_units": "absolute"}), (["lora_A"], {}), (["all"], {"prune": True})],
)
def test_what_does_not_depend_on_a_scale_says_nothing(patterns, options, warnings):
    make_mutation(patterns, **options)
    assert warnings == []
