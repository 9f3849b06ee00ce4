"""Data: columns, every form of an image, batches, the check of all images, splits from arguments."""

import io
import os
import pickle
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import datasets
import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from PIL import Image
from transformers import ViTImageProcessor
from transformers.models.timm_wrapper.image_processing_timm_wrapper import TimmWrapperImageProcessor

from smd_hf.data import ImageCollator, check_images, find_columns, load_splits, to_image
from smd_hf.errors import SMDError
from smd_hf.labels import label_names, label_values

RGB = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
FEATURES = Features({"image": datasets.Image(), "label": ClassLabel(names=["cat", "dog"])})


def png(value=0, size=(6, 5)):
    buffer = io.BytesIO()
    Image.new("RGB", size, (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def image_dataset(count=8, features=FEATURES):
    rows = {"image": [{"bytes": png(i), "path": None} for i in range(count)], "label": [i % 2 for i in range(count)]}
    return Dataset.from_dict(rows, features=features)


def processor(size=8, channels=3):
    return ViTImageProcessor(
        size={"height": size, "width": size}, image_mean=[0.5] * channels, image_std=[0.5] * channels
    )


def folder_of_images(folder, classes=("cat", "dog"), count=4):
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i in range(count):
            (folder / name / f"{i}.png").write_bytes(png(i))
    return folder


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


class TestToImage:
    @pytest.mark.parametrize(
        "mode", ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"]
    )
    @pytest.mark.parametrize("channels, target", [(1, "L"), (3, "RGB"), (4, "RGBA")])
    def test_every_mode(self, mode, channels, target):
        source = Image.fromarray(RGB)
        if mode == "La":
            source = source.convert("LA").convert("La")
        elif mode == "RGBa":
            source = source.convert("RGBA").convert("RGBa")
        elif mode == "PA":
            source = source.convert("P").convert("PA")
        elif mode == "LAB":
            source = Image.merge("LAB", source.split())
        else:
            source = source.convert(mode)
        image = to_image(source, channels)
        assert (image.mode, image.size) == (target, (7, 9))

    def test_colours_survive(self):
        assert np.array_equal(np.asarray(to_image(Image.fromarray(RGB))), RGB)
        red = Image.new("P", (2, 2), 1)
        red.putpalette([0, 0, 0, 255, 0, 0])
        red.info["transparency"] = b"\x00\x80"
        assert np.asarray(to_image(red)).tolist() == [[[255, 0, 0]] * 2] * 2
        assert np.asarray(to_image(Image.new("CMYK", (1, 1), (0, 255, 255, 0)))).tolist() == [[[255, 0, 0]]]
        grey = to_image(Image.merge("LAB", [Image.new("L", (1, 1), value) for value in (255, 128, 128)]))
        assert np.asarray(grey).min() > 250

    @pytest.mark.parametrize("mode", ["I;16", "I;16B"])
    def test_16_bits_are_scaled_not_clipped(self, mode):
        values = np.array([[0, 257, 32768], [65535, 25700, 1]], dtype="<u2" if mode == "I;16" else ">u2")
        image = Image.frombytes(mode, (3, 2), values.tobytes())
        assert np.asarray(to_image(image, 1)).tolist() == [[0, 1, 128], [255, 100, 0]]

    def test_a_16_bit_file(self, tmp_path):
        Image.fromarray(np.array([[0, 65535, 32896]], dtype=np.uint16)).save(tmp_path / "a.png")
        assert np.asarray(to_image(tmp_path / "a.png"))[0, :, 0].tolist() == [0, 255, 128]

    @pytest.mark.parametrize(
        "values, expected",
        [
            (np.array([[0.0, 0.5, 1.0]], np.float32), [0, 128, 255]),
            (np.array([[0.0, 100.0, 255.0]], np.float32), [0, 100, 255]),
            (np.array([[-1.0, 0.0, 1.0]], np.float32), [0, 128, 255]),
            (np.array([[0, 7, 255]], np.int32), [0, 7, 255]),
            (np.array([[0, 1000, 2000]], np.int32), [0, 128, 255]),
            (np.array([[5000, 5000]], np.int32), [0, 0]),
        ],
    )
    def test_integers_and_floats(self, values, expected):
        assert np.asarray(to_image(Image.fromarray(values), 1))[0].tolist() == expected

    @pytest.mark.parametrize(
        "value",
        [
            RGB,
            RGB.transpose(2, 0, 1),
            RGB.tolist(),
            RGB / 255,
            RGB.astype(np.uint16) * 257,
            torch.from_numpy(RGB),
            torch.from_numpy(RGB).permute(2, 0, 1),
            (torch.from_numpy(RGB) / 255).permute(2, 0, 1),
        ],
    )
    def test_arrays_and_tensors(self, value):
        assert np.array_equal(np.asarray(to_image(value)), RGB)

    def test_arrays_of_other_depths(self):
        assert np.asarray(to_image(RGB[..., 0], 1)).tolist() == RGB[..., 0].tolist()
        assert np.asarray(to_image(RGB[None, ..., 0], 1)).tolist() == RGB[..., 0].tolist()
        assert np.asarray(to_image(RGB[..., 0] > 100, 1)).tolist() == ((RGB[..., 0] > 100) * 255).tolist()
        assert np.array_equal(np.asarray(to_image(np.dstack([RGB, RGB[..., :1]]))), RGB)
        assert to_image(torch.zeros(1, 4, 4, dtype=torch.bfloat16)).mode == "RGB"

    def test_a_shape_that_could_be_both_goes_by_custom(self):
        array = np.arange(3 * 5 * 3, dtype=np.uint8).reshape(3, 5, 3)
        assert np.array_equal(np.asarray(to_image(array)), array)
        assert np.array_equal(np.asarray(to_image(torch.from_numpy(array))), array.transpose(1, 2, 0))

    def test_files(self, tmp_path):
        path = tmp_path / "a.png"
        path.write_bytes(png(200))
        forms = [
            path,
            str(path),
            png(200),
            bytearray(png(200)),
            {"bytes": png(200)},
            {"bytes": None, "path": str(path)},
        ]
        for form in forms:
            assert np.asarray(to_image(form))[0, 0].tolist() == [200, 0, 0]

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_exif_orientation(self, tmp_path, orientation):
        upright = Image.fromarray(RGB)
        exif = Image.Exif()
        exif[0x0112] = orientation
        upright.save(tmp_path / "a.png", exif=exif)
        stored = Image.open(tmp_path / "a.png")
        expected = {1: RGB, 2: RGB[:, ::-1], 3: RGB[::-1, ::-1], 4: RGB[::-1], 5: RGB.transpose(1, 0, 2)}
        expected |= {6: np.rot90(RGB, -1), 7: RGB[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(RGB)}
        assert np.array_equal(np.asarray(to_image(stored)), expected[orientation])
        assert np.array_equal(np.asarray(to_image(tmp_path / "a.png")), expected[orientation])
        assert np.array_equal(np.asarray(stored), RGB)  # the caller's own image is left alone

    @pytest.mark.parametrize(
        "bad, message",
        [
            (None, "empty"),
            (b"no image", "cannot identify"),
            ("missing.png", "No such file"),
            ({"bytes": None, "path": None}, "None"),
            (3, "it is a int"),
            (np.zeros((5, 6, 7)), "no axis of 1 to 4"),
            (np.zeros(4), "shape"),
            (np.zeros((0, 4, 3)), "shape"),
            (np.array([["a", "b"]]), "array of"),
            (np.array([[0.0, np.nan]]), "not finite"),
            ([[1, 2], [3]], "inhomogeneous"),
        ],
    )
    def test_not_an_image(self, bad, message):
        with pytest.raises(SMDError, match=message) as caught:
            to_image(bad)
        assert "0x" not in str(caught.value)


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


class TestCheckImages:
    def broken(self, path):
        jpeg = io.BytesIO()
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(jpeg, "JPEG")
        cells = [{"bytes": png(i), "path": None} for i in range(150)]
        cells[70] = {"bytes": jpeg.getvalue()[:800], "path": None}
        cells[71] = {"bytes": b"text", "path": None}
        cells[140] = None
        cells[141] = {"bytes": None, "path": str(path / "gone.png")}
        return Dataset.from_dict({"image": cells, "label": [0] * 150}, features=FEATURES)

    def test_good_images(self, capsys):
        check_images(image_dataset(150), "image")
        check_images([{"image": RGB}], "image", num_workers=1)
        assert capsys.readouterr().err == ""

    def test_all_bad_entries_are_named(self, tmp_path):
        with pytest.raises(
            SMDError, match=r"4 of 150 entries of the train split.*index 70, 71, 140, 141.*70: .*truncated"
        ):
            check_images(self.broken(tmp_path), "image", progress=False)

    def test_after_select_and_transform(self, tmp_path):
        dataset = self.broken(tmp_path).select([5, 140, 70]).with_transform(lambda rows: 1 / 0)
        with pytest.raises(SMDError, match=r"2 of 3 entries of the test split.*index 1, 2.*At index 1: .*empty"):
            check_images(dataset, "image", what="test", progress=False)

    def test_rows_that_raise(self):
        class Rows(torch.utils.data.Dataset):
            def __len__(self):
                return 3

            def __getitem__(self, index):
                if index == 2:
                    raise OSError("disk on fire")
                return {"image": Image.new("RGB", (2, 2))}

        with pytest.raises(SMDError, match="At index 2: Reading it raises OSError: disk on fire"):
            check_images(Rows(), "image", progress=False)

    @pytest.mark.parametrize(
        "bad, message",
        [(torch.full((3, 2, 2), torch.nan), "not finite"), (torch.zeros(2), r"shape \(2,\)"), ("x", "No such")],
    )
    def test_pixel_values(self, bad, message):
        with pytest.raises(SMDError, match=f"At index 1: .*{message}"):
            check_images(
                [{"pixel_values": torch.zeros(3, 2, 2)}, {"pixel_values": bad}], "pixel_values", progress=False
            )


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
            ({"train_file": "{tmp}/tran.parquet"}, r"train_file .*does not exist\. Did you mean 'train.parquet'"),
            ({"train_dir": "{tmp}/imagse"}, r"train_dir .*does not exist\. Did you mean 'images'"),
            ({"dataset_name": "{tmp}/imagse"}, r"dataset_name .*does not exist\. Did you mean 'images'"),
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
        with pytest.raises(SMDError, match=message) as caught:
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
    code = "import sys, smd_hf.data as d; d.load_splits(dataset_name='nobody/nothing', token=sys.argv[1])"
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
