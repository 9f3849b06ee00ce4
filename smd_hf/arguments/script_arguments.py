"""
Arguments of a script for its model and data, next to [`EvolutionArguments`], named as in transformers' example
script for image classification.
"""

from dataclasses import dataclass, field
from typing import Any

from .choices import Dtype


@dataclass
class ModelArguments:
    """Parameters that choose the model and how to load it."""

    _argument_group_name = "Parameters that choose the model"

    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "A model id on the Hub or the folder of a checkpoint; a sparse delta is applied to its base. Required."
        },
    )
    model_revision: str | None = field(
        default=None, metadata={"help": "The branch, tag or commit of the model on the Hub."}
    )
    cache_dir: str | None = field(default=None, metadata={"help": "Where downloads from the Hub are kept."})
    token: str | None = field(
        default=None,
        repr=False,
        metadata={
            "help": "Access token for private and gated repositories. Better: log in with `hf auth login`, or set HF_TOKEN. It "
            "is neither printed nor saved."
        },
    )
    trust_remote_code: bool = field(
        default=False,
        metadata={"help": "Run Python files of the model's repository, if they define the model."},
    )
    dtype: Dtype = field(
        default="auto", metadata={"help": "The type of the weights; auto keeps that of the checkpoint."}
    )

    def loading(self) -> dict[str, Any]:
        """What was chosen about loading, without the token: `EvolutionArguments.model_init_kwargs`."""
        chosen = {
            "revision": self.model_revision,
            "cache_dir": self.cache_dir,
            "trust_remote_code": self.trust_remote_code or None,
            "dtype": None if self.dtype == "auto" else self.dtype,
        }
        return {name: value for name, value in chosen.items() if value is not None}


@dataclass
class DataArguments:
    """Parameters that choose the images: a data set by name, folders of images, or Parquet files."""

    _argument_group_name = "Parameters that choose the images"

    dataset_name: str | None = field(
        default=None, metadata={"help": "A data set on the Hub, or a local folder that `datasets` reads."}
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "The data set's configuration."})
    train_dir: str | None = field(
        default=None, metadata={"help": "A folder with one sub-folder of training images for each class."}
    )
    validation_dir: str | None = field(
        default=None, metadata={"help": "A folder with one sub-folder of images to report on for each class."}
    )
    train_file: str | None = field(default=None, metadata={"help": "A Parquet file of training images."})
    validation_file: str | None = field(default=None, metadata={"help": "A Parquet file of images to report on."})
    train_val_split: float = field(
        default=0.15,
        metadata={"help": "Share of the training split to report on, if there is no validation split."},
    )
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Use at most this many training images, drawn evenly over the classes."}
    )
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "Report on at most this many images, drawn evenly over the classes."}
    )
    streaming: bool = field(
        default=False,
        metadata={
            "help": "Do not download the data set dataset_name: take the images that the run needs from a stream, once. These are "
            "max_train_samples, or else fitness_samples_per_generation for each generation with the share for selection; and "
            "max_eval_samples, or else 2,000."
        },
    )
    shuffle_buffer_size: int = field(
        default=1000,
        metadata={"help": "With streaming: rows that are read ahead and shuffled, beside the order of the files."},
    )


@dataclass
class OODArguments:
    """Parameters that choose images of none of the model's classes, in one of three ways; labels have no effect."""

    _argument_group_name = "Parameters that choose out-of-distribution images, for ood_auroc"

    ood_dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "A data set on the Hub, or a local folder that `datasets` reads; its test split, else validation, else "
            "train. Fitness, selection and the report get a third each."
        },
    )
    ood_dir: str | None = field(
        default=None, metadata={"help": "A folder of out-of-distribution images, with or without sub-folders."}
    )
    ood_file: str | None = field(default=None, metadata={"help": "A Parquet file of out-of-distribution images."})
    max_ood_samples: int | None = field(
        default=None, metadata={"help": "Use at most this many of them, drawn at random."}
    )
