"""Splits from arguments: Parquet files, folders of images, data sets by name, on the disk and on the Hub."""

import os
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from PIL import Image

from smd_hf.data.labels import label_names, label_values
from smd_hf.data.splits import load_splits
from smd_hf.errors import SMDError
from tests.tiny_data import FEATURES, image_dataset, png


def folder_of_images(folder, classes=("cat", "dog"), count=4):
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i in range(count):
            (folder / name / f"{i}.png").write_bytes(png(i))
    return folder


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """A folder with one of everything that can be wrong."""
    shelf = tmp_path_factory.mktemp("shelf")
    image_dataset().to_parquet(shelf / "train.parquet")
    (shelf / "text.parquet").write_text("no parquet")
    image_dataset().select([]).to_parquet(shelf / "rows.parquet")
    Dataset.from_dict({"a": [1], "b": [2]}).to_parquet(shelf / "other.parquet")
    folder_of_images(shelf / "images")
    (shelf / "empty").mkdir()
    shutil.copytree(shelf / "images" / "cat", shelf / "flat")
    (shelf / "script").mkdir()
    (shelf / "script" / "script.py").write_text("raise SystemExit")
    DatasetDict({"test": image_dataset()}).save_to_disk(shelf / "test_only")
    image_dataset().select([]).save_to_disk(shelf / "no_rows", num_shards=1)
    image_dataset().select([]).save_to_disk(shelf / "no_shards")
    return shelf


