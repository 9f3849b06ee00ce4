"""Runs with a limit on passes or hours, and what is foreseen of them."""

import json
import time

import pytest

from smd_hf import SMDError
from smd_hf.cli.main import main
from smd_hf.models.checkpoints import weights_hash
from smd_hf.run.limits import stopped_sentence
from tests.distributed.worker import make_dataset, make_trainer
from tests.plain import PLAIN_OPTIONS
from tests.tiny import label_names, save_tiny_checkpoint

# 32 fitness images in 3 batches and 8 selection images: a candidate costs a quarter of a pass.
BEST = dict(kind="resnet", population_size=4, recombination="best", recombination_top_k=2)
BLOCKS = dict(kind="vit", decomposition="blocks", population_size=6, sigma=0.05)
RUNS = {
    "best": BEST,
    "without a selection split": BEST | dict(selection_fraction=0.0),
    "fresh samples": BEST | dict(fitness_samples_per_generation=12, selection_fraction=0.0),
    "mean": BEST | dict(recombination="top_k_mean", elitism=False, mirrored=True),
    "soup": BEST | dict(recombination="greedy_soup"),
    "steps": BEST | dict(recombination="gauss_newton", sigma=0.05),
    "calibrated": BEST | dict(sigma=None, calibration_samples=20),
    "whole passes over blocks": BLOCKS | dict(prefix_replay=False),
    "a race": BEST | dict(population_size=9, racing="halving", recombination_top_k=2),
}


def foreseen(trainer):
    """What the generations of a run are foreseen to cost, and what it is known to have cost after it."""
    trainer.train()
    costs = trainer.limits.costs
    ahead = [costs.ahead(number) for number in range(trainer.args.num_generations)]
    return ahead, [costs.calibration(trainer.run), *map(costs.behind, trainer.run.generations)]


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_what_is_counted_is_what_the_report_counts(run, tmp_path):
    trainer = make_trainer(tmp_path, "data", **run | dict(num_generations=2))
    before, after = foreseen(trainer)
    cost = trainer.report["cost"]
    assert sum(each.images for each in after) == cost["images_forwarded"]
    assert sum(each.passes for each in after) == pytest.approx(cost["parent_passes"])
    # Nothing costs more than was foreseen, and little less: there can be fewer candidates.
    for foretold, spent in zip(before, after[1:]):
        assert spent.passes <= foretold.passes + 1e-9
        assert foretold.passes <= spent.passes + (4 if run.get("recombination") == "gauss_newton" else 1)


def test_parts_of_passes_are_foreseen_by_their_operations(tmp_path):
    trainer = make_trainer(tmp_path, "data", **BLOCKS | dict(num_generations=1, population_size=12))
    [ahead], _ = foreseen(trainer)
    whole = make_trainer(
        tmp_path / "whole", "data", **BLOCKS | dict(num_generations=1, population_size=12, prefix_replay=False)
    )
    [ahead_in_full], _ = foreseen(whole)
    assert ahead.images == ahead_in_full.images
    saved = ahead_in_full.passes - ahead.passes
    assert 0.2 * 12 < saved < 0.8 * 12


@pytest.mark.parametrize("limit, finished", [(6.0, 1), (11.0, 1), (11.5, 2), (100.0, 3)])
def test_a_generation_that_does_not_fit_is_not_begun(limit, finished, tmp_path):
    # The parent, 4 children, 2 candidates; and in the first generation the parent once more: 5.75, then 5.5 passes.
    trainer = make_trainer(tmp_path / "out", "data", **BEST, num_generations=3, max_forward_passes=limit)
    trainer.train()
    cost = trainer.report["cost"]["parent_passes"]
    assert len(trainer.run.generations) == finished == trainer.report["num_generations"]
    assert cost == 5.75 + 5.5 * (finished - 1) <= limit
    if finished == 3:
        assert trainer.stopped is None and "stopped" not in trainer.report
        return
    stopped = {"limit": "max_forward_passes", "value": limit, "finished": finished, "planned": 3, "passes": cost}
    assert (
        trainer.report["stopped"]
        == stopped
        == json.loads((tmp_path / "out" / "gain_report.json").read_text())["stopped"]
    )
    # The same as a run of so many generations.
    shorter = make_trainer(tmp_path / "shorter", "data", **BEST, num_generations=finished)
    shorter.train()
    assert weights_hash(shorter.model) == weights_hash(trainer.model)
    assert f"after {finished} of 3 generations" in (tmp_path / "out" / "README.md").read_text()


