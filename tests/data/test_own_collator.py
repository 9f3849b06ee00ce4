"""A data_collator of the user's own: what it returns decides, whatever the columns are called and hold."""

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Sequence, Value
from PIL import Image as PILImage
from transformers import default_data_collator

from smd_hf import EvolutionTrainer, SMDError
from smd_hf.data.own_collator import cheap_labels
from tests.arguments.test_inherited_arguments import make_args, rows
from tests.tiny import tiny_images, tiny_model, tiny_processor

COUNT = 16
PICTURES = tiny_images(COUNT, 32)
CLASSES = [number % 4 for number in range(COUNT)]
ONE_HOT = np.eye(4)[CLASSES].tolist()
MASKS = [PILImage.fromarray(np.full((4, 4), label, dtype=np.uint8)) for label in CLASSES]
TABLES = {
    "lists": ("image", "label", Sequence(Value("float32")), ONE_HOT, lambda value: int(np.argmax(value))),
    "floats": ("image", "label", Value("float32"), [label + 0.25 for label in CLASSES], int),
    "masks": ("image", "label", Image(), MASKS, lambda value: int(np.asarray(value).max())),
    "missing": ("image", "label", Value("int64"), [None, *CLASSES[1:]], lambda value: value or 0),
    "other names": ("photo", "target", Value("int64"), CLASSES, int),
    "names": (
        "photo",
        "species",
        Value("string"),
        [f"class_{label}" for label in CLASSES],
        lambda value: int(value[-1]),
    ),
}


def table(name):
    image, label, kind, values, read = TABLES[name]
    features = Features({image: Image(), label: kind, "note": Value("string")})
    data = Dataset.from_dict({image: PICTURES, label: values, "note": ["x"] * COUNT}, features=features)

    def collate(batch):
        pixels = torch.stack([torch.from_numpy(np.array(row[image])).permute(2, 0, 1) / 255 for row in batch])
        return {"pixel_values": pixels, "labels": torch.tensor([read(row[label]) for row in batch])}

    return data, collate


def make_trainer(folder, data, collate, **kwargs):
    sets = {"train_dataset": data, "eval_dataset": data}
    return EvolutionTrainer(tiny_model("resnet"), make_args(folder, **kwargs), data_collator=collate, **sets)


@pytest.mark.parametrize("name", TABLES)
def test_columns_of_any_name_and_kind_work_to_the_end(name, tmp_path):
    data, collate = table(name)
    trainer = make_trainer(tmp_path, data, collate, save_strategy="steps", save_steps=1)
    trainer.train()
    assert trainer.images.test.labels.tolist() == CLASSES
    # Trainer's own evaluation sees the same columns.
    assert trainer.evaluate()["eval_accuracy"] == trainer.report["evolved"]["accuracy"]
    resumed = make_trainer(tmp_path, data, collate, save_strategy="steps", save_steps=1)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.report["evolved"]["nll"] == trainer.report["evolved"]["nll"]


def test_labels_that_are_cheap_stratify_the_split(tmp_path):
    features = Features({"image": Image(), "label": ClassLabel(names=["a", "b", "c", "d"])})
    data = Dataset.from_dict({"image": PICTURES, "label": CLASSES}, features=features)
    _, collate = table("lists")
    trainer = make_trainer(
        tmp_path,
        data,
        lambda batch: collate([row | {"label": np.eye(4)[row["label"]]} for row in batch]),
        selection_fraction=0.25,
    )
    assert sorted(trainer.images.selection.labels.tolist()) == [0, 1, 2, 3]
    assert cheap_labels(data.select(range(5)))[1].tolist() == CLASSES[:5]
    assert cheap_labels(torch.utils.data.Subset(data, [3, 1]))[1].tolist() == [3, 1]
    assert cheap_labels(rows(5))[1].tolist() == [0, 1, 2, 3, 0]


class Decoding(torch.utils.data.Dataset):
    """A data set whose rows cost a decoded image each."""

    def __init__(self):
        self.read = 0

    def __len__(self):
        return COUNT

    def __getitem__(self, number):
        self.read += 1
        return rows(COUNT)[number]


@pytest.mark.parametrize("name", ["lists", "floats", "masks", "missing"])
def test_labels_of_other_kinds_split_at_random(name):
    assert cheap_labels(table(name)[0]) is None


def test_labels_that_cost_an_image_each_are_not_read_to_split(tmp_path):
    data = Decoding()
    trainer = make_trainer(tmp_path, data, lambda batch: default_data_collator(batch))
    # A look at the first row of each split, and no more.
    assert data.read <= 4 and trainer.images.fitness.num_images == 13


@pytest.mark.parametrize(
    ("collate", "message"),
    [
        (lambda batch: [row["pixel_values"] for row in batch], "makes a list; expected a dict"),
        (
            lambda batch: {"pixel_values": torch.zeros(1, 3, 32, 32), "target": torch.zeros(1)},
            "pixel_values, target, without 'labels'",
        ),
        (lambda batch: {"labels": torch.eye(4)[:1]}, r"torch.float32 of shape \(1, 4\).*labels.argmax\(-1\)"),
        (lambda batch: {"labels": torch.zeros(1, 8, 8, dtype=torch.int64)}, r"torch.int64 of shape \(1, 8, 8\)"),
        (lambda batch: {"labels": [0]}, "labels of type <class 'list'>"),
        (lambda batch: {"labels": torch.tensor([4])}, "the label 4, but the model has 4 classes.*label2id"),
    ],
)
def test_a_collator_whose_batches_cannot_be_scored_is_refused_when_the_trainer_is_made(collate, message, tmp_path):
    with pytest.raises(SMDError, match=f"From the first row of train_dataset, the data_collator.*{message}"):
        make_trainer(tmp_path, rows(), collate)


def test_a_checkpoint_without_a_classifier_is_refused_unless_a_random_one_is_asked_for(tmp_path):
    data, collate = table("other names")
    tiny_model("resnet").resnet.save_pretrained(tmp_path / "backbone")
    sets = {
        "train_dataset": data,
        "eval_dataset": data,
        "data_collator": collate,
        "processing_class": tiny_processor(),
    }
    with pytest.raises(SMDError, match=r"no trained classifier .* head_init='random'"):
        EvolutionTrainer(str(tmp_path / "backbone"), make_args(tmp_path), **sets)
    EvolutionTrainer(str(tmp_path / "backbone"), make_args(tmp_path, head_init="random"), **sets)
