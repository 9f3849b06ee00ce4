"""The studies run in their smallest form, go on where they were stopped, and say of known data what is true of it."""

import importlib
import json
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from hypothesis import given
from hypothesis import strategies as st

from smd_hf.arguments.recipes import read_recipe
from smd_hf.errors import SMDError
from smd_hf.models.load import load_image_processor, load_model
from smd_hf.run import warm_start
from smd_hf.scoring.evaluator import Evaluator
from smd_hf.search.mutation import Mutation
from smd_hf.search.parameter_space import parameter_space
from smd_hf.search.subspaces import make_decomposition
from tests.tiny import label_names, save_tiny_checkpoint, tiny_images, tiny_model

FOLDER = Path(__file__).parents[2] / "examples" / "studies"
RESULTS = FOLDER / "results"


@pytest.fixture(scope="module")
def study():
    """Imports a module that lies among the studies, as it is when it runs as a script."""
    sys.path.insert(0, str(FOLDER))
    before, threads = set(sys.modules), torch.get_num_threads()
    yield importlib.import_module
    torch.set_num_threads(threads)
    sys.path.remove(str(FOLDER))
    for name in set(sys.modules) - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(FOLDER)):
            del sys.modules[name]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A Parquet file of 120 images of four classes."""
    path = tmp_path_factory.mktemp("data") / "photos.parquet"
    features = Features({"image": Image(), "label": ClassLabel(names=label_names(4))})
    rows = {"image": tiny_images(120), "label": (np.arange(120) % 4).tolist()}
    Dataset.from_dict(rows, features=features).to_parquet(str(path))
    return str(path)


@pytest.fixture
def no_pass(monkeypatch):
    """From where it is called on, whatever runs a model fails."""

    def forbid():
        def refused(*args, **kwargs):
            raise AssertionError("A finished measurement was made again.")

        monkeypatch.setattr(Evaluator, "forward", refused)

    return forbid


def stop_after(path, lines):
    """Leaves of a file of measurements what a process leaves that is killed while it writes."""
    whole = path.read_text().splitlines(keepends=True)
    path.write_text("".join(whole[:lines]) + whole[lines][:20])
    return "".join(whole)


# ---- imagenet.py ----------------------------------------------------------------------------------------------------


def test_the_head_is_compared_in_three_ways_and_measured_once(study, images, tmp_path, no_pass, monkeypatch):
    # By cross-validation, chance labels would leave the last head as it is.
    monkeypatch.setattr(warm_start, "MOST_CROSSED", 0)
    imagenet = study("imagenet")
    model = tmp_path / "parent"
    save_tiny_checkpoint("resnet", model)
    argv = ["--quick", "--model", str(model), "--data", images, "--output_dir", str(tmp_path), "--device", "cpu"]
    document = imagenet.main([*argv, "--runtime", "eager"])
    by_method = {run["method"]: run for run in document["runs"]}
    assert list(by_method) == [*imagenet.METHODS, *imagenet.RIVALS]
    assert by_method["spsa"]["passes"] == 2 and by_method["statistics"]["passes"] == 1
    assert by_method["sgd_all"]["rate"] in imagenet.RIVALS["sgd_all"]["rates"]
    # Prior and head, and of each of three generations of all 54 images a gradient and eight products.
    assert by_method["exact_jacobian"]["passes"] == 2 + 3 * (3 + 8 * 5)
    assert "steps" not in by_method["children"] and by_method["head_first"]["chosen"]
    found = by_method["head_first"]["steps"]
    kinds = {name.removeprefix("statistics re-estimated, then ").split(",")[0] for name in found}
    chosen = {"statistics re-estimated"} if by_method["head_first"]["statistics"] != "parent" else set()
    assert kinds == chosen | {"temperature", "class prior", "class prior and temperature", "head"}
    assert any("then head" in name for name in found) is bool(chosen)
    # The last fit of the head costs a pass.
    assert by_method["adapt"]["passes"] > by_method["head_first"]["passes"]
    no_pass()
    assert imagenet.main([*argv, "--runtime", "eager"]) == document
    table = (tmp_path / "imagenet_parent.md").read_text()
    assert str(tmp_path) not in table and "from the fitted head" in table


def test_the_exact_step_is_that_of_the_whole_jacobian(study):
    exact, rivals = study("exact_jacobian"), study("baselines")
    model = tiny_model("resnet").eval()
    pixels, labels = torch.randn(6, 3, 16, 16), torch.arange(6) % 4
    coordinates = rivals.Coordinates(model, ["norms"])
    curvature = exact.Curvature(model, coordinates, rivals.Images(pixels, labels), batch_size=4)

    def logits(step):
        names = curvature.names
        parts = (coordinates.start + coordinates.scale * step).split([each.numel() for each in coordinates.parameters])
        weights = {name: part.view_as(model.get_parameter(name)) for name, part in zip(names, parts)}
        return torch.func.functional_call(model, weights, kwargs={"pixel_values": pixels}).logits

    start = torch.zeros(len(coordinates))
    jacobian = torch.func.jacrev(logits)(start).double()
    shares = logits(start).detach().double().softmax(-1)
    curved = torch.diag_embed(shares) - shares[:, :, None] * shares[:, None]
    expected = torch.einsum("ncd,nck,nke->de", jacobian, curved, jacobian) / 6
    slope = torch.einsum("ncd,nc->d", jacobian, shares - torch.nn.functional.one_hot(labels, 4)) / 6
    torch.testing.assert_close(curvature.gradient(), slope, rtol=1e-3, atol=1e-5)
    direction = torch.randn(len(coordinates), dtype=torch.float64)
    torch.testing.assert_close(curvature.product(direction), expected @ direction, rtol=1e-3, atol=1e-4)

    # 24 logits: the curvature has a rank of 18 at most, so that a few products know all of it.
    steps = exact.krylov_steps(lambda vector: expected @ vector, slope, 30)
    unit = float(torch.linalg.eigvalsh(expected).max())
    for damping, step in steps.items():
        solved = torch.linalg.solve(expected + damping * unit * torch.eye(len(slope)), -slope)
        torch.testing.assert_close(step, solved, rtol=1e-3, atol=1e-4 * float(solved.abs().max()))


# ---- unlabeled.py ---------------------------------------------------------------------------------------------------


def test_runs_with_and_without_labels_are_measured_once(study, images, tmp_path, no_pass):
    unlabeled = study("unlabeled")
    save_tiny_checkpoint("resnet", tmp_path / "parent")
    case = ["--case", str(tmp_path / "parent"), images]
    argv = ["--quick", "--architectures", *case, "--output_dir", str(tmp_path), "--device", "cpu"]
    document = unlabeled.main(argv)
    [found] = document["cases"].values()
    assert found.keys() == unlabeled.METHODS.keys() and found["without labels"]["statistics"]
    assert "parent" in found["without labels"] and found["without labels"]["parent"] == found["with labels"]["parent"]
    table = (tmp_path / "unlabeled.md").read_text()
    assert str(tmp_path) not in table and "the whole run, without labels" in table
    no_pass()
    assert unlabeled.main(argv) == document
    [blind] = unlabeled.main([*argv, "--blind", str(tmp_path / "parent")])["cases"].values()
    assert list(blind) == ["without labels"]


# ---- precision.py ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("runtime", ["eager", "openvino"])
def test_precisions_are_compared_on_the_same_children(runtime, study, images, tmp_path, no_pass):
    precision = study("precision")
    model = save_tiny_checkpoint("resnet", tmp_path / "model")
    argv = ["--quick", "--model", model, "--data", images, "--output_dir", str(tmp_path), "--device", "cpu"]
    document = precision.main([*argv, "--runtime", runtime])
    [row] = document["rows"]
    assert 0 < row["parent"] < 0.2 and 0.5 < row["direction"] < 1 and -1 <= row["order"] <= 1 and row["spread"] > 0
    assert f"| 0.05 | {row['order']:.3f} |" in (tmp_path / "precision_model.md").read_text()
    no_pass()
    assert precision.main([*argv, "--runtime", runtime]) == document


# ---- quantized.py ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind, formats",
    [("vit", ["float32", "int8", "int4"]), pytest.param("resnet", ["openvino:4"], marks=pytest.mark.slow)],
)
def test_formats_are_measured_fitted_and_evolved(kind, formats, study, images, tmp_path, no_pass, monkeypatch, capsys):
    quantized = study("quantized")
    spaces, evolve = [], quantized.evolve
    monkeypatch.setattr(quantized, "evolve", lambda *given: (spaces.append(given[2].names), evolve(*given)))
    if kind == "resnet":
        pytest.importorskip("nncf")
    model = save_tiny_checkpoint(kind, tmp_path / "model")
    argv = ["--quick", "--model", model, "--data", images, "--output_dir", str(tmp_path), "--formats", *formats]
    document = quantized.main(argv)
    found = {(row["format"], row["method"]): row for row in document["rows"]}
    assert len(found) == 4 * len(formats) - (formats[0] == "float32")
    for each in formats:
        assert found[each, "head"]["nll"] != found[each, "plain"]["nll"]
    *_, without, with_scales = spaces
    assert set(without) < set(with_scales) and all(name.endswith("scale") for name in set(with_scales) - set(without))
    assert len(spaces) == len(found) - 2 * len(formats)
    text = (tmp_path / "quantized_model.md").read_text()
    assert (
        f"| {formats[-1]}, norms, biases and scales evolved, head fitted |" in text and text in capsys.readouterr().out
    )
    no_pass()
    assert quantized.main(argv) == document
    with pytest.raises(SMDError, match="int3' is none"):
        quantized.main([*argv, "--formats", "int3"])


# ---- window.py ------------------------------------------------------------------------------------------------------


def test_window_is_measured_once_and_told_in_three_files(study, images, tmp_path, no_pass, capsys):
    window = study("window")
    model, out = save_tiny_checkpoint("resnet", tmp_path / "model"), tmp_path / "out"
    arguments = ["--quick", "--model", model, "--data", images, "--images", "18", "--output_dir", str(out)]
    document = window.main(arguments)
    assert json.loads((out / "window_model.json").read_text()) == document
    text = (out / "window_model.md").read_text()
    assert text == window.render(document) + "\n" and text in capsys.readouterr().out + "\n"
    for curve in document["curves"]:
        for mean, std in zip(curve["accuracy"], curve["accuracy_std"]):
            assert f"| {100 * mean:.1f} ({100 * std:.1f}) |" in text
    assert (out / "window_model.png").stat().st_size > 10_000
    assert str(tmp_path) not in text + (out / "window_model.json").read_text()

    measured = stop_after(out / "window_model.jsonl", 4)
    again = window.main(arguments)
    assert (out / "window_model.jsonl").read_text() == measured
    assert again == document
    no_pass()
    assert window.main(arguments) == document
    assert (out / "window_model.jsonl").read_text() == measured
    assert str(tmp_path) not in measured


def test_window_counts_what_single_passes_give(study, images, tmp_path):
    window, common = study("window"), study("common")
    folder = save_tiny_checkpoint("vit", tmp_path / "model")
    document = window.main(["--quick", "--model", folder, "--data", images, "--output_dir", str(tmp_path)])
    model = load_model(folder)
    _, test = common.load_data(images, max_test=24)
    batches = common.image_batches(model, load_image_processor(folder), test)
    [batch] = batches
    pixels, labels = batch.inputs(torch.device("cpu"), torch.float32)["pixel_values"], batch.labels
    assert document["settings"]["images"] == len(labels) == 18
    with torch.inference_mode():
        parent = model(pixels).logits.argmax(-1)
        mutation = Mutation(model, make_decomposition("random", parameter_space(model), 3, 1 / 4))
        curve = next(curve for curve in document["curves"] if curve["density"] == 1 / 4)
        accuracies, flips = [], []
        for child in mutation.children(0, curve["sigma"][-1]):
            copied = load_model(folder)
            state = dict(copied.named_parameters())
            for name, (indices, values) in mutation.changes(child):
                state[name].view(-1)[slice(None) if indices is None else indices] = values.flatten()
            predicted = copied(pixels).logits.argmax(-1)
            accuracies.append(float((predicted == labels).float().mean()))
            flips.append(float((predicted != parent).float().mean()))
    assert document["parent_accuracy"] == pytest.approx(float((parent == labels).float().mean()))
    assert curve["accuracy"][-1] == pytest.approx(np.mean(accuracies))
    assert curve["accuracy_std"][-1] == pytest.approx(np.std(accuracies, ddof=1), abs=1e-7)
    assert curve["flipped"][-1] == pytest.approx(np.mean(flips))


def test_children_of_equal_norm_are_plain_ones_of_a_greater_sigma():
    """Why one set of measurements serves both axes."""
    model = tiny_model("vit")
    decomposition = make_decomposition("random", parameter_space(model), 2, 1 / 16)
    plain, matched = Mutation(model, decomposition), Mutation(model, decomposition, match_norm=True)
    first, second = plain.children(0, 4 * 0.02)[1], matched.children(0, 0.02)[1]
    for (name, (indices, values)), (other, (places, same)) in zip(plain.changes(first), matched.changes(second)):
        assert name == other and (indices is None or torch.equal(indices, places))
        torch.testing.assert_close(values, same, rtol=2e-4, atol=1e-6)


def simulated(analysis, halvings, *, by_norm, children=16, images=400, seed=0):
    """Curves of children whose chance to answer wrongly grows with their norm, or with sigma alone."""
    rng = np.random.default_rng(seed)
    parent = rng.random(images) < 0.8
    curves = []
    for halving in halvings:
        sigma = 2.0 ** ((np.arange(-16, -1, 2) + halving) / 2)
        strength = sigma * 2 ** (-halving / 2) if by_norm else sigma
        wrong = np.minimum(0.7, 3 * strength**2)[:, None, None] * rng.lognormal(0, 0.3, (children, 1))
        flipped = rng.random((len(sigma), children, images)) < wrong
        curves.append(analysis.Curve(halving, sigma, parent & ~flipped, flipped))
    return curves, parent


def test_what_norm_alone_explains_is_gone_at_matched_norm(study):
    analysis = study("window_analysis")
    curves, parent = simulated(analysis, (0, 2, 4, 6), by_norm=True)
    found = analysis.analyse(curves, parent, 0.1, seed=0)
    trend = found["claim_b"]["log2_upper"]
    assert trend["verdict"] == "shown" and trend["interval"][0] < 1 < trend["interval"][1]
    for control in ("octaves", "log2_upper_at_matched_norm", "log2_width_at_matched_norm"):
        low, high = found["claim_b"][control]["interval"]
        assert low < 0 < high and found["claim_b"][control]["verdict"] == "not shown"
    assert [pair["loss"]["verdict"] for pair in found["claim_a"]["sigma"]] == ["shown"] * 3
    assert "shown" not in [pair["loss"]["verdict"] for pair in found["claim_a"]["norm"]]
    for window in found["windows"]:
        low, high = window["upper_at_matched_norm"]["interval"]
        assert low < (0.01 / (3 * 0.8)) ** 0.5 * np.exp(-(0.3**2) / 4) < high


def test_a_window_that_narrows_refutes_the_claim(study):
    analysis = study("window_analysis")
    curves, parent = simulated(analysis, (0, 2, 4, 6), by_norm=False)
    claim = analysis.analyse(curves, parent, 0.1, seed=0)["claim_b"]
    assert claim["log2_upper_at_matched_norm"]["verdict"] == "refuted"
    assert claim["log2_upper_at_matched_norm"]["estimate"] == pytest.approx(-1, abs=0.4)


def test_a_level_that_is_not_reached_has_no_place(study):
    crossing = study("window_analysis").crossing
    sigma = np.array([1.0, 2.0, 4.0])
    values = np.array([[0.1, 0.0, 0.4], [0.2, 0.0, 0.0], [0.4, 0.0, 0.4]])
    np.testing.assert_allclose(crossing(sigma, values, 0.3), [3.0, np.nan, 0.75])


@pytest.mark.parametrize("density", ["0.3", "0", "2", "-1"])
def test_densities_are_powers_of_one_half(study, density, tmp_path):
    with pytest.raises(SMDError, match="power of 1/2"):
        study("window").main(["--model", "none", "--densities", density, "--output_dir", str(tmp_path)])


# ---- architectures.py -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def architectures(study, tmp_path_factory):
    """The quick study of two architectures: its module, arguments, document and folder."""
    module, root = study("architectures"), tmp_path_factory.mktemp("architectures")
    arguments = ["--quick", "--output_dir", str(root / "out"), "--parents_dir", str(root / "parents")]
    return module, arguments, module.main(arguments), root


@pytest.mark.slow
def test_architectures_are_measured_once(architectures, no_pass):
    module, arguments, document, root = architectures
    path = root / "out" / "architectures_digits.jsonl"
    measured = stop_after(path, 5)
    again = module.main(arguments)
    assert again == document and path.read_text() == measured
    no_pass()
    assert module.main(arguments) == document
    assert str(root) not in measured + json.dumps(document)


def test_the_tables_of_architectures_are_those_of_the_json(architectures):
    module, _, document, root = architectures
    text = (root / "out" / "architectures_digits.md").read_text()
    assert json.loads((root / "out" / "architectures_digits.json").read_text()) == document
    assert text == module.render(document) + "\n"
    for row in document["architectures"].values():
        for role in module.ROLES:
            scores, difference = row[role]["scores"], row[role]["difference"]
            assert f"{100 * scores['accuracy']:.2f} (p" in text and f"{scores['nll']:.4f}, " in text
            gained = scores["accuracy"] - row["parent"]["scores"]["accuracy"]
            assert difference["accuracy"]["estimate"] == pytest.approx(gained)
    gains = [row["ensemble"]["difference"]["accuracy"]["estimate"] for row in document["architectures"].values()]
    assert document["claim_c"]["ensemble"]["mean_gain"] == pytest.approx(np.mean(gains))
    assert (root / "out" / "architectures_digits.png").stat().st_size > 10_000


# ---- steps.py -------------------------------------------------------------------------------------------------------


def test_steps_of_groups_are_measured_once_beside_the_single_step(study, tmp_path, no_pass):
    steps = study("steps")
    arguments = ["--quick", "--output_dir", str(tmp_path), "--parents_dir", str(tmp_path / "parents")]
    arguments += ["--architectures", "mixer"]
    document = steps.main(arguments)
    row = document["architectures"]["mixer"]
    text = (tmp_path / "steps_digits.md").read_text()
    for kind in steps.ENSEMBLES:
        scores, difference = row[kind]["scores"], row[kind]["over_step"]
        gained = scores["nll"] - row["step"]["scores"]["nll"]
        assert difference["nll"]["estimate"] == pytest.approx(gained) == document["claim"][kind]["nll"]["mean"]
        assert row[kind]["chosen"] in [list(cell) for cell in steps.GRID] and f"{scores['nll']:.4f}, " in text
    no_pass()
    assert steps.main(arguments) == document


def test_groups_are_disjoint_or_leave_one_out(study):
    steps = study("steps")
    assert [group.tolist() for group in steps.groups(6, 2, False)] == [[0, 2, 4], [1, 3, 5]]
    assert [group.tolist() for group in steps.groups(6, 3, True)] == [[1, 2, 4, 5], [0, 2, 3, 5], [0, 1, 3, 4]]


def test_every_architecture_is_built_and_differs_in_family(study):
    parents = study("parents")
    assert len(parents.ARCHITECTURES) >= 11
    assert {each.family for each in parents.ARCHITECTURES.values()} == {"CNN", "transformer", "mixer"}
    assert {each.library for each in parents.ARCHITECTURES.values()} == {"transformers", "timm"}
    for name in parents.ARCHITECTURES:
        model, processor = parents.new_model(name, label_names(10), seed=0)
        [picture] = tiny_images(1, image_size=8)
        pixels = processor(images=picture, return_tensors="pt")["pixel_values"]
        assert model.eval()(pixel_values=pixels).logits.shape == (1, 10)
        assert 10_000 < sum(parameter.numel() for parameter in model.parameters()) < 300_000


def test_no_image_serves_two_purposes(study, images):
    parents, measure = study("parents"), study("architectures_measure")
    args = study("architectures").parser().parse_args(["--data", images])
    sets = parents.load_images(args)
    stored = [{image.tobytes() for image in part["image"]} for part in (sets.parent, sets.evolve_on, sets.test)]
    assert sum(map(len, stored)) == len(set().union(*stored)) == 120
    model, processor = parents.new_model("mixer", label_names(4), seed=0)
    ground = measure.Ground(model, processor, sets.evolve_on, sets.test, 32, seed=0)
    fitness, selection = ground.fitness.indices, ground.selection.indices
    assert not set(fitness) & set(selection) and len(fitness) + len(selection) == len(sets.evolve_on)


def test_checkpoints_in_the_place_of_parents(study, images, tmp_path):
    folder = save_tiny_checkpoint("timm_vit", tmp_path / "tiny_vit")
    arguments = ["--quick", "--imagenet", folder, "--data", images, "--output_dir", str(tmp_path / "out")]
    document = study("architectures").main(arguments)
    assert list(document["architectures"]) == ["tiny_vit"]
    assert document["images"] == {"parent": None, "evolve_on": 80, "test": 18}
    assert str(tmp_path) not in (tmp_path / "out" / "architectures_imagenet.jsonl").read_text()


def test_an_unknown_architecture(study, tmp_path):
    with pytest.raises(SMDError, match=r"Did you mean 'resnet'"):
        study("architectures").main(["--quick", "--architectures", "resnets", "--output_dir", str(tmp_path)])


def test_gains_that_all_architectures_share_are_shown(study):
    analysis, pack = study("architectures_analysis"), study("common").pack
    rng = np.random.default_rng(0)

    def generation(gain):
        parent = rng.random(600) < 0.8
        better = parent.copy()
        better[rng.choice(np.flatnonzero(~parent), round(600 * gain), replace=False)] = True
        worse = parent & (rng.random(600) < 0.97) | ~parent & (rng.random(600) < 0.12)
        entry = {"difference": {"mcnemar": {"p_value": 0.02}, "nll": {"estimate": -gain}}}
        entry["difference"]["calibration_error"] = {"estimate": gain * rng.random()}
        return {"n_test": 600, "parent": {"correct": pack(parent)}} | {
            role: entry | {"correct": pack(better if role == "ensemble" else worse)} for role in analysis.ROLES
        }

    found = analysis.summarise({str(number): generation(0.01) for number in range(12)}, seed=0)
    ensemble = found["ensemble"]
    assert ensemble["verdict"] == "shown" and ensemble["better"] == 12 and ensemble["sign_test_p"] == 2 / 2**12
    assert ensemble["interval"][0] < 0.01 < ensemble["interval"][1]
    assert found["best_child"]["verdict"] == "not shown"
    assert ensemble["holm_p"] == pytest.approx([0.24] * 12) and ensemble["significant_after_holm"] == 0
    assert ensemble["mean_nll_difference"] == {"mean": pytest.approx(-0.01), "interval": None}


def test_diversity_is_compared_where_both_kinds_lose_as_much(study):
    analysis = study("architectures_analysis")

    def curve(slope):
        losses = {0.5: 0.01, 1: 0.03, 2: 0.05}
        return [{"factor": k, "loss": loss, "disagreement": slope * loss} for k, loss in losses.items()]

    points = {str(n): {"partition": curve(3 + n / 10), "dense": curve(1.5)[:2]} for n in range(6)}
    lossless = [{"factor": 1, "loss": -0.01, "disagreement": 0.1}]
    claim = analysis.compare_diversity(points | {"lossless": {"partition": curve(1), "dense": lossless}})
    assert set(claim["at_equal_loss"]) == set(points)
    assert claim["at_equal_loss"]["0"] == {
        "loss": 0.02,
        "partition": pytest.approx(0.06),
        "dense": pytest.approx(0.03),
    }
    assert claim["verdict"] == "shown" and claim["more_diverse"] == 6
    assert claim["log2_ratio"]["mean"] == pytest.approx(np.mean(np.log2((3 + np.arange(6) / 10) / 1.5)))


# ---- settings.py -----------------------------------------------------------------------------------------------------


@pytest.fixture
def settings(study, monkeypatch):
    """Its parents of a second's training read no better than chance."""
    module = study("settings")
    monkeypatch.setattr(module, "LEAST", 0.0)
    return module


