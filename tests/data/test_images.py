"""Images: every form of one, and the check of all of them."""

import io

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image

from smd_hf.data.image_checks import check_images
from smd_hf.data.images import to_image
from smd_hf.errors import SMDError
from tests.tiny_data import FEATURES, RGB, image_dataset, png


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
