"""Scores of variants: the same as by full passes, for less work, and with the parent as it was."""

import contextlib
import logging

import numpy as np
import pytest
import torch

from smd_hf.data.batches import ImageBatches
from smd_hf.models.blocks import find_blocks
from smd_hf.models.checkpoints import weights_hash
from smd_hf.models.openvino_compiler import compiled_for_cpu
from smd_hf.scoring.changes import applied
from smd_hf.scoring.evaluator import ChangeCache, Evaluator, Variant
from smd_hf.scoring.reading import ReadsClasses
from smd_hf.scoring.runtimes import openvino as runtimes_openvino
from smd_hf.scoring.runtimes import plan
from smd_hf.scoring.runtimes.choose import RuntimeChoice
from smd_hf.search.mutation import Mutation
from smd_hf.search.parameter_space import parameter_space
from smd_hf.search.subspaces import make_decomposition
from tests.tiny import tiny_model, tiny_pixels

CPU = torch.device("cpu")
PARENT = Variant("parent", changed=frozenset())


def make_batches(count=10, batch_size=4, **kwargs):
    rows = list(zip(tiny_pixels(count), torch.arange(count) % 4))

    def collate(rows):
        return {"pixel_values": torch.stack([row[0] for row in rows]), "labels": torch.stack([row[1] for row in rows])}

    return ImageBatches(rows, collate, batch_size, **kwargs)


def children_of(model, decomposition="blocks", directions=8, mutable=None, sigma=0.3, **kwargs):
    space = parameter_space(model, mutable)
    mutation = Mutation(model, make_decomposition(decomposition, space, directions), **kwargs)
    return [
        Variant(f"child {child.index}", lambda child=child: mutation.changes(child), mutation.changed_names(child))
        for child in mutation.children(0, sigma)
    ]


class Passes:
    """Counts calls, and images, of a module's class."""

    def __init__(self, module, monkeypatch):
        self.calls = self.images = 0
        forward = type(module).forward

        def counted(this, pixels, *args, **kwargs):
            if this is module:
                self.calls += 1
                self.images += len(pixels)
            return forward(this, pixels, *args, **kwargs)

        monkeypatch.setattr(type(module), "forward", counted)


def stem_of(model):
    return next(module for module in model.modules() if isinstance(module, torch.nn.Conv2d))


def plain_logits(model, variant, batches):
    """By passes of the model, with nothing of the engine's."""
    parameters = dict(model.named_parameters())
    with torch.inference_mode(), applied(parameters, variant.changes()):
        return np.concatenate([model(**batch.stored).logits.numpy() for batch in batches])


@pytest.mark.parametrize("kind", ["vit", "swin", "convnext", "resnet", "mobilenet_v2", "efficientnet", "timm_vit"])
@pytest.mark.parametrize("cached", [True, False], ids=["cached", "streamed"])
def test_scores_are_those_of_full_passes_to_the_bit(kind, cached):
    model = tiny_model(kind)
    before = weights_hash(model)
    variants = [PARENT, *children_of(model, sigma=0.1)]
    batches = make_batches(cache_bytes=10**8 if cached else 0)
    expected = [plain_logits(model, variant, batches) for variant in variants]
    replayed = Evaluator(model, CPU)
    plain = Evaluator(model, CPU, prefix_replay=False)
    labels = batches.labels
    for evaluator in (replayed, plain):
        scores = evaluator.score(variants, batches, keep_logits=True)
        for score, logits in zip(scores, expected):
            assert np.array_equal(score.logits, logits)
            assert np.array_equal(score.correct, logits.argmax(-1) == labels)
            wide = torch.from_numpy(logits).double()
            nll = float(torch.nn.functional.cross_entropy(wide, torch.from_numpy(labels)))
            assert score.nll == pytest.approx(nll, rel=1e-12) and score.accuracy == np.mean(score.correct)
    first, second = (evaluator.score(variants, batches) for evaluator in (replayed, plain))
    assert [score.nll for score in first] == [score.nll for score in second]
    assert replayed.full_passes < plain.full_passes == 2 * len(variants) * 10
    assert weights_hash(model) == before


def test_prefixes_are_replayed_where_that_pays_and_only_there(monkeypatch):
    model = tiny_model("vit")
    stem = Passes(stem_of(model), monkeypatch)

    def images_in_the_stem(variants):
        evaluator = Evaluator(model, CPU)
        evaluator.score(variants[:1], make_batches())  # settles what replay has to learn about the model
        start = stem.images
        evaluator.score(variants, make_batches())
        return stem.images - start

    blocks = children_of(model)
    first = frozenset(find_blocks(model)[0].parameter_names)
    from_the_start = sum(bool(variant.changed & first) for variant in blocks)
    assert 0 < from_the_start < 4
    # The probe sees two images; one recorded pass stands for the parent and all children that leave the stem alone.
    assert images_in_the_stem([PARENT, *blocks]) == 2 + 10 * (1 + from_the_start)
    dense = children_of(model, "dense", 3)
    assert images_in_the_stem([PARENT, *dense]) == 10 * 4
    # Nothing is known of what changes: no replay.
    assert images_in_the_stem([PARENT, *(Variant(each.name, each.changes) for each in blocks)]) == 10 * 9


