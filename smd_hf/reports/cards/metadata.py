"""
The metadata of a model card, by which the Hub lists the model.

License and data sets are read from the parent's card. Entries that the card lacks are left out. A name goes into the
metadata only if it can be a Hub id: a local folder is neither a base model nor a data set on the Hub.
"""

import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData, hf_hub_download
from transformers.utils import logging

from ...artifacts.delta.config import is_repo_id
from ...messages import one_line
from ...models.tasks import CLASSIFIER, KINDS, Kind
from ..gain_report import metrics_of_report
from .text import plain_line

logger = logging.get_logger(__name__)

RELATIONS = {"child": "finetune", "delta": "adapter", "ensemble": "merge"}
TAGS = ["smd_hf", "evolution", "gradient-free", "sparse-mutation-decompositions"]

_MAX_CHARACTERS = 2**20
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
# Names that `load_dataset` uses for local files.
_FILE_FORMATS = ("imagefolder", "parquet", "arrow", "json", "csv", "webdataset", "generator", "pandas")
_METRICS = (
    ("accuracy", "accuracy", "Accuracy"),
    ("nll", "nll", "Negative log-likelihood (nats)"),
    ("calibration_error", "expected_calibration_error", "Expected calibration error"),
)


def inherited_entries(parent: str, revision: str | None = None, token: str | bool | None = None) -> dict[str, Any]:
    """
    The metadata that a child inherits from its parent's card.

    Returns:
        `dict`: the card's entries among `license`, `license_name`, `license_link` and `datasets`. Empty if the card does not
        exist or cannot be read: a run must not fail because of a card.
    """
    try:
        local = Path(parent).expanduser() / "README.md"
        if local.parent.is_dir():
            path = local
        elif is_hub_id(parent):
            path = Path(hf_hub_download(parent, "README.md", revision=revision, token=token))
        else:
            return {}
        if not path.is_file():
            return {}
        with open(path, encoding="utf-8-sig") as file:
            text = file.read(_MAX_CHARACTERS)
        if not text.lstrip().startswith("---"):
            return {}
        data = ModelCard(text, ignore_metadata_errors=True).data
    except Exception as error:  # a foreign file: network, Hub and YAML may raise anything
        logger.warning(
            f"The parent's model card could not be read ({one_line(str(error))}): license and data sets are left out."
        )
        return {}
    licenses = data.get("license")
    licenses = licenses if isinstance(licenses, list) else [licenses]
    entries: dict[str, Any] = {}
    if licenses and all(isinstance(each, str) and _LICENSE.fullmatch(each) for each in licenses):
        entries["license"] = licenses[0] if len(licenses) == 1 else licenses
        for key in ("license_name", "license_link"):
            value = data.get(key)
            if isinstance(value, str) and value.isprintable() and len(value) <= 300:
                entries[key] = value
    datasets = data.get("datasets")
    datasets = datasets if isinstance(datasets, list) else [datasets]
    # Old data sets of the Hub have no owner in their id, for example imagenet-1k in timm's cards.
    datasets = [each for each in datasets if is_repo_id(each) and each not in _FILE_FORMATS]
    return entries | ({"datasets": datasets} if datasets else {})


def is_hub_id(name: Any) -> bool:
    """Whether the name can be a Hub id (`owner/name`) and is not a local file or folder."""
    return is_repo_id(name) and "/" in name and not os.path.exists(name)


def card_metadata(
    kind: str,
    report: Mapping[str, Any],
    scores: Mapping[str, Any] | None,
    name: str,
    is_timm: bool,
    widget: list[dict[str, Any]] | None = None,
    quantized: bool = False,
) -> ModelCardData:
    """
    The YAML block of a card.

    Args:
        kind (`str`): `"child"`, `"delta"` or `"ensemble"`.
        scores (`Mapping`, *optional*): `accuracy`, `nll` and `calibration_error` of this model on the test images, as in the
            report; `None` if it was not measured.
        is_timm (`bool`): whether the parent is a timm model.
        widget (`list`, *optional*): the entry `widget`, from [`widget_examples`].
        quantized (`bool`, *optional*, defaults to `False`): whether the run quantised its parent while loading it.
    """
    inherited = report["inherited"]
    data, parent = report["data"], report["parent_name"]
    used = [data["name"]] if is_hub_id(data["name"]) else []
    datasets = list(dict.fromkeys(used + inherited.get("datasets", [])))
    base_model = parent if is_hub_id(parent) else None
    library = {"delta": "smd_hf", "ensemble": "transformers", "child": "timm" if is_timm else "transformers"}[kind]
    tags = TAGS + ([] if kind == "child" else [kind]) + (["timm", "transformers"] if is_timm else [])
    task = KINDS[report.get("task", CLASSIFIER.pipeline_tag)]
    shown = [
        (each.key, each.hub_name or each.key, each.name if each.factor == 100 else each.label)
        for each in metrics_of_report(report)
    ]
    shown = _METRICS if "metrics" not in report else [each for each in shown if each[0] in (scores or {})]
    results = None if scores is None else _results(scores, data, used, task, shown)
    return ModelCardData(
        license=inherited.get("license"),
        license_name=inherited.get("license_name"),
        license_link=inherited.get("license_link"),
        base_model=base_model,
        base_model_relation=None if base_model is None else "quantized" if quantized else RELATIONS[kind],
        library_name=library,
        pipeline_tag=task.pipeline_tag,
        tags=tags,
        datasets=datasets or None,
        metrics=[shown[0][1]] if results else None,
        model_name=name if results else None,
        eval_results=results or None,
        widget=widget,
    )


def widget_examples(kind: str, report: Mapping[str, Any], repo_id: str) -> list[dict[str, Any]] | None:
    """
    The example that the Hub's page of a model shows: the test image `example.png`, and what the model predicts for it.

    Args:
        repo_id (`str`): the repository that holds `example.png`.

    Returns:
        `list` or `None`: the entry `widget` of a card. `None` for deltas, which no widget runs, and for candidate labels that
        the Hub would cut at their commas.
    """
    if kind == "delta":
        return None
    example: dict[str, Any] = {
        "src": f"https://huggingface.co/{repo_id}/resolve/main/example.png",
        "example_title": "A test image",
    }
    if report["zero_shot"]:
        labels = report["zero_shot"]["candidate_labels"]
        if any("," in label for label in labels):
            return None
        example["candidate_labels"] = ", ".join(map(plain_line, labels))
    if predictions := report["examples"].get(kind):
        example["output"] = [
            {"label": plain_line(each["label"]), "score": round(each["score"], 4)}
            for each in predictions
            if math.isfinite(each["score"])
        ]
    return [example]


def _results(
    scores: Mapping[str, Any],
    data: Mapping[str, Any],
    used: list[str],
    task: Kind,
    metrics: Sequence[tuple[str, str, str]],
) -> list[EvalResult]:
    dataset = {
        "dataset_type": used[0] if used else "unknown",
        "dataset_name": used[0] if used else "test images of the run",
        "dataset_config": data.get("config") if used else None,
        "dataset_split": data["test"].get("split") if used else None,
    }
    return [
        EvalResult(
            task_type=task.pipeline_tag,
            task_name=task.words.capitalize(),
            metric_type=metric,
            metric_name=label,
            metric_value=scores[key],
            **dataset,
        )
        for key, metric, label in metrics
        if scores[key] is not None
    ]
