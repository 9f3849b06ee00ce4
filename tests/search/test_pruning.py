import json

import pytest
import torch
from transformers import AutoModelForImageClassification, default_data_collator

from smd_hf import EvolutionTrainer, SMDError
from smd_hf.models.checkpoints import weights_hash
from smd_hf.scoring.changes import applied
from smd_hf.search.mutation import Mutation, zero_share
from smd_hf.search.parameter_space import parameter_space
from smd_hf.search.subspaces import make_decomposition
from tests.plain import plain_arguments
from tests.records import rebuild_child
from tests.tiny import tiny_model, tiny_pixels


@pytest.fixture(scope="module")
def rows():
    return [{"pixel_values": pixels, "labels": number % 4} for number, pixels in enumerate(tiny_pixels(40))]


def make_trainer(folder, rows, **kwargs):
    arguments = dict(population_size=4, num_generations=3, mutation="prune", use_cpu=True, disable_tqdm=True)
    return EvolutionTrainer(
        tiny_model("resnet"),
        plain_arguments(str(folder), **arguments | kwargs),
        data_collator=default_data_collator,
        train_dataset=rows[:24],
        eval_dataset=rows[24:],
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", ["partition", "random", "antirandom", "blocks"])
def test_masked_coordinates_are_zero_the_others_stay_and_the_parent_comes_back(name, dtype):
    model = tiny_model("resnet").to(dtype)
    space = parameter_space(model)
    mutation = Mutation(model, make_decomposition(name, space, 4), prune=True)
    before, parent = weights_hash(model), {name: each.clone() for name, each in mutation.parameters.items()}
    for child in mutation.children(2, 0.0):
        with applied(mutation.parameters, mutation.changes(child)) as changed:
            assert changed
            differ = 0
            for name, parameter in mutation.parameters.items():
                other = parameter != parent[name]
                assert not parameter[other].any()
                differ += int(other.sum())
            # All of the mask but what was zero already.
            zeros = sum(int((each == 0).sum()) for each in parent.values())
            assert child.count - zeros <= differ <= child.count
        assert weights_hash(model) == before


def test_the_share_of_zeros():
    assert zero_share({"a": torch.tensor([0.0, 1.0, -0.0]), "b": torch.ones(1)}) == 0.5


def test_a_run_prunes_without_a_sigma_and_any_child_can_be_built_again(rows, tmp_path):
    trainer = make_trainer(tmp_path, rows, elitism=False, decomposition="random", density=0.1, save_children=1)
    parent = {name: each.clone() for name, each in trainer.evolution.mutation.parameters.items()}
    trainer.train()
    assert trainer.run.calibration is None and trainer.args.recombination == "best"
    assert trainer.report["sigma"] is None
    shares = trainer.report["zero_share"]
    assert shares["before"] == zero_share(parent) < 0.01
    # Three generations, each a tenth of all: some coordinates twice.
    assert shares["after"] == zero_share(trainer.evolution.mutation.parameters) == pytest.approx(1 - 0.9**3, abs=0.02)
    evolved = dict(AutoModelForImageClassification.from_pretrained(tmp_path).named_parameters())
    assert zero_share(evolved) == shares["after"]
    assert all(((evolved[name] == 0) | (evolved[name] == parent[name])).all() for name in parent)
    assert "setting a part of the parent's weights to zero" in (tmp_path / "README.md").read_text()
    assert f"{100 * shares['after']:.2f} % after" in (tmp_path / "README.md").read_text()

    records = [json.loads(line) for line in (tmp_path / "children.jsonl").read_text().splitlines()]
    [[index, _]] = records[2]["parts"]
    again = make_trainer(tmp_path / "again", rows, elitism=False, decomposition="random", density=0.1)
    rebuild_child(again.evolution.mutation, records, 2, index)
    assert weights_hash(again.model) == weights_hash(trainer.model)


def test_of_equals_the_pruned_child_is_taken_and_a_worse_one_is_not(rows, tmp_path):
    # So few weights change no prediction: all are equal in accuracy.
    args = dict(num_generations=1, fitness="accuracy", decomposition="random", density=1e-4)
    trainer = make_trainer(tmp_path, rows, **args)
    trainer.train()
    [record] = trainer.run.generations
    assert record["chosen"] != "parent" and record["selection"][record["chosen"]] == record["selection"]["parent"]
    assert trainer.report["zero_share"]["after"] > trainer.report["zero_share"]["before"]
    harsh = make_trainer(tmp_path / "harsh", rows, fitness="nll", decomposition="random", density=0.99)
    harsh.run.generations.clear()
    before = weights_hash(harsh.model)
    harsh.train()
    for record in harsh.run.generations:
        worse = all(
            value < record["selection"]["parent"] for name, value in record["selection"].items() if name != "parent"
        )
        assert (record["chosen"] == "parent") == worse
        if not worse:
            break
    else:
        assert weights_hash(harsh.model) == before


@pytest.mark.parametrize(
    "kwargs",
    [{"sigma": 0.1}, {"mirrored": True}, {"recombination": "top_k_mean"}, {"decomposition": "dense"}, {"match_norm": True}],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(kwargs, tmp_path):
    with pytest.raises(SMDError, match=f"{next(iter(kwargs))}=.* does not fit mutation='prune'"):
        plain_arguments(str(tmp_path), mutation="prune", **kwargs)
    with pytest.raises(SMDError, match="mutation is shave"):
        plain_arguments(str(tmp_path), mutation="shave")
