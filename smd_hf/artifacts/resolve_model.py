"""The parent that a trainer is given: loaded where it is named, refused where it is no image classifier."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ..arguments.evolution_arguments import EvolutionArguments
from ..errors import SMDError
from ..models.adapters import check_no_adapter_layers
from ..models.head_classes import name_classes
from ..models.load import load_image_processor, load_model_for_new_head
from ..models.tasks import check_classifier
from .ensemble import SMDEnsembleConfig
from .loading import expanded, load_with_processor, stored_form


def resolve_model(
    model: PreTrainedModel | str | Path, args: EvolutionArguments, processing_class: Any | None
) -> tuple[PreTrainedModel, Any | None, list[str]]:
    """
    The model and its image processor, loaded where only a name is given, and what the checkpoint lacks of a classifier.

    Args:
        model ([`~transformers.PreTrainedModel`], `str` or `Path`): a model, or the Hub id or folder of one or of a sparse delta.
        args ([`EvolutionArguments`]): `model_init_kwargs` are passed on to the loading.
        processing_class (*optional*): the image processor; loaded from the same place where the model is a name.

    Raises:
        `SMDError`: if there is no such model, or it is not an image classifier, or an ensemble or one with an adapter.
    """
    if not isinstance(model, str | Path):
        check_no_adapter_layers(model)
        check_classifier(model)
        name_classes(model.config, type(model).__name__)
        if getattr(getattr(model, "config", None), "model_type", None) == SMDEnsembleConfig.model_type:
            raise SMDError(
                "The model is an ensemble, and only single models are evolved. Expected an image classifier: pass model.merge(), "
                "the mean of its members, or one of them, model.member(0)."
            )
        return model, processing_class, []
    loading = dict(args.model_init_kwargs or {})
    name = str(model)
    form = _form(name, loading)
    if form == "ensemble":
        raise SMDError(
            f"'{name}' is an ensemble, and only single models are evolved. Expected an image classifier: merge its members into "
            f"one (smd_hf.load('{name}').merge().save_pretrained(folder)), copy preprocessor_config.json, if there is one, into "
            "that folder too, and give it instead."
        )
    if form == "delta":
        child, processor = load_with_processor(name, **loading)
        return child, processing_class or processor, []
    model, missing_head = load_model_for_new_head(name, **loading)
    if processing_class is None:
        loading.pop("dtype", None)
        processing_class = load_image_processor(name, model=model, **loading)
    return model, processing_class, missing_head


def _form(name: str, loading: dict[str, Any]) -> str | None:
    """What is stored there; `None` where nothing can be found, which the loading of it says best."""
    try:
        return stored_form(expanded(name), {key: loading.get(key) for key in ("revision", "token", "cache_dir")})
    except SMDError:
        return None