@pytest.mark.parametrize("kind", ["vit", "resnet", "timm_convnext"])
def test_children_of_the_head_cost_next_to_nothing(kind, monkeypatch):
    model = tiny_model(kind)
    heads = children_of(model, "random", 16, mutable=["head"])
    stem = Passes(stem_of(model), monkeypatch)
    evaluator = Evaluator(model, CPU)
    scores = evaluator.score([PARENT, *heads], make_batches())
    assert stem.images == 2 + 10 and len({score.nll for score in scores}) > 8
    assert evaluator.images_forwarded == 17 * 10
    assert 10 <= evaluator.full_passes < 0.5 * 17 * 10


def test_a_model_that_cannot_be_replayed_is_scored_all_the_same_with_one_line_in_the_log(caplog):
    model = tiny_model("vit")
    variants, batches = [PARENT, *children_of(model)], make_batches()
    expected = [score.nll for score in Evaluator(model, CPU).score(variants, batches)]
    model.vit.layers[1].register_forward_hook(lambda module, args, output: None)
    evaluator = Evaluator(model, CPU)
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            assert [score.nll for score in evaluator.score(variants, batches)] == expected
    lines = [record.message for record in caplog.records if "in full" in record.message]
    assert len(lines) == 1 and "hooks" in lines[0]


def test_children_too_large_to_keep_are_made_anew_and_score_the_same():
    model = tiny_model("vit")
    variants, made = children_of(model), []

    def counted(variant):
        return Variant(variant.name, lambda: made.append(variant.name) or variant.changes(), variant.changed)

    variants = [PARENT, *map(counted, variants)]
    results = []
    for limit, times in ((10**9, 1), (0, 3)):
        made.clear()
        scores = Evaluator(model, CPU, change_cache_bytes=limit).score(variants, make_batches())
        results.append([score.nll for score in scores])
        assert sorted(made) == sorted([variant.name for variant in variants[1:]] * times)
    assert results[0] == results[1]


def test_the_cache_of_changes_keeps_to_its_budget():
    model = tiny_model("vit")
    variants = children_of(model)
    sizes = [sum(values.nbytes for _, (_, values) in variant.changes()) for variant in variants]
    budget = sizes[0] + sizes[1]
    cache = ChangeCache(variants, budget)
    for number in range(len(variants)):
        cache(number, once=False)
    kept = [number for number in range(len(variants)) if isinstance(cache(number, once=False), list)]
    assert cache.left >= 0 and {0, 1} <= set(kept)
    held = [number for number in kept if cache(number, once=False) is cache(number, once=False)]
    assert sum(sizes[number] for number in held) <= budget


@pytest.mark.parametrize("replay", [True, False])
def test_the_parent_is_back_after_an_error(replay):
    model = tiny_model("resnet")
    before, calls = weights_hash(model), []

    class Broken(Exception):
        pass

    @contextlib.contextmanager
    def breaks_at_the_fifth_pass():
        calls.append(1)
        if len(calls) == 5:
            raise Broken
        yield

    evaluator = Evaluator(model, CPU, breaks_at_the_fifth_pass, prefix_replay=replay)
    with pytest.raises(Broken):
        evaluator.score([PARENT, *children_of(model)], make_batches())
    assert weights_hash(model) == before
    assert not any("forward" in vars(module) for module in model.modules())


def test_children_that_are_not_finite_are_marked_and_the_others_are_not_touched():
    model = tiny_model("resnet")
    children = children_of(model, "random", 3)
    name = "classifier.1.bias"
    broken = Variant("broken", lambda: [(name, (None, torch.full((4,), float("nan"))))], frozenset([name]))
    evaluator = Evaluator(model, CPU)
    alone = evaluator.score(children, make_batches())
    among = evaluator.score([children[0], broken, *children[1:]], make_batches())
    assert not among[1].finite and np.isnan(among[1].nll) and among[1].num_images == 10
    assert [score.nll for score in alone] == [score.nll for score in (among[0], *among[2:])]


