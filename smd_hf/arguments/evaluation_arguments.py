"""The arguments of `smd-hf evaluate`."""

from dataclasses import dataclass, field

from ..errors import SMDError
from .label_map import LabelMap, read_label_map
from .run_arguments import TaskArguments


@dataclass
class EvaluationArguments(TaskArguments):
    """Parameters that control the evaluation."""

    against: str | None = field(
        default=None,
        metadata={
            "help": "Another model, delta or ensemble (id or folder), to compare the first one with on the same images."
        },
    )
    image_column_name: str | None = field(
        default=None, metadata={"help": "The column of images. Found by its type or usual name by default."}
    )
    label_column_name: str | None = field(
        default=None, metadata={"help": "The column of labels. Found by its type or usual name by default."}
    )
    label_map: str | None = field(
        default=None,
        metadata={
            "help": "Which of the model's classes a label of the data set means: a JSON or CSV file (or a JSON object) from the "
            "data set's label to the model's label or class index, the same for both models. Other labels are matched by name, "
            "synonym and WordNet id."
        },
    )
    per_device_eval_batch_size: int = field(default=32, metadata={"help": "Images in a batch."})
    dataloader_num_workers: int = field(
        default=0, metadata={"help": "Processes that decode images. With 0, threads do."}
    )
    use_cpu: bool = field(default=False, metadata={"help": "Use the CPU even if there is a GPU."})
    seed: int = field(
        default=42, metadata={"help": "Draws the subset that max_eval_samples or train_val_split asks for."}
    )
    output_file: str | None = field(default=None, metadata={"help": "Also write the numbers to this JSON file."})
    disable_tqdm: bool = field(default=False, metadata={"help": "Show no progress bars."})

    def __post_init__(self) -> None:
        if self.per_device_eval_batch_size < 1:
            raise SMDError(f"per_device_eval_batch_size is {self.per_device_eval_batch_size}; expected 1 or more.")
        self.labels_given: LabelMap | None = None if self.label_map is None else read_label_map(self.label_map)
        if self.dataloader_num_workers < 0:
            raise SMDError(f"dataloader_num_workers is {self.dataloader_num_workers}; expected 0 or more.")
