"""`smd-hf evaluate` and `smd-hf evolve` over the deltas and ensembles that smd-hf writes."""

import json
import shutil

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image

from smd_hf import EvolutionTrainer, SMDError
from smd_hf.artifacts.loading import load
from smd_hf.cli.main import main
from smd_hf.models.checkpoints import weights_hash
from smd_hf.models.load import load_image_processor
from tests.plain import PLAIN_OPTIONS, plain_arguments
from tests.tiny import label_names, save_tiny_checkpoint, tiny_images

OPTIONS = ["--population_size", "4", "--sigma", "0.3", "--disable_tqdm", "true", "--report_to", "none"]


def write_images(path, seed):
    features = Features({"image": Image(), "label": ClassLabel(names=label_names())})
    rows = {"image": tiny_images(16, seed=seed), "label": [0, 1, 2, 3] * 4}
    Dataset.from_dict(rows, features=features).to_parquet(str(path))


@pytest.fixture(scope="module", params=["resnet", "timm_resnet"])
def run(request, tmp_path_factory):
    """A run that has left two deltas and an ensemble."""
    root = tmp_path_factory.mktemp(request.param)
    save_tiny_checkpoint(request.param, root / "base")
    write_images(root / "train.parquet", 1)
    write_images(root / "test.parquet", 2)
    argv = [
        "evolve",
        *PLAIN_OPTIONS,
        "--model_name_or_path",
        str(root / "base"),
        "--output_dir",
        str(root / "run"),
        *data(root),
    ]
    assert main([*argv, *OPTIONS, "--save_children", "2", "--ensemble_size", "3"]) == 0
    return root


def data(root):
    return ["--train_file", str(root / "train.parquet"), "--validation_file", str(root / "test.parquet")]


def evaluate(root, output, model, against=None):
    argv = ["evaluate", "--model_name_or_path", str(model), "--validation_file", str(root / "test.parquet")]
    argv += [] if against is None else ["--against", str(against)]
    assert main([*argv, "--output_file", str(output)]) == 0
    return json.loads(output.read_text())


def expected_accuracy(root, model):
    """Of a model on the test images, prepared by the base's own image processor."""
    base = root / "base"
    test = Dataset.from_parquet(str(root / "test.parquet"))
    pixels = load_image_processor(base, model=load(base))(test["image"][:], return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        predictions = model(pixels).logits.argmax(-1)
    return float((predictions == torch.tensor(test["label"])).double().mean())


def test_evaluate_reads_a_delta_and_an_ensemble(run, tmp_path, capfd):
    delta, ensemble = run / "run" / "children" / "0001", run / "run" / "ensemble"
    for folder in (delta, ensemble):
        result = evaluate(run, tmp_path / "scores.json", folder)
        assert result["n"] == 16 and result["accuracy"] == expected_accuracy(run, load(folder))
        assert f"{folder} on 16 images" in capfd.readouterr().out
    result = evaluate(run, tmp_path / "scores.json", run / "base", against=ensemble)
    assert result["names"] == ["ensemble", "base"]
    result = evaluate(run, tmp_path / "scores.json", ensemble, against=delta)
    assert result["names"] == ["0001", "ensemble"]


def test_evolve_goes_on_from_a_delta(run, tmp_path):
    delta = run / "run" / "children" / "0000"
    argv = ["evolve", *PLAIN_OPTIONS, "--model_name_or_path", str(delta), "--output_dir", str(tmp_path), *data(run)]
    assert main([*argv, *OPTIONS, "--save_children", "1"]) == 0
    report = json.loads((tmp_path / "gain_report.json").read_text())
    assert report["parent"]["accuracy"] == expected_accuracy(run, load(delta))
    assert report["parent_name"] == "0000"
    # Its own delta is one from the delta's child, which no name gives: it is saved beside.
    assert weights_hash(load(tmp_path / "parent")) == weights_hash(load(delta))
    assert weights_hash(load(tmp_path / "children" / "0000")) != weights_hash(load(delta))


def test_evolve_refuses_an_ensemble_with_a_remedy_that_works(run, tmp_path, capfd):
    folder = run / "run" / "ensemble"
    argv = ["evolve", "--output_dir", str(tmp_path / "out"), *data(run), *OPTIONS]
    assert main([*argv, "--model_name_or_path", str(folder)]) == 2
    [paragraph] = capfd.readouterr().err.strip().splitlines()
    assert f"smd-hf evolve: error: '{folder}' is an ensemble" in paragraph
    assert f"smd_hf.load('{folder}').merge().save_pretrained(folder)" in paragraph
    with pytest.raises(SMDError, match=r"The model is an ensemble.*model.merge\(\)"):
        EvolutionTrainer(load(folder), plain_arguments(str(tmp_path / "out"), use_cpu=True))

    load(folder).merge().save_pretrained(tmp_path / "merged")
    if (folder / "preprocessor_config.json").is_file():
        shutil.copy(folder / "preprocessor_config.json", tmp_path / "merged")
    assert main([*argv, "--model_name_or_path", str(tmp_path / "merged")]) == 0


def test_a_folder_of_several_deltas_says_to_name_one(run, tmp_path, capfd):
    argv = ["evaluate", "--model_name_or_path", str(run / "run" / "children")]
    assert main([*argv, "--validation_file", str(run / "test.parquet")]) == 2
    [paragraph] = capfd.readouterr().err.strip().splitlines()
    assert "if a folder has several, give the folder of one" in paragraph


def test_a_delta_whose_base_has_gone_says_so(run, tmp_path, capfd):
    shutil.copytree(run / "run" / "children" / "0000", tmp_path / "delta")
    path = tmp_path / "delta" / "smd_delta_config.json"
    path.write_text(path.read_text().replace(str(run / "base"), str(tmp_path / "gone")))
    for command in (["evaluate"], ["evolve", "--output_dir", str(tmp_path / "out"), *data(run)[:2], *OPTIONS]):
        argv = [*command, "--model_name_or_path", str(tmp_path / "delta"), *data(run)[2:]]
        assert main(argv) == 2
        [paragraph] = capfd.readouterr().err.strip().splitlines()
        assert f"There is no folder '{tmp_path / 'gone'}'" in paragraph
