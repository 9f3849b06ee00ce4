"""
Requests to the Hub: repeats them if that may help, and explains their errors.

huggingface_hub repeats most requests of an upload, but not the requests that create a repository, check a card, commit or
create a collection. If the response to a commit is lost, the commit may have succeeded. Pushing the same files again is safe,
because the Hub makes no second commit for files that it already has.
"""

import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # of httpx, or of httpx2 from huggingface_hub 2 on
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RevisionNotFoundError,
)
from huggingface_hub.utils import parse_ratelimit_headers
from transformers.utils import logging

from ..errors import SMDError
from ..messages import one_line
from ..models.loading_errors import TRANSIENT

logger = logging.get_logger(__name__)

TRIES = 5
FIRST_WAIT = 1.0
"""Seconds before the second try. Each further wait is twice as long, unless the Hub asks for another time."""
LONGEST_WAIT = 60.0
PATIENCE = 180.0
"""Seconds after which no new try starts."""


Answer = TypeVar("Answer")


def persistently(request: Callable[[], Answer]) -> Answer:
    """
    Makes a request, and repeats it after a pause if the Hub is busy or the connection breaks.

    Args:
        request (`Callable`): must be safe to repeat.

    Raises:
        `HTTPError`: the last error, after `TRIES` tries or `PATIENCE` seconds, or at once if the Hub refuses the request.
    """
    start = time.monotonic()
    for number in range(1, TRIES + 1):
        try:
            return request()
        except HTTPError as error:
            wait = _pause(error, number)
            if wait is None or number == TRIES or time.monotonic() + wait - start > PATIENCE:
                raise
            logger.warning(f"A request to the Hub failed ({_reason(error)[0]}). Next try in {wait:.0f} s.")
        time.sleep(wait)
    raise AssertionError("the last try returns or raises")


def _pause(error: HTTPError, number: int) -> float | None:
    """Seconds before the next try; `None` if another try would not help."""
    wait = FIRST_WAIT * 2 ** (number - 1)
    if isinstance(error, HfHubHTTPError):
        if error.response.status_code not in TRANSIENT:
            return None
        requested = _requested_wait(error.response.headers)
        wait = wait if requested is None else requested
    return min(max(wait, 0.0), LONGEST_WAIT)


def _requested_wait(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait as the Hub requests: `Retry-After` (seconds or a date), or the end of a rate limit's window."""
    text = headers.get("retry-after", "").strip()
    if text.isdecimal():
        return float(text)
    try:
        return (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds()
    except (TypeError, ValueError):
        limit = parse_ratelimit_headers(headers)
        return float(limit.reset_in_seconds) if limit is not None and not limit.remaining else None


def push_command(
    folder: Any, repo_id: str, *, private: bool | None = None, revision: str | None = None, create_pr: bool = False
) -> str:
    """The shell command that pushes a folder."""
    words = ["smd-hf", "push", str(folder), "--repo_id", repo_id]
    words += ["--private"] if private else []
    words += ["--revision", revision] if revision else []
    words += ["--create_pr"] if create_pr else []
    return shlex.join(words)


def push_error(error: BaseException, repo_id: str, commands: Sequence[str], token: str | bool | None) -> SMDError:
    """Explains why a push failed and how to repeat it."""
    reason, remedy = _reason(error, token)
    listed = " and ".join(f"`{command}`" for command in commands)
    return SMDError(
        f"The push to '{repo_id}' failed: {reason}. Nothing is lost: all files are saved on this machine. {remedy}, then push "
        f"with {listed}"
    )


@contextmanager
def explained_push(repo_id: str, commands: Sequence[str], token: str | bool | None) -> Iterator[None]:
    """Turns any error of a push within the context into a [`push_error`]."""
    try:
        yield
    except SMDError:
        raise
    # The exceptions of a broken connection depend on the HTTP library of huggingface_hub.
    except Exception as error:
        raise push_error(error, repo_id, commands, token) from error


def repository_error(error: BaseException, repo_id: str, command: str, token: str | bool | None) -> SMDError:
    """Explains why a repository could not be created."""
    reason, remedy = _reason(error, token)
    return SMDError(
        f"The repository '{repo_id}' could not be created on the Hub: {reason}. {remedy}. Or leave push_to_hub out: the run "
        f"does not need the Hub, and you can push its folder afterwards with `{command}`"
    )


def _reason(error: BaseException, token: str | bool | None = None) -> tuple[str, str]:
    """The reason of a failed request, and the remedy."""
    text = str(error).replace(token, "***") if isinstance(token, str) and token else str(error)
    text = one_line(text) or type(error).__name__
    login = "Log in with `hf auth login`, or set HF_TOKEN, with a token that has write access"
    match error:
        case OfflineModeIsEnabled():
            return "HF_HUB_OFFLINE forbids requests to the Hub", "Unset it"
        case LocalTokenNotFoundError():
            return "there is no token", login
        case RevisionNotFoundError():
            return text, "Check the name of the branch"
        case HfHubHTTPError():
            status = error.response.status_code
            if status in (401, 403, 404):
                return f"the Hub refuses it with status {status} ({text})", login
            if status in TRANSIENT:
                return f"the Hub answers with status {status} ({text})", "Wait a while"
            return f"the Hub answers with status {status} ({text})", "Fix that"
        case HTTPError() | ConnectionError() | TimeoutError():
            return f"the Hub cannot be reached, or breaks the connection ({text})", "Check the network"
        case HFValidationError():
            return f"that is not a valid repository name ({text})", "Choose a name like 'user/name'"
        case RuntimeError() if isinstance(error.__cause__, HTTPError):  # how huggingface_hub reports an upload
            return _reason(error.__cause__, token)
    return f"{type(error).__name__}: {text}", "Fix that"
