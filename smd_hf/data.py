"""
Data: from what a user names on the command line to batches of pixel values.

Whatever form an image comes in, it becomes an upright 8-bit PIL image first and then goes through the checkpoint's own
processor, exactly as in a `pipeline`. What cannot be read is found before anything expensive starts.
"""

import difflib
import glob
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from PIL import ExifTags, Image, ImageCms, ImageOps
from tqdm.auto import tqdm

from .errors import SMDError
from .labels import label_values, stratified_order, stratified_split

IMAGE_COLUMNS = ("image", "img", "pixel_values")
LABEL_COLUMNS = ("label", "labels", "fine_label")
VALIDATION_SPLITS = ("validation", "valid", "val", "dev", "eval")
PIL_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def find_columns(
    dataset: Any, image_column_name: str | None = None, label_column_name: str | None = None
) -> tuple[str, str]:
    """
    Find the columns of images and labels: by the user's names, else by type (`Image`, `ClassLabel`), else by usual
    names.

    Args:
        dataset (`datasets.Dataset`, or any map-style data set of `dict` rows): where to look.
        image_column_name, label_column_name (`str`, *optional*): the user's names.

    Raises:
        `SMDError`: for a missing column, naming those there are; for a data set whose rows cannot be read by name.
    """
    kinds = _column_kinds(dataset)
    return (
        _find_column("image", image_column_name, kinds, IMAGE_COLUMNS),
        _find_column("label", label_column_name, kinds, LABEL_COLUMNS),
    )