@pytest.mark.slow
def test_settings_are_measured_once_and_the_best_is_chosen(settings, images, tmp_path, no_pass):
    arguments = ["--quick", "--data", images, "--output_dir", str(tmp_path / "out"), "--parents_dir", str(tmp_path)]
    arguments += ["--seeds", "3", "4"]
    document = settings.main(arguments)
    [row] = document["tasks"].values()
    parent, gone = row["parent"], []
    for each, evolved in zip(document["summary"], row["evolved"], strict=True):
        assert each["points"] == pytest.approx(100 * (evolved["accuracy"] - parent["accuracy"]))
        assert each["nll"] == pytest.approx(1 - evolved["nll"] / parent["nll"])
        gone.append((evolved["accuracy"] - parent["accuracy"]) / (1 - parent["accuracy"]) + each["nll"])
    assert document["chosen"] == document["summary"][int(np.argmax(gone))]["setting"]
    store = [json.loads(line) for line in (tmp_path / "out" / "settings_adapt.jsonl").read_text().splitlines()]
    assert {line["settings"].get("seed") for line in store} == {None, 3, 4} and len(store) == 1 + 3 * 2
    first = [line["result"]["nll"] for line in store if line["settings"].get("setting") == "4, 0, 12, 0.05"]
    assert len(set(first)) == 2 and row["evolved"][0]["nll"] == pytest.approx(np.mean(first))
    no_pass()
    assert settings.main(arguments) == document


