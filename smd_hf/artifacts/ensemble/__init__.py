"""Ensembles of image models. Once this is imported, transformers' auto classes load them without remote code."""

import transformers

from ...remote_code.configuration_smd_ensemble import AUTO_MODELS, SMDEnsembleConfig
from ...remote_code.modeling_smd_ensemble import SMDEnsembleOutput
from .model import (
    ENSEMBLES,
    SMDEnsembleForDepthEstimation,
    SMDEnsembleForImageClassification,
    SMDEnsembleForSemanticSegmentation,
    SMDEnsembleForZeroShotImageClassification,
)
from .saving import save_ensemble

__all__ = [
    "ENSEMBLES",
    "SMDEnsembleConfig",
    "SMDEnsembleForDepthEstimation",
    "SMDEnsembleForImageClassification",
    "SMDEnsembleForSemanticSegmentation",
    "SMDEnsembleForZeroShotImageClassification",
    "SMDEnsembleOutput",
    "save_ensemble",
]

for _task, _ensemble in ENSEMBLES.items():
    getattr(transformers, AUTO_MODELS[_task]).register(SMDEnsembleConfig, _ensemble, exist_ok=True)