class TestLoadSplits:
    @pytest.fixture
    def cache(self, tmp_path):
        return str(tmp_path / "cache")

    def test_parquet(self, tmp_path, cache):
        image_dataset(8).to_parquet(tmp_path / "train.parquet")
        image_dataset(4).to_parquet(tmp_path / "val[1].parquet")  # a name that would be a pattern
        train, validation = load_splits(
            train_file=str(tmp_path / "train.parquet"),
            validation_file=str(tmp_path / "val[1].parquet"),
            cache_dir=cache,
        )
        assert (len(train), len(validation)) == (8, 4)
        assert train.features == FEATURES
        assert np.asarray(train[3]["image"])[0, 0].tolist() == [3, 0, 0]

    def test_parquet_of_other_origin(self, tmp_path, cache):
        cells = [{"bytes": png(i), "path": None} for i in range(4)]
        Dataset.from_dict({"image": cells, "label": ["b", "a", "b", "a"]}).to_parquet(tmp_path / "a.parquet")
        train, validation = load_splits(
            train_file=str(tmp_path / "a.parquet"), validation_file=str(tmp_path / "a.parquet"), cache_dir=cache
        )
        assert isinstance(train[0]["image"], Image.Image)
        assert label_names(validation, "label") == ["a", "b"]

    def test_folders(self, tmp_path, cache):
        # Class names which `datasets` would take for splits, beside files that are none of its business.
        train_dir = folder_of_images(tmp_path / "tr[ain]", classes=("test", "valid"))
        (train_dir / "notes.txt").write_text("x")
        (train_dir / ".thumbs").mkdir()
        (train_dir / ".thumbs" / "a.png").write_bytes(png())
        validation_dir = folder_of_images(tmp_path / "validation", classes=("valid",), count=2)
        train, validation = load_splits(train_dir=str(train_dir), validation_dir=str(validation_dir), cache_dir=cache)
        assert label_names(train, "label") == ["test", "valid"]
        assert sorted(label_values(train, "label").tolist()) == [0] * 4 + [1] * 4
        assert (label_names(validation, "label"), len(validation)) == (["valid"], 2)

    def test_folder_with_metadata(self, tmp_path, cache):
        for i in range(4):
            (tmp_path / f"{i}.png").write_bytes(png(i))
        (tmp_path / "metadata.csv").write_text(
            "file_name,label\n" + "".join(f"{i}.png,{'ab'[i % 2]}\n" for i in range(4))
        )
        train, validation = load_splits(train_dir=str(tmp_path), train_val_split=0.5, cache_dir=cache)
        assert label_names(train, "label") == ["a", "b"]
        assert len(train) == len(validation) == 2

    @pytest.mark.parametrize(
        "there, expected", [(("validation", "test"), 4), (("val",), 4), (("test",), 4), ((), 2), (("unlabelled",), 2)]
    )
    def test_which_split_of_a_named_data_set(self, tmp_path, cache, there, expected):
        splits = {"train": image_dataset(12)}
        for name in there:
            split = image_dataset(4 if name != "test" or len(there) == 1 else 6)
            if name == "unlabelled":
                split = Dataset.from_dict({"image": split["image"], "label": [-1] * 4}, features=FEATURES)
            splits[{"unlabelled": "test"}.get(name, name)] = split
        DatasetDict(splits).save_to_disk(tmp_path / "data")
        train, validation = load_splits(dataset_name=str(tmp_path / "data"), cache_dir=cache)
        assert len(validation) == expected
        assert len(train) == (10 if expected == 2 else 12)

    def test_local_folder_of_splits(self, tmp_path, cache):
        folder_of_images(tmp_path / "data" / "train")
        folder_of_images(tmp_path / "data" / "test", count=1)
        train, validation = load_splits(dataset_name=str(tmp_path / "data"), cache_dir=cache)
        assert (len(train), len(validation)) == (8, 2)

    def test_share_of_the_training_split(self, tmp_path, cache):
        image_dataset(40).to_parquet(tmp_path / "a.parquet")
        given = {"train_file": str(tmp_path / "a.parquet"), "cache_dir": cache}
        train, validation = load_splits(**given, train_val_split=0.25)
        assert np.bincount(label_values(train, "label")).tolist() == [15, 15]
        assert np.bincount(label_values(validation, "label")).tolist() == [5, 5]
        reds = [np.asarray(row["image"])[0, 0, 0] for split in (train, validation) for row in split]
        assert sorted(reds) == list(range(40))
        _, smaller = load_splits(**given, train_val_split=0.25, max_train_samples=4)
        assert smaller["label"][:] == validation["label"][:]  # the test images do not depend on the size of the rest
        with pytest.raises(SMDError, match="no validation split"):
            load_splits(**given, train_val_split=0)

    def test_max_samples(self, tmp_path, cache):
        image_dataset(40).to_parquet(tmp_path / "a.parquet")
        path = str(tmp_path / "a.parquet")
        given = {
            "train_file": path,
            "validation_file": path,
            "max_train_samples": 10,
            "max_eval_samples": 6,
            "cache_dir": cache,
        }
        train, validation = load_splits(**given)
        assert np.bincount(label_values(train, "label")).tolist() == [5, 5]
        assert np.bincount(label_values(validation, "label")).tolist() == [3, 3]
        assert load_splits(**given)[0].to_dict() == train.to_dict()
        assert load_splits(**given, seed=1)[0].to_dict() != train.to_dict()
        assert len(load_splits(**{**given, "max_train_samples": 99})[0]) == 40

    def test_validation_alone(self, tmp_path, cache):
        image_dataset(4).to_parquet(tmp_path / "a.parquet")
        given = {"validation_file": str(tmp_path / "a.parquet"), "cache_dir": cache}
        train, validation = load_splits(**given, need_train=False)
        assert train is None and len(validation) == 4
        with pytest.raises(SMDError, match="no training split"):
            load_splits(**given)

    @pytest.mark.parametrize(
        "given, message",
        [
            ({}, "No data set is given.*three ways.*dataset_name.*train_dir.*train_file"),
            ({"dataset_name": "a", "train_file": "b"}, "Both dataset_name and train_file"),
            ({"train_dir": "a", "train_file": "b"}, "Both train_dir and train_file"),
            (
                {"validation_dir": "a", "validation_file": "b", "train_dir": "c"},
                "Both validation_dir and validation_file",
            ),
            ({"train_file": "x", "max_train_samples": 0}, "max_train_samples is 0"),
            (
                {"train_file": "{tmp}/tran.parquet"},
                r"train_file .*does not exist\. Did you mean '{tmp}/train.parquet'",
            ),
            ({"train_dir": "{tmp}/imagse"}, r"train_dir .*does not exist\. Did you mean '{tmp}/images'"),
            ({"dataset_name": "{tmp}/imagse"}, r"dataset_name .*does not exist\. Did you mean '{tmp}/images'"),
            ({"train_file": "{tmp}/images"}, "is a folder. Give it by train_dir"),
            ({"train_dir": "{tmp}/train.parquet"}, "is a file. Give it by train_file"),
            ({"dataset_name": "{tmp}/train.parquet"}, "is a file. Give a Parquet file by train_file"),
            ({"train_file": "{tmp}/text.parquet"}, "cannot be read as Parquet: Parquet magic bytes not found"),
            ({"train_file": "{tmp}/rows.parquet"}, "holds no rows"),
            ({"train_file": "{tmp}/other.parquet"}, "no image column. The columns are: a, b"),
            ({"train_file": "{tmp}/train.parquet", "label_column_name": "lable"}, "no label column 'lable'.*'label'"),
            ({"train_dir": "{tmp}/empty"}, "holds no image files"),
            ({"train_dir": "{tmp}/flat"}, "one sub-folder of images for each class, but its image '0.png'"),
            ({"dataset_name": "{tmp}/empty"}, "cannot be loaded .EmptyDatasetError"),
            ({"dataset_name": "{tmp}/images", "dataset_config_name": "big"}, "BuilderConfig 'big' not found"),
            ({"dataset_name": "{tmp}/script"}, "scripts are no longer supported"),
            ({"dataset_name": "{tmp}/test_only"}, r"\(splits: test\) has no training split"),
            ({"dataset_name": "{tmp}/no_rows"}, "train split is empty"),
            ({"dataset_name": "{tmp}/no_shards"}, "has an empty split"),
        ],
    )
    def test_errors(self, shelf, cache, given, message):
        given = {name: value.format(tmp=shelf) if isinstance(value, str) else value for name, value in given.items()}
        with pytest.raises(SMDError, match=message.replace("{tmp}", re.escape(str(shelf)))) as caught:
            load_splits(**given, cache_dir=cache)
        assert "\n" not in str(caught.value)


@pytest.fixture
def hub_without_anything():
    """A Hub on this machine that has no repository; it keeps the tokens that it was shown."""
    tokens = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            tokens.append(self.headers.get("Authorization"))
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", tokens
        server.shutdown()


def test_a_data_set_that_is_not_on_the_hub(hub_without_anything, tmp_path):
    """In a process of its own, because the Hub's address is read at import."""
    endpoint, tokens = hub_without_anything
    code = "import sys, smd_hf.data.splits as s; s.load_splits(dataset_name='nobody/nothing', token=sys.argv[1])"
    environment = {
        **os.environ,
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(tmp_path),
        "HF_HUB_OFFLINE": "0",
        "OMP_NUM_THREADS": "1",
    }
    result = subprocess.run(
        [sys.executable, "-c", code, "hf_secretsecretsecret"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "SMDError: The data set 'nobody/nothing' cannot be loaded (DatasetNotFoundError" in result.stderr
    assert "Bearer hf_secretsecretsecret" in tokens
    assert "secretsecret" not in result.stderr.replace(code, "") + result.stdout
