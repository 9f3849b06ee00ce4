"""Data: columns and batches."""

import pickle

import datasets
import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from PIL import Image
from transformers import ViTImageProcessor
from transformers.models.timm_wrapper.image_processing_timm_wrapper import TimmWrapperImageProcessor

from smd_hf.data.rows import ImageCollator, find_columns
from smd_hf.errors import SMDError
from tests.tiny_data import RGB, image_dataset, png


def processor(size=8, channels=3):
    return ViTImageProcessor(
        size={"height": size, "width": size}, image_mean=[0.5] * channels, image_std=[0.5] * channels
    )


class TestFindColumns:
    def test_by_type(self):
        features = Features({"id": Value("int64"), "photo": datasets.Image(), "species": ClassLabel(names=["a"])})
        dataset = Dataset.from_dict(
            {"id": [1], "photo": [{"bytes": png(), "path": None}], "species": [0]}, features=features
        )
        assert find_columns(dataset) == ("photo", "species")
        assert find_columns(dataset, label_column_name="id") == ("photo", "id")

    def test_usual_names_decide_among_several(self):
        names = {"coarse_label": ClassLabel(names=["a"]), "fine_label": ClassLabel(names=["b"])}
        features = Features({"mask": datasets.Image(), "img": datasets.Image(), **names})
        cells = {"bytes": png(), "path": None}
        dataset = Dataset.from_dict(
            {"mask": [cells], "img": [cells], "coarse_label": [0], "fine_label": [0]}, features=features
        )
        assert find_columns(dataset) == ("img", "fine_label")
        with pytest.raises(SMDError, match="Several columns may hold the images: mask, other"):
            find_columns(dataset.rename_column("img", "other"))

    def test_struct_of_bytes_and_path(self):
        dataset = Dataset.from_dict({"photo": [{"bytes": png(), "path": "a.png"}], "label": [0]})
        assert find_columns(dataset) == ("photo", "label")

    def test_rows_of_other_data_sets(self):
        rows = [{"picture": Image.new("RGB", (2, 2)), "label": 1}]
        assert find_columns(rows) == ("picture", "label")
        assert find_columns(torch.utils.data.Subset(rows, [0])) == ("picture", "label")
        assert find_columns([{"pixel_values": torch.zeros(3, 2, 2), "labels": 1}]) == ("pixel_values", "labels")

    def test_columns_of_a_transform(self):
        dataset = image_dataset().with_transform(
            lambda rows: {"pixel_values": [0] * len(rows["image"]), "label": rows["label"]}
        )
        assert find_columns(dataset) == ("pixel_values", "label")

    @pytest.mark.parametrize(
        "names, message",
        [
            ({"image_column_name": "imgae"}, r"no image column 'imgae'.*are: image, label\..*'image'"),
            ({"label_column_name": "labels"}, r"no label column 'labels'.*'label'"),
        ],
    )
    def test_wrong_names(self, names, message):
        with pytest.raises(SMDError, match=message):
            find_columns(image_dataset(), **names)

    def test_missing_columns(self):
        with pytest.raises(SMDError, match=r"no label column\. The columns are: image, lable\. Did you mean 'lable'"):
            find_columns(Dataset.from_dict({"image": [1], "lable": [1]}))
        with pytest.raises(SMDError, match="no image column"):
            find_columns([{"label": 1}])

    @pytest.mark.parametrize(
        "bad, message", [(iter([]), "map-style"), (3, "map-style"), ([(1, 2)], "is a tuple"), ([], "is empty")]
    )
    def test_not_a_map_style_data_set_of_dicts(self, bad, message):
        with pytest.raises(SMDError, match=message):
            find_columns(bad)


