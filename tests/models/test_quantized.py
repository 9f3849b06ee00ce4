import copy
import shutil

import pytest
import torch
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, IntxWeightOnlyConfig, quantize_
from transformers import AutoModelForImageClassification, TorchAoConfig, default_data_collator

import smd_hf
from smd_hf import EvolutionTrainer, SMDError
from smd_hf.artifacts.delta.sparse_delta import SparseDelta
from smd_hf.data.batches import ImageBatches
from smd_hf.models.checkpoints import checkpoint_names, weights_hash
from smd_hf.models.load import load_image_processor
from smd_hf.models.quantized import is_mutable, is_plain, named_tensors, stored_parts
from smd_hf.scoring.changes import applied, commit
from smd_hf.scoring.evaluator import Evaluator, Variant
from smd_hf.scoring.runtimes import graph
from smd_hf.scoring.runtimes.choose import RuntimeChoice
from smd_hf.search.mutation import Mutation
from smd_hf.search.parameter_space import parameter_space
from smd_hf.search.subspaces import make_decomposition
from tests.examples.test_scripts import load_example
from tests.test_trainer import make_args, make_dataset
from tests.tiny import save_tiny_checkpoint, tiny_model, tiny_pixels

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated"),
    pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor"),
]


def wrapped(tensor):
    """As torchao holds a quantised weight: a tensor that looks like float32 and is made of others."""
    return nn.Parameter(TwoTensor(tensor.detach().clone(), tensor.detach().clone()), requires_grad=False)


@pytest.fixture
def packed():
    model = tiny_model("vit")
    model.vit = torch.ao.quantization.quantize_dynamic(model.vit, {nn.Linear}, dtype=torch.qint8)
    return model


@pytest.fixture
def subclassed():
    model = tiny_model("vit")
    for module in model.vit.modules():
        if isinstance(module, nn.Linear):
            module.weight = wrapped(module.weight)
    return model


def test_a_tensor_subclass_is_left_alone_and_hashed_by_its_contents(subclassed):
    plain = tiny_model("vit")
    linear = {f"vit.{name}.weight" for name, module in plain.vit.named_modules() if isinstance(module, nn.Linear)}
    assert set(parameter_space(subclassed).names) == set(parameter_space(plain).names) - linear
    assert not is_mutable(subclassed.get_parameter(min(linear))) and is_mutable(plain.get_parameter(min(linear)))
    assert checkpoint_names(subclassed) == checkpoint_names(plain)  # wrapped, but nothing in it is quantised
    before = weights_hash(subclassed)
    assert before == weights_hash(copy.deepcopy(subclassed)) != weights_hash(plain)
    with torch.no_grad():
        subclassed.get_parameter(min(linear)).b.view(-1)[0] += 1
    assert weights_hash(subclassed) != before


def test_packed_weights_are_left_alone_and_hashed_by_their_contents(packed):
    names = parameter_space(packed).names
    assert names and not any("q_proj" in name or "fc" in name for name in names)
    assert {"classifier.weight", "classifier.bias"} <= set(names)
    assert weights_hash(packed) == weights_hash(copy.deepcopy(packed))
    other = tiny_model("vit")
    with torch.no_grad():
        other.vit.layers[1].attention.q_proj.weight *= 1.5
    other.vit = torch.ao.quantization.quantize_dynamic(other.vit, {nn.Linear}, dtype=torch.qint8)
    assert weights_hash(other) != weights_hash(packed)


@pytest.mark.parametrize("scheme", ["tensor", "channel"])
def test_the_parts_of_a_quantised_tensor(scheme):
    values = torch.tensor([[1.0, -2.0], [3.0, 0.5]])
    if scheme == "tensor":
        tensor = torch.quantize_per_tensor(values, 0.1, 0, torch.qint8)
    else:
        tensor = torch.quantize_per_channel(values, torch.tensor([0.1, 0.2]), torch.tensor([0, 0]), 0, torch.qint8)
    parts = dict(stored_parts("w", (tensor, None)))
    assert torch.equal(parts["w.0.quantized"], tensor.int_repr()) and parts["w.1"] == "None"
    assert len(parts) == (3 if scheme == "tensor" else 4)


