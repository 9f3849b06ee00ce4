"""The models that an ensemble is made of."""

from typing import Any

from ..remote_code.modeling_smd_ensemble import SMDEnsembleForImageClassification


def models_of(model: Any) -> list[Any]:
    """The parent of an ensemble, or its members if they are stored whole; a model of its own alone."""
    return model.models if isinstance(model, SMDEnsembleForImageClassification) else [model]
