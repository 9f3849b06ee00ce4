"""
What modules derive from their weights and keep: stale as soon as the weights change in place.

LeViT and its kin (EfficientFormer, TinyViT) gather their attention biases once in evaluation mode and drop them when they are
put into training mode, which is when weights change otherwise.

This file travels with an ensemble's checkpoint: it imports torch and transformers alone.
"""

from collections.abc import Iterable

from torch import nn
from transformers import PreTrainedModel


def keepers(model: nn.Module) -> list[nn.Module]:
    """The modules that may keep something derived from their weights: those that act when their mode changes."""
    ordinary = (nn.Module.train, PreTrainedModel.train)
    return [module for module in model.modules() if type(module).train not in ordinary]


def forget_derived(modules: Iterable[nn.Module]) -> None:
    """Makes modules in evaluation mode drop what they derived from their weights; others keep nothing."""
    for module in modules:
        if not module.training:
            module.train()
            module.eval()
