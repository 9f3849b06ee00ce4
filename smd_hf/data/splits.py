"""Splits: from what a user names on the command line to the data sets to train and to validate on."""

import glob
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
from datasets.exceptions import DatasetsError
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from huggingface_hub.errors import HTTPError

from ..errors import SMDError
from ..keyed_random import keyed_generator
from ..messages import near_path, one_line, suggestion
from ..models.loading_errors import hub_fault, similar_in_cache
from .labels import label_values, stratified_order, stratified_split
from .rows import find_columns, find_image_column, find_label_column, is_image_struct
from .streaming import BUFFER_SIZE, EVAL_SAMPLES, take

VALIDATION_SPLITS = ("validation", "valid", "val", "dev", "eval")


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
    streaming: bool = False,
    shuffle_buffer_size: int = BUFFER_SIZE,
    seed: int = 42,
    cache_dir: str | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    need_train: bool = True,
    classified: bool = True,
    unlabeled: bool = False,
) -> tuple[datasets.Dataset | None, datasets.Dataset | None]:
    """
    Loads the training and the validation split that the command line's arguments name.

    Validation images come from the validation folder or file, or for a data set by name from its validation split (also
    `valid`, `val`, `dev`, `eval`), else from its test split if that is labelled. Otherwise they are a stratified share of the
    training split. The two label spaces are not yet compared: see [`~alignment.check_same_labels`].

    Args:
        dataset_name (`str`, *optional*): a data set on the Hub, or a local folder that `load_dataset` or `load_from_disk`
            reads. Never runs code of the data set.
        dataset_config_name (`str`, *optional*): its configuration.
        train_dir, validation_dir (`str`, *optional*): folders with one sub-folder of images for each class.
        train_file, validation_file (`str`, *optional*): Parquet files.
        image_column_name, label_column_name (`str`, *optional*): see [`~data.find_columns`].
        max_train_samples, max_eval_samples (`int`, *optional*): take a random, stratified subset of this size; of a stream, the
            first rows after a shuffle.
        train_val_split (`float`, *optional*, defaults to 0.15): share of the training split to set aside for validation where
            there is no validation split.
        streaming (`bool`, *optional*, defaults to `False`): takes rows from a stream of `dataset_name`, instead of downloading
            it. Needs `max_train_samples`; `max_eval_samples` defaults to 2,000.
        shuffle_buffer_size (`int`, *optional*, defaults to 1000): rows of a stream that are shuffled among each other.
        seed (`int`, *optional*, defaults to 42): decides on the subsets.
        cache_dir (`str`, *optional*), token (`str` or `bool`, *optional*), revision (`str`, *optional*): as for
            `load_dataset`. The token appears in no message.
        need_train (`bool`, *optional*, defaults to `True`): `False` if validation images are enough; the training split is
            then `None` if none is given.
        classified (`bool`, *optional*, defaults to `True`): images have classes, of which each part gets its share. Otherwise
            labels are not looked at.
        unlabeled (`bool`, *optional*, defaults to `False`): the training split needs no labels, and its folder has any layout. Without
            labels to validate on, there is no validation split.

    Returns:
        `tuple`: the training split (or `None`) and the validation split (or `None`), as `datasets.Dataset`.

    Raises:
        `SMDError`: for arguments that name no data or two kinds of it, a file, folder, data set or split that does not exist, is
            empty or of another kind, and missing columns.
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
            "validation_file (Parquet files). No images yet? `smd-hf demo` brings its own."
        )
    for name, value in (("max_train_samples", max_train_samples), ("max_eval_samples", max_eval_samples)):
        if value is not None and value < 1:
            raise SMDError(f"{name} is {value}; expected at least 1. Leave it out to use all images.")

    if streaming and dataset_name is None:
        raise SMDError(
            "streaming is for a data set by name (dataset_name), but files or folders are given. Leave it out."
        )
    if dataset_name is not None:
        splits = _load_named(dataset_name, dataset_config_name, cache_dir, token, revision, streaming)
        if streaming:
            splits = _take_splits(
                splits, max_train_samples, max_eval_samples, train_val_split, need_train, label_column_name,
                {"seed": seed, "buffer_size": shuffle_buffer_size},
            )  # fmt: skip
        train, validation = splits.get("train"), None
        for name in (*VALIDATION_SPLITS, "test"):
            if name in splits and (name != "test" or not classified or _is_labelled(splits[name], label_column_name)):
                validation = splits[name]
                break
        source = f"The data set {dataset_name!r} (splits: {', '.join(splits)})"
    else:
        train = _load_path("train", train_dir, train_file, cache_dir, labelled=not unlabeled)
        validation = _load_path("validation", validation_dir, validation_file, cache_dir)
        source = "The data"
    if train is None and (need_train or validation is None):
        raise SMDError(f"{source} has no training split. Give one named 'train', or train_dir or train_file.")

    columns: dict[str, str | None] = {}
    for what, split in (("train", train), ("validation", validation)):
        if split is not None and len(split) == 0:
            raise SMDError(f"The {what} split is empty. Give one with images.")
        if split is not None:
            if classified and not (unlabeled and what == "train" and not _is_labelled(split, label_column_name)):
                columns[what] = find_columns(split, image_column_name, label_column_name)[1]
            else:
                find_image_column(split, image_column_name)
    if validation is None and unlabeled and "train" not in columns:
        assert train is not None
        return _subset(train, None, max_train_samples, seed), None
    if validation is None:
        if not train_val_split:
            raise SMDError(f"{source} has no validation split. Give one, or set train_val_split to a share above 0.")
        assert train is not None
        kept, set_aside = stratified_split(_strata(train, columns.get("train")), train_val_split, seed)
        train, validation = train.select(kept), train.select(set_aside)
        columns["validation"] = columns.get("train")
    if train is not None:
        train = _subset(train, columns.get("train"), max_train_samples, seed)
    return train, _subset(validation, columns.get("validation"), max_eval_samples, seed)


def load_ood_images(
    *,
    ood_dataset_name: str | None = None,
    ood_dir: str | None = None,
    ood_file: str | None = None,
    max_ood_samples: int | None = None,
    image_column_name: str | None = None,
    seed: int = 42,
    cache_dir: str | None = None,
    token: str | bool | None = None,
) -> datasets.Dataset | None:
    """
    The out-of-distribution images that the command line's arguments name; `None` if they name none.

    Args:
        ood_dataset_name (`str`, *optional*): a data set on the Hub, or a local folder that `load_dataset` or
            `load_from_disk` reads; its test split, else its validation split, else its first.
        ood_dir (`str`, *optional*): a folder of images, with or without sub-folders.
        ood_file (`str`, *optional*): a Parquet file.
        max_ood_samples (`int`, *optional*): take a random subset of this size.
        image_column_name (`str`, *optional*): the column of images, where there is one of this name.
        seed (`int`, *optional*, defaults to 42): decides on the subset.
        cache_dir (`str`, *optional*), token (`str` or `bool`, *optional*): as for [`load_splits`].

    Raises:
        `SMDError`: for two kinds of data, or data that do not exist, are empty or hold no images.
    """
    ways = {"ood_dataset_name": ood_dataset_name, "ood_dir": ood_dir, "ood_file": ood_file}
    given = [name for name, value in ways.items() if value is not None]
    if len(given) > 1:
        raise SMDError(f"Both {' and '.join(given)} are given. Give the out-of-distribution images in one way only.")
    if max_ood_samples is not None and max_ood_samples < 1:
        raise SMDError(f"max_ood_samples is {max_ood_samples}; expected at least 1. Leave it out to use all images.")
    if not given:
        return None
    if ood_dataset_name is not None:
        splits = _load_named(ood_dataset_name, None, cache_dir, token, None)
        images = splits[next((name for name in ("test", *VALIDATION_SPLITS) if name in splits), next(iter(splits)))]
    else:
        images = _load_path("ood", ood_dir, ood_file, cache_dir, labelled=False)
    assert images is not None
    if len(images) == 0:
        raise SMDError(f"{given[0]} {ways[given[0]]!r} has no images. Give images of none of the model's classes.")
    find_image_column(images, image_column_name)
    if max_ood_samples is None or max_ood_samples >= len(images):
        return images
    rows = keyed_generator("ood subset", seed).permutation(len(images))[:max_ood_samples]
    return images.select(np.sort(rows))


def _take_splits(
    splits: Mapping[str, Any],
    train_samples: int | None,
    eval_samples: int | None,
    train_val_split: float | None,
    need_train: bool,
    label_column_name: str | None,
    shuffle: Mapping[str, int],
) -> dict[str, datasets.Dataset]:
    """The rows of streamed splits that are needed, under the names of the splits."""
    if need_train and train_samples is None:
        raise SMDError(
            "With streaming, it must be known how many images to take. Give max_train_samples, or (to `smd-hf evolve`) "
            "fitness_samples_per_generation."
        )
    found: dict[str, datasets.Dataset] = {}
    for name in (*VALIDATION_SPLITS, "test"):
        if name in splits:
            rows = _with_image_feature(
                take(splits[name], eval_samples or EVAL_SAMPLES, what=f"The split '{name}'", **shuffle)
            )
            if name != "test" or _is_labelled(rows, label_column_name):
                found[name] = rows
                break
    if "train" in splits and (need_train or not found):
        count = train_samples or 0
        if not found:
            count = max(count, 1) if not train_val_split else math.ceil(max(count, 1) / (1 - train_val_split))
        if not need_train:
            count = math.ceil((eval_samples or EVAL_SAMPLES) / (train_val_split or 1))
        found["train"] = _with_image_feature(take(splits["train"], count, what="The split 'train'", **shuffle))
    return found


def _load_named(
    name: str,
    config: str | None,
    cache_dir: str | None,
    token: str | bool | None,
    revision: str | None,
    streaming: bool = False,
) -> dict[str, Any]:
    """All splits of a data set on the Hub or in a local folder; streams of it on request."""
    local = Path(name).expanduser()
    if local.is_file():
        raise SMDError(f"dataset_name {name!r} is a file. Give a Parquet file by train_file and validation_file.")
    if not local.exists() and (name.startswith((".", "~", os.sep)) or name.count("/") > 1):
        raise SMDError(f"The folder dataset_name {name!r} does not exist.{near_path(local)}")
    try:
        if (local / "dataset_dict.json").is_file() or (local / "state.json").is_file():
            loaded = datasets.load_from_disk(str(local))
        else:
            path = str(local) if local.is_dir() else name
            loaded = datasets.load_dataset(
                path, config, cache_dir=cache_dir, token=token, revision=revision, streaming=streaming
            )
    except IndexError:  # what `load_from_disk` raises for a split that was saved without a single row
        raise SMDError(f"The data set {name!r} has an empty split. Give splits with images.") from None
    except (OSError, ValueError, RuntimeError, HTTPError, DatasetsError) as error:
        fault = hub_fault(error)
        if fault is not None:
            raise SMDError(
                f"The data set {name!r} cannot be loaded: {fault}. The name is not the problem: wait a while, check the network, "
                "and try again. Downloaded files are in the cache and are not fetched again."
            ) from None
        reason = str(error)
        if isinstance(token, str) and token:
            reason = reason.replace(token, "***")
        # `from None`: the library's own exception may show the token that the message leaves out.
        raise SMDError(
            f"The data set {name!r} cannot be loaded ({type(error).__name__}: {one_line(reason)}). Expected the id of a "
            f"data set on the Hub that you may read, or a local folder with one.{near_path(local) or suggestion(similar_in_cache(name, 'dataset'))}"
        ) from None
    splits: dict[Any, Any] = dict(loaded) if isinstance(loaded, dict) else {"train": loaded}
    if streaming:
        return splits
    return {str(split): _with_image_feature(dataset) for split, dataset in splits.items()}


def _load_path(
    what: str, folder: str | None, file: str | None, cache_dir: Any, labelled: bool = True
) -> datasets.Dataset | None:
    """The split `what` from a folder of images or from a Parquet file."""
    given = folder if file is None else file
    if given is None:
        return None
    name, path = f"{what}_dir" if file is None else f"{what}_file", Path(given).expanduser()
    if not path.exists():
        raise SMDError(f"{name} {str(path)!r} does not exist.{near_path(path)}")
    if path.is_dir() != (file is None):
        kind, other = ("folder", "dir") if path.is_dir() else ("file", "file")
        raise SMDError(f"{name} {str(path)!r} is a {kind}. Give it by {what}_{other}.")
    if file is None:
        return _load_folder(name, path, cache_dir, labelled)
    try:
        rows = pyarrow.parquet.read_metadata(path).num_rows
        if rows == 0:
            raise SMDError(f"{name} {str(path)!r} holds no rows. Give a file with images.")
        return _with_image_feature(datasets.Dataset.from_parquet(glob.escape(str(path)), cache_dir=cache_dir))
    except (OSError, pyarrow.ArrowException, DatasetsError) as error:
        raise SMDError(
            f"{name} {str(path)!r} cannot be read as Parquet: {one_line(str(error))}. Expected a Parquet file with a "
            "column of images and one of labels, as `Dataset.to_parquet` writes it."
        ) from error


def _load_folder(name: str, folder: Path, cache_dir: str | None, labelled: bool) -> datasets.Dataset:
    """A folder `class/image.png` or one with a metadata file, as `datasets` reads it; any layout if `labelled` is false."""
    inside = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    visible = [path for path in inside if not any(part.startswith((".", "__")) for part in path.parts)]
    images = sorted(path for path in visible if path.suffix.lower() in ImageFolder.EXTENSIONS)
    if not images:
        expected = "one sub-folder of images for each class" if labelled else "images, in sub-folders or not"
        raise SMDError(f"{name} {str(folder)!r} holds no image files. Expected {expected}.")
    metadata = any(path.name in ImageFolder.METADATA_FILENAMES for path in visible)
    astray = next((path for path in images if len(path.parts) != 2), None)
    if astray is not None and not metadata and labelled:
        raise SMDError(
            f"{name} {str(folder)!r} must hold one sub-folder of images for each class, but its image {str(astray)!r} "
            "is not directly in a sub-folder. Move it, or add a metadata.csv with the columns file_name and label."
        )
    try:
        # With one pattern for all, folders called "test" or "valid" do not become splits.
        return datasets.load_dataset(
            "imagefolder",
            data_files={"train": os.path.join(glob.escape(str(folder.resolve())), "**")},
            split="train",
            drop_labels=not labelled or (None if metadata else False),
            cache_dir=cache_dir,
        )
    except (OSError, ValueError, DatasetsError) as error:
        raise SMDError(
            f"{name} {str(folder)!r} cannot be read as a folder of images: {one_line(str(error))}."
        ) from error


def _with_image_feature(dataset: datasets.Dataset) -> datasets.Dataset:
    """Declares columns of `{bytes, path}` as images, as Parquet files from elsewhere do not."""
    for name, feature in dataset.features.items():
        if is_image_struct(feature):
            dataset = dataset.cast_column(name, datasets.Image())
    return dataset


def _is_labelled(dataset: datasets.Dataset, label_column_name: str | None) -> bool:
    try:
        labels = label_values(dataset, find_label_column(dataset, label_column_name))
    except SMDError:
        return False
    return labels.dtype.kind == "U" or bool((labels >= 0).all())


def _strata(dataset: datasets.Dataset, label_column: str | None) -> np.ndarray:
    """The class of each image; one class for all, where images have none."""
    return np.zeros(len(dataset), np.int64) if label_column is None else label_values(dataset, label_column)


def _subset(dataset: datasets.Dataset, label_column: str | None, size: int | None, seed: int) -> datasets.Dataset:
    if size is None or size >= len(dataset):
        return dataset
    return dataset.select(np.sort(stratified_order(_strata(dataset, label_column), seed)[:size]))