def test_a_limit_that_no_generation_keeps_is_refused_before_any_is_run(tmp_path):
    trainer = make_trainer(tmp_path, "data", **BEST, max_forward_passes=5.5)
    with pytest.raises(SMDError, match=r"max_forward_passes is 5.5, but .* up to 5.8 passes"):
        trainer.train()
    assert trainer.run.images_forwarded == 0


@pytest.mark.parametrize("name", ["max_hours", "max_forward_passes"])
def test_limits_are_positive(name, tmp_path):
    with pytest.raises(SMDError, match=f"{name} is 0.0; expected a positive number"):
        make_trainer(tmp_path, "data", **BEST, **{name: 0.0})


def slowed(trainer, seconds):
    trainer.model.register_forward_hook(lambda *_: time.sleep(seconds))


def test_time_ends_a_generation_in_its_midst(tmp_path):
    kwargs = BEST | dict(num_generations=50, max_hours=4 / 3600, ensemble_size=2, save_children=1, elitism=False)
    trainer = make_trainer(tmp_path / "out", "data", **kwargs)
    slowed(trainer, 0.05)
    trainer.train()
    stopped = trainer.report["stopped"]
    finished = stopped["finished"]
    assert stopped["limit"] == "max_hours" and 1 <= finished == len(trainer.run.generations) < 50
    assert 4 <= trainer.report["cost"]["seconds"] < 8
    # What a run leaves is left, of the last generation that was finished.
    assert (tmp_path / "out" / "ensemble" / "model.safetensors").is_file()
    assert (tmp_path / "out" / "children" / "0000").is_dir()
    shorter = make_trainer(tmp_path / "shorter", "data", **kwargs | dict(num_generations=finished, max_hours=None))
    shorter.train()
    for name in ("model.safetensors", "ensemble/model.safetensors", "children.jsonl"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "shorter" / name).read_bytes()


def test_a_first_generation_that_is_not_finished_leaves_the_parent(tmp_path):
    trainer = make_trainer(tmp_path, "data", **BEST, max_hours=0.3 / 3600)
    slowed(trainer, 0.05)
    before = weights_hash(trainer.model)
    trainer.train()
    assert weights_hash(trainer.model) == before and trainer.report["stopped"]["finished"] == 0
    assert trainer.report["difference"]["accuracy"]["estimate"] == 0


def test_time_that_is_spent_already_counts(tmp_path):
    kwargs = BEST | dict(num_generations=3, save_strategy="steps", save_steps=1)
    make_trainer(tmp_path, "data", **kwargs).train()
    state = json.loads((tmp_path / "checkpoint-1" / "evolution_state.json").read_text())
    (tmp_path / "checkpoint-1" / "evolution_state.json").write_text(json.dumps(state | {"seconds": 3600.0}))
    resumed = make_trainer(tmp_path / "resumed", "data", **kwargs, max_hours=1.0)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert resumed.report["stopped"]["finished"] == 1


def test_the_command_says_what_is_ahead_and_what_stopped_it(tmp_path, capfd, caplog):
    save_tiny_checkpoint("resnet", tmp_path / "model")
    for name in ("train", "test"):
        make_dataset(40, len(name), label_names(4)).to_parquet(str(tmp_path / f"{name}.parquet"))
    argv = [
        "evolve",
        *PLAIN_OPTIONS,
        "--model_name_or_path",
        str(tmp_path / "model"),
        "--output_dir",
        str(tmp_path / "out"),
    ]
    argv += ["--train_file", str(tmp_path / "train.parquet"), "--validation_file", str(tmp_path / "test.parquet")]
    argv += ["--population_size", "4", "--recombination", "best", "--recombination_top_k", "2", "--sigma", "0.3"]
    assert main([*argv, "--num_generations", "3", "--max_forward_passes", "6", "--disable_tqdm", "true"]) == 0
    ahead, stopped = caplog.messages
    # Once 184 and twice 176 images.
    assert "3 generations of 4 children" in ahead and "at most 536 images or 16.8 passes" in ahead and "about" in ahead
    assert stopped == "Stopped by max_forward_passes=6 after 1 of 3 generations, at the best so far."
    assert stopped in capfd.readouterr().out


def test_the_sentence():
    stopped = {"limit": "max_hours", "value": 0.5, "finished": 3, "planned": 10}
    assert stopped_sentence(stopped) == "Stopped by max_hours=0.5 after 3 of 10 generations, at the best so far."
