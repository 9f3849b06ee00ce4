"""
Model cards of an evolved child, of sparse deltas and of an ensemble.

A card is a function of `gain_report.json` and of the folder that it goes into. It can be rendered again at any time, under
another name, without network. At the end of a run, [`card_entries`] and [`classify_example`] therefore add to the report
everything that a card needs besides the gain.
"""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import ModelCard
from markupsafe import Markup
from PIL import Image
from transformers import PreTrainedModel, pipeline

from ...arguments.evolution_arguments import DERIVED, EvolutionArguments
from ...arguments.recipes import PRESETS, read_recipe
from ...artifacts.delta.config import DELTA_CONFIG_NAME
from ...errors import SMDError
from ...files import write_text
from ...models.tasks import CLASSIFIER
from ...models.tasks import KINDS as TASK_KINDS
from ...run.state import RunState
from ...search.fitness import Fitness
from ..gain_report import metrics_of_report
from ..steps import begins_with_parent, chosen_steps, measured_baselines, shown_metrics, step_title
from .metadata import card_metadata, inherited_entries, is_hub_id, widget_examples
from .text import format_number, plain_line, python_string, render

KINDS = ("child", "delta", "ensemble")
CARD_NAME = "README.md"
EXAMPLE_NAME = "example.png"
PLOTS = {
    "predictions.png": "Test images, their truth, and what parent and evolved model predict",
    "gain.png": "Metrics of the models, with intervals of the difference to the parent",
    "fitness.png": "Fitness of the children by generation",
    "reliability.png": "Reliability diagram: accuracy against confidence",
    "front.png": "Candidates and front by each pair of objectives",
    "ensemble_size.png": "Accuracy of the ensemble by its number of members",
    "calibration.png": "Share of flipped predictions by sigma",
}

# Entries of the report that may be missing, with their defaults.
_OPTIONAL: dict[str, Any] = {
    "absent_classes": None,
    "ensemble_absent_classes": None,
    "all_arguments": {},
    "deltas": {},
    "ensemble_members": None,
    "examples": {},
    "front": None,
    "generations": [],
    "inherited": {},
    "new_head": None,
    "notes": [],
    "out_of_distribution": None,
    "selection": None,
    "steps": None,
    "stopped": None,
    "task": CLASSIFIER.pipeline_tag,
    "zero_shot": None,
}
# Arguments about files and access do not describe the model.
_NOT_SHOWN = ("output_dir", "logging_dir", "run_name", *DERIVED)
_NOT_SHOWN_PREFIXES = ("hub_", "push_")
# key in the report, label, style of a value, style of a difference, whether greater is better
_ROWS = (
    ("accuracy", "accuracy (%)", "percent", "points", True),
    ("nll", "NLL (nats)", "nats", "nats_change", False),
    ("calibration_error", "calibration error (%)", "percent", "points", False),
)


# ---- What a run adds to its report -----------------------------------------------------------------------------------


def card_entries(
    args: EvolutionArguments, run: RunState, fitness: Fitness, parent: str, token: str | bool | None = None
) -> dict[str, Any]:
    """
    Entries of `gain_report.json` for the cards: `report | card_entries(...)`.

    Returns:
        `dict` of JSON values: `all_arguments`; `generations` (a `dict` for each, with fitness in the metric's own direction);
        `inherited` (see [`inherited_entries`]).
    """
    loading = args.model_init_kwargs if isinstance(args.model_init_kwargs, dict) else {}
    arguments = {name: value for name, value in args.to_dict().items() if _is_shown(name)}
    return {
        "all_arguments": json.loads(json.dumps(arguments, default=str)),
        "generations": [_summary(record, fitness) for record in run.generations],
        "inherited": inherited_entries(parent, loading.get("revision"), token),
    }


def _is_shown(name: str) -> bool:
    return name not in _NOT_SHOWN and not name.startswith(_NOT_SHOWN_PREFIXES) and not name.endswith("token")


