"""Errors of loading a checkpoint as one paragraph, with names that the user may have meant."""

import os
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import httpx

from ..messages import one_line


def explain_loading_error(name: str, error: BaseException, what: str, source: dict[str, Any]) -> str:
    """One paragraph about a failed load, without the token."""
    causes = tuple(_causes(error))

    def caused_by(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    local = os.path.isdir(name)
    if caused_by(GatedRepoError):
        return (
            f"'{name}' is a gated model, and access was refused. Accept its conditions on its page of the Hub, then log in "
            "with `hf auth login` or pass --token (in Python: token=...) with a token of that account."
        )
    if caused_by(RevisionNotFoundError):
        return (
            f"'{name}' has no revision '{source['revision']}'. Expected a branch, a tag or a commit of that repository: "
            "check the name on its page of the Hub, or leave the revision out."
        )
    if not local and caused_by(RepositoryNotFoundError, HFValidationError):
        token = "the token that was given" if source["token"] else "no token given"
        return (
            f"There is no folder '{name}', and no model of that name on the Hub that is visible with {token}."
            f"{similar_names(name)} Expected a model id such as 'google/vit-base-patch16-224' or the path of a "
            "checkpoint's folder: check the spelling, and for a private model pass --token (in Python: token=...)."
        )
    fault = hub_fault(error)
    if fault is not None:
        return (
            f"The {what} '{name}' could not be loaded: {fault}. The name is not the problem: wait a while, check the network, "
            "and try again. Downloaded files are in the cache and are not fetched again."
        )
    if caused_by(OfflineModeIsEnabled, LocalEntryNotFoundError) or (not local and caused_by(ConnectionError)):
        return (
            f"There is no folder '{name}', and the Hub could not be reached to look for a model of that name, nor is it in "
            f"the cache.{similar_names(name)} Check the spelling and the network connection (and HF_HUB_OFFLINE, which "
            "forbids downloads), or give the path of a checkpoint's folder."
        )
    if isinstance(error, ValueError) and "trust_remote_code" in str(error):
        return (
            f"The {what} of '{name}' is defined in Python files, which would run on this machine, and this was not "
            "allowed. Read those files first; if you trust them, pass --trust_remote_code (in Python: "
            "trust_remote_code=True)."
        )
    if what == "image processor":
        return (
            f"No image processor could be loaded from '{name}' ({_first_line(error, source)}). Expected a "
            "preprocessor_config.json next to the weights, which says how images are resized and normalised: save the "
            "processor of the original model there (`AutoImageProcessor.from_pretrained(original).save_pretrained(folder)`) "
            "or pass an image processor as `processing_class`."
        )
    if caused_by(HfHubHTTPError):
        return (
            f"The Hub refused or failed to send '{name}' ({_first_line(error, source)}). Try again; for a private model "
            "pass --token (in Python: token=...)."
        )
    return (
        f"The checkpoint '{name}' could not be loaded ({type(error).__name__}: {_first_line(error, source)}). Expected "
        "config.json and model.safetensors of one image classifier, as `save_pretrained` writes them: check the files, or "
        "download or save them again."
    )


def hub_fault(error: BaseException) -> str | None:
    """
    How the Hub failed to answer, if waiting may help; `None` if it answered or was never reached.

    The client has then repeated the request with growing waits, unless the connection broke.
    """
    for cause in _causes(error):
        if isinstance(cause, HfHubHTTPError) and cause.response.status_code in TRANSIENT:
            return f"the Hub answers with status {cause.response.status_code}, also after retries"
        # A failure to connect suggests a wrong setting, which the caller explains.
        if isinstance(cause, httpx.TransportError) and not isinstance(cause, httpx.ConnectError):
            return f"the connection to the Hub breaks off or times out ({type(cause).__name__})"
    return None


def similar_names(name: str) -> str:
    """A sentence with a leading space about folders and timm models with similar names; empty if there are none."""
    found = list(
        dict.fromkeys([*_similar_folders(name), *_similar_timm_models(name), *similar_in_cache(name, "model")])
    )
    return f" Similar names: {', '.join(found)}." if found else ""


def _similar_folders(name: str) -> list[str]:
    path = Path(name).expanduser()
    try:
        folders = [entry.name for entry in path.parent.iterdir() if (entry / "config.json").is_file()]
    except OSError:
        return []
    return [str(path.parent / match) for match in get_close_matches(path.name, folders, n=3)]


def similar_in_cache(name: str, kind: str) -> list[str]:
    """Ids of repositories that were downloaded before, with a similar name. `kind` is `"model"` or `"dataset"`."""
    try:
        folders = [path.name for path in Path(constants.HF_HUB_CACHE).glob(f"{kind}s--*")]
    except OSError:
        return []
    ids = [folder.removeprefix(f"{kind}s--").replace("--", "/") for folder in folders]
    return [each for each in get_close_matches(name, ids, n=3, cutoff=0.75) if each != name]


def _similar_timm_models(name: str) -> list[str]:
    owner, _, model = name.rpartition("/")
    if owner not in ("", "timm"):
        return []
    return [f"timm/{match}" for match in get_close_matches(model, timm.list_pretrained(), n=3, cutoff=0.75)]


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _first_line(error: BaseException, source: dict[str, Any]) -> str:
    """The first line of a library's message, short, without the token and without control characters."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    line = lines[0].strip().rstrip(".")
    if isinstance(source["token"], str) and source["token"]:
        line = line.replace(source["token"], "***")
    return one_line(line, 240)


# Timeouts, conflicts of simultaneous pushes, too many requests, and server errors.
TRANSIENT = (408, 409, 412, 429, 500, 502, 503, 504)