def to_image(value: Any, channels: int = 3) -> Image.Image:
    """
    Any form of an image as an upright 8-bit PIL image.

    Transparency is dropped and EXIF orientation applied, as in transformers' `load_image`. Numbers of more than 8 bits
    are scaled: 16-bit ones by 1/257; floats within [0, 1] by 255; others within [0, 255] stay; the rest are stretched
    from their own range.

    Args:
        value: a PIL image of any mode; an array, tensor or nested list of shape `(H, W)`, `(H, W, C)` or `(C, H, W)`;
            the bytes or the path of an image file; or a `dict` with one of both, as `datasets` stores it.
        channels (`int`, *optional*, defaults to 3): 1 for greyscale, 3 for RGB, 4 for RGBA.

    Raises:
        `SMDError`: with the reason for which this is not an image.
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
        # PIL names a stream by its address in memory: of no use to anyone, and another one in every run.
        reason = re.sub(r" ?<_io\.BytesIO object at 0x\w+>", "", str(error)).strip() or type(error).__name__
        raise SMDError(f"An image cannot be read: {_line(reason)}.") from error


@dataclass(eq=False)
class ImageCollator:
    """
    Rows of a data set as a batch: `{"pixel_values": float (B, C, H, W), "labels": int64 (B,)}`.

    Rows that hold floating-point `pixel_values` (from a transform of the user's) pass as they are. An image's pixel
    values do not depend on the others in its batch.

    Args:
        processor (image processor of transformers): the checkpoint's own.
        image_column (`str`): the column of images.
        label_column (`str`, *optional*): the column of labels; a batch has no `"labels"` without it.
        mapping (`np.ndarray`, *optional*): from the data set's label to the model's class ([`LabelAlignment`]).
        channels (`int`, *optional*, defaults to 3): what the model takes: 1, 3 or 4; any number for `pixel_values`.
        names (`Sequence[str]`, *optional*): the label names, for rows whose labels are strings.
    """

    processor: Any
    image_column: str
    label_column: str | None = None
    mapping: np.ndarray | None = None
    channels: int = 3
    names: Sequence[str] | None = None

    def __post_init__(self) -> None:
        self._index = {name: label for label, name in enumerate(self.names or ())}

    def __call__(self, rows: list[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        batch = {"pixel_values": self._pixel_values(rows)}
        if self.label_column is not None:
            batch["labels"] = torch.tensor([self._label(row[self.label_column]) for row in rows], dtype=torch.int64)
        return batch

    def _pixel_values(self, rows: list[Mapping[str, Any]]) -> torch.Tensor:
        if _is_processed(rows[0].get("pixel_values")):
            values = [_as_tensor(row["pixel_values"]) for row in rows]
            if len({value.shape for value in values}) > 1:
                raise SMDError(
                    f"The rows' pixel_values differ in shape ({sorted({tuple(value.shape) for value in values})}); "
                    "expected one shape (C, H, W). Resize the images in the data set's transform."
                )
            pixel_values = torch.stack(values)
        elif self.channels not in PIL_MODES:
            raise SMDError(
                f"The model takes images of {self.channels} channels, and image files hold 1, 3 or 4. Give rows with "
                "pixel_values (float tensors of shape (C, H, W)) instead."
            )
        else:
            images = [to_image(row[self.image_column], self.channels) for row in rows]
            try:
                pixel_values = self.processor(images=images, return_tensors="pt")["pixel_values"]
            except (ValueError, RuntimeError, TypeError) as error:
                raise SMDError(
                    f"The checkpoint's image processor ({type(self.processor).__name__}) fails on images of mode "
                    f"{images[0].mode} and sizes {sorted({image.size for image in images})[:3]}: {_line(str(error))} "
                    "It must bring all images to one size and normalise as many channels as the model takes."
                ) from error
        if pixel_values.ndim != 4 or pixel_values.shape[1] != self.channels:
            raise SMDError(
                f"A batch of pixel values has the shape {tuple(pixel_values.shape)}; the model takes (images, "
                f"{self.channels}, height, width). Use the image processor that belongs to the model."
            )
        return pixel_values

    def _label(self, value: Any) -> int:
        label = self._index.get(value, -1) if isinstance(value, str) else int(value)
        if self.mapping is not None:
            label = int(self.mapping[label]) if 0 <= label < len(self.mapping) else -1
        if label < 0:
            raise SMDError(
                f"An image has the label {value!r}, which is none of the known labels. Correct or remove it."
            )
        return label


def check_images(
    dataset: Any, image_column: str, *, what: str = "train", num_workers: int | None = None, progress: bool = True
) -> None:
    """
    Decode every image once, before anything expensive starts.

    Args:
        dataset (`datasets.Dataset`, or any map-style data set of `dict` rows): what to check.
        image_column (`str`): the column of images.
        what (`str`, *optional*, defaults to `"train"`): the name of the split, for messages.
        num_workers (`int`, *optional*): threads; as many as there are cores, at most 8, by default.
        progress (`bool`, *optional*, defaults to `True`): show a bar once it takes more than two seconds.

    Raises:
        `SMDError`: with the indices of the entries that cannot be read, and what is wrong with the first.
    """
    find_problem = _problem_of_pixel_values if image_column == "pixel_values" else _problem
    problems: list[tuple[int, str]] = []
    chunk: list[Any] = []
    bar = tqdm(total=len(dataset), desc=f"Checking {what} images", unit="image", delay=2, disable=not progress)
    with bar, ThreadPoolExecutor(num_workers or min(8, os.cpu_count() or 1)) as pool:
        for index, value in enumerate(_raw_images(dataset, image_column)):
            chunk.append(value)
            if len(chunk) == 64 or index == len(dataset) - 1:
                start = index + 1 - len(chunk)
                problems += [
                    (start + i, text) for i, text in enumerate(pool.map(find_problem, chunk)) if text is not None
                ]
                bar.update(len(chunk))
                chunk = []
    if problems:
        indices = ", ".join(str(index) for index, _ in problems[:10]) + (", ..." if len(problems) > 10 else "")
        raise SMDError(
            f"{len(problems)} of {len(dataset)} entries of the {what} split are not readable images (index "
            f"{indices}). At index {problems[0][0]}: {problems[0][1]} Repair or remove these entries."
        )


def load_splits(
    *,
    dataset_name: str | None = None,
    dataset_config_name: str | None = None,
    train_dir: str | None = None,
    validation_dir: str | None = None,
    train_file: str | None = None,
    validation_file: str | None = None,
    image_column_name: str | None = None,
    label_column_name: str | None = None,
    max_train_samples: int | None = None,
    max_eval_samples: int | None = None,
    train_val_split: float | None = 0.15,
    seed: int = 42,
    cache_dir: str | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    need_train: bool = True,
) -> tuple[datasets.Dataset | None, datasets.Dataset]:
    """
    The training and the validation split that the command line's arguments name.

    Validation images come from the validation folder or file. Of a data set by name they are its validation split
    (also `valid`, `val`, `dev`, `eval`), else its test split where that is labelled. Where there is none, they are a
    stratified share of the training split. The two label spaces are not yet compared: see
    [`~labels.check_same_labels`].

    Args:
        dataset_name (`str`, *optional*): a data set on the Hub, or a local folder that `load_dataset` or
            `load_from_disk` reads. Never runs code of the data set's.
        dataset_config_name (`str`, *optional*): its configuration.
        train_dir, validation_dir (`str`, *optional*): folders with one sub-folder of images for each class.
        train_file, validation_file (`str`, *optional*): Parquet files.
        image_column_name, label_column_name (`str`, *optional*): see [`find_columns`].
        max_train_samples, max_eval_samples (`int`, *optional*): take a random, stratified subset of this size.
        train_val_split (`float`, *optional*, defaults to 0.15): share of the training split to set aside for
            validation where there is no validation split.
        seed (`int`, *optional*, defaults to 42): decides on the subsets.
        cache_dir (`str`, *optional*), token (`str` or `bool`, *optional*), revision (`str`, *optional*): as for
            `load_dataset`. The token appears in no message.
        need_train (`bool`, *optional*, defaults to `True`): `False` where validation images alone will do; the
            training split is then `None` if none is given.

    Raises:
        `SMDError`: for arguments that name no data or two kinds of it, a file, folder, data set or split that does not
            exist, is empty or of another kind, and missing columns.
    """
    paths = {"train_dir": train_dir, "validation_dir": validation_dir, "train_file": train_file}
    given = [name for name, path in {**paths, "validation_file": validation_file}.items() if path is not None]
    if dataset_name is not None and given:
        raise SMDError(f"Both dataset_name and {' and '.join(given)} are given. Give the data in one way only.")
    for one, other in (("train_dir", "train_file"), ("validation_dir", "validation_file")):
        if one in given and other in given:
            raise SMDError(f"Both {one} and {other} are given. Give the data in one way only.")
    if dataset_name is None and not given:
        raise SMDError(
            "No data set is given. Give one in one of three ways: dataset_name (an id on the Hub or a local folder), "
            "train_dir and validation_dir (folders with one sub-folder of images for each class), or train_file and "
            "validation_file (Parquet files)."
        )
    for name, value in (("max_train_samples", max_train_samples), ("max_eval_samples", max_eval_samples)):
        if value is not None and value < 1:
            raise SMDError(f"{name} is {value}; expected at least 1, or none at all for every image.")

    if dataset_name is not None:
        splits = _load_named(dataset_name, dataset_config_name, cache_dir, token, revision)
        train, validation = splits.get("train"), None
        for name in (*VALIDATION_SPLITS, "test"):
            if (
                validation is None
                and name in splits
                and (name != "test" or _is_labelled(splits[name], label_column_name))
            ):
                validation = splits[name]
        source = f"The data set {dataset_name!r} (splits: {', '.join(splits)})"
    else:
        train = _load_path("train", train_dir, train_file, cache_dir)
        validation = _load_path("validation", validation_dir, validation_file, cache_dir)
        source = "The data"
    if train is None and (need_train or validation is None):
        raise SMDError(f"{source} has no training split. Give one named 'train', or train_dir or train_file.")

    columns = {}
    for what, split in (("train", train), ("validation", validation)):
        if split is not None and len(split) == 0:
            raise SMDError(f"The {what} split is empty. Give one with images.")
        if split is not None:
            columns[what] = find_columns(split, image_column_name, label_column_name)
    if validation is None:
        if not train_val_split:
            raise SMDError(f"{source} has no validation split. Give one, or set train_val_split to a share above 0.")
        labels = label_values(train, columns["train"][1])
        kept, set_aside = stratified_split(labels, train_val_split, seed)
        train, validation = train.select(kept), train.select(set_aside)
        columns["validation"] = columns["train"]
    if train is not None:
        train = _subset(train, columns["train"], max_train_samples, seed)
    return train, _subset(validation, columns["validation"], max_eval_samples, seed)


def _line(text: str, limit: int = 300) -> str:
    """A library's message as one line, without anything that looks like a token, ending in no full stop."""
    text = re.sub(r"\bhf_\w+", "hf_***", " ".join(text.split())).rstrip(".")
    return text if len(text) <= limit else text[:limit] + "..."


def _near(name: str, candidates: Any) -> str:
    near = difflib.get_close_matches(name, [str(candidate) for candidate in candidates], n=3)
    return f" Did you mean {' or '.join(repr(match) for match in near)}?" if near else ""


def _is_processed(value: Any) -> bool:
    """Whether this holds floats, as a processor returns them, and is not an image still to be processed."""
    if isinstance(value, torch.Tensor):
        return value.is_floating_point()
    try:
        return isinstance(value, (np.ndarray, list)) and np.asarray(value).dtype.kind == "f"
    except ValueError:  # a ragged list
        return False


def _as_tensor(value: Any) -> torch.Tensor:
    return value.float() if isinstance(value, torch.Tensor) else torch.from_numpy(np.array(value, dtype=np.float32))


def _is_custom(dataset: Any) -> bool:
    """Whether a `datasets.Dataset` has a transform of the user's, so that its rows differ from its table."""
    return isinstance(dataset, datasets.Dataset) and dataset.format["type"] == "custom"


def _is_image_struct(feature: Any) -> bool:
    return isinstance(feature, dict) and "bytes" in feature and feature.keys() <= {"bytes", "path"}


def _column_kinds(dataset: Any) -> dict[str, str | None]:
    """Each column's name with `"image"`, `"label"` or `None` for what its type says."""
    features = dataset.features if isinstance(dataset, datasets.Dataset) else {}
    kinds = {}
    for name, feature in features.items():
        if isinstance(feature, datasets.Image) or _is_image_struct(feature):
            kinds[name] = "image"
        else:
            kinds[name] = "label" if isinstance(feature, datasets.ClassLabel) else None
    if isinstance(dataset, datasets.Dataset) and not _is_custom(dataset):
        return kinds
    try:
        row = dataset[0] if len(dataset) > 0 else None
    except Exception as error:  # whatever the user's data set raises
        raise SMDError(
            f"Row 0 of the data set ({type(dataset).__name__}) cannot be read ({type(error).__name__}: "
            f"{_line(str(error))}); expected a map-style data set, with a length and rows by number."
        ) from error
    if row is None:
        raise SMDError("The data set is empty. Give one with images.")
    if not isinstance(row, Mapping):
        raise SMDError(
            f"A row of the data set is a {type(row).__name__}; expected a dict with an image and a label, such as "
            '{"image": image, "label": 3}.'
        )
    return {name: "image" if isinstance(value, Image.Image) else kinds.get(name) for name, value in row.items()}


def _find_column(what: str, given: str | None, kinds: dict[str, str | None], usual: Sequence[str]) -> str:
    there = f"The columns are: {', '.join(kinds)}."
    if given is not None:
        if given in kinds:
            return given
        raise SMDError(f"The data set has no {what} column {given!r}. {there}{_near(given, kinds)}")
    typed = [name for name, kind in kinds.items() if kind == what]
    for name in usual:
        if name in (typed or kinds):
            return name
    if len(typed) == 1:
        return typed[0]
    if typed:
        raise SMDError(
            f"Several columns may hold the {what}s: {', '.join(typed)}. Choose one with {what}_column_name."
        )
    near = next((hint for name in usual if (hint := _near(name, kinds))), "")
    raise SMDError(f"The data set has no {what} column. {there}{near} Choose one with {what}_column_name.")


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
    # Tensors put channels first and arrays last by custom; only a shape like (3, 32, 3) leaves it open.
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


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    image.load()
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = Image.fromarray(_to_uint8(np.asarray(image)))
    elif image.mode == "LAB":
        image = ImageCms.profileToProfile(
            image, ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    elif image.mode in ("P", "PA", "La", "RGBa"):  # PIL converts these to some modes only, but always to these
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    return image if image.mode == mode else image.convert(mode)


def _raw_images(dataset: Any, image_column: str) -> Iterator[Any]:
    """The entries of the image column, not yet decoded where possible; an exception in place of a failing row."""
    if isinstance(dataset, datasets.Dataset) and image_column in dataset.column_names:
        column = dataset.select_columns([image_column]).with_format(None)
        if isinstance(column.features[image_column], datasets.Image):
            column = column.cast_column(image_column, datasets.Image(decode=False))
        for start in range(0, len(column), 64):
            yield from column[start : start + 64][image_column]
        return
    for index in range(len(dataset)):
        try:
            yield dataset[index][image_column]
        except Exception as error:  # whatever the user's data set raises for this row
            yield error


def _problem(value: Any) -> str | None:
    if isinstance(value, Exception):
        return f"Reading it raises {type(value).__name__}: {_line(str(value))}."
    try:
        to_image(value)
    except SMDError as error:
        return str(error)
    return None


def _problem_of_pixel_values(value: Any) -> str | None:
    if not _is_processed(value):
        return _problem(value)
    tensor = _as_tensor(value)
    if tensor.ndim != 3:
        return f"Its pixel_values have the shape {tuple(tensor.shape)}; expected (C, H, W)."
    return None if bool(tensor.isfinite().all()) else "Its pixel_values are not finite."


def _load_named(
    name: str, config: str | None, cache_dir: str | None, token: str | bool | None, revision: str | None
) -> dict[str, datasets.Dataset]:
    """All splits of a data set on the Hub or in a local folder."""
    local = Path(name).expanduser()
    if local.is_file():
        raise SMDError(f"dataset_name {name!r} is a file. Give a Parquet file by train_file and validation_file.")
    if not local.exists() and (name.startswith((".", "~", os.sep)) or name.count("/") > 1):
        raise SMDError(f"The folder dataset_name {name!r} does not exist.{_near_path(local)}")
    try:
        if (local / "dataset_dict.json").is_file() or (local / "state.json").is_file():
            loaded = datasets.load_from_disk(str(local))
        else:
            path = str(local) if local.is_dir() else name
            loaded = datasets.load_dataset(path, config, cache_dir=cache_dir, token=token, revision=revision)
    except IndexError:  # what `load_from_disk` raises for a split that was saved without a single row
        raise SMDError(f"The data set {name!r} has an empty split. Give splits with images.") from None
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = str(error)
        if isinstance(token, str) and token:
            reason = reason.replace(token, "***")
        # `from None`: the library's own exception may show the token that the message leaves out.
        raise SMDError(
            f"The data set {name!r} cannot be loaded ({type(error).__name__}: {_line(reason)}). Expected the id of a "
            f"data set on the Hub that you may read, or a local folder with one.{_near_path(local)}"
        ) from None
    splits = loaded if isinstance(loaded, dict) else {"train": loaded}
    return {split: _with_image_feature(dataset) for split, dataset in splits.items()}


def _load_path(what: str, folder: str | None, file: str | None, cache_dir: str | None) -> datasets.Dataset | None:
    """The split `what` from a folder of images or from a Parquet file."""
    if folder is None and file is None:
        return None
    name = f"{what}_dir" if file is None else f"{what}_file"
    path = Path(folder if file is None else file).expanduser()
    if not path.exists():
        raise SMDError(f"{name} {str(path)!r} does not exist.{_near_path(path)}")
    if path.is_dir() != (file is None):
        kind, other = ("folder", "dir") if path.is_dir() else ("file", "file")
        raise SMDError(f"{name} {str(path)!r} is a {kind}. Give it by {what}_{other}.")
    if file is None:
        return _load_folder(name, path, cache_dir)
    try:
        rows = pyarrow.parquet.read_metadata(path).num_rows
        if rows == 0:
            raise SMDError(f"{name} {str(path)!r} holds no rows. Give a file with images.")
        return _with_image_feature(datasets.Dataset.from_parquet(glob.escape(str(path)), cache_dir=cache_dir))
    except (OSError, pyarrow.ArrowException, datasets.exceptions.DatasetsError) as error:
        raise SMDError(
            f"{name} {str(path)!r} cannot be read as Parquet: {_line(str(error))}. Expected a Parquet file with a "
            "column of images and one of labels, as `Dataset.to_parquet` writes it."
        ) from error


def _load_folder(name: str, folder: Path, cache_dir: str | None) -> datasets.Dataset:
    """A folder `class/image.png`, or one with a metadata file, as `datasets` reads it."""
    inside = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    visible = [path for path in inside if not any(part.startswith((".", "__")) for part in path.parts)]
    images = sorted(path for path in visible if path.suffix.lower() in ImageFolder.EXTENSIONS)
    if not images:
        raise SMDError(
            f"{name} {str(folder)!r} holds no image files. Expected one sub-folder of images for each class."
        )
    metadata = any(path.name in ImageFolder.METADATA_FILENAMES for path in visible)
    astray = next((path for path in images if len(path.parts) != 2), None)
    if astray is not None and not metadata:
        raise SMDError(
            f"{name} {str(folder)!r} must hold one sub-folder of images for each class, but its image {str(astray)!r} "
            "is not directly in a sub-folder. Move it, or add a metadata.csv with the columns file_name and label."
        )
    try:
        # One pattern for all, or else folders that are called "test" or "valid" would become splits.
        return datasets.load_dataset(
            "imagefolder",
            data_files={"train": os.path.join(glob.escape(str(folder.resolve())), "**")},
            split="train",
            drop_labels=None if metadata else False,
            cache_dir=cache_dir,
        )
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise SMDError(f"{name} {str(folder)!r} cannot be read as a folder of images: {_line(str(error))}.") from error


def _near_path(path: Path) -> str:
    siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    return _near(path.name, siblings)


def _with_image_feature(dataset: datasets.Dataset) -> datasets.Dataset:
    """Give columns of `{bytes, path}` their type, which a Parquet file of other origin does not declare."""
    for name, feature in dataset.features.items():
        if _is_image_struct(feature):
            dataset = dataset.cast_column(name, datasets.Image())
    return dataset


def _is_labelled(dataset: datasets.Dataset, label_column_name: str | None) -> bool:
    try:
        labels = label_values(dataset, _find_column("label", label_column_name, _column_kinds(dataset), LABEL_COLUMNS))
    except SMDError:
        return False
    return labels.dtype.kind == "U" or bool((labels >= 0).all())


def _subset(dataset: datasets.Dataset, columns: tuple[str, str], size: int | None, seed: int) -> datasets.Dataset:
    if size is None or size >= len(dataset):
        return dataset
    return dataset.select(np.sort(stratified_order(label_values(dataset, columns[1]), seed)[:size]))
