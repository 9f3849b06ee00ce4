import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image
from transformers import AutoModelForImageClassification

from tests.tasks.depth import make_rows as make_depth_rows
from tests.tasks.depth import save_depth_model
from tests.tasks.test_features import save_backbone
from tests.tiny import label_names, save_tiny_checkpoint, tiny_images

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL = ["--population_size", "2"]


def load_example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of images by class, `train` and `validation`."""
    root = tmp_path_factory.mktemp("images")
    for split, count, seed in (("train", 16, 1), ("validation", 8, 2)):
        for number, image in enumerate(tiny_images(count, seed=seed)):
            folder = root / split / label_names(4)[number % 4]
            folder.mkdir(parents=True, exist_ok=True)
            image.save(folder / f"{number}.png")
    return ["--train_dir", str(root / "train"), "--validation_dir", str(root / "validation")]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Parquet files, `train` and `validation`."""
    root = tmp_path_factory.mktemp("files")
    features = Features({"image": Image(), "label": ClassLabel(names=label_names(4))})
    for split, count, seed in (("train", 16, 1), ("validation", 8, 2)):
        rows = {"image": tiny_images(count, seed=seed), "label": (np.arange(count) % 4).tolist()}
        Dataset.from_dict(rows, features=features).to_parquet(str(root / f"{split}.parquet"))
    return ["--train_file", str(root / "train.parquet"), "--validation_file", str(root / "validation.parquet")]


def test_evolve_image_classification(files, tmp_path, capsys):
    model, out = save_tiny_checkpoint("vit", tmp_path / "model"), tmp_path / "out"
    example = load_example("evolve_image_classification")
    arguments = [
        "--model_name_or_path",
        model,
        *files,
        "--output_dir",
        str(out),
        *SMALL,
        "--sigma",
        "0.1",
        "--use_cpu",
    ]
    report = example.main(*example.make_parser().parse_args_into_dataclasses(arguments))
    assert report["verdict"] in capsys.readouterr().out
    assert json.loads((out / "gain_report.json").read_text()) == report
    assert type(AutoModelForImageClassification.from_pretrained(out)).__name__ == "ViTForImageClassification"


def test_evolve_timm(folders, tmp_path, capsys):
    model, out = save_tiny_checkpoint("timm_resnet", tmp_path / "model"), tmp_path / "out"
    example = load_example("evolve_timm")
    arguments = ["--model", model, *folders, "--output_dir", str(out), *SMALL, "--num_generations", "1"]
    report = example.main(example.make_parser().parse_args(arguments))
    assert report["arguments"]["mutable_parameters"] == ["norms", "head"]
    assert "timm loads it: ResNet with 4 classes" in capsys.readouterr().out


def test_custom_metric(files, tmp_path, capsys):
    model, out = save_tiny_checkpoint("resnet", tmp_path / "model"), tmp_path / "out"
    example = load_example("custom_metric")
    arguments = ["--model", model, *files, "--output_dir", str(out), *SMALL]
    before, after = example.main(example.make_parser().parse_args(arguments))
    assert f"{before:.4f} before, {after:.4f} after" in capsys.readouterr().out
    generations = [json.loads(line) for line in (out / "children.jsonl").read_text().splitlines()]
    assert all(0 <= child["fitness"] <= 1 for record in generations for child in record["children"])


def test_evolve_depth(tmp_path, capsys):
    for name, count, seed in (("train", 8, 0), ("test", 4, 1)):
        make_depth_rows(count, seed).to_parquet(tmp_path / f"{name}.parquet")
    example, model = load_example("evolve_depth"), str(save_depth_model(tmp_path / "model", "metric"))
    files = ["--train_file", str(tmp_path / "train.parquet"), "--validation_file", str(tmp_path / "test.parquet")]
    arguments = ["--model", model, *files, "--output_dir", str(tmp_path / "out"), *SMALL, "--num_generations", "1"]
    report = example.main(example.make_parser().parse_args(arguments))
    assert report["arguments"]["fitness"] == "abs_rel"
    assert "without any alignment" in capsys.readouterr().out


@pytest.mark.slow
def test_evolve_openvino_int8(files, tmp_path, capsys):
    pytest.importorskip("nncf")
    model, out = save_tiny_checkpoint("resnet", tmp_path / "model"), tmp_path / "out"
    example = load_example("evolve_openvino_int8")
    arguments = [
        "--model",
        model,
        *files,
        "--output_dir",
        str(out),
        *SMALL,
        "--num_generations",
        "1",
        "--sigma",
        "0.2",
    ]
    counts = ["--train_images", "12", "--test_images", "8", "--calibration_images", "4"]
    scores = example.main(example.make_parser().parse_args([*arguments, *counts]))
    assert list(scores) == ["float", "int8", "int8, evolved"] and (out / "int8.xml").exists()
    assert "int8, evolved" in capsys.readouterr().out


def test_evolve_features(folders, tmp_path, capsys):
    example, model = load_example("evolve_features"), str(save_backbone(tmp_path / "model"))
    arguments = ["--model", model, *folders, "--output_dir", str(tmp_path / "out"), *SMALL, "--num_generations", "1"]
    report = example.main(example.make_parser().parse_args(arguments))
    assert report["task"] == "image-feature-extraction"
    assert "Tokens of an image: (1, 17, 16)" in capsys.readouterr().out


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_no_example_names_a_path_of_its_own(path):
    code = re.sub(r'^""".*?"""', "", path.read_text(), flags=re.DOTALL)
    assert not re.search(r"""["'](/|\./|\.\./|~)""", code)
