"""Streams: a run takes what it needs once, from a sharded data set on a loopback Hub or from an IterableDataset."""

import json
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch

from smd_hf import EvolutionTrainer, SMDError
from smd_hf.data.streaming import rows_needed, take, take_streams
from tests.hub.server import HubServer
from tests.plain import PLAIN_OPTIONS, plain_arguments
from tests.test_trainer import make_dataset
from tests.tiny import save_tiny_checkpoint

ROOT = Path(__file__).parents[2]
SHARDS, ROWS = 5, 20


def with_numbers(count, seed=1):
    dataset = make_dataset(count, seed)
    return dataset.add_column("number", list(range(len(dataset))))


@pytest.fixture
def stream():
    return with_numbers(60).to_iterable_dataset(num_shards=3)


def arguments(folder, **values):
    chosen = {
        "population_size": 2, "num_generations": 2, "sigma": 0.1, "use_cpu": True, "disable_tqdm": True, "report_to": "none",
        "fitness_samples_per_generation": 8, "save_strategy": "no",
    }  # fmt: skip
    return plain_arguments(str(folder), **(chosen | values))


def test_rows_are_those_of_the_stream_shuffled_by_the_seed(stream):
    first, again, other = (take(stream, 12, seed, "it") for seed in (0, 0, 1))
    assert first["number"][:] == again["number"][:] != other["number"][:]
    assert len(set(first["number"])) == 12 and first["number"][:] != sorted(first["number"])
    assert first.features == stream.features


def test_images_keep_the_bytes_of_their_files(stream):
    stored = with_numbers(60).cast_column("image", datasets.Image(decode=False))
    taken = take(stream, 5, 0, "it").cast_column("image", datasets.Image(decode=False))
    for row in taken:
        assert row["image"]["bytes"] == stored[row["number"]]["image"]["bytes"]


def test_a_stream_that_ends_early_is_told(stream, warned):
    assert len(take(stream, 100, 0, "my data")) == 60
    assert warned("my data has 60 rows, and 100 were asked for")


def test_an_empty_stream_and_one_that_breaks_are_mistakes():
    def broken():
        yield {"label": 1}
        raise ConnectionError("gone")

    with pytest.raises(SMDError, match="a stream without rows"):
        take(datasets.IterableDataset.from_generator(lambda: iter(())), 3, 0, "it")
    with pytest.raises(SMDError, match=r"it cannot be streamed \(ConnectionError: gone\)"):
        take(datasets.IterableDataset.from_generator(broken), 3, 0, "it")


def test_what_a_run_needs(tmp_path):
    args = arguments(tmp_path, num_generations=5, fitness_samples_per_generation=80, selection_fraction=0.2)
    assert rows_needed(args) == 500
    assert rows_needed(arguments(tmp_path, fitness_samples_per_generation=None)) is None


class TorchStream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(make_dataset(40, 1))


def test_the_trainer_takes_streams(tmp_path):
    model = save_tiny_checkpoint("resnet", tmp_path / "model")
    stream = make_dataset(60, 1).to_iterable_dataset(num_shards=3)
    test = make_dataset(24, 2).to_iterable_dataset()
    trainer = EvolutionTrainer(model, arguments(tmp_path / "a"), train_dataset=stream, eval_dataset=test)
    trainer.train()
    assert len(trainer.train_dataset) == 20 and trainer.report["parent"]["n_test"] == 24
    # The same rows as a data set give the same bytes.
    rows = take(stream, 20, 42, "it")
    given = EvolutionTrainer(model, arguments(tmp_path / "b"), train_dataset=rows, eval_dataset=make_dataset(24, 2))
    given.train()
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]


def test_streams_of_torch_are_taken_in_order(tmp_path):
    train, test = take_streams(arguments(tmp_path), TorchStream(), {"one": TorchStream(), "two": [1]})
    assert len(train) == 20 and len(test["one"]) == 40 and test["two"] == [1]


@pytest.mark.slow
def test_a_sharded_data_set_of_the_hub_is_streamed_once(tmp_path):
    """The run has the rows that it needs, and nothing is left in the cache of data sets."""
    for number in range(SHARDS):
        name = f"train-{number:05d}-of-{SHARDS:05d}.parquet"
        make_dataset(ROWS, number).to_parquet(tmp_path / "data" / "data" / name)
    make_dataset(16, 9).to_parquet(tmp_path / "data" / "data" / "validation-00000-of-00001.parquet")
    model = save_tiny_checkpoint("resnet", tmp_path / "model")
    with HubServer() as hub:
        hub.add_repository("tester/shards", tmp_path / "data", repo_type="dataset")
        environment = hub.environment(home=tmp_path / "home") | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        argv = [
            "evolve", *PLAIN_OPTIONS, "--model_name_or_path", model, "--dataset_name", "tester/shards", "--streaming", "--output_dir", "out",
            "--population_size", "2", "--num_generations", "2", "--sigma", "0.1", "--fitness_samples_per_generation", "8",
            "--shuffle_buffer_size", "10", "--disable_tqdm", "true",
        ]  # fmt: skip
        command = [sys.executable, "-c", "import sys; from smd_hf.cli.main import main; sys.exit(main())", *argv]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((tmp_path / "out" / "gain_report.json").read_text())
    assert report["data"]["fitness"]["num_images"] + report["data"]["selection"]["num_images"] == 20
    assert report["parent"]["n_test"] == 16
    assert not list((tmp_path / "home" / "datasets").rglob("*.arrow"))


@pytest.mark.parametrize(
    "options, text",
    (
        ({"dataset_name": "x", "max_train_samples": None}, "it must be known how many images to take"),
        ({"train_dir": "x"}, "streaming is for a data set by name"),
    ),
)
def test_mistakes_with_streaming(options, text, tmp_path, monkeypatch):
    from smd_hf import load_splits
    from smd_hf.data import splits

    monkeypatch.setattr(splits, "_load_named", lambda *args: {"train": None})
    with pytest.raises(SMDError, match=text):
        load_splits(streaming=True, **options)