@pytest.mark.parametrize("kind", ["vit", "convnext"])
@pytest.mark.parametrize("how", ["bfloat16", "autocast", "channels_last"])
def test_precision_and_layout(kind, how):
    model = tiny_model(kind)
    if how == "bfloat16":
        model = model.bfloat16()
    layout = torch.channels_last if how == "channels_last" else torch.preserve_format
    model = model.to(memory_format=layout)

    def autocast():
        return torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast")

    variants, before = [PARENT, *children_of(model, sigma=0.1)], weights_hash(model)
    batches = make_batches()
    results = [
        Evaluator(model, CPU, autocast, prefix_replay=replay, memory_format=layout).score(variants, batches, True)
        for replay in (True, False)
    ]
    for replayed, plain in zip(*results):
        assert np.array_equal(replayed.logits, plain.logits) and replayed.logits.dtype == np.float32
    parameters = dict(model.named_parameters())
    for variant, score in zip(variants, results[0]):
        with torch.inference_mode(), applied(parameters, variant.changes()), autocast():
            pixels = next(iter(batches)).stored["pixel_values"].to(model.dtype).to(memory_format=layout)
            assert np.array_equal(score.logits[:4], model(pixel_values=pixels).logits.float().numpy())
    assert weights_hash(model) == before


def test_the_same_child_in_another_memory_format_has_the_same_bytes():
    changes = []
    for layout in (torch.contiguous_format, torch.channels_last):
        model = tiny_model("resnet").to(memory_format=layout)
        changes.append([dict(variant.changes()) for variant in children_of(model, "partition", 4)])
    for plain, last in zip(*changes):
        assert plain.keys() == last.keys()
        for name, (indices, values) in plain.items():
            assert torch.equal(indices, last[name][0]) and torch.equal(values, last[name][1])


def test_a_compiled_model_is_compiled_once_for_all_children_and_generations():
    torch._dynamo.reset()
    model, graphs = tiny_model("resnet"), []

    def backend(graph, inputs):
        graphs.append(len(inputs[0]) if inputs[0].ndim == 4 else -1)
        return graph.forward

    compiled = torch.compile(model, backend=backend, dynamic=False)
    evaluator = Evaluator(model, CPU, forward=compiled)
    eager = Evaluator(model, CPU, prefix_replay=False)
    batches = make_batches()
    for generation in range(3):
        variants = [PARENT, *children_of(model, "random", 6, seed=generation)]
        got, wanted = evaluator.score(variants, batches, True), eager.score(variants, batches, True)
        for mine, theirs in zip(got, wanted):
            np.testing.assert_allclose(mine.logits, theirs.logits, atol=1e-5)
        if generation == 0:
            first = len(graphs)
    # One for batches of four images, one for the last of two.
    assert first == len(graphs) == 2


@pytest.mark.slow
def test_a_model_compiled_by_the_inductor_scores_as_eager():
    torch._dynamo.reset()
    model = tiny_model("vit")
    before = weights_hash(model)
    compiled = torch.compile(model, backend="inductor", dynamic=False)
    variants, batches = [PARENT, *children_of(model, "random", 4)], make_batches(8)
    got = Evaluator(model, CPU, forward=compiled).score(variants, batches, True)
    wanted = Evaluator(model, CPU).score(variants, batches, True)
    for mine, theirs in zip(got, wanted):
        np.testing.assert_allclose(mine.logits, theirs.logits, atol=1e-4)
    assert len({score.nll for score in got}) == 5 and weights_hash(model) == before


@pytest.mark.parametrize(("most", "expected"), [(16, {1}), (15, {2})], ids=["few predictions", "many"])
def test_few_predictions_are_looked_at_by_one_thread_while_openvino_has_all(most, expected, two_threads, monkeypatch):
    monkeypatch.setattr(plan, "FEW", most)
    model, seen, given = tiny_model("resnet"), set(), set()

    def compiled(*args):
        found = compiled_for_cpu(*args)
        given.add(found.get_property("INFERENCE_NUM_THREADS"))
        return found

    class Watching(ReadsClasses):
        def cell(self, prediction, labels, keep):
            seen.add(torch.get_num_threads())
            return super().cell(prediction, labels, keep)

    monkeypatch.setattr(runtimes_openvino, "compiled_for_cpu", compiled)
    choice = RuntimeChoice(model, "openvino", batch_size=4)
    evaluator = Evaluator(model, CPU, choice=choice, reading=Watching())
    scores = evaluator.score([PARENT, *children_of(model)], make_batches())
    assert len(scores) == 9 and seen == expected and given == {2} and torch.get_num_threads() == 2


def test_eager_passes_have_all_threads(two_threads):
    model, seen = tiny_model("resnet"), set()
    model.register_forward_pre_hook(lambda *_: seen.add(torch.get_num_threads()))
    Evaluator(model, CPU).score([PARENT], make_batches())
    assert seen == {2}
