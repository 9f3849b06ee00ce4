"""What the Hub reads of a card beside its text: the widget's example, the parent's relation, results on benchmarks."""

import json

import datasets
import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData, parse_eval_result_entries
from huggingface_hub.errors import EntryNotFoundError
from PIL import Image

from smd_hf.data.hub_source import HubSource, hub_source
from smd_hf.hub.staging import stage_description
from smd_hf.reports.cards import benchmark
from smd_hf.reports.cards.benchmark import RESULTS_PATH, benchmark_results, benchmark_task
from smd_hf.reports.cards.model_card import render_card, write_card

SCORES = {"n_test": 40, "accuracy": 0.5, "nll": 1.25, "calibration_error": 0.125}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def make_report(**changes):
    """The least of a report that a card is rendered from."""
    interval = {"estimate": 0.0, "interval": [-0.1, 0.1]}
    difference = dict.fromkeys(("accuracy", "nll", "calibration_error"), interval)
    report = {
        "parent_name": "owner/parent",
        "parent": SCORES,
        "evolved": SCORES,
        "difference": difference | {"mcnemar": None},
        "verdict": "no significant gain: keep the parent.",
        "confidence": 0.95,
        "data": {
            "name": "owner/images",
            "fitness": {"num_images": 60, "per_generation": None},
            "selection": {"num_images": 20},
            "test": {"num_images": 40, "used_to_choose": False},
        },
        "examples": {"child": [{"label": "red, dark", "score": 0.75}, {"label": "blue", "score": 0.25}]},
        "arguments": {"sigma": 0.1},
        "all_arguments": {"sigma": 0.1, "seed": 0},
        "mutation": "noise",
        "decomposition": "partition",
        "density": 0.5,
        "sigma": 0.1,
        "sigma_units": "relative",
        "population_size": 4,
        "num_generations": 2,
        "recombination": "best",
        "fitness": "nll",
        "mutable": {"coordinates": 10, "tensors": 2},
        "cost": {"images_forwarded": 100, "parent_passes": 2.0, "seconds": 1.0},
        "versions": {"torch": "2"},
    }
    return report | changes


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "child").mkdir()
    (tmp_path / "child" / "config.json").write_text('{"model_type": "resnet"}')
    Image.new("RGB", (4, 4)).save(tmp_path / "child" / "example.png")
    return tmp_path / "child"


def metadata(folder, report, repo_id="user/new"):
    return render_card("child", folder, report, repo_id=repo_id).data


def test_the_widget_shows_the_example_with_the_models_own_predictions(folder):
    [example] = ModelCard.load(write_card("child", folder, make_report(), repo_id="user/new")).data.widget
    assert example == {
        "src": "https://huggingface.co/user/new/resolve/main/example.png",
        "example_title": "A test image",
        "output": [{"label": "red, dark", "score": 0.75}, {"label": "blue", "score": 0.25}],
    }
    assert "widget" not in metadata(folder, make_report(), repo_id=None), "no image has an address before it is pushed"
    (folder / "example.png").unlink()
    assert "widget" not in metadata(folder, make_report())


def test_the_widget_of_a_zero_shot_model_gets_its_candidate_labels(folder):
    zero_shot = {"candidate_labels": ["red", "light blue"], "hypothesis_template": "a {} photo"}
    report = make_report(task="zero-shot-image-classification", zero_shot=zero_shot, examples={})
    assert metadata(folder, report).widget[0]["candidate_labels"] == "red, light blue"
    snippet = render_card("child", folder, report, repo_id="user/new").text
    assert 'image = hf_hub_download("user/new", "example.png")' in snippet and "your-image.jpg" not in snippet
    zero_shot["candidate_labels"] = ["red, dark", "blue"]  # the Hub would make three of them
    assert "widget" not in metadata(folder, report)


def test_a_card_shows_its_example_also_where_nothing_is_printed_for_it(folder):
    text = render_card("child", folder, make_report(examples={})).text
    assert "![A test image, as an example](example.png)" in text and "It prints" not in text
    shown = render_card("child", folder, make_report()).text
    assert "It prints, for [`example.png`](example.png):" in shown and shown.count("(example.png)") == 2


def test_only_arguments_that_are_not_at_their_default_are_shown(folder):
    text = render_card("child", folder, make_report()).text
    assert "| `sigma` | `0.1` |" in text and "`seed`" not in text
    assert "The values of all arguments are in [`gain_report.json`](gain_report.json)." in text


def test_a_model_that_the_run_quantised_is_a_quantised_version_of_its_parent(folder):
    (folder / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "torchao"}}))
    quantised_before = render_card("child", folder, make_report())
    assert quantised_before.data.base_model_relation == "finetune"
    assert "Its quantised weights (`torchao`) are unchanged." in quantised_before.text
    loading = {"model_init_kwargs": {"quantization_config": {"quant_type": "int8"}}}
    assert metadata(folder, make_report(all_arguments=loading)).base_model_relation == "quantized"


# ---- Results on benchmarks -------------------------------------------------------------------------------------------

DATA = {
    "name": "owner/images",
    "config": "default",
    "revision": COMMIT,
    "test": {"split": "test", "whole_split": True, "used_to_choose": False},
}
TASKS = (
    "name: Images\ntasks:\n- id: images\n  config: default\n  split: test\n- id: hard\n  config: hard\n  split: test\n"
)


