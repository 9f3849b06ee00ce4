"""
What a run is: the arguments that change its results, its data and its parent.

It is kept with the ledger and with every checkpoint, so that a run is not resumed as another one.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Image
from transformers import PreTrainedModel, TrainingArguments

from ..arguments.evolution_arguments import EvolutionArguments
from ..data.labels import label_values
from ..data.own_collator import cheap_labels, sees_all_columns
from ..data.rows import ImageCollator, find_label_column, stored_images
from ..errors import SMDError
from ..messages import one_line
from ..models.checkpoints import weights_hash
from ..models.inputs import input_names, select_inputs
from .run_images import RunImages

FORMAT = 1

RENAMED = {"objective": "loss"}
"""Arguments that earlier versions called otherwise."""

REMOVED = {"solve_head": False}
"""Arguments that earlier versions had, with the value that had no effect."""

NO_EFFECT = (
    *(
        "preset",
        # The parent decides on the task, and the labels of the data tell how masks are read.
        "task",
        "do_reduce_labels",
        "spread",
        "prefix_replay",
        # The runtime that was chosen has its own entry.
        "runtime",
        "precision",
        "image_cache_gb",
        "image_cache_on_device",
        "child_cache_gb",
        "reading_threads",
        "logging_steps",
    ),
    *("max_hours", "max_forward_passes", "push_ensemble", "push_children"),
    # What these lead to is part of the identity: the parent, and the data.
    *("model_init_kwargs", "head_init", "image_column_name", "label_column_name", "label_columns"),
    "num_generations",
    *RENAMED,
)
"""Arguments of evolution that may differ when a run is resumed; `num_generations` only if sigma does not depend on it."""

BEFORE_PRESETS = {"sigma": 0.0, "fitness_samples_per_generation": 0, "mutable_parameters": ["all"]}
"""What `None` stood for before every argument without a value was the preset's."""

OF_TRAINER = ("seed", "bf16", "fp16", "tf32", "torch_compile", "label_smoothing_factor")
"""Arguments of Trainer that may not differ."""

OF_BEST_MODEL = (
    "metric_for_best_model",
    "greater_is_better",
    "eval_strategy",
    "eval_steps",
    "save_strategy",
    "save_steps",
)
"""Arguments of Trainer that may not differ if the best model is loaded at the end."""

SAMPLED_ROWS = 256
"""Number of images that the fingerprint of a data set reads, evenly spaced. It reads all labels."""


def run_identity(args: EvolutionArguments, model: PreTrainedModel, images: RunImages, runtime: str) -> dict[str, Any]:
    """What a run is, as JSON values. The model is its first parent, `runtime` is that of the evaluator with its version."""
    data, names, collator = {}, input_names(model), images.make_batches.collator
    for name, dataset in (("train_dataset", images.train_dataset), ("eval_dataset", images.test_dataset)):
        if dataset is not None and images.check_row is not None:
            # Only the collator knows what the labels are.
            data[name] = data_fingerprint(dataset, collator, None, None, names)
        elif dataset is not None and args.unlabeled and name == "train_dataset":
            data[name] = data_fingerprint(dataset, images.train_collator, images.image_column, None, names)
        elif dataset is not None:
            column = label_column_of(dataset, args, collator)
            data[name] = data_fingerprint(dataset, collator, images.image_column, column, names)
    if images.ood is not None:
        test = images.ood.test
        data["ood_dataset"] = data_fingerprint(test.dataset, test.collator, images.ood_image_column, None, names)
    arguments = deciding_arguments(args) | {"runtime": runtime}
    return {"format": FORMAT, "arguments": arguments, "data": data, "parent": weights_hash(model)}


def deciding_arguments(args: EvolutionArguments) -> dict[str, Any]:
    """The arguments that change results, as JSON values."""
    inherited = {each.name for each in fields(TrainingArguments)}
    own = [each.name for each in fields(EvolutionArguments) if each.name not in inherited and each.init]
    names = [name for name in own if name not in NO_EFFECT] + [*OF_TRAINER, "load_best_model_at_end"]
    if args.load_best_model_at_end:
        names += OF_BEST_MODEL
    if args.sigma_schedule != "constant":
        names.append("num_generations")
    values = args.to_dict()
    chosen = {name: values[name] for name in names} | {"per_device_eval_batch_size": args.eval_batch_size}
    if args.metric_name_or_path is not None:
        # Checkpoints go to the Hub, and paths of this machine stay private.
        chosen["metric_name_or_path"] = Path(args.metric_name_or_path).name
    return json.loads(json.dumps(chosen | {"device": args.device.type}))


