"""
Adapters of PEFT: refused before anything is scored, with what to do instead.

Only the adapter of such a model is saved, so `from_pretrained` of the evolved folder would not give the
model that was evolved.
"""

from contextlib import suppress
from typing import Any

from torch import nn
from transformers.utils import ADAPTER_CONFIG_NAME, cached_file

from ..errors import SMDError


def check_no_adapter_layers(model: nn.Module) -> None:
    """Refuse a model with layers of PEFT: a `PeftModel`, or one that an adapter was added to."""
    # By the name of the package, which need not be installed.
    layers = [name for name, module in model.named_modules() if type(module).__module__.partition(".")[0] == "peft"]
    if not layers:
        return
    if hasattr(model, "merge_and_unload"):
        how = "pass model.merge_and_unload() instead"
    else:
        how = (
            "save the adapter, load it on its base with PeftModel.from_pretrained(base, adapter), and pass what its "
            "merge_and_unload() returns"
        )
    raise SMDError(
        f"The model ({type(model).__name__}) has layers of a PEFT adapter, which would be evolved but could not be saved as an "
        f"image classifier. Expected a plain model: {how}. mutable_parameters chooses what evolves."
    )


def check_no_adapter_file(name: str, source: dict[str, Any]) -> None:
    """Refuse a folder or repository that holds an adapter."""
    found = None
    # If the file cannot be looked for, neither can config.json, whose error says more.
    with suppress(OSError, ValueError):
        found = cached_file(name, ADAPTER_CONFIG_NAME, _raise_exceptions_for_missing_entries=False, **source)
    if found is not None:
        raise SMDError(
            f"'{name}' holds a PEFT adapter ({ADAPTER_CONFIG_NAME}). Expected an image classifier with the adapter merged into "
            f"its weights: run PeftModel.from_pretrained(base, '{name}').merge_and_unload().save_pretrained(folder), save the "
            "base's image processor there too, and give that folder."
        )
