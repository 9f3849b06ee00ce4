"""
Results on benchmarks of the Hub, in the form in which it lists them: `.eval_results/*.yaml` in the model's repository.

A data set on the Hub is a benchmark if it holds an `eval.yaml` with tasks, each on one split. A result is written only for a
task of that file, and only if the model was measured on all images of its split, which chose nothing. So no id is made up.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from transformers.utils import logging

from ...messages import one_line
from ..gain_report import metrics_of_report
from .metadata import is_hub_id
from .text import plain_line

logger = logging.get_logger(__name__)

RESULTS_PATH = ".eval_results/smd_hf.yaml"

_TASKS_NAME = "eval.yaml"
_MAX_CHARACTERS = 2**20


def benchmark_task(data: Mapping[str, Any], token: str | bool | None = None) -> dict[str, str] | None:
    """
    The benchmark's task that the test images are.

    Args:
        data (`Mapping`): the entry `data` of the report, with `name`, `config` and `revision` of the data set and, for the test
            images, `split`, `whole_split` and `used_to_choose`.

    Returns:
        `dict` or `None`: `dataset_id`, `task_id` and, if known, `dataset_revision`. `None` if the data set is no benchmark, if no
        task of it or more than one is on this split, or if its `eval.yaml` cannot be read: a run must not fail because of it.
    """
    test = data["test"]
    if not is_hub_id(data.get("name")) or not test.get("whole_split") or test["used_to_choose"]:
        return None
    name, revision = data["name"], data.get("revision")
    try:
        path = hf_hub_download(name, _TASKS_NAME, repo_type="dataset", revision=revision, token=token)
        text = Path(path).read_text(encoding="utf-8")
        tasks = yaml.safe_load(text)["tasks"] if len(text) <= _MAX_CHARACTERS else []
        found = [
            task["id"]
            for task in tasks
            if isinstance(task["id"], str)
            and (task.get("config", "default"), task.get("split", "test")) == (data.get("config"), test.get("split"))
        ]
    except EntryNotFoundError:  # no benchmark, as most data sets
        return None
    except Exception as error:  # a foreign file: network, Hub and YAML may raise anything
        logger.warning(
            f"The tasks of the data set {name} as a benchmark could not be read ({one_line(str(error))}): no entry for its "
            "leaderboard is written."
        )
        return None
    if len(found) != 1:
        return None
    known = {"dataset_id": name, "task_id": found[0]}
    return known | ({"dataset_revision": revision} if revision else {})


def benchmark_results(kind: str, report: Mapping[str, Any], repo_id: str) -> str | None:
    """
    The content of `.eval_results/smd_hf.yaml` for a model's repository.

    Args:
        kind (`str`): `"child"`, `"ensemble"`, or `"delta"`, which has no entry: it is no model by itself.

    Returns:
        `str` or `None`: YAML with one entry, whose value is the first metric of the card, on the report's own scale.
    """
    task = report["data"].get("benchmark")
    scores = {"child": report.get("evolved"), "ensemble": report.get("ensemble")}.get(kind)
    if task is None or scores is None:
        return None
    metric = next(iter(metrics_of_report(report)), None)
    if metric is None or scores.get(metric.key) is None:
        return None
    scale = ", from 0 to 1" if metric.factor == 100 else ""
    entry = EvalResultEntry(
        **task,
        value=scores[metric.key],
        source_url=f"https://huggingface.co/{repo_id}/blob/main/gain_report.json",
        source_name="Gain report",
        notes=plain_line(f"{metric.name}{scale}; {scores['n_test']} images"),
    )
    return yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False, allow_unicode=True)
