"""Collects the files of a Space, and pushes it."""

import shutil
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo

from ...artifacts.first_parent import PARENT_FOLDER
from ...errors import SMDError
from ...files import read_json_object, write_json, write_text
from ...models.tasks import CLASSIFIER
from ...reports.cards.model_card import EXAMPLE_NAME, PLOTS
from ...reports.gain_report import REPORT_NAME, installed_version
from ...run.records import CHILDREN_NAME
from ..requests import explained_push, persistently
from ..staging import delta_folders, model_files, saved_kind, stage_model
from ..upload import hub_api, staging_folder

APP = Path(__file__).parent / "app.py"
REQUIRED = ("gradio", "matplotlib", "timm", "torch", "torchvision", "transformers")
CARD = """---
title: {title}
emoji: 🧬
colorFrom: indigo
colorTo: green
sdk: gradio
sdk_version: {gradio}
app_file: app.py
pinned: false
tags:
- smd_hf
- {task}
{models}---

# {title}

Give an image, and see what the parent, the evolved model and the members of its ensemble predict. The report compares them on test
images that chose nothing.

Made by `smd-hf push RUN --space`.
"""


TASKS = (
    CLASSIFIER.pipeline_tag,
    "image-segmentation",
    "object-detection",
    "depth-estimation",
    "zero-shot-image-classification",
)
"""Whose predictions the page shows."""


def page_task(folder: Path) -> tuple[str, dict[str, Any]]:
    """
    The task of a run, by its name on the Hub, and what its pipeline takes beside an image.

    Raises:
        `SMDError`: for a task whose results no page shows.
    """
    report = read_json_object(folder / REPORT_NAME) or {}
    task = report.get("task", CLASSIFIER.pipeline_tag)
    if task not in TASKS:
        raise SMDError(
            f"'{folder}' is a run of {task}, and the page shows {', '.join(TASKS)}. The run's numbers: smd-hf inspect {folder}. Its plots "
            "and its card are in the folder."
        )
    return task, report.get("zero_shot", {})


def page_models(folder: Path, parent: str | None = None) -> list[dict[str, Any]]:
    """
    The models that a page shows: parent, evolved model and ensemble, as far as there are any.

    Args:
        folder (`Path`): the `output_dir` of a run.
        parent (`str`, *optional*): id or folder of the parent. Defaults to what the run's files say, if that can be found.

    Returns:
        list of `dict`: with `title`, and a `folder` (`Path`) or a `repo_id`.
    """
    found: list[dict[str, Any]] = []
    if parent is None:
        report = read_json_object(folder / REPORT_NAME) or {}
        name = str(report.get("parent_name", ""))
        if (folder / PARENT_FOLDER / "config.json").is_file():
            found.append({"title": "parent", "folder": folder / PARENT_FOLDER})
        elif name.count("/") == 1:
            found.append({"title": "parent", "repo_id": name})
    elif Path(parent).expanduser().is_dir():
        found.append({"title": "parent", "folder": Path(parent).expanduser()})
    else:
        found.append({"title": "parent", "repo_id": parent})
    for title, place in (("evolved", folder), ("ensemble", folder / "ensemble")):
        # The configuration of a model is written last.
        if (place / "config.json").is_file():
            found.append({"title": title, "folder": place})
    return found


def stage_space(folder: Path, staged: Path, title: str, parent: str | None = None) -> None:
    """
    Writes the files of a Space into a folder.

    Args:
        folder (`Path`): the `output_dir` of a finished run.

    Raises:
        `SMDError`: if the folder holds no evolved model, or the files of a model are incomplete.
    """
    task, options = page_task(folder)
    if saved_kind(folder) == "delta" or delta_folders(folder):
        raise SMDError(
            f"'{folder}' holds deltas, and a Space shows whole models. Expected the output_dir of a run or an ensemble."
        )
    models = []
    for entry in page_models(folder, parent):
        if "folder" in entry:
            place = f"models/{entry['title']}"
            model_files(entry["folder"])
            (staged / place).mkdir(parents=True)
            stage_model(entry["folder"], staged / place)
            entry = {**entry, "folder": place}
        models.append(entry)
    for name in (REPORT_NAME, CHILDREN_NAME, EXAMPLE_NAME, *PLOTS):
        # The ensemble's own plot is in its folder.
        source = next((path for path in (folder / name, folder / "ensemble" / name) if path.is_file()), None)
        if source is not None:
            shutil.copyfile(source, staged / name)
    shutil.copyfile(APP, staged / "app.py")
    write_json(staged / "space.json", {"title": title, "models": models, "task": task, "options": options})
    write_text(
        staged / "requirements.txt", "".join(f"{name}{_pinned(name)}\n" for name in REQUIRED if name != "gradio")
    )
    ids = [entry["repo_id"] for entry in models if "repo_id" in entry]
    listed = "models:\n" + "".join(f"- {each}\n" for each in ids) if ids else ""
    text = CARD.format(title=title, gradio=_release("gradio") or "6.0.0", models=listed, task=task)
    write_text(staged / "README.md", text)


def push_space(
    folder: str | Path,
    space_id: str,
    *,
    parent: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    commit_message: str | None = None,
) -> CommitInfo:
    """
    Pushes a Gradio Space for a run: page, models, report and plots, as one commit.

    Args:
        folder (`str` or `Path`): the `output_dir` of a finished run, or an ensemble.
        space_id (`str`): `user/name`; created if it does not exist.

    Raises:
        `SMDError`: as for [`~smd_hf.hub.upload.push_folder`].
    """
    folder, api = Path(folder).expanduser(), hub_api(token)
    saved_kind(folder)  # says what is missing, before a Space is created
    command = f"smd-hf push {folder} --space {space_id}" + (f" --parent {parent}" if parent else "")
    with explained_push(space_id, [command], token), staging_folder(folder) as temporary:
        staged = Path(temporary, "space")
        staged.mkdir()
        stage_space(folder, staged, space_id.rpartition("/")[2], parent)
        make = partial(
            api.create_repo, space_id, repo_type="space", space_sdk="gradio", private=private, exist_ok=True
        )
        repo_id = persistently(make).repo_id
        upload = partial(
            api.upload_folder,
            repo_id=repo_id,
            repo_type="space",
            folder_path=staged,
            commit_message=commit_message or "Upload the page of a run of smd_hf",
            delete_patterns=["models/*", *PLOTS],
        )
        return persistently(upload)


def _pinned(package: str) -> str:
    version = _release(package)
    return f"=={version}" if version else ""


def _release(package: str) -> str | None:
    """The installed version, without the part that names a build."""
    version = installed_version(package)
    return None if version is None else version.partition("+")[0]
