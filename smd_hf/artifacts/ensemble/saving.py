"""Saving an ensemble with the one image processor that its members share."""

from pathlib import Path
from typing import Any

from transformers import BaseImageProcessor, TimmWrapperImageProcessor

from .building import set_timm_processor
from .model import SMDEnsembleForImageClassification


def save_ensemble(
    model: SMDEnsembleForImageClassification,
    processor: BaseImageProcessor | None,
    folder: str | Path,
    **kwargs,
) -> None:
    """
    Write a folder that `from_pretrained`, `pipeline("image-classification")` and a push to the Hub take as it is.

    timm's image processor cannot be saved by itself: transformers reads it from `config.json`. So the ensemble's
    configuration carries what it was made of, and `AutoImageProcessor` finds it there, with or without smd_hf.

    Args:
        processor (image processor or `None`): the members' common one; `None` leaves it out.
        folder (`str` or `Path`): made where it does not exist.
    """
    config: Any = model.config
    if isinstance(processor, TimmWrapperImageProcessor):
        set_timm_processor(config, dict(processor.data_config), getattr(config, "architecture", None))
    elif processor is not None:
        set_timm_processor(config, None)
        processor.save_pretrained(folder)
    model.save_pretrained(folder, **kwargs)
