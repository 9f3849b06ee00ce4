"""Images: whatever form one comes in, it becomes an upright 8-bit PIL image."""

import io
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import ExifTags, Image, ImageCms, ImageOps

from ..errors import SMDError
from ..messages import one_line

PIL_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def to_image(value: Any, channels: int = 3) -> Image.Image:
    """
    Any form of an image as an upright 8-bit PIL image.

    Transparency is dropped and EXIF orientation applied, as in transformers' `load_image`. Numbers of more than 8 bits
    are scaled: 16-bit ones by 1/257; floats within [0, 1] by 255; others within [0, 255] stay; the rest are stretched
    from their own range.

    Args:
        value: a PIL image of any mode; an array, tensor or nested list of shape `(H, W)`, `(H, W, C)` or `(C, H, W)`;
            the bytes or the path of an image file; or a `dict` with one of both, as `datasets` stores it.
    """
    mode = PIL_MODES[channels]
    try:
        if value is None:
            raise ValueError("it is empty (None)")
        if isinstance(value, (str, Path)):
            value = {"path": str(value), "bytes": None}
        elif isinstance(value, (bytes, bytearray)):
            value = {"path": None, "bytes": bytes(value)}
        if isinstance(value, Mapping):
            value = datasets.Image().decode_example({"path": value.get("path"), "bytes": value.get("bytes")})
        elif isinstance(value, (np.ndarray, torch.Tensor, list)):
            value = _array_to_image(value)
        if not isinstance(value, Image.Image):
            raise ValueError(f"it is a {type(value).__name__}")
        return _to_mode(value, mode)
    except Exception as error:  # PIL's decoders raise nearly anything for bytes that are damaged
        # PIL names a stream by its address in memory, which differs in every run.
        reason = re.sub(r" ?<_io\.BytesIO object at 0x\w+>", "", str(error)).strip() or type(error).__name__
        raise SMDError(f"An image cannot be read: {one_line(reason)}.") from error


def image_sizes(dataset: Any, column: str, channels: int = 3) -> Iterator[tuple[int, int]]:
    """The width and height of each image of a data set, upright; unreadable images are left out."""
    feature = getattr(dataset, "features", {}).get(column) if isinstance(dataset, datasets.Dataset) else None
    if isinstance(feature, datasets.Image) and dataset.format["type"] is None:
        headers = dataset.select_columns([column]).cast_column(column, datasets.Image(decode=False))
        values: Iterator[Any] = (headers[place][column] for place in range(len(headers)))
    else:
        values = (dataset[index].get(column) for index in range(len(dataset)))
    for value in values:
        try:
            if isinstance(value, Mapping) and (value.get("bytes") or os.path.exists(value.get("path") or "")):
                content = value.get("bytes")
                with Image.open(io.BytesIO(content) if content else value["path"]) as header:
                    # Of PNG files, the method of their own class decodes the image.
                    turned = Image.Image.getexif(header).get(ExifTags.Base.Orientation, 1) >= 5
                    width, height = header.size
                    yield (height, width) if turned else (width, height)
            else:
                yield to_image(value, channels).size
        except (SMDError, OSError, ValueError, SyntaxError):  # reported with its index, when rows are checked
            continue


def is_processed(value: Any) -> bool:
    """Whether this holds floats, as a processor returns them, and not an image to process."""
    if isinstance(value, torch.Tensor):
        return value.is_floating_point()
    try:
        return isinstance(value, (np.ndarray, list)) and np.asarray(value).dtype.kind == "f"
    except ValueError:  # a ragged list
        return False


def as_tensor(value: Any) -> torch.Tensor:
    """Pixel values that need no processing ([`is_processed`]) as a float32 tensor."""
    return value.float() if isinstance(value, torch.Tensor) else torch.from_numpy(np.array(value, dtype=np.float32))


def _to_uint8(array: np.ndarray) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array * np.uint8(255)
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:
        return np.rint(array / 257).astype(np.uint8)
    if array.dtype.kind not in "iuf":
        raise ValueError(f"it is an array of {array.dtype}")
    values = array.astype(np.float64)
    low, high = values.min(), values.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError("its values are not finite")
    if array.dtype.kind == "f" and low >= 0 and high <= 1:
        values = values * 255
    elif not (low >= 0 and high <= 255):
        values = (values - low) * (255 / max(high - low, 1e-300))
    return np.rint(values).astype(np.uint8)


def _array_to_image(value: np.ndarray | torch.Tensor | list) -> Image.Image:
    # By custom, tensors have channels first and arrays last; this decides only shapes like (3, 32, 3).
    channels_first = isinstance(value, torch.Tensor)
    array = value.detach().cpu().float().numpy() if channels_first and value.is_floating_point() else np.asarray(value)
    if array.size == 0 or array.ndim not in (2, 3):
        raise ValueError(f"its shape is {array.shape}")
    if array.ndim == 3:
        ends = [array.shape[end] in (1, 2, 3, 4) for end in (0, -1)]
        if not any(ends):
            raise ValueError(f"its shape {array.shape} has no axis of 1 to 4 channels")
        if ends[0] and (channels_first or not ends[1]):
            array = np.moveaxis(array, 0, -1)
        if array.shape[-1] == 1:
            array = array[..., 0]
    return Image.fromarray(np.ascontiguousarray(_to_uint8(array)))


def _to_mode(image: Any, mode: str) -> Image.Image:
    image.load()
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image) or image
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = Image.fromarray(_to_uint8(np.asarray(image)))
    elif image.mode == "LAB":
        image = ImageCms.profileToProfile(
            image, ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    elif image.mode in ("P", "PA", "La", "RGBa"):  # PIL converts these to some modes only, but always to these
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    return image if image.mode == mode else image.convert(mode)
