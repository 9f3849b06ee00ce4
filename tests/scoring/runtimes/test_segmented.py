"""Segments with weights as inputs: a child that starts in the middle has the bits of a full pass, and nothing is written into the model."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from smd_hf.scoring.runtimes.compiled import Parts
from smd_hf.scoring.runtimes.graph import CannotExport
from smd_hf.scoring.runtimes.openvino import OpenVINO
from smd_hf.scoring.runtimes.segmented import SegmentedRuntime

from ...tiny import TIMM_KINDS, TRANSFORMERS_KINDS, tiny_model, tiny_pixels

QUICK = ("vit", "timm_efficientnet")
KINDS = [
    kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.slow)
    for kind in (*TRANSFORMERS_KINDS, *TIMM_KINDS)
]


def as_they_are(cut):
    """Parts run by PyTorch, operation by operation."""
    return Parts(cut, lambda module: module)


def changed(model, names):
    parameters = dict(model.named_parameters())
    return [(name, (None, parameters[name].detach() * 1.25 + 0.05)) for name in names]


def full_pass(model, changes, inputs):
    child = copy.deepcopy(model)
    with torch.no_grad():
        for name, (indices, values) in changes:
            tensor = dict(child.named_parameters())[name]
            tensor.copy_(values) if indices is None else tensor.put_(indices, values)
        return child(**inputs).logits


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("kind", KINDS)
def test_children_of_any_weight_have_the_bits_of_the_model_itself(kind):
    model, inputs = tiny_model(kind), {"pixel_values": tiny_pixels(3)}
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    runtime = SegmentedRuntime(model, "segments", as_they_are, segments=6)
    # On some processors, the exported BEiT rounds otherwise than the model.
    agree = torch.allclose if kind == "beit" else torch.equal
    assert agree(runtime.forward(inputs), model(**inputs).logits)
    names = [name for name, _ in model.named_parameters()][:: max(1, len(list(model.parameters())) // 12)]
    assert torch.equal(runtime.record(inputs, [{name} for name in names]), runtime.forward(inputs))
    runtime.record(inputs, [{name} for name in names])
    for name in names:
        changes = changed(model, [name])
        with runtime.child(changes, {name}) as forward, runtime.child(changes) as whole:
            assert torch.equal(forward(inputs), whole(inputs)), name
            assert agree(forward(inputs), full_pass(model, changes, inputs)), name
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert runtime.suffix_share([names[-1]]) < 0.7
    assert runtime.suffix_share([name for name, _ in model.named_parameters()]) == pytest.approx(1.0)


@pytest.mark.parametrize("kind", ["timm_efficientnet", pytest.param("vit", marks=pytest.mark.slow)])
def test_openvino_replays_its_own_bits(kind):
    model, inputs = tiny_model(kind), {"pixel_values": tiny_pixels(3)}
    runtime = SegmentedRuntime(model, "openvino", OpenVINO, batch_size=4)
    expected = model(**inputs).logits
    torch.testing.assert_close(runtime.forward(inputs), expected, atol=1e-4, rtol=1e-4)
    names = [name for name, _ in model.named_parameters()][::9]
    runtime.record(inputs, [{name} for name in names])
    starts = {runtime._recording.start([name]) for name in names}
    assert len(starts) > 3  # exact from each of these places
    for name in names:
        changes = changed(model, [name])
        with runtime.child(changes, {name}) as forward:
            replayed = forward(inputs).clone()
        with runtime.child(changes) as forward:
            assert torch.equal(replayed, forward(inputs)), name
        torch.testing.assert_close(replayed, full_pass(model, changes, inputs), atol=1e-3, rtol=1e-3)


class Caching(nn.Module):
    """Keeps what it has derived from a weight until its mode changes, as LeViT does."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.rand(8))
        self.classifier = nn.Linear(3, 4)
        self.derived = None

    def train(self, mode=True):
        self.derived = None
        return super().train(mode)

    def forward(self, pixel_values):
        if self.derived is None:
            self.derived = self.bias[::2]
        return {"logits": self.classifier(pixel_values.mean((2, 3))) + self.derived}


def test_what_a_pass_has_kept_of_a_weight_is_no_constant_of_the_graph():
    model, inputs = Caching().eval(), {"pixel_values": torch.rand(2, 3, 4, 4)}
    with torch.inference_mode():
        before = model(**inputs)["logits"].clone()
    runtime = SegmentedRuntime(model, "segments", as_they_are)
    assert torch.equal(runtime.forward(inputs), before)
    with runtime.child([("bias", (None, model.bias.detach() + 1))]) as forward:
        torch.testing.assert_close(forward(inputs), before + 1)
    assert torch.equal(model(**inputs)["logits"], before)


