"""Ensembles of image classifiers. Once this is imported, transformers' auto classes load them without remote code."""

from transformers import AutoConfig, AutoModelForImageClassification

from ...remote_code.configuration_smd_ensemble import SMDEnsembleConfig
from ...remote_code.modeling_smd_ensemble import SMDEnsembleOutput
from .model import SMDEnsembleForImageClassification
from .saving import save_ensemble

__all__ = ["SMDEnsembleConfig", "SMDEnsembleForImageClassification", "SMDEnsembleOutput", "save_ensemble"]

AutoConfig.register(SMDEnsembleConfig.model_type, SMDEnsembleConfig, exist_ok=True)
AutoModelForImageClassification.register(SMDEnsembleConfig, SMDEnsembleForImageClassification, exist_ok=True)
# With this, `save_pretrained` of a configuration also saves its code.
SMDEnsembleConfig.register_for_auto_class()
