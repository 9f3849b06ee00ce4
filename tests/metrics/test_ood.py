import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import roc_auc_score
from transformers import default_data_collator

from smd_hf import EvolutionTrainer, SMDError, load_ood_images
from smd_hf.metrics.ood import auroc, compare_auroc, placements
from smd_hf.scoring.changes import applied
from smd_hf.scoring.evaluator import Evaluator
from tests.plain import PLAIN_OPTIONS, plain_arguments
from tests.tiny import label_names, save_tiny_checkpoint, tiny_images, tiny_model, tiny_pixels
from tests.tiny_data import image_dataset


@pytest.fixture(scope="module")
def rows():
    return [{"pixel_values": pixels, "labels": number % 4} for number, pixels in enumerate(tiny_pixels(60))]


@pytest.fixture(scope="module")
def others():
    """Other images, without labels: brighter, and with less in them."""
    return [{"pixel_values": 0.3 * pixels + 1} for pixels in tiny_pixels(33, seed=9)]


def make_trainer(folder, rows, others, **kwargs):
    arguments = dict(population_size=4, num_generations=2, sigma=0.3, use_cpu=True, disable_tqdm=True)
    return EvolutionTrainer(
        tiny_model("vit"),
        plain_arguments(str(folder), **arguments | kwargs),
        data_collator=default_data_collator,
        train_dataset=rows[:40],
        eval_dataset=rows[40:],
        ood_dataset=others,
    )


def by_hand(name, inside, outside):
    """From probabilities and energies in torch, by scikit-learn."""
    both = torch.from_numpy(np.concatenate([inside, outside])).double()
    score = both.softmax(-1).max(-1).values if name == "ood_auroc" else both.logsumexp(-1)
    return roc_auc_score([1] * len(inside) + [0] * len(outside), score.numpy())


@pytest.mark.parametrize("name", ["ood_auroc", "ood_energy_auroc"])
@given(seed=st.integers(0, 2**32 - 1), inside=st.integers(1, 9), outside=st.integers(1, 9))
def test_auroc_is_the_share_of_pairs_in_the_right_order(name, seed, inside, outside):
    generator = np.random.default_rng(seed)
    # Of few values, so that some scores are equal.
    known, other = (generator.integers(0, 3, (count, 3)).astype(np.float32) for count in (inside, outside))
    assert auroc(name, known, other) == pytest.approx(by_hand(name, known, other), abs=1e-12)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=8), st.lists(st.integers(0, 4), min_size=1, max_size=8))
def test_placements_are_shares_of_pairs(inside, outside):
    inside, outside = np.array(inside, dtype=float), np.array(outside, dtype=float)
    pairs = (inside[:, None] > outside[None]) + 0.5 * (inside[:, None] == outside[None])
    of_inside, of_outside = placements(inside, outside)
    assert np.allclose(of_inside, pairs.mean(1)) and np.allclose(of_outside, pairs.mean(0))


def test_the_interval_of_a_difference_is_that_of_the_bootstrap():
    generator = np.random.default_rng(3)
    known, other = generator.normal(1, 1, (400, 1)), generator.normal(0, 1, (300, 1))
    pairs = [
        tuple(np.concatenate([np.zeros_like(x), x + generator.normal(0, noise, x.shape)], 1) for x in (known, other))
        for noise in (1.0, 0.7)
    ]
    entry = compare_auroc(*pairs)["ood_energy_auroc"]
    differences = []
    for _ in range(200):
        rows, columns = generator.integers(0, 400, 400), generator.integers(0, 300, 300)
        one, two = (auroc("ood_energy_auroc", inside[rows], outside[columns]) for inside, outside in pairs)
        differences.append(two - one)
    low, high = entry["interval"]
    assert entry["difference"] == pytest.approx(entry["evolved"] - entry["parent"])
    assert (high - low) / 2 == pytest.approx(1.96 * np.std(differences), rel=0.15)
    broken = pairs[0][0] * np.nan, pairs[0][1]
    assert compare_auroc(pairs[0], broken) == {"ood_auroc": None, "ood_energy_auroc": None}


