"""A quiet terminal: hides bars and warnings of the libraries."""

import warnings

import datasets
from transformers.utils import logging


def quiet_libraries() -> None:
    """Switches off bars for fast steps (tensors of a file, rows of a table) and warnings that no user can act on."""
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", message=".*pin_memory.*", category=UserWarning)
