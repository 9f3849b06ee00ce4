"""The arguments of a run: its images, how they are scored, and what it saves."""

from dataclasses import dataclass, field
from typing import Any

from .choices import (
    DepthAlignment,
    EnsembleCombination,
    EnsembleSelection,
    HeadInit,
    OnBadImages,
    Precision,
    Racing,
    Runtime,
    Spread,
    TaskName,
)
from .recipes import from_preset


@dataclass
class TaskArguments:
    """Parameters that choose the task, and say what labels are in tasks other than single-label classification."""

    task: TaskName | None = field(
        default=None,
        metadata={"help": "What the model does, by its name on the Hub. By default the model's config.json says so."},
    )
    label_columns: list[str] | None = field(
        default=None,
        metadata={
            "help": "For multi-label classification: columns of 0 and 1, one a label. By default, label_column_name holds a list of "
            "labels for each image: names or numbers."
        },
    )
    candidate_labels: list[str] | None = field(
        default=None,
        metadata={
            "help": "For zero-shot-image-classification: the labels to choose from, as texts. By default those of the run that made the "
            "model, else the names of the data set's labels."
        },
    )
    hypothesis_template: str | None = field(
        default=None,
        metadata={
            "help": "For zero-shot-image-classification: the text that is made of a label, with {} in its place. By default 'This is a "
            "photo of {}.', as in transformers' pipeline."
        },
    )
    do_reduce_labels: bool | None = field(
        default=None,
        metadata={
            "help": "For image-segmentation: 0 in a mask is the background and no class, and class k is the model's k - 1. By default "
            "the image processor decides."
        },
    )
    depth_scale: float | None = field(
        default=None,
        metadata={
            "help": "For depth-estimation: what depth maps are multiplied by. 0.001 makes meters of millimeters. By default the "
            "maps are taken as they are."
        },
    )
    depth_alignment: DepthAlignment | None = field(
        default=None,
        metadata={
            "help": "For depth-estimation: what the model predicts. none: depth in the unit of the labels. depth or inverse_depth: up "
            "to scale and shift, so each prediction is aligned to the labels by least squares. By default the model's config says "
            "so."
        },
    )


@dataclass
class ImageArguments:
    """Parameters that control the images, their labels, and a new head for them."""

    image_column_name: str | None = field(
        default=None, metadata={"help": "The column of images. By default it is found by its type or name."}
    )
    label_column_name: str | None = field(
        default=None, metadata={"help": "The column of labels. By default it is found by its type or name."}
    )
    on_bad_images: OnBadImages = field(
        default="raise",
        metadata={
            "help": "What happens to rows whose image cannot be read: raise stops before anything is scored; skip leaves them "
            "out before the data is split, with a warning, and counts them in the report."
        },
    )
    label_map: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Which class of the model a label of the data set means: a JSON or CSV file (or a JSON object) from the data "
            "set's label to the model's label or class index. Other labels are matched by name, synonym and WordNet id."
        },
    )
    head_init: HeadInit | None = field(
        default=None,
        metadata={
            "help": "If the labels of the data set are not the model's: linear_probe replaces the classifier by a logistic "
            "regression on frozen features (no back-propagation), random by random weights, keep raises an error. Defaults to "
            "linear_probe if no label is one of the model's, and to an error if some are and some are not."
        },
    )


@dataclass
class ScoringArguments:
    """Parameters that control how children are scored: speed and memory."""

    runtime: Runtime = field(
        default="auto",
        metadata={
            "help": "What runs the forward passes. eager: PyTorch, operation by operation. compiled: torch.compile. openvino: "
            "OpenVINO, on CPUs (pip install smd_hf[openvino]). auto: openvino, if it is installed, takes the model and agrees with "
            "eager on the first batch, and the run is long enough to make up for the export; otherwise eager. Runtimes "
            "round differently, so a run is resumed in the runtime that it began with."
        },
    )
    precision: Precision = field(
        default="fp32",
        metadata={
            "help": "The precision in which children are scored. bf16 is faster on GPUs and on CPUs with AMX or AVX-512 BF16, and "
            "less exact. Finalists, and the parent beside them, are always scored in fp32, and so are the test images. auto: bf16 in "
            "OpenVINO and on GPUs where they compute in it, if its logits of the first batch are near those of fp32 and sigma is 0.05 or "
            "more (children of smaller sigmas differ too little); otherwise fp32."
        },
    )
    racing: Racing = field(
        default="none",
        metadata={
            "help": "halving: score the children on more and more of the fitness images, and after each round keep the better "
            "half by NLL, down to recombination_top_k. none: score all on all images."
        },
    )
    prefix_replay: bool = field(
        default=True,
        metadata={
            "help": "Start a child's forward pass at the first block that it changes; exact. (--no_prefix_replay: always run "
            "whole passes.)"
        },
    )
    spread: Spread = field(
        default="auto",
        metadata={
            "help": "With several processes: data gives each a share of the images, children a share of the children, auto "
            "the faster of the two. The results are the same bytes."
        },
    )
    image_cache_gb: float = field(
        default=2.0,
        metadata={
            "help": "Memory for decoded images in each process, in GB; as uint8 if that is exact. An image in the cache is "
            "decoded once in a run, any other once a generation."
        },
    )
    image_cache_on_device: bool = field(
        default=False, metadata={"help": "Keep decoded images in the memory of the accelerator instead of the host."}
    )
    child_cache_gb: float = field(
        default=1.0,
        metadata={
            "help": "Memory for the weights of children while prefixes are replayed or images are still being read, in GB. "
            "Beyond it they are made again for each batch."
        },
    )
    reading_threads: int | None = field(
        default=None,
        metadata={
            "help": "Threads that decode and resize images ahead of scoring, if dataloader_num_workers is 0. By default one for "
            "each core, at most 8; while the model runs, only as many as it leaves cores idle. 0: read each batch when it is "
            "needed, in the thread that scores."
        },
    )
    channels_last: bool = field(
        default=False,
        metadata={"help": "Run the model in channels_last memory format: often faster for convolutions."},
    )


@dataclass
class ArtifactArguments:
    """Parameters that control what a run saves besides the evolved model, and what it pushes."""

    ensemble_size: int = from_preset(
        "ensemble_size",
        "Save an ensemble of this many children of the last generation in output_dir/ensemble; 0: none.",
    )
    ensemble_selection: EnsembleSelection = field(
        default="greedy",
        metadata={
            "help": "How the members are chosen on the selection split: top_k by fitness; all; greedy forward selection with "
            "replacement (Caruana 2004); front: from the front of objectives, at most ensemble_size."
        },
    )
    ensemble_combination: EnsembleCombination = field(
        default="mean_probabilities",
        metadata={"help": "How the ensemble combines the predictions of its members. Of depths: mean, and no other."},
    )
    save_children: int = field(
        default=0,
        metadata={
            "help": "Save this many of the fittest children of the last generation as deltas in output_dir/children."
        },
    )
    push_ensemble: bool = field(
        default=False, metadata={"help": "With push_to_hub: push the ensemble too, to {hub_model_id}-ensemble."}
    )
    push_children: int = field(
        default=0,
        metadata={"help": "With push_to_hub: push this many of the fittest children too, to {hub_model_id}-children."},
    )