@pytest.mark.parametrize("name", ["ood_auroc", "ood_energy_auroc"])
def test_as_fitness_it_scores_chooses_and_is_reported_on_three_disjoint_parts(name, rows, others, tmp_path):
    trainer = make_trainer(tmp_path, rows, others, fitness=name, recombination="best", num_generations=1)
    parts = [trainer.images.ood.fitness, trainer.images.ood.selection, trainer.images.ood.test]
    assert sorted(index for part in parts for index in part.indices) == list(range(33))

    def measured(inside, outside):
        evaluator = Evaluator(trainer.model, torch.device("cpu"))
        return by_hand(name, evaluator.logits(inside), evaluator.logits(outside))

    expected = {"fitness": measured(trainer.images.fitness, parts[0])}
    expected["selection"] = measured(trainer.images.selection, parts[1])
    children = []
    for child in trainer.evolution.mutation.children(0, 0.3):
        with applied(trainer.evolution.mutation.parameters, trainer.evolution.mutation.changes(child)):
            children.append(measured(trainer.images.fitness, parts[0]))
    trainer.train()
    [record] = trainer.run.generations
    assert record["parent"]["fitness"] == pytest.approx(expected["fitness"], abs=1e-9)
    assert record["selection"]["parent"] == pytest.approx(expected["selection"], abs=1e-9)
    assert [child["fitness"] for child in record["children"]] == pytest.approx(children, abs=1e-9)
    assert len(set(children)) > 1
    entry = trainer.report["out_of_distribution"]
    assert entry["images"] == {"fitness": 11, "selection": 11, "test": 11}
    assert entry[name]["evolved"] == pytest.approx(measured(trainer.images.test, parts[2]), abs=1e-9)
    parent = Evaluator(tiny_model("vit"), torch.device("cpu"))
    logits = [parent.logits(batches) for batches in (trainer.images.test, parts[2])]
    assert entry[name]["parent"] == pytest.approx(by_hand(name, *logits), abs=1e-9)
    assert "## Out-of-distribution images" in (tmp_path / "README.md").read_text()


def test_as_one_of_several_objectives(rows, others, tmp_path):
    trainer = make_trainer(tmp_path, rows, others, objectives=["nll", "ood_auroc", "mutated_fraction"])
    trainer.train()
    entry = trainer.report["out_of_distribution"]["ood_auroc"]
    members = trainer.front.table["members"]
    for member in members:
        if member["chosen"]:
            assert member["test"]["ood_auroc"] == pytest.approx(entry["evolved"], abs=1e-9)
        if member["generation"] is None:
            assert member["test"]["ood_auroc"] == pytest.approx(entry["parent"], abs=1e-9)
    # What is scored on either data set is counted.
    images = 2 * 5 * (32 + 11) + sum(4 + (number == 0) for number in range(2)) * (8 + 11)
    assert trainer.report["cost"]["images_forwarded"] == images


def test_a_second_data_set_is_reported_on_also_where_nothing_is_chosen_by_it(rows, others, tmp_path):
    trainer = make_trainer(tmp_path, rows, others, selection_fraction=0.0)
    trainer.train()
    assert trainer.report["out_of_distribution"]["images"] == {"fitness": 17, "selection": 0, "test": 16}
    assert trainer.report["cost"]["images_forwarded"] % 40 == 0


@pytest.mark.parametrize(
    ("kwargs", "others", "expected"),
    [
        ({"fitness": "ood_auroc"}, None, "ood_auroc of a model is measured on a second data set"),
        ({"objectives": ["nll", "ood_energy_auroc"]}, None, "Pass ood_dataset"),
        ({"fitness": "ood_auroc", "racing": "halving"}, "some", "Leave racing out"),
        ({}, [], "ood_dataset is empty"),
        ({}, [{"pixel_values": torch.zeros(3, 32, 32)}] * 2, "has 2 images, but it is split into 3 parts"),
    ],
)
def test_what_cannot_be_is_refused(kwargs, others, expected, rows, tmp_path):
    with pytest.raises(SMDError, match=expected):
        make_trainer(tmp_path, rows, others, **kwargs)