@pytest.mark.slow
def test_a_parent_that_met_a_collapse_is_left_out(settings, images, tmp_path, monkeypatch):
    arguments = ["--quick", "--data", images, "--output_dir", str(tmp_path), "--parents_dir", str(tmp_path)]
    accuracies = iter([0.4, 0.6])
    score = settings.Task.parent_scores
    monkeypatch.setattr(settings.Task, "parent_scores", lambda task: score(task) | {"accuracy": next(accuracies)})
    monkeypatch.setattr(settings, "LEAST", 0.5)
    document = settings.main([*arguments, "--architectures", "mixer", "resnet"])
    assert document["left_out"] == ["mixer, photos"] and list(document["tasks"]) == ["resnet, photos"]
    assert "mixer, photos" in (tmp_path / "settings_adapt.md").read_text()


@pytest.mark.slow
def test_a_checkpoint_stands_beside_the_parents_however_few_images_it_reads(settings, images, tmp_path, monkeypatch):
    monkeypatch.setattr(settings, "LEAST", 1.1)
    checkpoint = save_tiny_checkpoint("resnet", tmp_path / "checkpoint")
    arguments = ["--quick", "--data", images, "--output_dir", str(tmp_path), "--parents_dir", str(tmp_path)]
    document = settings.main([*arguments, "--checkpoint", checkpoint, "--checkpoint_data", images, "--device", "cpu"])
    assert document["left_out"] == ["resnet, photos"]
    [row] = document["tasks"].values()
    assert not row["trained"] and row["images"] == {"train": 68, "test": 34} and len(row["evolved"]) == 3
    text = (tmp_path / "settings_adapt.md").read_text()
    assert "checkpoint, photos, evolved on 68 images for 3 generations and tested on 34" in text
    assert str(tmp_path) not in text


