"""What a checkpoint is for: its configuration says it, else the card of its repository."""

from contextlib import suppress
from typing import Any

from huggingface_hub import ModelCard
from transformers.utils import cached_file, is_timm_config_dict

from .tasks import BACKBONE, KINDS, Kind, checkpoint_tasks, kind_of

CARD_NAME = "README.md"


def declared_kind(name: str, config_dict: dict[str, Any], source: dict[str, Any]) -> Kind:
    """
    The kind of model of a checkpoint.

    Args:
        name (`str`): a model id on the Hub, or a folder.
        config_dict (`dict`): its config.json. Where the architectures in it name no task, as with backbones and old checkpoints, the
            `pipeline_tag` of the repository's card counts, if it is a task that is known here.
    """
    silent = not any(checkpoint_tasks(config_dict).values()) and not is_timm_config_dict(config_dict)
    found = KINDS.get(pipeline_tag(name, source) or "") if silent else None
    # The card of every backbone says that it makes features. Without a word of the user, it gets a classifier.
    return kind_of(config_dict) if found is None or found is BACKBONE else found


def pipeline_tag(name: str, source: dict[str, Any]) -> str | None:
    """The task that the card of a repository or folder names; `None` if there is none that can be read."""
    # Whether there is a card does not matter to whoever loads a model: what hinders reading it shows elsewhere.
    with suppress(Exception):
        path = cached_file(name, CARD_NAME, _raise_exceptions_for_missing_entries=False, **source)
        return None if path is None else ModelCard.load(path, ignore_metadata_errors=True).data.get("pipeline_tag")
    return None
