"""Ensembles of image models. Once this is imported, transformers' auto classes load them without remote code."""

from transformers import AutoModelForImageClassification, AutoModelForSemanticSegmentation

from ...remote_code.configuration_smd_ensemble import SMDEnsembleConfig
from ...remote_code.modeling_smd_ensemble import SMDEnsembleOutput
from .model import ENSEMBLES, SMDEnsembleForImageClassification, SMDEnsembleForSemanticSegmentation
from .saving import save_ensemble

__all__ = [
    "ENSEMBLES",
    "SMDEnsembleConfig",
    "SMDEnsembleForImageClassification",
    "SMDEnsembleForSemanticSegmentation",
    "SMDEnsembleOutput",
    "save_ensemble",
]

AutoModelForImageClassification.register(SMDEnsembleConfig, SMDEnsembleForImageClassification, exist_ok=True)
AutoModelForSemanticSegmentation.register(SMDEnsembleConfig, SMDEnsembleForSemanticSegmentation, exist_ok=True)