def test_a_checkpoint_comes_with_its_images(settings, images, capsys):
    with pytest.raises(SystemExit):
        settings.main(["--data", images, "--checkpoint", "resnet"])
    assert "go together" in capsys.readouterr().err


def test_the_preset_is_what_the_study_chose(settings):
    chosen = json.loads((RESULTS / "settings_adapt.json").read_text())["chosen"]
    assert str(settings.Setting(*(read_recipe("adapt")[name] for name in settings.CHOSEN_HERE))) == chosen


@pytest.mark.parametrize("text", ["64", "64:0.3:100", "64:a:100:0.1", "6.4:0.3:100:0.1"])
def test_what_is_no_setting(settings, images, text, tmp_path):
    with pytest.raises(SMDError, match="CHILDREN:SHARE:IMAGES:SIGMA"):
        settings.main(["--quick", "--data", images, "--settings", text, "--output_dir", str(tmp_path)])


def test_settings_are_told_apart_on_images_that_nothing_else_saw(settings, images, tmp_path):
    arguments = ["--quick", "--data", images, "--output_dir", str(tmp_path), "--seed", "3"]
    args = settings.parser().parse_args(arguments)
    settings.settle(args, settings.QUICK, settings.parser())
    found = settings.load_images(images, args)
    assert [len(each) for each in (found.parent, found.evolve_on, found.test, found.clean)] == [40, 40, 18, 18]
    before = [np.asarray(image) for image in found.clean["image"]]
    after = [np.asarray(image) for image in found.test["image"]]
    assert all(one.shape == other.shape and (one != other).any() for one, other in zip(before, after))
    sent = {settings.sent_small(image).tobytes() for image in found.parent["image"]}
    evolve_on = {image.tobytes() for image in found.evolve_on["image"]}
    assert len(sent) == len(evolve_on) == 40
    assert not sent & evolve_on and not evolve_on & {image.tobytes() for image in found.test["image"]}


