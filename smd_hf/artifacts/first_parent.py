"""The parent that a run begins with: what it is called, and a copy of it, which deltas are relative to."""

import copy
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ..models.checkpoints import save_checkpoint

PARENT_FOLDER = "parent"


class FirstParent:
    """
    The parent that a run begins with.

    Args:
        given_name (`str`, *optional*): the Hub id or folder that it was loaded by.
        new_head (`str`, *optional*): how its head was made, if the run has replaced it: `"linear_probe"` or `"random"`.

    Attributes:
        name (`str`): its Hub id, absolute path or class.
    """

    def __init__(self, model: PreTrainedModel, given_name: str | None = None, new_head: str | None = None):
        self.model = model
        self.given_name = given_name
        self.new_head = new_head
        name = str(model.config._name_or_path) or given_name or type(model).__name__
        # In any other folder, a relative path looks like the id of a model on the Hub.
        self.name = str(Path(name).absolute()) if Path(name).is_dir() else name

    def copy(self, processing_class: Any | None, output_dir: Path, saves: bool) -> PreTrainedModel:
        """
        A copy on the CPU. If the name alone does not give the parent again, the copy is saved and has the folder's name.

        Args:
            output_dir (`Path`): it is saved in `output_dir/parent`.
            saves (`bool`): whether this process writes it.
        """
        parent = copy.deepcopy(self.model).cpu()
        if self.given_name is None or not parent.name_or_path or self.new_head is not None:
            folder = output_dir / PARENT_FOLDER
            if saves:
                save_checkpoint(parent, processing_class, folder)
            parent.name_or_path = parent.config._name_or_path = str(folder)
            parent.config._commit_hash = None
        return parent
