import contextlib
import copy
import dataclasses
import logging
import random

import pytest
import timm
import torch
from torch import nn

from smd_hf.models.blocks import find_blocks
from smd_hf.scoring.prefix_replay import PrefixReplay

from ..tiny import TIMM_KINDS, TRANSFORMERS_KINDS, tiny_model, tiny_pixels

TIMM_MORE = {
    "mixer_s32_224": {"img_size": 64},
    "levit_128s": {},
    "inception_v3": {},
    "cait_xxs24_224": {"img_size": 32},
    "ghostnet_050": {},
}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def logits(output):
    return output if isinstance(output, torch.Tensor) else output.logits


@contextlib.contextmanager
def changed_weights(model, names):
    state = dict(model.named_parameters(remove_duplicate=False))
    before = {name: state[name].detach().clone() for name in names}
    with torch.no_grad():
        for name in names:
            state[name].mul_(1.25).add_(0.05)
        yield
        for name in names:
            state[name].copy_(before[name])


def assert_exact(model, changes, pixels, starts=None):
    """A replayed pass equals a full one for each set of changed parameters, twice in a row; returns the replay."""
    replay = PrefixReplay(model)
    parent = logits(model(pixels))
    with replay.record(starts):
        assert torch.equal(logits(model(pixels)), parent)
    assert replay.supported == (True, None)
    for names in changes:
        with changed_weights(model, names):
            full = logits(model(pixels))
            for _ in range(2):
                with replay.replay(names):
                    assert torch.equal(logits(model(pixels)), full), names
    with replay.replay([]):
        assert torch.equal(logits(model(pixels)), parent)
    assert not any("forward" in vars(module) for module in model.modules())
    return replay


@contextlib.contextmanager
def counted(*modules):
    """How often the forwards of modules run: their classes are watched, as instances are the replay's."""
    calls, kinds = {}, {type(module) for module in modules}
    originals = {kind: kind.forward for kind in kinds}

    def watch(original):
        def forward(self, *args, **kwargs):
            calls[self] = calls.get(self, 0) + 1
            return original(self, *args, **kwargs)

        return forward

    for kind, original in originals.items():
        kind.forward = watch(original)
    try:
        yield calls
    finally:
        for kind, original in originals.items():
            kind.forward = original


@pytest.mark.parametrize("kind", TRANSFORMERS_KINDS + TIMM_KINDS)
@torch.inference_mode()
def test_a_change_in_any_block(kind):
    model = tiny_model(kind)
    replay = assert_exact(model, [block.parameter_names for block in find_blocks(model)], tiny_pixels())
    assert replay.suffix_share(find_blocks(model)[-1].parameter_names) < 1
    assert replay.suffix_share(replay.positions) == 1


