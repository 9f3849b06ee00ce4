import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from transformers import AutoModelForImageClassification, BertConfig

from smd_hf import __version__
from smd_hf.cli.main import main
from smd_hf.cli.tables import short_names
from smd_hf.data.labels import label_maps
from smd_hf.models.checkpoints import weights_hash
from smd_hf.models.load import load_model
from tests.plain import PLAIN_OPTIONS
from tests.tiny import label_names, save_tiny_checkpoint, tiny_images, tiny_model, tiny_processor

ROOT = Path(__file__).parents[2]
SHAPES = ["circle", "square", "star"]
PETS = ["cat", "dog", "foal", "ship"]


def image_rows(count, names, seed):
    """Random images, labelled in turn."""
    features = Features({"image": Image(), "label": ClassLabel(names=names)})
    labels = (np.arange(count) % len(names)).tolist()
    return Dataset.from_dict({"image": tiny_images(count, seed=seed), "label": labels}, features=features)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Models and data, good and bad, by relative name."""
    root = tmp_path_factory.mktemp("root")
    save_tiny_checkpoint("resnet", root / "models" / "resnet")
    save_tiny_checkpoint("custom", root / "models" / "custom")
    BertConfig(hidden_size=8, num_attention_heads=1).save_pretrained(root / "models" / "text")
    train, test = image_rows(24, label_names(4), 1), image_rows(20, label_names(4), 2)
    train.to_parquet(str(root / "train.parquet"))
    test.to_parquet(str(root / "test.parquet"))
    image_rows(12, SHAPES, 3).to_parquet(str(root / "shapes.parquet"))
    image_rows(20, PETS, 4).to_parquet(str(root / "pets.parquet"))
    train.select([]).to_parquet(str(root / "empty.parquet"))
    (root / "empty_folder").mkdir()
    (root / "text.parquet").write_text("no table")

    numbers = Features({"image": Image(), "label": Value("int64")})
    many = {"image": tiny_images(6), "label": [0, 1, 2, 3, 4, 5]}
    Dataset.from_dict(many, features=numbers).to_parquet(str(root / "range.parquet"))
    unlabelled = {"image": tiny_images(4), "label": [0, -1, -1, 1]}
    Dataset.from_dict(unlabelled, features=numbers).to_parquet(str(root / "unlabelled.parquet"))
    broken = train.cast_column("image", Image(decode=False)).to_list()
    broken[5]["image"] = {"bytes": b"not an image", "path": None}
    Dataset.from_list(broken, features=train.features).to_parquet(str(root / "broken.parquet"))
    return root


@pytest.fixture
def at_root(root, monkeypatch):
    monkeypatch.chdir(root)
    return root


def evolve(output_dir, *more, model="models/resnet", train="train.parquet", test="test.parquet"):
    return [
        *("evolve", *PLAIN_OPTIONS, "--model_name_or_path", model, "--train_file", train, "--validation_file", test),
        *(
            "--output_dir",
            str(output_dir),
            "--population_size",
            "4",
            "--sigma",
            "0.3",
            "--disable_tqdm",
            "true",
            *more,
        ),
    ]


def check_mistake(argv, capfd, *expected, program="smd-hf evolve"):
    """Exit code 2, and one paragraph on stderr, which holds what is expected; returns what is on stdout."""
    code = main(argv)
    captured = capfd.readouterr()
    assert code == 2
    [paragraph] = captured.err.strip().splitlines()
    assert paragraph.startswith(f"{program}: error: ")
    for text in expected:
        assert text in paragraph
    return captured.out


BAD_ARGUMENTS = {
    "population_size below 2": (["--population_size", "1"], ["population_size is 1", "2 or more"]),
    "density 0": (["--decomposition", "random", "--density", "0"], ["density is 0.0", "(0, 1]"]),
    "density above 1": (["--decomposition", "random", "--density", "1.5"], ["density is 1.5"]),
    "sigma infinite": (["--sigma", "inf"], ["sigma is inf", "positive", "0 to calibrate"]),
    "sigma below 0": (["--sigma", "-0.5"], ["sigma is -0.5"]),
    "sigma NaN": (["--sigma", "nan"], ["sigma is nan"]),
    "sigma no number": (["--sigma", "much"], ["--sigma", "'much'"]),
    "antirandom, odd": (["--decomposition", "antirandom", "--population_size", "5"], ["even", "population_size"]),
    "more children than coordinates": (
        ["--mutable_parameters", "*classifier*bias", "--population_size", "8"],
        ["8", "4", "partition"],
    ),
    "pattern without a match": (["--mutable_parameters", "no_such_layer*"], ["'no_such_layer*'", "norms", "head"]),
    "frozen pattern without a match": (["--frozen_parameters", "nothing"], ["frozen_parameters", "'nothing'"]),
    "all frozen": (["--frozen_parameters", "all"], ["No mutable parameter"]),
    "unknown choice": (["--decomposition", "parition"], ["parition", "partition"]),
    "unknown fitness": (["--fitness", "sharpness"], ["fitness='sharpness'", "compute_metrics"]),
    "choices that do not go together": (["--load_best_model_at_end", "--save_strategy", "epoch"], ["strategy"]),
    "unknown argument": (["--populaton_size", "8"], ["'--populaton_size'", "Did you mean '--population_size'"]),
    "unknown argument with a value": (["--sigme=1"], ["'--sigme=1'", "Did you mean '--sigma'"]),
    "stray word": (["stray"], ["'stray'"]),
    "no such image column": (["--image_column_name", "picture"], ["image column 'picture'", "image, label"]),
    "no such label column": (["--label_column_name", "labl"], ["label column 'labl'", "Did you mean 'label'?"]),
    "no images wanted": (["--max_train_samples", "0"], ["max_train_samples is 0"]),
    "nothing to choose on": (["--max_train_samples", "1"], ["1"]),
    "two kinds of data": (["--train_dir", "empty_folder"], ["train_dir and train_file"]),
}

BAD_DATA = {
    "no such file": ({"train": "trian.parquet"}, ["train_file", "does not exist", "'train.parquet'"]),
    "no such validation file": ({"test": "missing/test.parquet"}, ["validation_file", "does not exist"]),
    "no Parquet": ({"train": "text.parquet"}, ["cannot be read as Parquet"]),
    "empty file": ({"train": "empty.parquet"}, ["holds no rows"]),
    "empty validation file": ({"test": "empty.parquet"}, ["validation_file", "holds no rows"]),
    "labels out of range": (
        {"train": "range.parquet", "test": "range.parquet"},
        ["out of range", "0 to 5", "4 classes"],
    ),
    "images without labels": ({"train": "unlabelled.parquet"}, ["negative labels", "row 1"]),
    "labels of which one is not the model's": (
        {"train": "pets.parquet", "test": "pets.parquet"},
        ["1 of the data set's 4 labels", "'foal'", "--label_map FILE", "--head_init linear_probe"],
    ),
    "no overlap of splits": ({"test": "shapes.parquet"}, ["no label in common", "circle"]),
    "a corrupt image": ({"train": "broken.parquet"}, ["index 5", "1 of 24"]),
    "a corrupt image to report on": ({"test": "broken.parquet"}, ["index 5"]),
}

BAD_MODELS = {
    "no such model": ("someone/no-such-model", ["'someone/no-such-model'"]),
    "a misspelt folder": ("models/resnt", ["'models/resnt'", "models/resnet"]),
    "no image classifier": ("models/text", ["not an image classifier", "bert"]),
    "code that is not trusted": ("models/custom", ["--trust_remote_code"]),
    "a folder without a model": ("empty_folder", ["config.json"]),
}


@pytest.mark.usefixtures("at_root")
class TestMistakes:
    @pytest.mark.parametrize("more, expected", BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS)
    def test_arguments(self, more, expected, tmp_path, capfd):
        assert check_mistake(evolve(tmp_path, *more), capfd, *expected) == ""
        assert not (tmp_path / "children.jsonl").exists()

    @pytest.mark.parametrize("files, expected", BAD_DATA.values(), ids=BAD_DATA)
    def test_data(self, files, expected, tmp_path, capfd):
        assert check_mistake(evolve(tmp_path, **files), capfd, *expected) == ""
        assert not (tmp_path / "children.jsonl").exists()

    @pytest.mark.parametrize("model, expected", BAD_MODELS.values(), ids=BAD_MODELS)
    def test_models(self, model, expected, tmp_path, capfd, monkeypatch):
        monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked at a prompt"))
        assert check_mistake(evolve(tmp_path, model=model), capfd, *expected) == ""

    def test_a_folder_that_cannot_be_written(self, tmp_path, capfd):
        (tmp_path / "file").write_text("")
        check_mistake(evolve(tmp_path / "file" / "out"), capfd, "output_dir", "cannot be written")

    def test_no_model_and_no_data(self, tmp_path, capfd):
        check_mistake(["evolve", "--output_dir", str(tmp_path)], capfd, "--model_name_or_path is missing")
        check_mistake(["evolve", "--model_name_or_path", "models/resnet"], capfd, "No data set is given")

    def test_an_empty_folder_of_images(self, tmp_path, capfd):
        argv = ["evolve", "--model_name_or_path", "models/resnet", "--output_dir", str(tmp_path)]
        check_mistake([*argv, "--train_dir", "empty_folder"], capfd, "holds no image files")

    def test_logits_of_the_parent_that_are_not_finite(self, tmp_path, capfd):
        model = tiny_model("resnet")
        model.classifier[-1].bias.data[0] = float("nan")
        model.save_pretrained(tmp_path / "nan")
        tiny_processor().save_pretrained(tmp_path / "nan")
        name = str(tmp_path / "nan")
        check_mistake(evolve(tmp_path / "out", model=name), capfd, "not finite")
        argv = ["evaluate", "--model_name_or_path", name, "--validation_file", "test.parquet"]
        check_mistake(argv, capfd, "not finite", program="smd-hf evaluate")

    def test_the_program_itself(self, capfd):
        check_mistake(["evlove"], capfd, "'evlove'", "Did you mean 'evolve'", program="smd-hf")
        check_mistake(["xyz"], capfd, "demo, evolve, evaluate", program="smd-hf")
        check_mistake([], capfd, "no command", program="smd-hf")
        check_mistake(["--verzion"], capfd, "'--verzion'", program="smd-hf")
        check_mistake(["demo", "--output_dir", "train.parquet/x"], capfd, "cannot be written", program="smd-hf demo")
        check_mistake(["demo", "--population_size", "1"], capfd, "population_size is 1", program="smd-hf demo")

    def test_evaluate(self, capfd, tmp_path):
        argv = ["evaluate", "--validation_file", "test.parquet", "--model_name_or_path", "models/resnet"]
        program = "smd-hf evaluate"
        check_mistake(argv[:3], capfd, "--model_name_or_path is missing", program=program)
        check_mistake([*argv, "--against", "models/text"], capfd, "not an image classifier", program=program)
        check_mistake([*argv, "--per_device_eval_batch_size", "0"], capfd, "batch_size is 0", program=program)
        check_mistake([*argv, "--output_file", "train.parquet/x.json"], capfd, "cannot be written", program=program)
        argv[2] = "shapes.parquet"
        check_mistake(argv, capfd, "3 of the data set's 3 labels", "circle", "cat", program=program)


class TestArgumentsFromAFile:
    def test_yaml_gives_what_flags_do_not(self, at_root, tmp_path, capfd):
        config = tmp_path / "arguments.yaml"
        config.write_text(
            f"model_name_or_path: models/resnet\ntrain-file: train.parquet\nvalidation_file: test.parquet\n"
            f"output_dir: {tmp_path / 'out'}\npopulation_size: 4\nsigma: 3e-1\nelitism: false\ndisable_tqdm: true\n"
            f"mutable_parameters: [norms, head]\nreport_to: [none]\nsubspace_schedule: static\nrun_name: null\n"
        )
        assert (
            main(["evolve", str(config), *PLAIN_OPTIONS, "--population_size", "6", "--subspace_schedule=dynamic"]) == 0
        )
        arguments = json.loads((tmp_path / "out" / "gain_report.json").read_text())["arguments"]
        assert arguments["population_size"] == 6 and arguments["sigma"] == 0.3 and arguments["elitism"] is False
        assert arguments["mutable_parameters"] == ["norms", "head"] and "subspace_schedule" not in arguments
        assert "significant" in capfd.readouterr().out

    def test_json_in_another_command(self, at_root, tmp_path, capfd):
        config = tmp_path / "arguments.json"
        config.write_text(json.dumps({"model_name_or_path": "models/resnet", "validation_file": "test.parquet"}))
        assert main(["evaluate", str(config)]) == 0
        assert "models/resnet on 20 images" in capfd.readouterr().out

    @pytest.mark.parametrize(
        "text, expected",
        [
            ("sigm: 0.3", ["'sigm'", "Did you mean 'sigma'"]),
            ("population_size: many", ["--population_size", "'many'"]),
            ("population_size: [1, 2]", ["'population_size'", "one value"]),
            ("decomposition: sideways", ["sideways"]),
            ("- sigma", ["holds list"]),
            ("sigma: [", ["cannot be read"]),
        ],
    )
    def test_mistakes(self, text, expected, tmp_path, capfd):
        (tmp_path / "arguments.yaml").write_text(text)
        check_mistake(["evolve", str(tmp_path / "arguments.yaml")], capfd, *expected)

    def test_no_such_file(self, tmp_path, capfd):
        (tmp_path / "arguments.yaml").write_text("")
        check_mistake(["evolve", str(tmp_path / "argument.yaml")], capfd, "there is no file", "arguments.yaml")


class TestEvolve:
    def test_the_evolved_model_and_the_table(self, at_root, tmp_path, capfd):
        assert main(evolve(tmp_path, "--recombination", "top_k_mean", "--no_elitism")) == 0
        captured = capfd.readouterr()
        for text in ("accuracy (%)", "95 % interval", "exact McNemar", "20 test images", str(tmp_path), "gain.png"):
            assert text in captured.out
        assert captured.err == ""
        evolved, parent = load_model(tmp_path), load_model("models/resnet")
        assert weights_hash(evolved) != weights_hash(parent)

    def test_a_token_is_used_but_kept_nowhere(self, at_root, tmp_path, capfd, monkeypatch):
        seen = []
        monkeypatch.setattr(
            "smd_hf.cli.evolve_run.load_splits", lambda **kwargs: seen.append(os.environ["HF_TOKEN"]) or 1 / 0
        )
        with pytest.raises(ZeroDivisionError):
            main(evolve(tmp_path, "--token", "hf_secret"))
        assert seen == ["hf_secret"] and "HF_TOKEN" not in os.environ
        monkeypatch.undo()
        monkeypatch.chdir(at_root)
        assert main(evolve(tmp_path, "--token", "hf_secret")) == 0
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert len(files) > 5 and not any(b"hf_secret" in path.read_bytes() for path in files)
        captured = capfd.readouterr()
        assert "hf_secret" not in captured.out + captured.err

    def test_other_labels_get_a_new_head(self, at_root, tmp_path):
        assert main(evolve(tmp_path, train="shapes.parquet", test="shapes.parquet")) == 0
        model = AutoModelForImageClassification.from_pretrained(tmp_path)
        assert [model.config.id2label[k] for k in range(3)] == SHAPES

    def test_a_label_map_keeps_the_head_and_belongs_to_the_run(self, at_root, tmp_path, capfd):
        (tmp_path / "map.csv").write_text("label,class\nfoal,horse\n")
        argv = evolve(tmp_path / "out", train="pets.parquet", test="pets.parquet")
        assert main([*argv, "--label_map", str(tmp_path / "map.csv"), "--save_steps", "1"]) == 0
        model = AutoModelForImageClassification.from_pretrained(tmp_path / "out")
        assert [model.config.id2label[k] for k in range(4)] == label_names(4)
        report = json.loads((tmp_path / "out" / "gain_report.json").read_text())
        assert report["new_head"] is None and report["arguments"]["label_map"] == {"foal": "horse"}
        card = (tmp_path / "out" / "README.md").read_text()
        assert '`{"foal": "horse"}`' in card and str(tmp_path) not in card
        capfd.readouterr()
        resumed = [*argv, "--resume_from_checkpoint", str(tmp_path / "out" / "checkpoint-1")]
        check_mistake(
            [*resumed, "--label_map", '{"foal": 3, "ship": 2}'], capfd, "label_map was", "belongs to another run"
        )
        assert main([*resumed, "--label_map", '{"foal": "horse"}']) == 0

    def test_a_head_is_replaced_on_purpose(self, at_root, tmp_path):
        argv = evolve(tmp_path, "--head_init", "linear_probe", train="pets.parquet", test="pets.parquet")
        assert main(argv) == 0
        model = AutoModelForImageClassification.from_pretrained(tmp_path)
        assert [model.config.id2label[k] for k in range(4)] == PETS

    def test_trusted_code_is_run_and_travels(self, at_root, tmp_path):
        assert main(evolve(tmp_path, "--trust_remote_code", model="models/custom")) == 0
        assert (tmp_path / "modeling_tiny_custom.py").is_file()
        model = AutoModelForImageClassification.from_pretrained(tmp_path, trust_remote_code=True)
        assert type(model).__name__ == "TinyCustomForImageClassification"

    def test_a_run_goes_on_from_a_checkpoint(self, at_root, tmp_path):
        argv = [*("--num_generations", "3", "--save_steps", "1", "--no_elitism")]
        assert main(evolve(tmp_path / "whole", *argv)) == 0
        checkpoint = str(tmp_path / "whole" / "checkpoint-1")
        assert main(evolve(tmp_path / "rest", *argv, "--resume_from_checkpoint", checkpoint)) == 0
        weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "rest")]
        assert weights[0] == weights[1]


class TestEvaluate:
    def test_the_numbers_are_the_models_own(self, at_root, tmp_path, capfd):
        output = tmp_path / "scores.json"
        argv = ["evaluate", "--model_name_or_path", "models/resnet", "--validation_file", "test.parquet"]
        assert main([*argv, "--output_file", str(output)]) == 0
        printed, result = capfd.readouterr().out, json.loads(output.read_text())
        test = Dataset.from_parquet("test.parquet")
        with torch.inference_mode():
            logits = load_model("models/resnet")(**tiny_processor()(test["image"][:], return_tensors="pt")).logits
        labels = torch.tensor(test["label"])
        assert result["n"] == 20 and result["accuracy"] == float((logits.argmax(-1) == labels).double().mean())
        assert result["nll"] == pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels)), abs=1e-6)
        assert f"{100 * result['accuracy']:.2f}" in printed and f"{result['nll']:.4f}" in printed

    def test_models_that_order_their_classes_otherwise_are_equal(self, at_root, tmp_path, capfd):
        model, order = tiny_model("resnet"), [2, 0, 3, 1]
        model.config.id2label, model.config.label2id = label_maps([label_names(4)[k] for k in order])
        head = model.classifier[-1]
        head.weight.data, head.bias.data = head.weight.data[order], head.bias.data[order]
        other = tmp_path / "other"
        model.save_pretrained(other)
        tiny_processor().save_pretrained(other)

        output = tmp_path / "comparison.json"
        argv = ["evaluate", "--model_name_or_path", str(other), "--against", "models/resnet"]
        assert main([*argv, "--validation_file", "test.parquet", "--output_file", str(output)]) == 0
        result = json.loads(output.read_text())
        assert result["accuracy"] == {"estimate": 0.0, "interval": [0.0, 0.0]} and result["p_value"] == 1.0
        assert abs(result["nll"]["estimate"]) < 1e-6 and result["names"] == ["resnet", "other"]
        assert "no significant gain" in capfd.readouterr().out

    def test_a_label_map_is_for_both_models(self, at_root, tmp_path, capfd):
        argv = ["evaluate", "--model_name_or_path", "models/resnet", "--validation_file", "pets.parquet"]
        check_mistake(argv, capfd, "'foal'", "Or choose a model", "label_map", program="smd-hf evaluate")
        argv += [
            "--label_map",
            '{"foal": "horse", "dog": 0, "cat": 0}',
            "--output_file",
            str(tmp_path / "scores.json"),
        ]
        assert main([*argv, "--against", "models/resnet"]) == 0
        result = json.loads((tmp_path / "scores.json").read_text())
        pets = Dataset.from_parquet("pets.parquet")
        with torch.inference_mode():
            logits = load_model("models/resnet")(**tiny_processor()(pets["image"][:], return_tensors="pt")).logits
        labels = torch.tensor([0, 0, 2, 3])[pets["label"][:]]
        accuracy = float((logits.argmax(-1) == labels).double().mean())
        assert result["baseline"]["accuracy"] == result["candidate"]["accuracy"] == accuracy

    def test_classes_beyond_those_of_the_data_count_as_wrong_answers(self, at_root, tmp_path):
        big = save_tiny_checkpoint("resnet", tmp_path / "big", num_labels=10)
        output = tmp_path / "scores.json"
        argv = ["evaluate", "--model_name_or_path", big, "--validation_file", "test.parquet"]
        assert main([*argv, "--output_file", str(output)]) == 0
        test = Dataset.from_parquet("test.parquet")
        with torch.inference_mode():
            logits = load_model(big)(**tiny_processor()(test["image"][:], return_tensors="pt")).logits
        assert logits.shape[1] == 10
        accuracy = float((logits.argmax(-1) == torch.tensor(test["label"])).double().mean())
        assert json.loads(output.read_text())["accuracy"] == accuracy


@pytest.mark.parametrize(
    "paths, expected",
    [
        (("a/one", "b/two"), ("one", "two")),
        (("a/model", "b/model"), ("a/model", "b/model")),
        (("/x/model", "/x/model"), ("/x/model (1)", "/x/model (2)")),
    ],
)
def test_short_names_tell_models_apart(paths, expected):
    assert short_names(*paths) == expected


def test_help_lists_what_there_is(capfd):
    assert main(["--version"]) == 0
    assert capfd.readouterr().out.strip() == f"smd-hf {__version__}"
    assert main(["--help"]) == 0
    listed = capfd.readouterr().out
    assert all(f"  {command} " in listed for command in ("demo", "evolve", "evaluate"))
    for command, names in (
        ("evolve", ["train_val_split", "decomposition"]),
        ("evaluate", ["against"]),
        ("demo", ["seed"]),
    ):
        assert main([command, "--help"]) == 0
        listed = capfd.readouterr().out
        assert all(f"--{name} " in listed for name in names)


PROGRAM = "import sys; from smd_hf.cli.main import main; sys.exit(main())"


def start(argv, folder):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *argv],
        cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_a_process_ends_with_code_2_and_no_traceback(root, tmp_path):
    process = start(evolve(tmp_path, model="models/custom"), root)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2 and out == ""
    [paragraph] = err.strip().splitlines()
    assert paragraph.startswith("smd-hf evolve: error: ") and "--trust_remote_code" in paragraph


@pytest.mark.slow
def test_ctrl_c_ends_with_code_130_and_says_what_is_saved(root, tmp_path):
    process = start(evolve(tmp_path, "--num_generations", "100000", "--runtime", "eager", "--save_steps", "1"), root)
    try:
        give_up = time.monotonic() + 120
        while not (tmp_path / "checkpoint-2" / "trainer_state.json").exists() and time.monotonic() < give_up:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    last = err.strip().splitlines()[-1]
    assert last.startswith("smd-hf evolve: interrupted.") and "of 100000 generations" in last
    assert last.endswith("The same command with --resume continues the run.") and "Traceback" not in err
