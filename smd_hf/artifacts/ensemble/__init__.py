"""Ensembles of image models. Once this is imported, transformers' auto classes load them without remote code."""

from transformers import AutoConfig, AutoModelForImageClassification, AutoModelForSemanticSegmentation

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

AutoConfig.register(SMDEnsembleConfig.model_type, SMDEnsembleConfig, exist_ok=True)
AutoModelForImageClassification.register(SMDEnsembleConfig, SMDEnsembleForImageClassification, exist_ok=True)
AutoModelForSemanticSegmentation.register(SMDEnsembleConfig, SMDEnsembleForSemanticSegmentation, exist_ok=True)
# With this, `save_pretrained` of a configuration also saves its code.
SMDEnsembleConfig.register_for_auto_class()
