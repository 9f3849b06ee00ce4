"""Rows whose image cannot be read: every kind is found and named, and with on_bad_images="skip" they take no part."""

import io
import json
import struct
import zlib

import datasets
import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features
from PIL import Image

from smd_hf import EvolutionTrainer, SMDError
from smd_hf.data.image_checks import ReadableRows, bad_images, check_images
from tests.plain import plain_arguments
from tests.tiny import label_names, tiny_images, tiny_model, tiny_processor

FEATURES = Features({"image": datasets.Image(), "label": ClassLabel(names=label_names(4))})


def encoded(image, form="PNG"):
    file = io.BytesIO()
    image.save(file, form)
    return file.getvalue()


def png_of_size(width, height):
    """A PNG that claims a size and has no pixels."""
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(b"")]
    parts = [struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
BAD = {
    "a truncated JPEG": ({"bytes": encoded(NOISE, "JPEG")[:900], "path": None}, "truncated"),
    "a truncated PNG": ({"bytes": encoded(NOISE)[:900], "path": None}, "truncated"),
    "no bytes": ({"bytes": b"", "path": None}, "cannot identify image file"),
    "another file": ({"bytes": b"%PDF-1.7 not an image", "path": None}, "cannot identify image file"),
    "a missing file": ({"bytes": None, "path": "no/such/image.png"}, "No such file"),
    "a decompression bomb": (
        {"bytes": png_of_size(60000, 60000), "path": None},
        "3600000000 pixels.*decompression bomb",
    ),
    "a null": (None, "empty"),
}


def rows(count, seed, bad=()):
    """Images and labels, with bad entries in between: (index in the whole, entry)."""
    cells = [{"bytes": encoded(image), "path": None} for image in tiny_images(count, 16, seed)]
    labels = [number % 4 for number in range(count)]
    for place, entry in bad:
        cells.insert(place, entry)
        labels.insert(place, 3)
    return Dataset.from_dict({"image": cells, "label": labels}, features=FEATURES)


@pytest.mark.parametrize("kind", BAD)
def test_every_kind_is_found_and_named(kind):
    entry, message = BAD[kind]
    dataset = rows(100, 0, [(70, entry)])
    with pytest.raises(
        SMDError, match=rf"1 of 101 entries of the train split.*At index 70: .*{message}.*on_bad_images='skip'"
    ):
        check_images(dataset, "image", progress=False)
    assert list(bad_images(dataset, "image", progress=False)) == [70]


def make_args(folder, **kwargs):
    defaults = dict(population_size=4, sigma=0.3, recombination="best", elitism=False, use_cpu=True, disable_tqdm=True)
    return plain_arguments(str(folder), **defaults | kwargs)


def make_trainer(folder, train, test, **kwargs):
    return EvolutionTrainer(
        tiny_model("resnet"),
        make_args(folder, **kwargs),
        train_dataset=train,
        eval_dataset=test,
        processing_class=tiny_processor(),
    )


def test_a_run_without_bad_rows_is_that_on_the_rows_that_are_left(tmp_path, caplog):
    bad = [(place, entry) for place, (entry, _) in zip((0, 3, 11, 20, 30, 31, 46), BAD.values())]
    test_bad = [(5, BAD["no bytes"][0])]
    with caplog.at_level("WARNING"):
        skipping = make_trainer(tmp_path / "skip", rows(40, 1, bad), rows(16, 2, test_bad), on_bad_images="skip")
    assert "7 of 47 entries of train_dataset cannot be read and are left out (index 0: " in caplog.text
    assert "index 30: " in caplog.text and "index 31" not in caplog.text
    skipping.train()
    clean = make_trainer(tmp_path / "clean", rows(40, 1), rows(16, 2))
    clean.train()
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("skip", "clean")]
    assert files[0] == files[1]
    report = json.loads((tmp_path / "skip" / "gain_report.json").read_text())
    assert report["data"]["left_out"] == {"train_dataset": 7, "eval_dataset": 1}
    assert report["data"]["fitness"]["num_images"] == 32 and report["parent"]["n_test"] == 16
    card = (tmp_path / "skip" / "README.md").read_text()
    assert "7 images of `train_dataset` could not be read and were not used." in card
    assert "1 image of `eval_dataset` could not be read and was not used." in card
    assert "left_out" not in clean.report["data"]
    assert "could not be read" not in (tmp_path / "clean" / "README.md").read_text()


def test_by_default_a_bad_row_ends_the_run_before_anything_is_scored(tmp_path):
    trainer = make_trainer(tmp_path, rows(40, 1, [(7, BAD["no bytes"][0])]), rows(16, 2))
    with pytest.raises(SMDError, match=r"1 of 41 entries of the train_dataset split.*index 7"):
        trainer.train()
    assert not (tmp_path / "children.jsonl").exists()


class Broken:
    """A data set of the user's own, some of whose rows raise."""

    def __init__(self, bad, count=20):
        self.bad, self.images = bad, tiny_images(count, 16)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        if index in self.bad:
            raise OSError("disk on fire")
        return {"image": self.images[index], "label": index % 4}


def test_data_sets_of_the_users_own(tmp_path):
    readable = ReadableRows(make_args(tmp_path, on_bad_images="skip"))
    kept = readable(Broken({0, 1, 19}), "train_dataset")
    assert len(kept) == 17 and kept[0]["label"] == 2 and kept[16]["label"] == 18 % 4
    assert readable.left_out == {"train_dataset": 3}
    several = readable({"near": Broken({4}), "far": Broken(set())}, "eval_dataset")
    assert len(several["near"]) == 19 and len(several["far"]) == 20
    assert readable.left_out == {"train_dataset": 3, "near": 1, "far": 0}
    assert readable(None, "eval_dataset") is None
    trainer = make_trainer(tmp_path, Broken({0, 1, 19}), Broken({2}), on_bad_images="skip")
    assert len(trainer.train_dataset) == 17 and len(trainer.eval_dataset) == 19


@pytest.mark.parametrize(
    "dataset", [rows(0, 0, [(0, BAD["no bytes"][0])] * 3), Broken(set(range(20)))], ids=["of files", "of rows"]
)
def test_where_nothing_is_left(dataset, tmp_path):
    with pytest.raises(SMDError, match=r"None of the .* entries of train_dataset"):
        ReadableRows(make_args(tmp_path, on_bad_images="skip"))(dataset, "train_dataset")


def test_other_policies_are_refused(tmp_path):
    with pytest.raises(SMDError, match="on_bad_images is ignore; expected one of raise, skip"):
        make_args(tmp_path, on_bad_images="ignore")