def data_fingerprint(
    dataset: Any,
    collator: Callable,
    image_column: str | None,
    label_column: str | None,
    input_names: Collection[str] | None = None,
) -> str:
    """
    A digest of a data set's content: its length, all labels, and some of its images.

    Args:
        dataset: map-style.
        collator (`Callable`): rows to tensors, for images that are not stored as files.
        image_column, label_column (`str`, *optional*): in a row; `None` if only the collator knows.
        input_names (collection of `str`, *optional*): which of the collator's columns go into the model; all by default.

    Returns:
        `str`: SHA-256, 64 hexadecimal digits.
    """
    digest = hashlib.sha256(f"{len(dataset)}".encode())
    if label_column is not None:
        labels = label_values(dataset, label_column)
        digest.update("\0".join(map(str, labels.tolist())).encode())
    rows = np.unique(np.linspace(0, len(dataset) - 1, SAMPLED_ROWS).round().astype(int)).tolist()
    undecoded = _undecoded(dataset, image_column)
    for row in rows:
        if undecoded is not None:
            digest.update(_file_content(undecoded[row][image_column]))
            continue
        columns = collator([dataset[row]])
        # Pixel values first, as in the ledgers of versions without other inputs.
        inputs = sorted(select_inputs(columns, input_names), key=lambda name: (name != "pixel_values", name))
        for name in ("labels", *inputs):
            digest.update(columns[name].cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _undecoded(dataset: Any, image_column: str | None) -> Dataset | None:
    """The data set with its images as stored files; `None` if it has no such images, or rows are transformed."""
    if not isinstance(dataset, Dataset) or image_column not in dataset.column_names:
        return None
    if dataset.format["type"] == "custom" or not isinstance(dataset.features[image_column], Image):
        return None
    return stored_images(dataset, image_column)


def _file_content(image: Mapping[str, Any] | None) -> bytes:
    if image is None or image["bytes"] is not None:
        return b"" if image is None else image["bytes"]
    path = Path(image["path"])
    return path.read_bytes() if path.is_file() else image["path"].encode()


def label_column_of(dataset: Any, args: EvolutionArguments, collator: Callable) -> str | None:
    """The column of labels; `None` if there is none that is cheap to read, and only the collator knows the labels."""
    if sees_all_columns(collator) and not isinstance(collator, ImageCollator):
        found = cheap_labels(dataset, args.label_column_name)
        return None if found is None else found[0]
    try:
        return find_label_column(dataset, args.label_column_name)
    except SMDError:
        return None


def check_same(before: Mapping[str, Any], now: Mapping[str, Any], where: Path) -> None:
    """
    Refuses to go on with another run.

    Args:
        before (mapping): the identity that was kept.
        now (mapping): that of the run which is to go on.
        where (`Path`): where it was kept, for the message.

    Raises:
        `SMDError`: naming each difference.
    """
    kinds = {"format": int, "arguments": dict, "data": dict, "parent": str}
    if (
        set(before) != set(kinds)
        or any(type(before[key]) is not kind for key, kind in kinds.items())
        or before["format"] != FORMAT
    ):
        raise SMDError(
            f"'{where}' was written by another version of smd_hf, and cannot be resumed by this one. Start anew in another "
            "output_dir, or resume with the version that began it."
        )
    old: dict[str, Any] = {RENAMED.get(str(name), str(name)): value for name, value in before["arguments"].items()}
    for name, value in BEFORE_PRESETS.items():
        if name in old and old[name] is None:
            old[name] = value
    old.setdefault("runtime", "eager")  # versions without runtimes
    old.setdefault("warm_start", False)  # versions without it
    old.setdefault("refit_head", False)
    old.setdefault("unlabeled", False)
    old.setdefault("fitness_sampling", "balanced")
    removed = {name: old.pop(name) for name in REMOVED if name in old}
    new = now["arguments"]
    differences = [
        f"{name} was {_shown(old, name)} and is {_shown(new, name)}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
    differences += [
        f"{name} was {json.dumps(value)}, which this version of smd_hf does not have"
        for name, value in removed.items()
        if value != REMOVED[name]
    ]
    for name in sorted(before["data"].keys() | now["data"].keys()):
        if before["data"].get(name) != now["data"].get(name):
            differences.append(f"{name} holds other images or labels")
    if before["parent"] != now["parent"]:
        differences.append(
            f"the parent has other weights ({before['parent'][:12]} was begun with, {now['parent'][:12]} is)"
        )
    if differences:
        raise SMDError(
            f"'{where}' belongs to another run: {one_line('; '.join(differences), 1000)}. Resume with what the run began with, or start anew in "
            "another output_dir."
        )


def _shown(arguments: Mapping[str, Any], name: str) -> str:
    return json.dumps(arguments[name]) if name in arguments else "not there"