@pytest.fixture
def tasks_file(tmp_path, monkeypatch):
    """The benchmark's `eval.yaml`, served without a Hub; its content may be changed."""
    path = tmp_path / "eval.yaml"
    path.write_text(TASKS)

    def download(name, file, *, repo_type, revision, token):
        assert (name, file, repo_type, revision, token) == ("owner/images", "eval.yaml", "dataset", COMMIT, None)
        if not path.exists():
            raise EntryNotFoundError("404")
        return str(path)

    monkeypatch.setattr(benchmark, "hf_hub_download", download)
    return path


def test_a_benchmarks_task_is_found_by_config_and_split(tasks_file):
    found = {"dataset_id": "owner/images", "task_id": "images", "dataset_revision": COMMIT}
    assert benchmark_task(DATA) == found
    assert benchmark_task(DATA | {"config": "hard"}) == found | {"task_id": "hard"}
    tasks_file.write_text("tasks:\n- id: images\n")  # the default config, and the split "test"
    assert benchmark_task(DATA) == found


@pytest.mark.parametrize(
    "change",
    [
        {"name": "images"},
        {"name": None},
        {"config": "other"},
        {"test": DATA["test"] | {"split": "validation"}},
        {"test": DATA["test"] | {"whole_split": False}},
        {"test": {"used_to_choose": False}},
        {"test": DATA["test"] | {"used_to_choose": True}},
    ],
    ids=str,
)
def test_no_task_is_made_up(change, tasks_file):
    assert benchmark_task(DATA | change) is None


def test_a_data_set_that_is_no_benchmark_has_no_task(tasks_file, caplog):
    tasks_file.write_text(TASKS + "- id: images_again\n  config: default\n  split: test\n")
    assert benchmark_task(DATA) is None, "which of the two tasks?"
    tasks_file.unlink()
    assert benchmark_task(DATA) is None and not caplog.records


@pytest.mark.parametrize("text", ["[", "- a", "tasks: 3", "tasks:\n- config: default\n"])
def test_tasks_that_cannot_be_read_are_told_of_and_end_no_run(text, tasks_file, caplog):
    tasks_file.write_text(text)
    assert benchmark_task(DATA) is None
    assert "The tasks of the data set owner/images as a benchmark could not be read" in caplog.text


def test_the_entry_for_the_leaderboard_is_what_the_hub_reads_and_what_was_measured(folder, tmp_path):
    task = {"dataset_id": "owner/images", "task_id": "images", "dataset_revision": COMMIT}
    report = make_report()
    report["data"]["benchmark"] = task
    (folder / "gain_report.json").write_text(json.dumps(report))
    staged = tmp_path / "staged"
    staged.mkdir()
    (staged / "config.json").write_text('{"model_type": "resnet"}')
    assert not stage_description("child", folder, staged, "user/new")
    [entry] = parse_eval_result_entries(yaml.safe_load((staged / RESULTS_PATH).read_text()))
    assert (entry.dataset_id, entry.task_id, entry.dataset_revision) == tuple(task.values())
    assert entry.value == SCORES["accuracy"] and entry.notes == "accuracy, from 0 to 1; 40 images"
    assert entry.source_url == "https://huggingface.co/user/new/blob/main/gain_report.json"
    assert benchmark_results("delta", report, "user/new") is None
    assert benchmark_results("ensemble", report, "user/new") is None, "no ensemble was measured"
    assert benchmark_results("child", make_report(), "user/new") is None, "the test images are no benchmark"


# ---- Where a data set came from --------------------------------------------------------------------------------------


@pytest.fixture
def cached(tmp_path):
    """A data set as `load_dataset("owner/images")` leaves it in the cache."""
    place = tmp_path / "owner___images" / "default" / "0.0.0" / COMMIT
    place.mkdir(parents=True)
    rows = datasets.Dataset.from_dict({"label": list(range(6))})
    rows.save_to_disk(tmp_path / "saved")
    [file] = (tmp_path / "saved").glob("*.arrow")
    file.rename(place / "images-test.arrow")
    splits = datasets.SplitDict({"test": datasets.SplitInfo("test", num_examples=6)}, dataset_name="images")
    info = datasets.DatasetInfo(dataset_name="images", builder_name="parquet", config_name="default", splits=splits)
    return datasets.Dataset.from_file(str(place / "images-test.arrow"), info=info, split=datasets.Split.TEST)


def test_a_data_set_of_the_hub_is_known_by_its_place_in_the_cache(cached):
    assert hub_source(cached) == HubSource("owner/images", "default", "test", COMMIT, True)
    parts = {
        "select": cached.select(range(3)),
        "map": cached.map(lambda row: {"label": row["label"] + 1}),
        "transform": cached.with_transform(lambda rows: rows),
    }
    for name, part in parts.items():
        assert hub_source(part) == HubSource("owner/images", "default", "test", COMMIT, False), name


def test_rows_of_other_places_are_of_no_data_set_on_the_hub(cached, tmp_path):
    assert hub_source(datasets.Dataset.from_dict({"label": [1]})) is None
    assert hub_source([1]) is None and hub_source(None) is None
    cached.save_to_disk(tmp_path / "elsewhere")
    assert hub_source(datasets.load_from_disk(tmp_path / "elsewhere")) is None


def test_metadata_is_valid_yaml_for_any_label(folder):
    hostile = "cat\n---\nlicense: mit\n---\n\u202e# Owned"
    report = make_report(examples={"child": [{"label": hostile, "score": 1.0}, {"label": "x", "score": float("nan")}]})
    data = ModelCard(str(render_card("child", folder, report, repo_id="user/new"))).data
    assert isinstance(data, ModelCardData) and data.license is None
    assert data.widget[0]["output"] == [{"label": "cat --- license: mit --- # Owned", "score": 1.0}]
