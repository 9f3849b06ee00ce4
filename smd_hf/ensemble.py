"""
Lets transformers' auto classes load ensembles without remote code.

The classes are registered when transformers' auto classes are first imported, so that `import smd_hf` does not wait for them.
Model cards that were published before say `import smd_hf.ensemble`: its names can be imported from here.
"""

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType


def _register_config() -> None:
    from transformers import AutoConfig

    from .remote_code.configuration_smd_ensemble import SMDEnsembleConfig

    AutoConfig.register(SMDEnsembleConfig.model_type, SMDEnsembleConfig, exist_ok=True)
    # With this, `save_pretrained` of a configuration also saves its code.
    SMDEnsembleConfig.register_for_auto_class()


def _register_models() -> None:
    importlib.import_module(".artifacts.ensemble", __package__)  # which registers them


REGISTRATIONS = {
    "transformers.models.auto.configuration_auto": _register_config,
    "transformers.models.auto.modeling_auto": _register_models,
}
"""What is done after the import of which module."""


class _AfterImport:
    """A finder that calls a function once a module has been imported, and finds nothing itself."""

    def __init__(self, module: str, call: Callable[[], None]):
        self.module, self.call = module, call

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != self.module:
            return None
        sys.meta_path.remove(self)  # pyright: ignore[reportArgumentType]
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_call(module: ModuleType) -> None:
                execute(module)
                self.call()

            spec.loader.exec_module = execute_and_call
        return spec


def register_when_imported() -> None:
    """Registers ensembles now with the auto classes that are imported, and with the others when they will be."""
    for module, call in REGISTRATIONS.items():
        if module in sys.modules:
            call()
        else:
            sys.meta_path.insert(0, _AfterImport(module, call))  # pyright: ignore[reportArgumentType]


def __getattr__(name: str):
    if name.startswith("__"):
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(".artifacts.ensemble", __package__), name)
