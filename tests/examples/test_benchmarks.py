"""The benchmarks run, on settings far too small for their numbers to mean anything, and write the keys that they promise."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

FOLDER = Path(__file__).parents[2] / "examples" / "benchmarks"
SMALL = ["--quick", "--models", "test_vit", "--device", "cpu", "--threads", "1", "--repeats", "2"]


@pytest.fixture
def benchmark(monkeypatch):
    """Imports a module that lies among the benchmarks, as it is when it runs as a script."""
    monkeypatch.syspath_prepend(str(FOLDER))
    before, threads = set(sys.modules), torch.get_num_threads()
    yield importlib.import_module
    torch.set_num_threads(threads)
    for name in set(sys.modules) - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(FOLDER)):
            del sys.modules[name]


def run(module, tmp_path, *arguments):
    path = tmp_path / "results" / "out.json"
    module.main([*SMALL, *arguments, "--json", str(path)])
    document = json.loads(path.read_text())
    assert document["hardware"]["cpu"] and document["hardware"]["threads"] == 1
    assert document["hardware"]["versions"]["torch"]
    return document


def assert_in_table(benchmark, tmp_path, *numbers):
    readme = tmp_path / "README.md"
    readme.write_text((FOLDER / "README.md").read_text())
    table = benchmark("table")
    table.main([str(tmp_path / "results" / "out.json"), "--readme", str(readme)])
    text = readme.read_text()
    for number in numbers:
        assert table.number(number) in text
    assert text.count(table.START) == text.count(table.END) == 1


def test_generation(benchmark, tmp_path):
    document = run(benchmark("generation"), tmp_path, "--children", "16", "--images", "4", "--batch-size", "2")
    model = document["models"]["test_vit"]
    for key in ("uniform_blocks_cost_ratio", "cost_blocks_cost_ratio", "speedup_vs_naive", "speedup_vs_naive_halving"):
        assert document[key]["test_vit"] == model[key]["median"] > 0
    assert model["logits_equal_to_full_passes"]
    assert model["fitness"]["children_compared_with_naive_loop"] == 2
    assert model["fitness"]["survivors_compared"] >= 2 * 5
    assert model["share_of_images_seen_in_race"]["median"] < 1
    assert list(model["speedup_of_each_factor"]) == ["plain", "replay", "cost", "halving"]
    assert_in_table(benchmark, tmp_path, model["cost_blocks_cost_ratio"], model["speedup_vs_naive_halving"])


@pytest.mark.slow
def test_runtimes(benchmark, tmp_path):
    small = ["--children", "4", "--images", "4", "--batch-size", "2", "--precisions", "fp32"]
    document = run(benchmark("runtimes"), tmp_path, *small)
    model = document["models"]["test_vit openvino fp32"]
    for key in ("child_over_limit", "child_over_eager", "child_over_pytorch", "blocks_cost"):
        assert all(value > 0 for value in document[key]["test_vit openvino fp32"].values())
    assert_in_table(benchmark, tmp_path, model["child_over_limit"]["all weights"], model["blocks_cost"]["by cost"])


def test_a_changed_parent_is_not_reported(benchmark, tmp_path, monkeypatch):
    generation = benchmark("generation")

    def drifting(evaluator, *args, **kwargs):
        with torch.no_grad():
            next(evaluator.model.parameters()).view(-1)[0] += 1
        return score(evaluator, *args, **kwargs)

    score = benchmark("common").Evaluator.score
    monkeypatch.setattr(benchmark("common").Evaluator, "score", drifting)
    with pytest.raises(RuntimeError, match="nothing is reported"):
        generation.main([*SMALL, "--json", str(tmp_path / "out.json"), "--images", "4"])
    assert not (tmp_path / "out.json").exists()


def test_medians_have_intervals_of_order_statistics(benchmark):
    common = benchmark("common")
    five = common.summary([5, 1, 3, 2, 40])
    assert five["median"] == 3 and five["interval"] == [1, 40] and five["coverage"] == 1 - 2 / 2**5
    covered, trials = 0, 2000
    for sample in np.random.default_rng(0).normal(size=(trials, 9)):
        low, high = common.summary(sample)["interval"]
        assert sample.min() < low <= high < sample.max()
        covered += low <= 0 <= high
    # the second and the second to last of nine: 96.1 %, with a standard error of 0.4 points
    assert abs(covered / trials - 0.961) < 0.02
    assert common.ratios([2, 4, 9], [1, 2, 3], factor=2)["values"] == [4, 4, 6]


def test_ledger(benchmark, tmp_path):
    document = run(benchmark("ledger"), tmp_path, "--images", "8")
    model = document["models"]["test_vit"]
    assert document["ledger_time_ratio"]["test_vit"] == model["ledger_time_ratio"]["median"] > 0
    assert 0 < document["disk_share"]["test_vit"] < 1
    assert_in_table(benchmark, tmp_path, model["ledger_time_ratio"])


@pytest.mark.slow
def test_throughput(benchmark, tmp_path):
    arguments = ("--construction-model", "test_vit", "--images", "4", "--batch-size", "2")
    document = run(benchmark("throughput"), tmp_path, *arguments)
    model = document["models"]["test_vit"]
    assert document["throughput_ratio"]["test_vit"] == model["throughput_ratio"]["median"] > 0
    assert document["peak_memory_ratio"]["test_vit"] == model["memory"]["peak_memory_ratio"] > 0.5
    assert 0 < document["construction"]["peak_over_largest_tensor"] < 8
    assert_in_table(benchmark, tmp_path, model["throughput_ratio"], document["construction"]["seconds"])


@pytest.mark.slow
def test_peers(benchmark, tmp_path):
    document = run(benchmark("peers"), tmp_path, "--children", "3")
    for name, peer in document["peers"].items():
        assert peer.keys() >= {"time_ratio", "memory_ratio", "error"}
        if document["peer_versions"].get(name, "installed") is None:
            assert "ModuleNotFoundError" in peer["error"] and peer["time_ratio"] is None
        else:
            assert peer["error"] is None and peer["time_ratio"] > 0 and peer["memory_ratio"] > 0
    assert_in_table(benchmark, tmp_path, document["models"]["test_vit"]["blocks"]["torch.func.vmap"]["time_ratio"])


@pytest.mark.slow
def test_scaling(benchmark, tmp_path):
    document = run(benchmark("scaling"), tmp_path, "--repeats", "1")
    assert document["identical_bytes"] is True
    assert document["two_process_time_ratio"]["test_vit"] > 0
    assert_in_table(benchmark, tmp_path, document["models"]["test_vit"]["strong"]["2 data"]["time_ratio"])