def test_children_of_a_quantised_model_are_scored_and_the_parent_comes_back(packed):
    model = packed
    rows = [{"pixel_values": pixels, "labels": number % 4} for number, pixels in enumerate(tiny_pixels(12))]
    batches = ImageBatches(rows, default_data_collator, 6)
    mutation = Mutation(model, make_decomposition("blocks", parameter_space(model, ["norms", "biases", "head"]), 6))
    children = mutation.children(0, 0.3)
    variants = [
        Variant(str(child.index), lambda child=child: mutation.changes(child), mutation.changed_names(child))
        for child in children
    ]
    before = weights_hash(model)
    replayed = Evaluator(model, torch.device("cpu")).score(variants, batches, keep_logits=True)
    assert weights_hash(model) == before
    for child, score in zip(children, replayed):
        with applied(mutation.parameters, mutation.changes(child)), torch.inference_mode():
            expected = torch.cat([model(**batch.stored).logits for batch in batches])
        assert torch.equal(torch.from_numpy(score.logits), expected)


@pytest.fixture(scope="module")
def quantised(tmp_path_factory):
    """A checkpoint that transformers has quantised by torchao, and its logits."""
    plain, folder = tmp_path_factory.mktemp("plain"), tmp_path_factory.mktemp("quantised")
    save_tiny_checkpoint("vit", plain)
    config = TorchAoConfig(Int8DynamicActivationInt8WeightConfig(), modules_to_not_convert=["classifier"])
    model = AutoModelForImageClassification.from_pretrained(plain, quantization_config=config)
    for path in plain.glob("preprocessor*"):
        shutil.copy(path, folder)
    model.save_pretrained(folder)
    return folder


def logits_of(model):
    with torch.inference_mode():
        return model.eval()(pixel_values=tiny_pixels(4)).logits


def make_trainer(model, folder, data, processor, **kwargs):
    args = dict(decomposition="blocks", recombination="best", sigma=0.3, elitism=False)
    return EvolutionTrainer(
        model,
        make_args(folder, **args | kwargs),
        train_dataset=data[0],
        eval_dataset=data[1],
        processing_class=load_image_processor(processor),
    )


@pytest.mark.parametrize("by_name, mutable", [(True, "all"), (False, "all"), (True, "scales")])
def test_a_quantised_checkpoint_evolves_and_is_saved_as_one(by_name, mutable, quantised, tmp_path):
    data = make_dataset(40, 1), make_dataset(8, 2)
    given = quantised if by_name else AutoModelForImageClassification.from_pretrained(quantised)
    trainer = make_trainer(given, tmp_path, data, quantised, save_children=1, mutable_parameters=[mutable])
    before, tensors = weights_hash(trainer.model), copy.deepcopy(trainer.model.state_dict())
    trainer.train()
    assert trainer.report and weights_hash(trainer.model) != before
    state = trainer.model.state_dict()
    changed = {name for name, tensor in tensors.items() if is_plain(tensor) and not torch.equal(tensor, state[name])}
    assert bool(changed) == (mutable == "all")
    weight = "vit.layers.0.attention.q_proj.weight"
    assert torch.equal(tensors[weight].qdata, state[weight].qdata)
    assert not is_plain(trainer.model.state_dict()["vit.layers.0.attention.q_proj.weight"])
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert loaded.config.quantization_config is not None
    assert weights_hash(loaded) == weights_hash(trainer.model)
    assert torch.equal(logits_of(loaded), logits_of(trainer.model))
    child = smd_hf.load(tmp_path / "children" / "0000")
    assert not is_plain(child.state_dict()["vit.layers.0.attention.q_proj.weight"])
    assert weights_hash(child) == SparseDelta.from_pretrained(tmp_path / "children" / "0000").config.child_hash


@pytest.mark.parametrize("mutable", ["all", "scales"])
def test_a_quantised_run_goes_on_from_a_checkpoint(mutable, quantised, tmp_path):
    data = make_dataset(40, 1), None
    kwargs = dict(save_strategy="steps", save_steps=1, mutable_parameters=[mutable])
    whole = make_trainer(quantised, tmp_path / "whole", data, quantised, num_generations=2, **kwargs)
    whole.train()
    make_trainer(quantised, tmp_path / "first", data, quantised, num_generations=1, **kwargs).train()
    shutil.rmtree(tmp_path / "first" / "ledger")
    rest = make_trainer(quantised, tmp_path / "first", data, quantised, num_generations=2, **kwargs)
    rest.train(resume_from_checkpoint=str(tmp_path / "first" / "checkpoint-1"))
    assert weights_hash(rest.model) == weights_hash(whole.model)