def test_rows_of_another_form_are_refused(rows, tmp_path):
    trainer = make_trainer(tmp_path, rows, [{"picture": 1}] * 6, fitness="ood_auroc")
    with pytest.raises(SMDError, match="returns no input of the model: it returns picture, labels"):
        trainer.train()


def test_images_without_labels_from_folder_file_and_name(tmp_path):
    images = tiny_images(6)
    for number, image in enumerate(images):
        place = tmp_path / "folder" / ("" if number < 3 else "deep/deeper")
        place.mkdir(parents=True, exist_ok=True)
        image.save(place / f"{number}.png")
    found = load_ood_images(ood_dir=str(tmp_path / "folder"))
    assert len(found) == 6 and found.column_names == ["image"] and isinstance(found[0]["image"], Image.Image)
    Dataset.from_dict({"picture": [0, 1]}).to_parquet(str(tmp_path / "none.parquet"))
    image_dataset(8).remove_columns("label").to_parquet(str(tmp_path / "some.parquet"))
    assert len(load_ood_images(ood_file=str(tmp_path / "some.parquet"), max_ood_samples=5)) == 5
    splits = {"train": image_dataset(4), "test": image_dataset(3)}
    for name, split in splits.items():
        (tmp_path / "named").mkdir(exist_ok=True)
        split.to_parquet(str(tmp_path / "named" / f"{name}.parquet"))
    assert len(load_ood_images(ood_dataset_name=str(tmp_path / "named"))) == 3
    assert load_ood_images() is None
    for kwargs, expected in (
        ({"ood_dir": "x", "ood_file": "y"}, "Both ood_dir and ood_file"),
        ({"ood_dir": str(tmp_path / "nowhere")}, "does not exist"),
        ({"ood_dir": str(tmp_path / "named")}, "holds no image files. Expected images, in sub-folders or not"),
        ({"ood_file": str(tmp_path / "none.parquet")}, "no image column"),
        ({"ood_dir": str(tmp_path / "folder"), "max_ood_samples": 0}, "max_ood_samples is 0"),
    ):
        with pytest.raises(SMDError, match=expected):
            load_ood_images(**kwargs)


def test_the_command_line_takes_both(tmp_path, capfd):
    from smd_hf.cli.main import main
    from tests.cli.test_commands import image_rows

    save_tiny_checkpoint("resnet", tmp_path / "parent")
    for name, seed in (("train", 1), ("test", 2)):
        image_rows(24, label_names(4), seed).to_parquet(str(tmp_path / f"{name}.parquet"))
    (tmp_path / "others").mkdir()
    for number in range(9):
        Image.new("RGB", (9, 9), (number, 0, 200)).save(tmp_path / "others" / f"{number}.png")
    arguments = {
        "model_name_or_path": "parent",
        "train_file": "train.parquet",
        "validation_file": "test.parquet",
        "ood_dir": "others",
        "output_dir": "out",
    }
    command = [
        "evolve",
        *PLAIN_OPTIONS,
        *(text for name, path in arguments.items() for text in (f"--{name}", str(tmp_path / path))),
    ]
    command += ["--population_size", "4", "--sigma", "0.3", "--disable_tqdm", "true"]
    assert main([*command, "--objectives", "nll", "mutated_fraction", "ood_energy_auroc"]) == 0
    printed = capfd.readouterr().out
    assert "By nll, mutated_fraction, ood_energy_auroc, " in printed and "front.csv has the values" in printed
    assert "ood_auroc on 3 out-of-distribution images: " in printed
    assert (tmp_path / "out" / "front.png").is_file()
    assert main([*command, "--objectives", "nll"]) == 2
    [line] = capfd.readouterr().err.strip().splitlines()
    assert "expected two or more" in line