@pytest.mark.parametrize("name", TIMM_MORE)
@torch.inference_mode()
def test_a_change_in_any_block_of_other_architectures(name):
    model = timm.create_model(name, **TIMM_MORE[name]).eval()
    pixels = tiny_pixels(2, {"levit_128s": 224, "inception_v3": 96, "mixer_s32_224": 64}.get(name, 32))
    model(pixels)
    changes = [block.parameter_names for block in find_blocks(model)]
    assert_exact(model, changes[:: max(1, len(changes) // 8)], pixels)


@pytest.mark.parametrize("kind", ["vit", "timm_resnet", "beit"])
@torch.no_grad()
def test_a_change_of_any_tensor(kind):
    model = tiny_model(kind)
    assert_exact(model, [[name] for name, _ in model.named_parameters()], tiny_pixels())


@pytest.mark.parametrize("kind", ["resnet", "vit", "timm_convnext"])
@pytest.mark.parametrize("how", ["bfloat16", "autocast", "channels_last", "no_grad"])
def test_precision_and_layout(kind, how):
    model, pixels = tiny_model(kind), tiny_pixels()
    if how == "bfloat16":
        model, pixels = model.bfloat16(), pixels.bfloat16()
    elif how == "channels_last":
        model = model.to(memory_format=torch.channels_last)
        pixels = pixels.to(memory_format=torch.channels_last)
    cast = torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast", cache_enabled=False)
    with torch.no_grad() if how == "no_grad" else torch.inference_mode(), cast:
        assert_exact(model, [block.parameter_names for block in find_blocks(model)], pixels)


@torch.no_grad()
def test_casts_cached_by_autocast_are_those_of_the_child():
    model, pixels, names = tiny_model("vit"), tiny_pixels(), ["classifier.weight"]
    replay = PrefixReplay(model)
    with changed_weights(model, names), torch.autocast("cpu", torch.bfloat16):
        full = model(pixels).logits
    with torch.autocast("cpu", torch.bfloat16):
        with replay.record():
            model(pixels)
        with changed_weights(model, names), replay.replay(names):
            assert torch.equal(model(pixels).logits, full)


@torch.inference_mode()
def test_a_child_of_the_head_runs_the_head_alone():
    for kind, head in (("vit", "classifier"), ("timm_mobilenetv3", "timm_model.classifier")):
        model, pixels = tiny_model(kind), tiny_pixels()
        replay = PrefixReplay(model)
        with replay.record():
            model(pixels)
        layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.LayerNorm | nn.BatchNorm2d)]
        with counted(*layers) as calls, replay.replay([f"{head}.weight"]):
            model(pixels)
        assert calls == {model.get_submodule(head): 1}


@torch.inference_mode()
def test_only_what_is_needed_is_kept():
    model, pixels = tiny_model("vit"), tiny_pixels()
    changes = [block.parameter_names for block in find_blocks(model)]
    everything = assert_exact(model, changes, pixels)._outputs
    replay = assert_exact(model, changes, pixels, starts=[changes[-1]])
    assert 0 < len(replay._outputs) < len(everything)
    replay.clear()
    assert not replay._outputs


class Mix(nn.Module):
    """A small network put together at random: activations in place, skips, aliases, lists of lists, shared modules."""

    def __init__(self, seed):
        super().__init__()
        self.choices = random.Random(seed)
        make = [
            lambda: nn.Linear(6, 6),
            lambda: nn.ReLU(inplace=True),
            lambda: nn.Identity(),
            lambda: nn.Sequential(nn.Linear(6, 6), nn.ReLU(inplace=True), nn.Identity()),
            lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 6)),
            lambda: nn.Sequential(nn.Sequential(nn.LayerNorm(6)), nn.Dropout(0.5)),
            lambda: nn.LayerNorm(6),
        ]
        self.parts = nn.ModuleList([self.choices.choice(make)() for _ in range(6)])
        self.scale = nn.Parameter(torch.full((6,), 0.7))
        self.first, self.head = nn.Linear(6, 6), nn.Linear(6, 4)
        self.order = tuple((self.choices.randrange(6), self.choices.randrange(6)) for _ in range(9))

    def forward(self, x):
        x = self.first(x)
        kept = [x]
        for part, step in self.order:
            y = self.parts[part](x)
            if step == 0:
                y += kept[0]
            elif step == 1:
                y = y + x
            elif step == 2:
                y.mul_(0.9)
            elif step == 3:
                y = y * self.scale
            elif step == 4:
                kept.append(x.view(-1, 6))
            x = y
        return self.head(x + sum(kept))


@pytest.mark.parametrize("seed", range(40))
@torch.inference_mode()
def test_in_place_changes_aliases_and_modules_called_twice(seed):
    torch.manual_seed(seed)
    model = Mix(seed).eval()
    used = [name for name, _ in model.named_parameters()]
    assert_exact(model, [[name] for name in used], torch.randn(3, 6))


def make(forward, **modules):
    """A network of `modules` whose forward is `forward(self, x)`."""
    torch.manual_seed(0)
    net = type("Net", (nn.Module,), {"forward": forward})()
    for name, module in modules.items():
        setattr(net, name, module)
    return net.eval()


