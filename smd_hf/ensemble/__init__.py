"""Importing this is enough for transformers to load ensembles without remote code. The code is in `smd_hf.artifacts`."""

from ..artifacts.ensemble import (
    SMDEnsembleConfig,
    SMDEnsembleForImageClassification,
    SMDEnsembleOutput,
    save_ensemble,
)

__all__ = ["SMDEnsembleConfig", "SMDEnsembleForImageClassification", "SMDEnsembleOutput", "save_ensemble"]
