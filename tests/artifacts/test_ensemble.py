"""The ensemble as a model: what it predicts, that its parent comes back, and its ways out."""

import copy
import math
import pickle
import threading

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from smd_hf.artifacts.ensemble import SMDEnsembleForImageClassification

from ..tiny import tiny_model, tiny_pixels

PIXELS = tiny_pixels(3)


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def make_child(model: nn.Module, seed: int, density: float = 0.25, names: list[str] | None = None) -> dict:
    """A child which changes a random part of each parameter, or of those of `names`."""
    generator = torch.Generator().manual_seed(seed)
    child = {}
    for name, parameter in model.named_parameters():
        if names is None or name in names:
            indices = (torch.rand(parameter.numel(), generator=generator) < density).nonzero().flatten()
            noise = torch.randn(len(indices), generator=generator) * 0.2
            values = (parameter.take(indices).float() + noise).to(parameter.dtype)
            child[name] = (indices.int(), values)
    return child


def whole_child(model: nn.Module, seed: int) -> dict:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (None, (parameter + 0.1 * torch.randn(parameter.shape, generator=generator)).to(parameter.dtype))
        for name, parameter in model.named_parameters()
    }


@torch.no_grad()
def applied(model: nn.Module, child: dict) -> nn.Module:
    """A copy of the model as the child, made independently of the package."""
    model = copy.deepcopy(model)
    parameters = dict(model.named_parameters())
    for name, (indices, values) in child.items():
        flat = parameters[name].detach().clone().flatten()
        flat[slice(None) if indices is None else indices.long()] = values.flatten()
        parameters[name].copy_(flat.view_as(parameters[name]))
    return model


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same_bytes(model: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    state = model.state_dict()
    assert state.keys() == weights.keys()
    for name, tensor in state.items():
        assert torch.equal(tensor.view(-1).view(torch.uint8), weights[name].view(-1).view(torch.uint8)), name


# Prediction


@pytest.mark.parametrize("kind", ["vit", "resnet", "timm_resnet", "swin"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_members_predict_as_the_children_they_are_and_the_parent_comes_back(kind, dtype):
    model = tiny_model(kind).to(dtype)
    children = [make_child(model, 0), whole_child(model, 1), {}, make_child(model, 2, 0.9)]
    expected = [applied(model, child)(PIXELS.to(dtype)).logits.float() for child in children]
    weights = weights_of(model)
    ensemble = SMDEnsembleForImageClassification.from_children(model, children)
    output = ensemble(PIXELS, output_members=True)
    assert output.member_logits.shape == (3, 4, 4) and output.member_logits.dtype == torch.float32
    for i, logits in enumerate(expected):
        assert torch.equal(output.member_logits[:, i], logits)
        assert torch.equal(ensemble.member(i)(PIXELS.to(dtype)).logits.float(), logits)
    mean = torch.stack(expected).softmax(-1).mean(0)
    torch.testing.assert_close(output.logits.exp(), mean)
    assert_same_bytes(ensemble.parent, weights)


def test_loss_is_the_negative_log_probability_of_the_labels_and_a_tuple_can_be_had():
    model = tiny_model("vit")
    ensemble = SMDEnsembleForImageClassification.from_children(model, [make_child(model, 0), {}])
    labels = torch.tensor([0, 3, 2])
    output = ensemble(PIXELS, labels=labels)
    assert output.loss == pytest.approx(-output.logits[torch.arange(3), labels].mean().item())
    assert output.member_logits is None
    loss, logits = ensemble(PIXELS, labels=labels, return_dict=False)
    assert torch.equal(loss, output.loss) and torch.equal(logits, output.logits)


def test_arguments_of_the_parents_forward_reach_it():
    model = tiny_model("vit")
    ensemble = SMDEnsembleForImageClassification.from_children(model, [{}])
    larger = tiny_pixels(2, image_size=48)
    expected = model(larger, interpolate_pos_encoding=True).logits
    assert torch.equal(
        ensemble(larger, interpolate_pos_encoding=True, output_members=True).member_logits[:, 0], expected
    )


def test_whole_members_of_different_architectures():
    models = [tiny_model("vit", seed=1), tiny_model("timm_resnet", seed=2)]
    expected = [model(PIXELS).logits for model in models]
    ensemble = SMDEnsembleForImageClassification.from_models(models, [3, 1], "mean_logits")
    output = ensemble(PIXELS, output_members=True)
    assert torch.equal(output.member_logits, torch.stack(expected, 1))
    torch.testing.assert_close(output.logits, (0.75 * expected[0] + 0.25 * expected[1]).log_softmax(-1))
    assert torch.equal(ensemble.member(1)(PIXELS).logits, expected[1])
    with pytest.raises(ValueError, match="same architecture"):
        ensemble.merge()


# Restoring


class Stop(Exception):
    """Raised by a hook."""


def test_the_parent_comes_back_when_a_forward_raises():
    model = tiny_model("vit")
    weights = weights_of(model)
    ensemble = SMDEnsembleForImageClassification.from_children(model, [make_child(model, s) for s in range(3)])
    expected = ensemble(PIXELS).logits
    calls = []

    def stop(*_):
        calls.append(1)
        if len(calls) == 2:
            raise Stop

    hook = model.classifier.register_forward_pre_hook(stop)
    with pytest.raises(Stop):
        ensemble(PIXELS)
    hook.remove()
    assert_same_bytes(model, weights)
    assert torch.equal(ensemble(PIXELS).logits, expected)


@pytest.mark.parametrize("last_blocks", [False, True])
def test_threads_on_one_instance_get_what_a_single_one_gets(last_blocks):
    model = tiny_model("vit")
    names = (
        [[n for n, _ in model.named_parameters() if f"layers.{i}." in n] for i in (1, 2)]
        if last_blocks
        else [None] * 2
    )
    children = [make_child(model, i, names=chosen) for i, chosen in enumerate(names)]
    ensemble = SMDEnsembleForImageClassification.from_children(model, children)
    batches = [tiny_pixels(2, seed=seed) for seed in range(4)]
    expected = [ensemble(batch).logits for batch in batches]
    found: dict[int, list[torch.Tensor]] = {i: [] for i in range(4)}
    together = threading.Barrier(4)

    def work(i):
        together.wait()
        for _ in range(5):
            found[i].append(ensemble(batches[i]).logits)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(len(found[i]) == 5 and all(torch.equal(f, expected[i]) for f in found[i]) for i in range(4))


def test_under_autocast_no_members_weights_stay_in_the_cache():
    model = tiny_model("vit")
    children = [make_child(model, 0), make_child(model, 1)]
    expected = []
    for child in [*children, {}]:
        with torch.autocast("cpu", torch.bfloat16):
            expected.append(applied(model, child)(PIXELS).logits.float())
    ensemble = SMDEnsembleForImageClassification.from_children(model, children)
    with torch.autocast("cpu", torch.bfloat16):
        found = ensemble(PIXELS, output_members=True).member_logits
        assert all(torch.equal(found[:, i], expected[i]) for i in range(2))
        assert torch.equal(model(PIXELS).logits.float(), expected[2])


def test_copies_and_pickles_of_an_ensemble_are_ensembles_of_their_own():
    model = tiny_model("resnet")
    ensemble = SMDEnsembleForImageClassification.from_children(model, [make_child(model, 0), {}])
    expected = ensemble(PIXELS).logits
    for other in (copy.deepcopy(ensemble), pickle.loads(pickle.dumps(ensemble))):
        assert torch.equal(other(PIXELS).logits, expected)
        for parameter in other.parameters():
            parameter.zero_()
        assert other._passes is not ensemble._passes
    assert torch.equal(ensemble(PIXELS).logits, expected)


# Sharing the parent's prefix


@pytest.mark.parametrize("with_parent", [False, True])
@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_children_of_late_blocks_share_the_prefix(kind, with_parent):
    model = tiny_model(kind)
    blocks = {"vit": "layers.{}.", "resnet": "stages.{}."}[kind]
    names = [[n for n, _ in model.named_parameters() if blocks.format(i) in n] for i in (0, 1, 2, 2)]
    children = [make_child(model, i, names=chosen) for i, chosen in enumerate(names)] + [{}] * with_parent
    expected = torch.stack([applied(model, child)(PIXELS).logits for child in children], 1)
    ensemble = SMDEnsembleForImageClassification.from_children(model, children)
    ensemble(PIXELS)  # the first call learns the order of the blocks
    stem = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    calls, original = [], nn.Conv2d.forward
    try:
        nn.Conv2d.forward = lambda self, hidden: (calls.append(self is stem), original(self, hidden))[1]
        found = ensemble(PIXELS, output_members=True).member_logits
    finally:
        nn.Conv2d.forward = original
    assert torch.equal(found, expected)
    # One pass is recorded; the others begin with it.
    assert sum(calls) == 1


def test_replay_is_not_used_where_every_member_changes_the_beginning():
    model = tiny_model("vit")
    ensemble = SMDEnsembleForImageClassification.from_children(model, [make_child(model, i) for i in range(2)])
    assert ensemble._passes.recorded is None


# Devices, dtypes, compilation, Trainer


def test_casting_moves_values_and_leaves_indices_alone():
    model = tiny_model("vit")
    child = make_child(model, 0)
    ensemble = SMDEnsembleForImageClassification.from_children(model, [child, {}]).to(torch.bfloat16)
    assert ensemble.member_0.indices.dtype == torch.int32
    assert ensemble.member_0.values.dtype == ensemble.dtype == torch.bfloat16
    expected = applied(tiny_model("vit"), child).to(torch.bfloat16)(PIXELS.bfloat16()).logits.float()
    output = ensemble(PIXELS, output_members=True)
    assert torch.equal(output.member_logits[:, 0], expected)
    assert output.logits.dtype == torch.float32
    assert ensemble.half()(PIXELS.half()).logits.isfinite().all()
    assert ensemble.double()(PIXELS).logits.dtype == torch.float64
    meta = ensemble.to("meta")
    assert {tensor.device.type for tensor in meta.state_dict().values()} == {"meta"}


def test_a_parent_of_several_dtypes_keeps_them():
    model = tiny_model("vit").to(torch.bfloat16)
    model.classifier.float()
    hook = model.classifier.register_forward_pre_hook(lambda _, args: (args[0].float(),))
    children = [make_child(model, i, 0.5) for i in range(2)]
    expected = torch.stack([applied(model, child)(PIXELS.bfloat16()).logits for child in children], 1)
    ensemble = SMDEnsembleForImageClassification.from_children(model, children)
    assert torch.equal(ensemble(PIXELS, output_members=True).member_logits, expected)
    hook.remove()


def test_torch_compile_falls_back_to_the_same_answer():
    model = tiny_model("resnet")
    ensemble = SMDEnsembleForImageClassification.from_children(model, [make_child(model, 0), {}])
    expected = ensemble(PIXELS).logits
    torch.testing.assert_close(torch.compile(ensemble, backend="eager")(PIXELS).logits, expected)


def test_trainer_evaluates_an_ensemble(tmp_path):
    model = tiny_model("resnet")
    ensemble = SMDEnsembleForImageClassification.from_children(model, [make_child(model, 0), {}])
    rows = [{"pixel_values": pixels, "labels": i % 4} for i, pixels in enumerate(tiny_pixels(6))]
    arguments = TrainingArguments(str(tmp_path), per_device_eval_batch_size=4, use_cpu=True, report_to="none")
    result = Trainer(ensemble, arguments, eval_dataset=rows).predict(rows)
    output = ensemble(tiny_pixels(6), labels=torch.arange(6) % 4)
    torch.testing.assert_close(torch.tensor(result.predictions), output.logits)
    assert result.metrics["test_loss"] == pytest.approx(output.loss.item(), rel=1e-5)


def test_members_run_in_the_mode_of_the_ensemble():
    model = tiny_model("vit")
    model.config.hidden_dropout_prob = 0.5
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    ensemble = SMDEnsembleForImageClassification.from_children(model, [{}, {}])
    assert not ensemble.training and not model.training
    assert torch.equal(*ensemble(PIXELS, output_members=True).member_logits.unbind(1))
    ensemble.train()
    assert not torch.equal(*ensemble(PIXELS, output_members=True).member_logits.unbind(1))


# Ways out


def test_merge_is_the_weighted_mean_of_the_weights():
    model = tiny_model("resnet")
    children = [make_child(model, 0), whole_child(model, 1), {}]
    states = [applied(model, child).state_dict() for child in children]
    parent = weights_of(model)
    ensemble = SMDEnsembleForImageClassification.from_children(model, children, member_weights=[2, 1, 1])
    merged = ensemble.merge()
    assert type(merged) is type(model) and merged is not model
    for name, tensor in merged.state_dict().items():
        if tensor.is_floating_point():
            mean = sum(w * state[name].double() for w, state in zip((0.5, 0.25, 0.25), states))
            torch.testing.assert_close(tensor, mean.to(tensor.dtype), rtol=1e-6, atol=1e-7)
    assert_same_bytes(model, parent)
    assert_same_bytes(SMDEnsembleForImageClassification.from_children(model, [{}, {}]).merge(), parent)
    whole = SMDEnsembleForImageClassification.from_models([applied(model, c) for c in children], [2, 1, 1]).merge()
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(tensor, merged.state_dict()[name], rtol=1e-6, atol=1e-7)


def test_a_member_taken_out_is_independent_of_the_ensemble(tmp_path):
    model = tiny_model("vit")
    ensemble = SMDEnsembleForImageClassification.from_children(model, [make_child(model, 0), {}])
    expected = ensemble(PIXELS).logits
    child = ensemble.member(-2)
    logits = child(PIXELS).logits
    child.save_pretrained(tmp_path)
    assert torch.equal(type(child).from_pretrained(tmp_path)(PIXELS).logits, logits)
    child.classifier.weight.zero_()
    assert torch.equal(ensemble(PIXELS).logits, expected)


# What is refused


def test_children_that_do_not_fit_are_refused():
    model = tiny_model("vit")
    name, parameter = next(iter(model.named_parameters()))
    make = SMDEnsembleForImageClassification.from_children
    one = torch.tensor([0], dtype=torch.int32)
    with pytest.raises(ValueError, match="no floating-point parameter"):
        make(model, [{"nowhere.weight": (one, torch.zeros(1))}])
    with pytest.raises(ValueError, match="outside"):
        make(model, [{name: (torch.tensor([parameter.numel()]), torch.zeros(1))}])
    with pytest.raises(ValueError, match=r"torch\.float16"):
        make(model, [{name: (one, torch.zeros(1, dtype=torch.float16))}])
    with pytest.raises(ValueError, match="at least one member"):
        make(model, [])
    with pytest.raises(ValueError, match="2 members, but 1 member_weights"):
        make(model, [{}, {}], member_weights=[1.0])
    for weights in ([1.0, -1.0], [0.0, 0.0], [math.nan, 1.0], [math.inf, 1.0]):
        with pytest.raises(ValueError, match="member_weights"):
            make(model, [{}, {}], member_weights=weights)
    with pytest.raises(ValueError, match="combination"):
        make(model, [{}], combination="median")


def test_whole_members_that_do_not_belong_together_are_refused():
    make = SMDEnsembleForImageClassification.from_models
    model = tiny_model("vit")
    with pytest.raises(ValueError, match="share tensors"):
        make([model, model])
    with pytest.raises(ValueError, match="same labels"):
        make([model, tiny_model("vit", num_labels=5)])
    regression = tiny_model("vit")
    regression.config.problem_type = "regression"
    with pytest.raises(ValueError, match="at least two classes"):
        make([regression])
