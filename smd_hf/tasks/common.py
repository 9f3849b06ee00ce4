"""What tasks check of their rows."""

from typing import Any

from ..errors import SMDError
from ..models.tasks import Kind


def check_rows(train_dataset: Any, eval_dataset: Any, processing_class: Any, kind: Kind) -> dict[str, Any]:
    """
    The data sets by name, after a check that none is empty and that there is an image processor.

    Raises:
        `SMDError`: if not.
    """
    splits = {"train_dataset": train_dataset} | (
        eval_dataset if isinstance(eval_dataset, dict) else {"eval_dataset": eval_dataset}
    )
    present = {what: split for what, split in splits.items() if split is not None}
    if not present:
        raise SMDError("There is neither a train_dataset nor an eval_dataset. Give at least one.")
    for what, split in present.items():
        if len(split) == 0:
            raise SMDError(f"{what} is empty. Give at least one image, or check the split and the limits on its size.")
    if processing_class is None:
        raise SMDError(
            f"There is no image processor to prepare images for {kind.words}. Pass "
            "processing_class=AutoImageProcessor.from_pretrained(...), or give the model by name."
        )
    return present