INT4 = IntxWeightOnlyConfig(weight_dtype=torch.int4)


@pytest.fixture(scope="module")
def int4():
    model = tiny_model("vit")
    quantize_(model.vit, INT4)
    return model


def test_scales_are_a_group_of_their_own(int4):
    scales, plain = parameter_space(int4, ["scales"]), parameter_space(int4, ["all"])
    linear = [name for name, module in int4.vit.named_modules() if isinstance(module, nn.Linear)]
    assert sorted(scales.names) == sorted(f"vit.{name}.weight.scale" for name in linear)
    assert not set(scales.names) & set(plain.names)
    assert "vit.encoder.layer.0.attention.attention.query.weight.scale" in scales.keys
    some = parameter_space(int4, ["*.layers.1.*"], ["*.q_proj.weight.scale"]).names
    assert "vit.layers.1.attention.k_proj.weight.scale" in some and not any("q_proj.weight" in name for name in some)
    with pytest.raises(SMDError, match="'scales' matches no parameter"):
        parameter_space(tiny_model("vit"), ["scales"])


@pytest.mark.parametrize("runtime", ["eager", "openvino", "compiled"])
def test_children_change_scales_in_each_runtime(runtime, int4):
    name = "vit.layers.1.attention.v_proj.weight.scale"
    scale, inputs = named_tensors(int4)[name], {"pixel_values": tiny_pixels(6)}
    changes = [(name, (torch.tensor([0, 2]), 2 * scale.flatten()[[0, 2]]))]
    with torch.inference_mode():
        before = int4(**inputs).logits
        with applied(named_tensors(int4), changes):
            expected = int4(**inputs).logits
        found = RuntimeChoice(int4, runtime).runtime(runtime)
        found.begin()
        parent = found.record(inputs, [[name]]).clone()
        with found.child(changes, [name]) as forward:
            assert found.suffix_share([name]) < 1
            child = forward(inputs).clone()
        with found.child(changes) as forward:
            assert torch.equal(forward(dict(inputs)), child)
        assert torch.equal(found.forward(inputs), parent)
        # A lasting change is seen as well.
        undo = commit(named_tensors(int4), changes)
        assert torch.equal(found.forward(inputs), child)
        commit(named_tensors(int4), undo)
    assert torch.equal(int4(**inputs).logits, before) and (expected - before).abs().max() > 0.1
    assert torch.allclose(child, expected, atol=1e-3) and torch.allclose(parent, before, atol=1e-3)


def test_a_graph_that_has_lost_a_scale_is_refused(int4, monkeypatch):
    monkeypatch.setattr(graph, "is_mutable", lambda tensor: False)  # as if memory did not tell which tensor it is
    with pytest.raises(graph.CannotExport, match=r"does not take vit\.layers\.0\.attention\.k_proj\.weight\.scale"):
        graph.Exported(int4, {"pixel_values": tiny_pixels(2)})


def test_what_could_not_be_saved_is_refused_before_anything_is_scored(packed, quantised, tmp_path):
    data = make_dataset(40, 1), None
    inside = tiny_model("vit")
    quantize_(inside.vit, Int8DynamicActivationInt8WeightConfig())
    for number, (model, kwargs, message) in enumerate(
        (
            (packed, {}, "cannot be saved as safetensors .*_packed_params.*TorchAoConfig"),
            (inside, {}, "cannot be saved as safetensors .*q_proj.weight.*forward_only_int8.py"),
            (quantised, {"ensemble_size": 2}, "ensemble of a quantised model cannot be saved"),
        )
    ):
        trainer = make_trainer(model, tmp_path / str(number), data, quantised, **kwargs)
        with pytest.raises(SMDError, match=message):
            trainer.train()
        assert trainer.evaluator.images_forwarded == 0


@pytest.mark.slow
def test_the_example_recovers_accuracy(tmp_path, capsys):
    example, out = load_example("forward_only_int8"), tmp_path / "evolved.safetensors"
    arguments = ["--output_file", str(out), "--epochs", "15", "--population_size", "32", "--num_generations", "2"]
    example.main(example.make_parser().parse_args(arguments))
    printed = capsys.readouterr().out
    shares = {line[:24].strip(): float(line[24:].strip(" %")) for line in printed.splitlines()[:4]}
    assert shares["int8, shifted, evolved"] > shares["int8, shifted"] and shares["float, as trained"] > 50
    assert "accuracy" in printed and out.stat().st_size > 4000
