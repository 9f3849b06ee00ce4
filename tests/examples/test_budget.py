"""The study of budgets runs in its smallest form and goes on where it was; its baselines do the arithmetic that they name."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smd_hf.models.checkpoints import weights_hash
from tests.test_trainer import make_dataset
from tests.tiny import save_tiny_checkpoint, tiny_model, tiny_pixels

FOLDER = Path(__file__).parents[2] / "examples" / "studies"


@pytest.fixture(scope="module")
def study():
    """Imports a module that lies among the studies, as it is when it runs as a script."""
    before, threads = set(sys.modules), torch.get_num_threads()
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module
    sys.path.remove(str(FOLDER))
    torch.set_num_threads(threads)
    for name in set(sys.modules) - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(FOLDER)):
            del sys.modules[name]


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    root = tmp_path_factory.mktemp("budget")
    model = save_tiny_checkpoint("resnet", root / "model")
    (root / "data").mkdir()
    for split, count, seed in (("train", 40, 1), ("test", 24, 2)):
        make_dataset(count, seed).to_parquet(str(root / "data" / f"{split}.parquet"))
    return ["--model", model, "--data", str(root / "data"), "--quick", "--device", "cpu"]


@pytest.mark.slow
def test_the_smallest_form(study, paths, tmp_path, capsys, monkeypatch):
    budget = study("budget")
    arguments = [*paths, "--output_dir", str(tmp_path)]
    few = ["sgd", "spsa", "temperature", "gauss_newton_cost", "adapt", "best_child"]
    document = budget.main([*arguments, "--methods", *few])
    assert list(document["methods"]) == few
    for method in few:
        entry = document["methods"][method]
        passes = [point["passes"] for point in entry["points"]]
        assert passes == sorted(passes) and passes[0] > 0
        assert entry["points"][-1]["accuracy"] == entry["final"]["scores"]["accuracy"]
        assert entry["final"]["scores"]["n_test"] == 24
    ensemble = document["methods"]["best_child"]["ensemble"]
    assert ensemble["passes"] > document["methods"]["best_child"]["points"][-1]["passes"]
    assert document["methods"]["sgd"]["options"] in budget.GRIDS["sgd"]
    # Two passes of 40 images, and the rest of the step that reaches them: three passes over 36, or two.
    assert 2 <= document["methods"]["sgd"]["points"][-1]["passes"] < 2 + 3 * 36 / 40
    assert 2 <= document["methods"]["spsa"]["points"][-1]["passes"] < 2 + 2 * 36 / 40
    [figure] = tmp_path.glob("*.png")
    assert figure.read_bytes()[:4] == b"\x89PNG"
    table = (tmp_path / "budget_model.md").read_text()
    assert table in capsys.readouterr().out + "\n" and table.count("| ensemble of") == 1
    assert json.loads((tmp_path / "budget_model.json").read_text()) == document
    assert str(tmp_path) not in "".join(path.read_text() for path in tmp_path.glob("*.*") if path.suffix != ".png")

    # Once more, with another method: the others are known, and are in the table all the same.
    measured = []
    run = budget.Task.run
    monkeypatch.setattr(
        budget.Task, "run", lambda task, method, *rest: measured.append(method) or run(task, method, *rest)
    )
    more = budget.main([*arguments, "--methods", "evolution_strategies", "sgd"])
    assert measured == ["evolution_strategies"]
    assert {**more["methods"], "evolution_strategies": None} == {**document["methods"], "evolution_strategies": None}
    budget.main([*arguments, "--methods", "gauss_newton_cost", "--again"])
    assert measured == ["evolution_strategies", "gauss_newton_cost"]


def bowl(z):
    """A loss whose minimum is at 1, 2, 3."""
    return float(((z - torch.tensor([1.0, 2.0, 3.0])) ** 2).sum())


def test_the_update_of_evolution_strategies_by_hand(study):
    baselines = study("baselines")
    z = torch.tensor([1.0, 2.0, 2.0])
    noise = torch.tensor([[0.0, 0.0, 1.0], [2.0, 0.0, 0.0]])
    # Losses of the children: 3 +- 0.5 in the last coordinate: 0.25 and 2.25; 1 +- 1 in the first: 1 + 1, twice.
    assert [bowl(z + sign * 0.5 * each) for each in noise for sign in (1, -1)] == [0.25, 2.25, 2.0, 2.0]
    first = baselines.centred_ranks(-torch.tensor([0.25, 2.25, 2.0, 1.9]))
    assert first.tolist() == pytest.approx([0.5, -0.5, -1 / 6, 1 / 6])
    losses = iter([0.25, 2.25, 2.0, 1.9])
    moved = baselines.strategies_update(lambda _: next(losses), z, noise, sigma=0.5, rate=0.1)
    # 0.1 / (4 x 0.5) x (1 x noise 1 - 1/3 x noise 2)
    assert moved.tolist() == pytest.approx([1.0 - 0.05 * 2 / 3, 2.0, 2.0 + 0.05])


def test_the_update_of_spsa_by_hand(study):
    baselines = study("baselines")
    z, noise = torch.tensor([0.0, 2.0, 3.0]), torch.tensor([2.0, 1.0, 0.0])
    # The slope of the bowl along the noise: 2 x (0 - 1) x 2 + 2 x (2 - 2) x 1 = -4, which central differences give exactly.
    moved = baselines.spsa_update(bowl, z, noise, sigma=0.25, rate=0.1)
    assert moved.tolist() == pytest.approx([0.8, 2.4, 3.0])


@given(st.lists(st.integers(-1000, 1000), min_size=2, max_size=30, unique=True))
@settings(max_examples=30, deadline=None)
def test_ranks_are_balanced_and_know_only_the_order(study, values):
    baselines = study("baselines")
    values = torch.tensor(values, dtype=torch.float64)
    ranks = baselines.centred_ranks(values)
    assert float(ranks.sum()) == pytest.approx(0, abs=1e-9) and float(ranks.max()) == 0.5 == -float(ranks.min())
    assert torch.equal(ranks, baselines.centred_ranks(values**3))


@pytest.fixture
def images(study):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(12) % 4
    return study("baselines").Images(torch.randn(12, 3, 32, 32, generator=generator), labels)


@pytest.mark.parametrize("method", ["spsa", "evolution_strategies"])
def test_children_are_taken_out_again_to_the_bit(study, images, method):
    baselines, model = study("baselines"), tiny_model("resnet")
    before = weights_hash(model)
    steps = getattr(baselines, method)(model, images, parameters=["all"], rate=0.0, batch_size=4)
    costs = [next(steps) for _ in range(3)]
    assert weights_hash(model) == before
    assert costs == [8, 8, 8] if method == "spsa" else [64, 64, 64]
    steps = getattr(baselines, method)(model, images, parameters=["head"], rate=0.01, batch_size=4)
    body = {name: value.clone() for name, value in model.named_parameters() if "classifier" not in name}
    next(steps)
    assert weights_hash(model) != before
    assert all(torch.equal(value, body[name]) for name, value in model.named_parameters() if name in body)


def test_weights_move_in_units_of_their_tensors(study):
    model = tiny_model("resnet")
    coordinates = study("baselines").Coordinates(model, ["*classifier*weight"])
    [weight] = coordinates.parameters
    before, z = weight.detach().clone(), torch.zeros(len(coordinates))
    z[1] = 2.0
    coordinates.set(z)
    moved = (weight.detach() - before).flatten()
    assert moved[1] == pytest.approx(2 * float(before.double().std(correction=0)), rel=1e-4)
    assert torch.count_nonzero(moved) == 1
    coordinates.set(torch.zeros_like(z))
    assert torch.equal(weight, before)


def test_a_step_of_sgd_follows_the_gradient_and_counts_three_times(study, images):
    model, reference = tiny_model("resnet"), tiny_model("resnet")
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    steps = study("baselines").sgd(model, images, parameters=["all"], rate=0.05, batch_size=12)
    assert next(steps) == 36
    loss = torch.nn.functional.cross_entropy(reference(pixel_values=images.pixels).logits, images.labels)
    loss.backward()
    for moved, start in zip(model.parameters(), reference.parameters()):
        assert torch.allclose(moved, start - 0.05 * start.grad, atol=1e-5)
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers())


def test_minibatches_are_new_orders_of_all_images(study, images):
    numbers = study("baselines").Images(torch.arange(10), torch.arange(10))
    drawn = numbers.minibatches(4, torch.Generator().manual_seed(0))
    laps = [torch.cat([next(drawn)[1] for _ in range(2)]) for _ in range(2)]
    assert all(len(set(lap.tolist())) == 8 for lap in laps) and not torch.equal(*laps)


def test_rates_fall_to_nothing(study):
    decayed = study("baselines").decayed
    assert [decayed(0.2, spent, 100) for spent in (0, 50, 100, 150)] == [0.2, 0.1, 0.0, 0.0]
    assert decayed(0.2, 50, None) == 0.2


def test_a_temperature_is_the_best_multiple_of_the_logits(study):
    baselines = study("baselines")
    model, pixels = tiny_model("resnet"), tiny_pixels(40)
    with torch.no_grad():
        before = model(pixel_values=pixels).logits
        probabilities = (before / before.std()).softmax(1)
        labels = torch.multinomial(probabilities, 1, generator=torch.Generator().manual_seed(0))[:, 0]
        assert list(baselines.temperature(model, baselines.Images(pixels, labels))) == [40]
        after = model(pixel_values=pixels).logits
    factor = float((after / before).median())
    torch.testing.assert_close(after, factor * before, rtol=1e-4, atol=1e-5)
    # Where the best multiple has been taken, more or less of it is worse.
    losses = [float(torch.nn.functional.cross_entropy(after * further, labels)) for further in (0.99, 1, 1.01)]
    assert factor > 0 and losses[1] < min(losses[0], losses[2])
