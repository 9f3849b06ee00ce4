"""Gradient-free fine-tuning of pretrained image models by Sparse Mutation Decompositions."""

from importlib import import_module
from typing import TYPE_CHECKING

from .ensemble import register_when_imported
from .errors import SMDError

__version__ = "0.2.0"

register_when_imported()

if TYPE_CHECKING:
    from .arguments.evolution_arguments import EvolutionArguments
    from .arguments.script_arguments import DataArguments, ModelArguments, OODArguments
    from .artifacts.delta.sparse_delta import SparseDelta
    from .artifacts.ensemble import SMDEnsembleConfig, SMDEnsembleForImageClassification
    from .artifacts.loading import load
    from .callback import EvolutionCallback
    from .data.rows import ImageCollator
    from .data.splits import load_ood_images, load_splits
    from .models.load import load_image_processor, load_model
    from .trainer import EvolutionTrainer

# Imported when they are first asked for.
_HOMES = {
    "DataArguments": "arguments.script_arguments",
    "EvolutionArguments": "arguments.evolution_arguments",
    "EvolutionCallback": "callback",
    "EvolutionTrainer": "trainer",
    "ImageCollator": "data.rows",
    "ModelArguments": "arguments.script_arguments",
    "OODArguments": "arguments.script_arguments",
    "SMDEnsembleConfig": "artifacts.ensemble",
    "SMDEnsembleForImageClassification": "artifacts.ensemble",
    "SparseDelta": "artifacts.delta.sparse_delta",
    "load": "artifacts.loading",
    "load_image_processor": "models.load",
    "load_model": "models.load",
    "load_ood_images": "data.splits",
    "load_splits": "data.splits",
}

__all__ = ["SMDError", "__version__", *_HOMES]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'smd_hf' has no attribute '{name}'")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