@torch.no_grad()
def test_tied_weights_count_from_their_first_use():
    net = make(lambda self, x: self.c(self.b(self.a(x))), a=nn.Linear(4, 4), b=nn.Linear(4, 4), c=nn.Linear(4, 4))
    net.c.weight = net.a.weight
    # Another parameter in the same memory.
    net.b.bias = nn.Parameter(net.a.bias.data)
    replay = assert_exact(net, [["c.weight"], ["a.weight"], ["b.bias"], ["a.bias"], ["c.bias"]], torch.randn(2, 4))
    assert replay.positions["c.weight"] == replay.positions["a.weight"] < replay.positions["b.weight"]
    assert replay.positions["b.bias"] == replay.positions["a.bias"]


@torch.no_grad()
def test_a_parameter_used_outside_of_its_owner():
    def forward(self, x):
        early = nn.functional.linear(self.a(x), self.late.weight)
        return self.late(self.b(early))

    net = make(forward, a=nn.Linear(4, 4), b=nn.Linear(4, 4), late=nn.Linear(4, 4))
    replay = assert_exact(net, [["late.weight"], ["late.bias"]], torch.randn(2, 4))
    assert replay.positions["a.weight"] < replay.positions["late.weight"] < replay.positions["b.weight"]


@dataclasses.dataclass
class Features:
    states: list
    pair: dict
    nothing: None = None


class Extractor(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])

    def forward(self, x):
        states = [x]
        for layer in self.layers:
            states.append(layer(states[-1]).relu())
        return Features(states[1:], {"last": states[-1], "sizes": (1, 2.0, "three")})


@torch.no_grad()
def test_outputs_of_dataclasses_whose_lists_the_caller_empties():
    def forward(self, x):
        features = self.body(x)
        features.states.append(features.pair.pop("last") * 2)
        return self.head(sum(features.states))

    net = make(forward, body=Extractor(), head=nn.Linear(4, 2))
    assert_exact(net, [["head.weight"], ["body.layers.1.weight"]], torch.randn(2, 4))


@torch.no_grad()
def test_other_inputs_than_the_recorded_ones_run_in_full():
    net = make(lambda self, x: self.head(self.body(x)), body=nn.Linear(4, 4), head=nn.Linear(4, 2))
    replay, x = PrefixReplay(net), torch.randn(2, 4)
    with replay.record():
        net(x)

    cases = [(lambda: x, 1), (lambda: x.clone(), 1), (lambda: x + 1, 2), (lambda: x[:1], 2), (lambda: x.add_(1), 2)]
    for make_input, runs in cases:
        given = make_input()
        with counted(net.body) as calls, replay.replay(["head.weight"]):
            net(given)
        assert sum(calls.values()) == runs


class Opaque(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x, memory):
        memory.value = self.inner(x)
        return memory


@torch.no_grad()
def test_a_block_that_writes_into_an_object_runs():
    def forward(self, x):
        memory = type("Memory", (), {})()
        self.blocks[0](x, memory)
        return self.head(memory.value)

    net = make(forward, blocks=nn.ModuleList([Opaque()]), head=nn.Linear(4, 2))
    assert_exact(net, [["head.weight"], ["blocks.0.inner.weight"]], torch.randn(2, 4))


class Counter(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind, self.calls, self.seen = kind, 0, []
        self.register_buffer("state", torch.zeros(1))

    def forward(self, x):
        if self.kind == "attribute":
            self.calls += 1
        elif self.kind == "list":
            self.seen.append(x)
        elif self.kind == "buffer":
            self.state.add_(1)
        elif self.kind == "random":
            x = x + torch.rand_like(x)
        return x + self.calls + self.state


@pytest.mark.parametrize("kind", ["attribute", "list", "buffer", "random"])
@torch.no_grad()
def test_blocks_with_a_state_run_in_full(kind, caplog):
    block = Counter(kind)
    net = make(lambda self, x: self.head(self.block(self.block(x))), block=block, head=nn.Linear(4, 2))
    replay, x = PrefixReplay(net), torch.randn(2, 4)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            with replay.record():
                net(x)
            with counted(block) as calls, replay.replay(["head.weight"]):
                net(x)
            assert calls == {block: 2}
    assert replay.supported[0] is False and "buffer or an attribute" in replay.supported[1]
    assert replay.suffix_share(["head.weight"]) == 1.0
    assert len(caplog.records) == 1, "one line in the log"


class Branch(nn.Module):
    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.parts[int(x.sum() > 0)](x))