def _beside_preset(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that are shown, without the preset and those that have its value."""
    preset = arguments.get("preset")
    recipe = read_recipe(preset) if preset in PRESETS else {}
    if recipe.get("recombination") == "auto":
        recipe["recombination"] = "gauss_newton"
    same = {"preset", *(name for name, value in recipe.items() if arguments.get(name) == value)}
    return {name: value for name, value in arguments.items() if _is_shown(name) and name not in same and value != {}}


def _summary(record: Mapping[str, Any], fitness: Fitness) -> dict[str, Any]:
    whole = [child for child in record["children"] if not child.get("eliminated")]
    values = [child["fitness"] for child in whole if child["fitness"] is not None]
    return {
        "number": record["generation"] + 1,
        "sigma": record["sigma"],
        "parent": fitness.raw(record["parent"]["fitness"]),
        "best_child": fitness.raw(max(values)) if values else None,
        "mean_child": fitness.raw(math.fsum(values) / len(values)) if values else None,
        "failed_children": len(whole) - len(values),
        "eliminated_children": len(record["children"]) - len(whole),
        "chosen": record["chosen"],
    }


def save_example(image: Image.Image, folder: str | Path) -> Path:
    """Writes `example.png`: the pixels in RGB, without the original file's metadata (place, camera, comments)."""
    path = Path(folder) / EXAMPLE_NAME
    Image.fromarray(np.asarray(image.convert("RGB"))).save(path)
    return path


def classify_example(model: PreTrainedModel, processor: Any, example: str | Path) -> list[dict[str, Any]]:
    """
    The predictions that a card's snippet prints for the example. The report stores them under `examples`, by kind of card.

    Args:
        model ([`~transformers.PreTrainedModel`]): the child, the ensemble, or the parent with the delta applied. It must take
            images with three channels, because the snippet's pipeline converts the image to RGB.

    Returns:
        list of `dict` with `label` and `score` (0 to 1), the most likely first, at most five.
    """
    classify = pipeline("image-classification", model=model, image_processor=processor, device=model.device)
    return classify(str(example))


def printed(predictions: Iterable[Mapping[str, Any]]) -> str:
    """The output of a card's snippet."""
    return "\n".join(f"{format_number(each['score'], 'score')} {each['label']}" for each in predictions)


# ---- The card --------------------------------------------------------------------------------------------------------


def write_card(kind: str, folder: str | Path, report: Mapping[str, Any], *, repo_id: str | None = None) -> Path:
    """
    Writes `README.md` into the folder of a saved model, of deltas or of an ensemble.

    Args:
        kind (`str`): `"child"`, `"delta"` or `"ensemble"`.
        report (`Mapping`): `gain_report.json`, with [`card_entries`] and, if there is an example, `examples`.
        repo_id (`str`, *optional*): the repository that the folder will be pushed to. The snippet loads from it, or from
            the folder by default.

    Raises:
        `SMDError`: if the kind is unknown, or the folder lacks its configuration.
    """
    path = Path(folder) / CARD_NAME
    write_text(path, str(render_card(kind, folder, report, repo_id=repo_id)))
    return path


def render_card(kind: str, folder: str | Path, report: Mapping[str, Any], *, repo_id: str | None = None) -> ModelCard:
    """Renders the card that [`write_card`] writes."""
    folder = Path(folder).resolve()
    report = _OPTIONAL | dict(report) | {"data": {"name": None, "left_out": {}} | report["data"]}
    parent = report["parent_name"]
    parent_label = parent if is_hub_id(parent) else plain_line(Path(parent).name or "the parent")
    title = repo_id.split("/")[-1] if repo_id else f"{parent_label.split('/')[-1]}-{_SUFFIXES[kind]}"
    config = _read_json(folder / "config.json") if kind != "delta" else {}
    model_config = config.get("parent_config") or config
    is_timm = model_config.get("model_type") == "timm_wrapper"
    has_image = (folder / EXAMPLE_NAME).is_file()
    deltas = _deltas(folder) if kind == "delta" else []
    subject = _subject(kind, report, deltas)
    body = render(
        f"{kind}.md.jinja",
        kind=kind,
        title=title,
        report=report,
        parent=parent_label,
        parent_is_on_hub=is_hub_id(parent),
        dataset_is_on_hub=is_hub_id(report["data"].get("name")),
        subject=subject,
        rows=[] if subject is None else _rows(report, subject),
        task=TASK_KINDS[report["task"]],
        member_rows=(members := _member_rows(report)),
        best=_best(members),
        source=repo_id or folder.name,
        is_on_hub=repo_id is not None,
        example=f"{folder.name}/{EXAMPLE_NAME}" if has_image else None,
        is_timm=is_timm,
        timm_name=f"{'hf_hub' if repo_id else 'local-dir'}:{repo_id or folder.name}",
        has_code=bool(config.get("auto_map")),
        labels=_labels(config),
        config=config,
        delta=_delta_facts(folder, deltas, parent_label) if kind == "delta" else None,
        output=printed(report["examples"][kind]) if has_image and kind in report["examples"] else None,
        plots={name: text for name, text in PLOTS.items() if (folder / name).is_file()},
        preset=report["arguments"].get("preset"),
        arguments=_beside_preset(report["arguments"]),
        step_metrics=None if report["steps"] is None else shown_metrics(report),
        step_title=step_title,
        chosen_steps=chosen_steps,
        measured_baselines=measured_baselines,
        kept_parent=bool(report["generations"])
        and all(g["chosen"] == "parent" for g in report["generations"])
        and begins_with_parent(report["steps"]),
    )
    scores = None if subject is None else subject["scores"]
    widget = widget_examples(kind, report, repo_id) if repo_id and has_image else None
    loading = report["all_arguments"].get("model_init_kwargs") or {}
    metadata = card_metadata(
        kind, report, scores, plain_line(title), is_timm, widget, quantized="quantization_config" in loading
    )
    return ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n{body}")


_SUFFIXES = {"child": "evolved", "delta": "delta", "ensemble": "ensemble"}


def _subject(kind: str, report: Mapping[str, Any], deltas: list[str]) -> dict[str, Any] | None:
    """The measured comparison of the card's model with the parent; `None` if it was not measured."""
    measured = report["deltas"]
    match kind:
        case "child" if "evolved" in report:
            name, scores, difference, verdict = "evolved", report["evolved"], report["difference"], report["verdict"]
        case "ensemble" if "ensemble" in report:
            name, scores, difference = "ensemble", report["ensemble"], report["ensemble_difference"]
            verdict = difference["verdict"]
        case "delta" if deltas[0] in measured:
            name, scores, difference = "child", measured[deltas[0]]["scores"], measured[deltas[0]]["difference"]
            verdict = difference["verdict"]
        case _:
            return None
    mcnemar = difference.get("mcnemar")
    absent = {
        "evolved": report["absent_classes"],
        "ensemble": report["ensemble_absent_classes"],
        "child": measured.get(deltas[0], {}).get("absent_classes") if deltas else None,
    }
    return {
        "name": name,
        "absent": absent[name],
        "scores": scores,
        "difference": difference,
        "verdict": verdict,
        "only_parent": mcnemar and mcnemar["only_parent_correct"],
        "only_subject": mcnemar and mcnemar[f"only_{name}_correct"],
        "p_value": mcnemar and mcnemar["p_value"],
    }


def _shown(report: Mapping[str, Any]) -> list[tuple[str, str, str, str, bool]]:
    """The rows of tables with a report's metrics, as in `_ROWS`."""
    if "metrics" not in report:
        return list(_ROWS)
    styles = {True: ("percent", "points"), False: ("nats", "nats_change")}
    return [
        (metric.key, metric.label, *styles[metric.factor == 100], metric.greater_is_better)
        for metric in metrics_of_report(report)
    ]


def _rows(report: Mapping[str, Any], subject: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of the gain's table: one for each metric, with the better of the two models."""
    rows, parent = [], report["parent"]
    for key, label, style, change, greater_is_better in _shown(report):
        before, after = parent[key], subject["scores"][key]
        gain = 0 if before is None or after is None else (after - before) * (1 if greater_is_better else -1)
        rows.append(
            {
                "label": label,
                "parent": before,
                "subject": after,
                "difference": subject["difference"][key],
                "style": style,
                "change": change,
                "best": "parent" if gain < 0 else "subject" if gain > 0 else None,
            }
        )
    return rows


def _member_rows(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of a table with the scores of the parent, the members and the ensemble."""
    members = report["ensemble_members"]
    if members is None or "ensemble" not in report or "best" not in members:
        return []
    scores = {
        "parent": report["parent"],
        "fittest member": members["best"],
        "mean member": members["mean"],
        "ensemble": report["ensemble"],
    }
    return [{"name": name} | {key: each[key] for key, *_ in _ROWS} for name, each in scores.items()]


def _best(rows: list[dict[str, Any]]) -> dict[str, float | None]:
    """The best value of each metric; `None` if no value is finite."""
    best = {}
    for key, *_, greater_is_better in _ROWS:
        values = [row[key] for row in rows if row[key] is not None]
        best[key] = None if not values else max(values) if greater_is_better else min(values)
    return best


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SMDError(
            f"{path} cannot be read ({type(error).__name__}), so no model card can be written. Save the model into that folder "
            "first."
        ) from error
    if not isinstance(value, dict):
        raise SMDError(f"{path} holds {type(value).__name__}; expected a JSON object. Save the model there again.")
    return value


def _labels(config: Mapping[str, Any]) -> list[str]:
    """The names of the classes in order; empty if the configuration has none."""
    names = config.get("id2label")
    if isinstance(names, dict) and all(str(key).isdecimal() for key in names):
        return [names[key] for key in sorted(names, key=int)]
    names = config.get("label_names")
    return names if isinstance(names, list) else []


def _deltas(folder: Path) -> list[str]:
    """The names of the deltas in a folder: the folder itself if it is a delta, else its subfolders."""
    if (folder / DELTA_CONFIG_NAME).is_file():
        return [folder.name]
    names = sorted(path.parent.name for path in folder.glob(f"*/{DELTA_CONFIG_NAME}"))
    if not names:
        raise SMDError(
            f"{folder} and its subfolders hold no {DELTA_CONFIG_NAME}: there is no delta to write a model card for. Save the "
            "deltas there first."
        )
    return names


def _delta_facts(folder: Path, names: list[str], parent_label: str) -> dict[str, Any]:
    """The values that the snippet for the first delta of a folder needs."""
    place = folder if (folder / DELTA_CONFIG_NAME).is_file() else folder / names[0]
    config = _read_json(place / DELTA_CONFIG_NAME)
    on_hub = is_hub_id(config.get("base_model"))
    revision = {"revision": config["base_revision"]} if on_hub and config.get("base_revision") else {}
    trust = {"trust_remote_code": True} if config.get("base_custom_code") else {}
    return {
        "names": names,
        "base": config["base_model"] if on_hub else parent_label,
        "base_is_on_hub": on_hub,
        "subfolder": _keywords({} if place == folder else {"subfolder": names[0]}),
        "trust": _keywords(trust),
        "loading": _keywords(revision | trust),
        "dtype": _keywords({"dtype": config["dtype"]}),
    }


def _keywords(arguments: Mapping[str, Any]) -> Markup:
    """Keyword arguments of a Python call, to follow its first argument."""
    literals = {key: python_string(value) if isinstance(value, str) else value for key, value in arguments.items()}
    return Markup("".join(f", {key}={literal}" for key, literal in literals.items()))
