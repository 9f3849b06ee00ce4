"""A parent without a gradient evolves like any other."""

import subprocess
import sys

import pytest
import torch

from tests.examples.test_scripts import EXAMPLES, load_example
from tests.tiny import label_names, tiny_images

PREDICT = """
import sys
sys.modules["smd_hf"] = None
from transformers import pipeline

found = pipeline("image-classification", sys.argv[1], trust_remote_code=True)(sys.argv[2])
print(sorted((each["label"], round(each["score"], 5)) for each in found))
"""


@pytest.mark.slow
def test_a_spiking_classifier_evolves(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    for split, count, seed in (("train", 16, 1), ("test", 8, 2)):
        for number, image in enumerate(tiny_images(count, seed=seed)):
            folder = tmp_path / split / label_names(4)[number % 4]
            folder.mkdir(parents=True, exist_ok=True)
            image.save(folder / f"{number}.png")
    example, out = load_example("evolve_spiking"), tmp_path / "out"
    folders = ["--train_dir", str(tmp_path / "train"), "--validation_dir", str(tmp_path / "test")]
    sizes = ["--population_size", "8", "--num_generations", "3"]
    report = example.main(example.make_parser().parse_args([*folders, "--output_dir", str(out), *sizes]))
    assert any(generation["chosen"] != "parent" for generation in report["generations"])

    # No loss has a slope in the weights below the threshold.
    model = example.SpikingForImageClassification.from_pretrained(out)
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    logits = model(pixels).logits
    logits.sum().backward()
    assert model.classifier.weight.grad is not None and not torch.equal(logits[0], logits[1])
    assert model.first.weight.grad is None and model.second.weight.grad is None
    parent = example.SpikingForImageClassification.from_pretrained(out / "parent")
    assert not torch.equal(parent.first.weight, model.first.weight)

    command = [sys.executable, "-c", PREDICT, str(out), str(out / "example.png")]
    printed = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout.splitlines()[-1]
    expected = sorted((each["label"], round(each["score"], 5)) for each in report["examples"]["child"])
    assert printed == str(expected)