@torch.inference_mode()
def test_calls_that_depend_on_the_batch_run_in_full():
    model = Branch().eval()
    replay = PrefixReplay(model)
    for x in (torch.ones(2, 4), -torch.ones(2, 4)):
        with replay.record():
            model(x)
    assert "same order" in replay.supported[1]
    with replay.replay(["head.weight"]):
        assert torch.equal(model(x), model(x))


@pytest.mark.parametrize(
    "spoil, reason",
    [
        (lambda model: model.classifier.register_forward_hook(lambda *_: None), "hooks"),
        (lambda model: model.vit.register_forward_pre_hook(lambda *_: None), "hooks"),
        (lambda model: model.vit.layers[1].train(), "vit.layers.1 is in training mode"),
        (lambda model: setattr(model.vit, "forward", model.vit.forward), "vit has a forward method"),
        (lambda model: model.vit.compile(), "vit is compiled"),
    ],
)
def test_what_is_not_supported_runs_in_full(spoil, reason, caplog):
    model, pixels = tiny_model("vit"), tiny_pixels()
    spoil(model)
    replay = PrefixReplay(model)
    assert reason in replay.supported[1]
    with torch.no_grad(), caplog.at_level(logging.WARNING), pytest.MonkeyPatch.context() as patch:
        # Nothing is to be compiled for real.
        patch.setattr(nn.Module, "__call__", nn.Module._call_impl)
        with replay.record():
            model(pixels)
        with counted(model.vit.layers[0]) as calls, replay.replay(["classifier.weight"]):
            model(pixels)
    assert calls[model.vit.layers[0]] == 1
    assert [reason in record.getMessage() for record in caplog.records] == [True]


def test_with_gradients_a_pass_runs_in_full():
    model = tiny_model("vit")
    replay = PrefixReplay(model)
    with replay.record():
        model(tiny_pixels()).logits.sum().backward()
    assert model.classifier.weight.grad is not None and not replay._outputs


@torch.no_grad()
def test_an_exception_leaves_the_model_clean():
    model, pixels, names = tiny_model("resnet"), tiny_pixels(), ["classifier.1.weight"]
    attributes = [vars(module).keys() for module in model.modules()]
    replay = PrefixReplay(model)
    with pytest.raises(ValueError, match="channel"), replay.record():
        model(pixels[:, :2])
    with replay.record():
        model(pixels)
    with pytest.raises(ValueError, match="channel"), replay.replay(names):
        model(pixels[:, :2])
    with changed_weights(model, names):
        full = model(pixels).logits
        with replay.replay(names):
            assert torch.equal(model(pixels).logits, full)
    with pytest.raises(KeyError), replay.replay(["classifier.1.wait"]):
        pass
    assert [vars(module).keys() for module in model.modules()] == attributes
    assert torch.equal(copy.deepcopy(model)(pixels).logits, model(pixels).logits)


@torch.inference_mode()
def test_a_new_head_and_a_new_size_are_learned_anew():
    model, names = tiny_model("convnext"), ["classifier.weight"]
    replay = PrefixReplay(model)
    for size in (32, 48):
        pixels = tiny_pixels(3, size)
        with replay.record():
            model(pixels)
        with changed_weights(model, names), replay.replay(names):
            replayed = model(pixels).logits
        with changed_weights(model, names):
            assert torch.equal(model(pixels).logits, replayed)
        model.classifier = nn.Linear(24, 7).eval()
    # A smaller last batch is nothing new.
    positions = replay.positions
    with replay.record():
        model(tiny_pixels(3, 48))
    with replay.record():
        model(tiny_pixels(1, 48))
    assert replay.positions.keys() == positions.keys()