class TestImageCollator:
    def test_batch_is_the_processors(self):
        images = [Image.fromarray(RGB), Image.new("L", (30, 4)), Image.new("RGBA", (3, 3)), Image.new("RGB", (1, 1))]
        rows = [{"image": image, "label": i} for i, image in enumerate(images)]
        batch = ImageCollator(processor(), "image", "label", mapping=np.array([2, 0, 1, 3]))(rows)
        expected = processor()(images=[image.convert("RGB") for image in images], return_tensors="pt")["pixel_values"]
        assert torch.equal(batch["pixel_values"], expected)
        assert batch["pixel_values"].shape == (4, 3, 8, 8) and batch["pixel_values"].dtype == torch.float32
        assert batch["labels"].tolist() == [2, 0, 1, 3] and batch["labels"].dtype == torch.int64

    def test_an_images_values_do_not_depend_on_its_neighbours(self):
        rng = np.random.default_rng(1)
        sizes = [(9, 7), (9, 7), (40, 30), (3, 50), (40, 30)]
        rows = [{"image": rng.integers(0, 256, (*size, 3), dtype=np.uint8)} for size in sizes]
        collator = ImageCollator(processor(16), "image")
        batch = collator(rows)
        assert list(batch) == ["pixel_values"]
        assert torch.equal(batch["pixel_values"], torch.cat([collator([row])["pixel_values"] for row in rows]))

    def test_timm(self):
        config = {"input_size": (3, 16, 16), "mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_pct": 1.0}
        collator = ImageCollator(TimmWrapperImageProcessor(config), "image", "label")
        batch = collator([{"image": RGB, "label": 0}, {"image": Image.new("P", (20, 40)), "label": 1}])
        assert batch["pixel_values"].shape == (2, 3, 16, 16)

    def test_greyscale(self):
        batch = ImageCollator(processor(channels=1), "image", channels=1)([{"image": RGB}, {"image": RGB[..., 0]}])
        assert batch["pixel_values"].shape == (2, 1, 8, 8)

    @pytest.mark.parametrize("form", [lambda x: x, torch.Tensor.numpy, torch.Tensor.tolist, torch.Tensor.bfloat16])
    def test_pixel_values_pass_as_they_are(self, form):
        values = torch.arange(12.0).reshape(3, 2, 2)
        batch = ImageCollator(processor(), "image", "y")([{"pixel_values": form(values), "y": 1}] * 2)
        assert torch.equal(batch["pixel_values"], torch.stack([values, values]))

    def test_a_column_of_images_called_pixel_values_is_processed(self):
        batch = ImageCollator(processor(), "pixel_values")([{"pixel_values": RGB}])
        assert batch["pixel_values"].shape == (1, 3, 8, 8)

    def test_names(self):
        collator = ImageCollator(processor(), "image", "y", mapping=np.array([5, 4]), names=["cat", "dog"])
        assert collator([{"image": RGB, "y": "dog"}, {"image": RGB, "y": "cat"}])["labels"].tolist() == [4, 5]
        with pytest.raises(SMDError, match="'cow'"):
            collator([{"image": RGB, "y": "cow"}])

    @pytest.mark.parametrize("label", [-1, 2])
    def test_unknown_labels(self, label):
        with pytest.raises(SMDError, match=f"label {label}"):
            ImageCollator(processor(), "image", "y", mapping=np.array([0, 1]))([{"image": RGB, "y": label}])

    def test_pickle_and_workers(self):
        collator = ImageCollator(processor(), "image", "label", mapping=np.array([1, 0]))
        rows = [image_dataset()[i] for i in range(2)]
        assert torch.equal(pickle.loads(pickle.dumps(collator))(rows)["pixel_values"], collator(rows)["pixel_values"])
        loader = torch.utils.data.DataLoader(image_dataset(), batch_size=4, num_workers=1, collate_fn=collator)
        assert [batch["labels"].tolist() for batch in loader] == [[1, 0, 1, 0]] * 2

    @pytest.mark.parametrize(
        "collator, rows, message",
        [
            (ImageCollator(processor(), "image", channels=1), [{"image": RGB}], "fails on images of mode L"),
            (
                ImageCollator(processor(channels=1), "image"),
                [{"pixel_values": np.zeros((1, 4, 4))}],
                r"shape \(1, 1, 4, 4\)",
            ),
            (ImageCollator(processor(), "image", channels=7), [{"image": RGB}], "7 channels"),
            (
                ImageCollator(ViTImageProcessor(do_resize=False), "image"),
                [{"image": RGB}, {"image": RGB[1:]}],
                "bring all images to one size",
            ),
            (
                ImageCollator(processor(), "image"),
                [{"pixel_values": np.zeros((3, 4, 4))}, {"pixel_values": np.zeros((3, 4, 5))}],
                "differ in shape",
            ),
            (ImageCollator(processor(), "image"), [{"image": None}], "empty"),
        ],
    )
    def test_errors(self, collator, rows, message):
        with pytest.raises(SMDError, match=message):
            collator(rows)