class PlainShortcuts(nn.Module):
    """
    A ResNet as for CIFAR: shortcuts are slices, of all rows where the stride is 1, so that they are the tensor that they slice.

    Args:
        dropout (`float`, *optional*, defaults to 0): before each block's first convolution.
    """

    def __init__(self, dropout=0.0):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.convs = nn.ModuleList(nn.Conv2d(16, 16, 3, 1 + block % 2, 1, bias=False) for block in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm2d(16) for _ in self.convs)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(16, 4)

    def forward(self, pixel_values):
        hidden = self.stem(pixel_values).relu()
        for conv, norm in zip(self.convs, self.norms):
            residual = hidden[:, :, :: conv.stride[0], :: conv.stride[1]]
            hidden = (norm(conv(self.dropout(hidden))) + residual).relu()
        return {"logits": self.classifier(hidden.mean(dim=(2, 3)))}


@pytest.mark.parametrize("dropout", [0.0, pytest.param(0.1, marks=pytest.mark.slow)])
def test_openvino_takes_a_graph_with_two_names_for_a_tensor_and_replays_its_bits(dropout):
    torch.manual_seed(0)
    model, inputs = PlainShortcuts(dropout).eval(), {"pixel_values": torch.rand(4, 3, 16, 16)}
    names = [f"norms.{block}.weight" for block in range(3)]
    replaying, whole = (SegmentedRuntime(model, "openvino", OpenVINO, batch_size=4, segments=most) for most in (16, 1))
    torch.testing.assert_close(whole.forward(inputs), model(**inputs)["logits"], atol=1e-4, rtol=1e-4)
    replaying.record(inputs, [{name} for name in names])
    # A mean over an image has other bits where its channels are first than where they are last.
    assert len({replaying._recording.start([name]) for name in names} - {0}) >= 2
    for name in names:
        changes = changed(model, [name])
        with replaying.child(changes, {name}) as forward, whole.child(changes) as full:
            assert torch.equal(forward(inputs), full(inputs)), name


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_openvino_replays_in_bf16(kind):
    """What it computes just before an output stays in float32: activations that were kept had other bits than the rest of the graph saw."""
    model, inputs = tiny_model(kind), {"pixel_values": tiny_pixels(4)}
    names = [name for name, parameter in model.named_parameters() if parameter.ndim == 1]
    runtime = SegmentedRuntime(model, "openvino", partial(OpenVINO, precision="bf16"), batch_size=4)
    # Other batches are compared as well, and leave the parent's logits of this one alone.
    assert torch.equal(runtime.record(inputs, [{name} for name in names]), runtime.forward(inputs))
    runtime.record(inputs, [{name} for name in names])
    assert len({runtime._recording.start([name]) for name in names} - {0}) >= 2
    for name in names:
        changes = changed(model, [name])
        with runtime.child(changes, {name}) as forward, runtime.child(changes) as full:
            assert torch.equal(forward(inputs).clone(), full(inputs)), name