def test_too_few_images_to_tell_settings_apart(settings, images, tmp_path):
    with pytest.raises(SMDError, match="5,040 are needed"):
        settings.main(["--quick", "--data", images, "--parent_images", "5000", "--output_dir", str(tmp_path)])


# ---- What they share ------------------------------------------------------------------------------------------------


@given(answers=st.lists(st.booleans(), min_size=1, max_size=70))
def test_answers_come_back(study, answers):
    common = study("common")
    assert common.unpack(common.pack(answers), len(answers)).tolist() == answers


@given(p_values=st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_closed_testing_by_bonferroni(study, p_values):
    """Holm's procedure rejects what every Bonferroni test of a set of hypotheses that holds it rejects (Marcus 1976)."""
    places = range(len(p_values))
    sets = [each for size in places for each in combinations(places, size + 1)]
    expected = [max(min(1, len(s) * min(p_values[i] for i in s)) for s in sets if place in s) for place in places]
    np.testing.assert_allclose(study("common").holm(p_values), expected, atol=1e-12)


def test_measurements_outlive_a_torn_line(study, tmp_path):
    measurements, path = study("common").Measurements, tmp_path / "out.jsonl"
    store = measurements(path)
    assert store.get({"a": 1, "b": [2.0]}, lambda: {"x": (1, 2)}) == {"x": [1, 2]}
    assert store.get({"b": [2.0], "a": 1}, lambda: 1 / 0) == {"x": [1, 2]} and store.measured == 1
    with open(path, "a") as file:
        file.write('{"settings": {"a": 2}, "res')
    again = measurements(path)
    assert {"a": 2} not in again and {"a": 1, "b": [2.0]} in again
    assert again.get({"a": 2}, lambda: 5) == 5
    assert [json.loads(line)["result"] for line in path.read_text().splitlines()] == [{"x": [1, 2]}, 5]


def test_the_key_of_images_does_not_depend_on_where_they_lie(study, tmp_path, images):
    common = study("common")
    train, test = common.load_data(images)
    moved = tmp_path / "other.parquet"
    moved.write_bytes(Path(images).read_bytes())
    assert [common.data_key(part) for part in common.load_data(str(moved))] == [
        common.data_key(train),
        common.data_key(test),
    ]
    assert common.data_key(train) != common.data_key(test)


@pytest.mark.parametrize("path", sorted(RESULTS.glob("[asw]*_*.json")), ids=lambda path: path.stem)
def test_committed_tables_are_those_of_the_committed_numbers(study, path):
    document = json.loads(path.read_text())
    render = study(document["study"]).render
    assert path.with_suffix(".md").read_text() == render(document) + "\n"
    assert path.with_suffix(".png").exists() and path.with_suffix(".jsonl").exists()
