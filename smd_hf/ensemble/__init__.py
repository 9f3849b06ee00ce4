"""Ensembles of image classifiers. Once this is imported, transformers' auto classes load them without remote code."""

from transformers import AutoConfig, AutoModelForImageClassification

from .configuration_smd_ensemble import SMDEnsembleConfig
from .modeling_smd_ensemble import SMDEnsembleForImageClassification, SMDEnsembleOutput
from .saving import save_ensemble

__all__ = ["SMDEnsembleConfig", "SMDEnsembleForImageClassification", "SMDEnsembleOutput", "save_ensemble"]

AutoConfig.register(SMDEnsembleConfig.model_type, SMDEnsembleConfig, exist_ok=True)
AutoModelForImageClassification.register(SMDEnsembleConfig, SMDEnsembleForImageClassification, exist_ok=True)
# These make `save_pretrained` write the code beside the weights.
SMDEnsembleConfig.register_for_auto_class()
SMDEnsembleForImageClassification.register_for_auto_class("AutoModelForImageClassification")