class LargeWindow(nn.Module):
    """An average over more than the image, as in EfficientNet of transformers, and an empty part, as in ImageGPT."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.AvgPool2d(64, ceil_mode=True), nn.Flatten(), nn.Linear(8, 4)
        )

    def forward(self, pixel_values):
        return {"logits": self.layers(torch.cat([torch.zeros(0), pixel_values], dim=1))}


def test_openvino_takes_an_average_over_a_window_larger_than_the_image_and_an_empty_part():
    model, inputs = LargeWindow().eval(), {"pixel_values": torch.rand(2, 3, 12, 10)}
    found = SegmentedRuntime(model, "openvino", OpenVINO, segments=1).forward(inputs)
    torch.testing.assert_close(found, model(**inputs)["logits"], atol=1e-5, rtol=1e-5)


class Patches(nn.Module):
    """Reshapes a view of other strides, which an export says as a copy and a view of it."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(12, 12) for _ in range(4))

    def forward(self, pixel_values):
        batch, _, height, width = pixel_values.shape
        for layer in self.layers:
            patches = pixel_values.reshape(batch, 3, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
            mixed = layer(patches.reshape(batch, -1, 12)).relu().reshape(patches.shape)
            pixel_values = mixed.permute(0, 3, 1, 4, 2, 5).reshape(pixel_values.shape)
        return {"logits": pixel_values.mean((2, 3))}


def test_openvino_replays_from_a_reshaped_view():
    model, inputs = Patches().eval(), {"pixel_values": torch.rand(2, 3, 8, 8)}
    runtime = SegmentedRuntime(model, "openvino", OpenVINO, segments=16)
    targets = [node.target for node in runtime._plan(inputs)[0].exported.nodes]
    assert torch.ops.aten.clone.default not in targets and torch.ops.aten.reshape.default in targets
    names = [f"layers.{number}.weight" for number in range(4)]
    torch.testing.assert_close(runtime.record(inputs, [{name} for name in names]), model(**inputs)["logits"])
    assert len({runtime._recording.start([name]) for name in names}) == 4
    for name in names:
        changes = changed(model, [name])
        with runtime.child(changes, {name}) as forward, runtime.child(changes) as whole:
            assert torch.equal(forward(inputs).clone(), whole(inputs))


def test_a_place_from_which_bits_differ_is_not_started_at(monkeypatch):
    model, inputs = tiny_model("resnet"), {"pixel_values": tiny_pixels(2)}
    runtime = SegmentedRuntime(model, "segments", as_they_are, segments=4)
    suffixes = Parts.suffixes

    def rounded(self, part):
        [run] = suffixes(self, part)
        return [lambda *arguments: [output + 1e-7 for output in run(*arguments)]]

    monkeypatch.setattr(Parts, "suffixes", rounded)
    runtime.record(inputs, [{"classifier.1.weight"}])
    changes = changed(model, ["classifier.1.weight"])
    with runtime.child(changes, {"classifier.1.weight"}) as forward:
        assert torch.equal(forward(inputs), full_pass(model, changes, inputs))


@pytest.mark.parametrize("harmful", [lambda place: True, lambda place: place == 1], ids=["all", "one"])
def test_activations_that_a_pass_keeps_only_with_other_bits_are_not_kept(harmful, monkeypatch):
    """OpenVINO fuses operations of an EfficientViM in another way where activations between them are outputs."""
    whole = Parts.whole

    def rounded(self, outputs):
        run, places = whole(self, outputs), [self.cut.whole.outputs.index(name) for name in outputs[:-1]]

        def other(*arguments):
            *kept, logits = run(*arguments)
            return [*kept, logits * 1.0001 if any(map(harmful, places)) else logits]

        return other

    monkeypatch.setattr(Parts, "whole", rounded)
    model, inputs = tiny_model("resnet"), {"pixel_values": tiny_pixels(2)}
    names = [name for name, parameter in model.named_parameters() if parameter.ndim == 1]
    runtime = SegmentedRuntime(model, "segments", as_they_are, segments=4)
    for _ in range(2):
        logits = runtime.record(inputs, [{name} for name in names])
        assert torch.equal(logits, model(**inputs).logits)
        recording = runtime._recording
        starts = {name: recording.start([name]) for name in names}
        assert (set(starts.values()) == {0}) is harmful(0)
        if not harmful(0):  # a child of a part that cannot be started at starts at the one before
            lost = [name for name in names if recording.plan.start([name]) not in recording.exact | {0}]
            assert any(0 < starts[name] < recording.plan.start([name]) for name in lost)
        assert len(runtime._recording.kept) < len(runtime._recording.plan.cut.whole.outputs) - 1
        for name in names:
            changes = changed(model, [name])
            with runtime.child(changes, {name}) as forward:
                assert torch.equal(forward(inputs), full_pass(model, changes, inputs))


def test_sparse_changes_leave_the_parent_alone():
    model, inputs = tiny_model("vit"), {"pixel_values": tiny_pixels(2)}
    name = "classifier.weight"
    before = model.classifier.weight.clone()
    changes = [(name, (torch.tensor([0, 5]), torch.tensor([1.0, -1.0])))]
    runtime = SegmentedRuntime(model, "segments", as_they_are)
    with runtime.child(changes) as forward:
        assert torch.equal(forward(inputs), full_pass(model, changes, inputs))
    assert torch.equal(model.classifier.weight, before)
    assert torch.equal(runtime.forward(inputs), model(**inputs).logits)


def test_a_parent_with_new_weights_is_seen_whether_they_were_mutable_or_not():
    model, inputs = tiny_model("resnet"), {"pixel_values": tiny_pixels(2)}
    runtime = SegmentedRuntime(model, "segments", as_they_are, mutable=["classifier.1.weight"])
    first = runtime.forward(inputs).clone()
    norm = next(name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d))
    with torch.no_grad():
        model.classifier[1].weight.mul_(2)
    assert torch.equal(runtime.forward(inputs), model(**inputs).logits)
    with torch.no_grad():
        model.get_submodule(norm).running_mean.add_(0.5)  # a constant of the graph
    assert torch.equal(runtime.forward(inputs), model(**inputs).logits)
    assert not torch.equal(runtime.forward(inputs), first)
    frozen = f"{norm}.weight"
    with runtime.child(changed(model, [frozen])) as forward:
        assert torch.equal(forward(inputs), full_pass(model, changed(model, [frozen]), inputs))


def test_a_last_batch_is_filled_up_so_that_one_graph_serves_all():
    model = tiny_model("timm_efficientnet")
    runtime = SegmentedRuntime(model, "segments", as_they_are, batch_size=4)
    for size in (4, 1, 3):
        inputs = {"pixel_values": tiny_pixels(size)}
        torch.testing.assert_close(runtime.forward(inputs), model(**inputs).logits, atol=1e-5, rtol=1e-5)
    assert len(runtime._plans) == 1


class Counting(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.how = how
        self.linear = nn.Linear(3, 2)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, pixel_values):
        hidden = pixel_values.mean((2, 3))
        if self.how == "state":
            self.calls.add_(1)
        elif self.how == "random":
            hidden = hidden + torch.rand_like(hidden)
        elif hidden.sum() > 0:
            hidden = -hidden
        return {"logits": self.linear(hidden)}


@pytest.mark.parametrize(
    ("how", "reason"),
    [("state", "changes its buffer"), ("random", "draws random numbers"), ("data", "does not export")],
)
def test_what_is_no_pure_function_is_refused_with_the_reason(how, reason):
    runtime = SegmentedRuntime(Counting(how).eval(), "segments", as_they_are)
    with pytest.raises(CannotExport, match=reason):
        runtime.forward({"pixel_values": torch.rand(2, 3, 4, 4)})
