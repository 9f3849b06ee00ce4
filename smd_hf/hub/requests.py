"""
Requests to the Hub: made again where that may help, and explained where it does not.

huggingface_hub repeats most requests of an upload by itself, but not those that make a repository, check a card, commit, or
make a collection. A commit whose answer was lost may have happened: to push the same files again is safe, as the Hub makes no
second commit of files that it has.
"""

import shlex
import time
from collections.abc import Callable, Mapping, Sequence
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
"""Seconds before the second try; each further wait is twice as long, unless the Hub names another time."""
LONGEST_WAIT = 60.0
PATIENCE = 180.0
"""Seconds after which no further try begins."""


Answer = TypeVar("Answer")


def persistently(request: Callable[[], Answer]) -> Answer:
    """
    The answer to a request, which is made again, after a pause, where the Hub is busy or the connection breaks.

    Args:
        request (`Callable`): safe to be made more than once.

    Raises:
        `HTTPError`: the last one, after `TRIES` tries or `PATIENCE` seconds, or at once for a refusal.
    """
    start = time.monotonic()
    for number in range(1, TRIES + 1):
        try:
            return request()
        except HTTPError as error:
            wait = _pause(error, number)
            if wait is None or number == TRIES or time.monotonic() + wait - start > PATIENCE:
                raise
            logger.warning(f"The Hub did not take a request ({_reason(error)[0]}). Next try in {wait:.0f} s.")
        time.sleep(wait)
    raise AssertionError("the last try returns or raises")


def _pause(error: HTTPError, number: int) -> float | None:
    """Seconds before the next try; `None` where none would help."""
    wait = FIRST_WAIT * 2 ** (number - 1)
    if isinstance(error, HfHubHTTPError):
        if error.response.status_code not in TRANSIENT:
            return None
        asked = _asked(error.response.headers)
        wait = wait if asked is None else asked
    return min(max(wait, 0.0), LONGEST_WAIT)


def _asked(headers: Mapping[str, str]) -> float | None:
    """The seconds that the Hub asks to wait: `Retry-After` (seconds or a date), or the end of a rate limit's window."""
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
    """What pushes a folder from a shell."""
    words = ["smd-hf", "push", str(folder), "--repo_id", repo_id]
    words += ["--private"] if private else []
    words += ["--revision", revision] if revision else []
    words += ["--create_pr"] if create_pr else []
    return shlex.join(words)


def push_error(error: BaseException, repo_id: str, commands: Sequence[str], token: str | bool | None) -> SMDError:
    """
    What to tell about a push that failed.

    Args:
        error (`BaseException`): why.
        repo_id (`str`): where to.
        commands (sequence of `str`): for all that is not there yet (see [`push_command`]).
        token (`str` or `bool`, *optional*): it is not shown.
    """
    reason, remedy = _reason(error, token)
    listed = " and ".join(f"`{command}`" for command in commands)
    return SMDError(
        f"The push to '{repo_id}' failed: {reason}. Nothing is lost: all files are where they were saved. {remedy}, then push "
        f"with {listed}"
    )


def repository_error(error: BaseException, repo_id: str, command: str, token: str | bool | None) -> SMDError:
    """What to tell about a repository that could not be made."""
    reason, remedy = _reason(error, token)
    return SMDError(
        f"The repository '{repo_id}' could not be made on the Hub: {reason}. {remedy}. Or leave push_to_hub out: the run needs "
        f"no Hub, and its folder can be pushed afterwards with `{command}`"
    )


def _reason(error: BaseException, token: str | bool | None = None) -> tuple[str, str]:
    """Why a request failed, and what to do about it."""
    text = str(error).replace(token, "***") if isinstance(token, str) and token else str(error)
    text = one_line(text) or type(error).__name__
    login = "Log in with `hf auth login`, or set HF_TOKEN, with a token that may write there"
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
            return f"the Hub answers with status {status} ({text})", "Mend that"
        case HTTPError() | ConnectionError() | TimeoutError():
            return f"the Hub cannot be reached, or breaks the connection ({text})", "Check the network"
        case HFValidationError():
            return f"that is no name of a repository ({text})", "Choose one like 'user/name'"
        case RuntimeError() if isinstance(error.__cause__, HTTPError):  # how huggingface_hub reports an upload
            return _reason(error.__cause__, token)
    return f"{type(error).__name__}: {text}", "Mend that"
