"""Loads the parent of a run if it is given by name, and checks that it is a model of the run's task."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ..arguments.evolution_arguments import EvolutionArguments
from ..errors import SMDError
from ..models.adapters import check_no_adapter_layers
from ..models.head_classes import name_classes
from ..models.load import load_image_processor, load_model_for_new_head
from ..models.tasks import CLASSIFIER, Kind, check_kind
from .ensemble import SMDEnsembleConfig
from .loading import expanded, load_with_processor, stored_form


def resolve_model(
    model: PreTrainedModel | str | Path,
    args: EvolutionArguments,
    processing_class: Any | None,
    kind: Kind = CLASSIFIER,
) -> tuple[PreTrainedModel, Any | None, list[str]]:
    """
    Returns the model, its image processor, and the names of the classifier's parameters that the checkpoint lacks.

    Args:
        model ([`~transformers.PreTrainedModel`], `str` or `Path`): a model, or the Hub id or folder of a model or a sparse
            delta, which is loaded.
        processing_class (*optional*): the image processor. By default it is loaded with the model, if that is given by name.
        kind ([`~smd_hf.models.tasks.Kind`], *optional*): what is expected. A classifier by default.
    """
    if not isinstance(model, str | Path):
        check_no_adapter_layers(model)
        check_kind(model, kind)
        if kind is CLASSIFIER:
            name_classes(model.config, type(model).__name__)
        if getattr(getattr(model, "config", None), "model_type", None) == SMDEnsembleConfig.model_type:
            raise SMDError(
                "The model is an ensemble, but only single models can be evolved. Expected an image classifier: pass "
                "model.merge(), the mean of its members, or model.member(0), the first of them."
            )
        return model, processing_class, []
    loading: dict[str, Any] = dict(args.model_init_kwargs or {})  # pyright: ignore
    name = str(model)
    form = _form(name, loading)
    if form == "ensemble":
        raise SMDError(
            f"'{name}' is an ensemble, but only single models can be evolved. Expected an image classifier: merge its members "
            f"into one (smd_hf.load('{name}').merge().save_pretrained(folder)), copy preprocessor_config.json, if there is one, "
            "into that folder too, and give that folder instead."
        )
    if form == "delta":
        child, processor = load_with_processor(name, **loading)
        return child, processing_class or processor, []
    loaded, missing_head = load_model_for_new_head(name, kind=kind, **loading)
    if processing_class is None:
        loading.pop("dtype", None)
        processing_class = load_image_processor(name, model=loaded, **loading)
    return loaded, processing_class, missing_head


def _form(name: str, loading: dict[str, Any]) -> str | None:
    """The stored form; `None` if nothing can be found, because loading it gives a better error."""
    try:
        return stored_form(expanded(name), {key: loading.get(key) for key in ("revision", "token", "cache_dir")})
    except SMDError:
        return None
