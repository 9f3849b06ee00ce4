"""Mixed precision, compilation and memory formats of a whole run, with Trainer's own evaluation in between."""

import json

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForImageClassification

from smd_hf import EvolutionTrainer
from smd_hf.models.checkpoints import weights_hash
from smd_hf.models.load import load_model
from tests.plain import plain_arguments
from tests.test_trainer import make_dataset
from tests.tiny import save_tiny_checkpoint, tiny_model, tiny_processor


@pytest.fixture(scope="module")
def data():
    return make_dataset(40, 1), make_dataset(24, 2)


@pytest.fixture(autouse=True)
def no_compiler_left(monkeypatch):
    for name in ("ACCELERATE_DYNAMO_BACKEND", "ACCELERATE_DYNAMO_MODE", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.setenv(name, "no")  # put back after the test: TrainingArguments sets them for good
        monkeypatch.delenv(name)
    torch._dynamo.reset()


def make_trainer(model, folder, data, **kwargs):
    kwargs = dict(population_size=4, sigma=0.1, elitism=False, per_device_eval_batch_size=16) | kwargs
    return EvolutionTrainer(
        model,
        plain_arguments(str(folder), use_cpu=True, disable_tqdm=True, **kwargs),
        train_dataset=data[0],
        eval_dataset=data[1],
        processing_class=tiny_processor(),
    )


def fitness(folder):
    records = [json.loads(line) for line in (folder / "children.jsonl").read_text().splitlines()]
    return np.array([[child["fitness"] for child in record["children"]] for record in records])


@pytest.mark.parametrize("decomposition", ["blocks", pytest.param("random", marks=pytest.mark.slow)])
def test_mixed_precision_is_that_of_autocast_whether_or_not_trainer_has_evaluated(decomposition, data, tmp_path):
    kwargs = dict(decomposition=decomposition, num_generations=2, population_size=6)
    results = {}
    for name, more in (
        ("plain", {}),
        ("bf16", {"bf16": True}),
        ("evaluated", {"bf16": True, "eval_strategy": "steps", "eval_steps": 1}),
        ("unreplayed", {"bf16": True, "prefix_replay": False}),
    ):
        trainer = make_trainer(tiny_model("vit"), tmp_path / name, data, **kwargs, **more)
        if name == "evaluated":
            trainer.evaluate()
        trainer.train()
        results[name] = fitness(tmp_path / name)
        # Weights stay what they were; only arithmetic is of less precision.
        assert trainer.model.dtype == torch.float32 and "forward" not in vars(trainer.model)
        metrics = trainer.evaluate()
        assert metrics["eval_accuracy"] == trainer.report["evolved"]["accuracy"]
        assert metrics["eval_nll"] == pytest.approx(trainer.report["evolved"]["nll"], abs=1e-6)
    assert np.array_equal(results["bf16"], results["evaluated"])
    assert np.array_equal(results["bf16"], results["unreplayed"])
    assert not np.array_equal(results["bf16"], results["plain"])
    np.testing.assert_allclose(results["bf16"][0], results["plain"][0], rtol=0.25)


@pytest.mark.parametrize("population_size, num_generations", [(3, 2), pytest.param(6, 3, marks=pytest.mark.slow)])
def test_a_run_compiles_once_for_all_children_and_generations(population_size, num_generations, data, tmp_path):
    counters.clear()
    kwargs = dict(population_size=population_size, num_generations=num_generations)
    compiled = make_trainer(tiny_model("resnet"), tmp_path / "compiled", data, torch_compile_backend="eager", **kwargs)
    before = compiled.evaluate()
    compiled.train()
    # For batches of 16 images, and of 8: the last of the test data, and the selection split.
    assert counters["stats"]["unique_graphs"] == 2
    after = compiled.evaluate()
    assert counters["stats"]["unique_graphs"] == 2
    assert before["eval_accuracy"] == compiled.report["parent"]["accuracy"]
    assert after["eval_accuracy"] == compiled.report["evolved"]["accuracy"]
    eager = make_trainer(tiny_model("resnet"), tmp_path / "eager", data, **kwargs)
    eager.train()
    np.testing.assert_allclose(fitness(tmp_path / "compiled"), fitness(tmp_path / "eager"), atol=1e-4)
    evolved = AutoModelForImageClassification.from_pretrained(tmp_path / "compiled")
    assert weights_hash(evolved) == weights_hash(compiled.model)


@pytest.mark.parametrize("kind", ["resnet", pytest.param("timm_convnext", marks=pytest.mark.slow)])
def test_channels_last_saves_the_same_file(kind, data, tmp_path):
    save_tiny_checkpoint(kind, tmp_path / "parent")
    for name, channels_last in (("plain", False), ("last", True)):
        trainer = make_trainer(
            str(tmp_path / "parent"),
            tmp_path / name,
            data,
            channels_last=channels_last,
            recombination="top_k_mean",
            mirrored=True,
        )
        kernels = [parameter for parameter in trainer.model.parameters() if parameter.ndim == 4]
        ours = [kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels]
        assert all(ours) or not channels_last
        trainer.train()
        assert weights_hash(load_model(tmp_path / name)) == weights_hash(trainer.model)
    # The four children are all averaged: whatever the kernels round, the evolved weights are the same.
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("plain", "last")]
    assert files[0] == files[1]


def test_mirrored_blocks_in_bfloat16_weights(data, tmp_path):
    model = tiny_model("vit").bfloat16()
    trainer = make_trainer(model, tmp_path, data, decomposition="blocks", population_size=8, mirrored=True)
    trainer.train()
    assert trainer.model.dtype == torch.bfloat16 and len(np.unique(fitness(tmp_path))) == 8
    assert weights_hash(load_model(tmp_path)) == weights_hash(trainer.model)


@pytest.mark.slow
def test_replay_saves_the_operations_that_the_report_counts(data, tmp_path):
    spent = {}
    for replay in (True, False):
        trainer = make_trainer(
            tiny_model("vit"),
            tmp_path / str(replay),
            data,
            decomposition="blocks",
            allocation="cost",
            population_size=15,
            prefix_replay=replay,
        )
        with profile(activities=[ProfilerActivity.CPU], with_flops=True) as profiler:
            trainer.train()
        products = [
            event for event in profiler.key_averages() if event.key in ("aten::addmm", "aten::mm", "aten::bmm")
        ]
        spent[replay] = sum(event.flops for event in products), trainer.report["cost"]["parent_passes"]
    assert np.array_equal(fitness(tmp_path / "True"), fitness(tmp_path / "False"))
    assert spent[True][0] < 0.75 * spent[False][0] and spent[True][1] < spent[False][1]
