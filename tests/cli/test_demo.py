import hashlib

import numpy as np
import pytest
import torch
from transformers import pipeline

from smd_hf.cli.digits import DIGITS, digit_splits, shifted, train_parent
from smd_hf.cli.main import main


@pytest.fixture(scope="module")
def splits():
    return digit_splits(seed=0)


def pixels(dataset):
    return [np.asarray(image).tobytes() for image in dataset["image"]]


def test_the_parts_are_disjoint_and_hold_all_classes_evenly(splits):
    train, test = splits["train"], splits["test"]
    assert [len(splits[name]) for name in ("parent", "train", "test", "clean_test")] == [599, 599, 599, 599]
    seen = [set(pixels(splits[name])) for name in ("parent", "clean_test")]
    assert not seen[0] & seen[1] and not set(pixels(train)) & set(pixels(test))
    for dataset in splits.values():
        counts = np.bincount(dataset["label"])
        assert len(counts) == 10 and counts.min() >= 55
        assert dataset.features["label"].names == list(DIGITS)
    clean = splits["clean_test"]
    assert clean["label"] == test["label"]
    assert pixels(test)[:5] == [np.asarray(shifted(image)).tobytes() for image in clean[:5]["image"]]


def test_another_seed_deals_the_images_out_otherwise(splits):
    assert digit_splits(seed=1)["clean_test"]["image"][0] != splits["clean_test"]["image"][0]


def test_the_parent_is_the_same_bytes_for_a_seed_and_leaves_the_random_state_alone(splits, tmp_path):
    few = splits["parent"].select(range(64))
    state = torch.get_rng_state()
    hashes = []
    for number, seed in enumerate((3, 3, 4)):
        train_parent(few, tmp_path / str(number), seed)
        hashes.append(hashlib.sha256((tmp_path / str(number) / "model.safetensors").read_bytes()).hexdigest())
    assert hashes[0] == hashes[1] != hashes[2]
    assert torch.equal(torch.get_rng_state(), state)


def test_the_command_shows_a_gain_and_leaves_models_and_figures(splits, tmp_path, capfd):
    folder = tmp_path / "demo"
    arguments = ["--output_dir", str(folder), "--population_size", "16", "--num_generations", "3"]
    assert main(["demo", *arguments]) == 0
    printed = capfd.readouterr().out
    for text in (
        "accuracy (%)",
        "95 % interval",
        "exact McNemar",
        "599 test images",
        "The parent reads 9",
        "What each step",
    ):
        assert text in printed
    figures = [folder / "shift.png", folder / "evolved" / "gain.png", folder / "evolved" / "fitness.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") and str(path) in printed for path in figures)

    test = splits["test"]
    accuracy = {}
    for name in ("parent", "evolved"):
        predictions = pipeline("image-classification", str(folder / name), top_k=1)(test["image"][:], batch_size=100)
        names = [DIGITS[label] for label in test["label"]]
        accuracy[name] = np.mean([row[0]["label"] == label for row, label in zip(predictions, names)])
        assert f"{100 * accuracy[name]:.2f}" in printed
    # The shift costs the parent five points at least, and a few seconds of evolution win some of them back.
    assert 0.6 < accuracy["parent"] < 0.93
    assert accuracy["evolved"] > accuracy["parent"] + 0.01
