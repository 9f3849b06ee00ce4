"""What the default preset gives, what yields to given arguments, and what a model or task without its means gets instead."""

import pytest

from smd_hf import EvolutionArguments, EvolutionTrainer, SMDError
from smd_hf.arguments.recipes import BY_PRESET, PRESETS, read_recipe
from tests.test_trainer import make_dataset
from tests.tiny import tiny_model, tiny_processor

SMALL = {"population_size": 4, "num_generations": 1}


def made(folder, **given):
    return EvolutionArguments(str(folder), use_cpu=True, report_to="none", disable_tqdm=True, **given)


def test_the_default_is_adapt_and_every_preset_sets_the_same_arguments(tmp_path):
    assert all(read_recipe(preset).keys() == BY_PRESET for preset in PRESETS)
    args, recipe = made(tmp_path), read_recipe("adapt")
    assert {name: getattr(args, name) for name in BY_PRESET} == recipe | {"recombination": "gauss_newton"}


def test_what_is_given_holds_also_where_it_is_the_default_of_another_preset(tmp_path):
    args = made(tmp_path, population_size=16, sigma=0, warm_start=False, mutable_parameters=["all"])
    assert (args.population_size, args.sigma, args.warm_start, args.mutable_parameters) == (16, 0, False, ["all"])
    again = EvolutionArguments(**args.non_default())
    assert again.non_default() == args.non_default()


@pytest.mark.parametrize(
    "given, instead",
    [
        ({"mutation": "prune"}, {"sigma": 0, "recombination": "best", "mutable_parameters": ["all"], "warm_start": False}),
        ({"decomposition": "partition"}, {"allocation": "uniform", "mutable_parameters": ["norms"]}),
        ({"racing": "halving"}, {"recombination": "best", "recombination_top_k": 4}),
        ({"recombination": "top_k_mean"}, {"recombination_top_k": 4}),
        ({"fitness": "ood_auroc"}, {"warm_start": False, "refit_head": False}),
        ({"sigma_units": "absolute"}, {"sigma": 0}),
        ({"recombination": "best"}, {"fitness_sampling": "balanced"}),
        ({"selection_fraction": 0.0}, {"fitness_sampling": "balanced"}),
        ({"fitness_samples_per_generation": 0}, {"fitness_sampling": "balanced"}),
        ({"unlabeled": True}, {"fitness_sampling": "balanced"}),
        ({"preset": "smd", "population_size": 2}, {"ensemble_size": 2}),
    ],
    ids=str,
)  # fmt: skip
def test_the_preset_yields_where_it_does_not_go_with_what_is_given(given, instead, tmp_path):
    args = made(tmp_path, **given)
    assert {name: getattr(args, name) for name in instead} == instead
    assert all(getattr(args, name) == value for name, value in given.items())


@pytest.mark.parametrize(
    "beside", [{"recombination": "best"}, {"selection_fraction": 0.0}, {"fitness_samples_per_generation": 0}], ids=str
)
def test_importance_that_was_asked_for_is_refused_where_nothing_weighs_the_images(beside, tmp_path):
    [name] = beside
    with pytest.raises(SMDError, match=f"fitness_sampling='importance' draws some .* {name}=.* does not go with that"):
        made(tmp_path, fitness_sampling="importance", **beside)


def test_a_model_without_norms_changes_all_its_weights(tmp_path, caplog):
    model = tiny_model("resnet")
    for name, child in list(model.named_modules()):
        if type(child).__name__ == "BatchNorm2d":
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, type("Scale", (type(child),), {})(child.num_features))
    data = {"train_dataset": make_dataset(24, 1), "eval_dataset": make_dataset(8, 2)}
    args = made(tmp_path, **SMALL)
    trainer = EvolutionTrainer(model, args, processing_class=tiny_processor(), **data)
    trainer.train()
    assert args.mutable_parameters == ["all"] and "this model has none" in caplog.text
    assert trainer.report["arguments"]["mutable_parameters"] == ["all"]
