"""The Hub's state, and the way from a [`Request`] to a [`Response`] over it.

Handlers register themselves with [`route`]: `endpoints.py` describes, `transfer.py` moves files. No sockets here.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote

from .repository import HubError, Repository

ROUTES: list[tuple[str, re.Pattern, Callable]] = []
WORDS = {
    "kind": r"(?P<kind>models|datasets|spaces)",
    "prefix": r"(?:(?P<kind>datasets|spaces)/)?",
    "repo_id": r"(?P<repo_id>[^/]+(?:/[^/]+)?)",
    "revision": r"(?P<revision>[^/]+)",
    "path": r"(?P<path>.+)",
    "slug": r"(?P<slug>[^/]+/[^/]+)",
    "name": r"(?P<name>[^/]+)",
}


@dataclass(frozen=True)
class User:
    """Whom a token stands for. `can_write=False` is a read-only token."""

    name: str
    token: str = field(repr=False)
    can_write: bool = True
    organizations: tuple[str, ...] = ()

    @property
    def namespaces(self) -> tuple[str, ...]:
        return (self.name, *self.organizations)


@dataclass(frozen=True)
class Request:
    """A request as the handlers see it: `path` still percent-encoded, `user` already known by the token."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: Mapping[str, str]
    body: bytes = field(repr=False)
    user: User | None

    def json(self) -> dict:
        """The body as a JSON object."""
        try:
            value = json.loads(self.body)
        except ValueError as error:
            raise HubError(400, f"Invalid JSON: {error}") from error
        if not isinstance(value, dict):
            raise HubError(400, "Invalid JSON: expected an object")
        return value

    def flag(self, name: str) -> bool:
        """Whether a query parameter is there and true."""
        return self.query.get(name, ["0"])[0].lower() in ("1", "true")


@dataclass
class Response:
    """An answer: JSON where `body` is a list or dict, bytes as they are."""

    body: object = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


def route(method: str, pattern: str) -> Callable:
    """Registers a handler for `method` and a path in which `{kind}`, `{repo_id}`, ... stand for segments.

    What an optional segment captures is passed only where it is there: the handler has the default.
    """
    compiled = re.compile(re.sub(r"\{(\w+)\}", lambda word: WORDS.get(word[1], word[0]), pattern))

    def register(handler: Callable) -> Callable:
        ROUTES.append((method, compiled, handler))
        return handler

    return register


class HubApi:
    """All that the Hub knows, and who may see it. Calls of [`handle`] must not overlap: the server holds a lock.

    Args:
        url (`str`): where the Hub answers.
        storage_url (`str`): where large files are put and fetched: another origin, as on the real Hub.
    """

    def __init__(self, url: str, storage_url: str):
        self.url, self.storage_url = url, storage_url
        self.users: dict[str, User] = {}
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.lfs_objects: dict[str, bytes] = {}
        self.collections: dict[str, dict] = {}

    def handle(self, request: Request) -> Response:
        """Answers one request; a refusal is an answer too."""
        try:
            for method, pattern, handler in ROUTES:
                match = pattern.fullmatch(request.path)
                if match and method == ("GET" if request.method == "HEAD" else request.method):
                    words = {name: unquote(word) for name, word in match.groupdict().items() if word is not None}
                    return handler(self, request, **words)
            raise HubError(404, f"The loopback Hub does not know {request.method} {request.path}")
        except HubError as error:
            headers = {"X-Error-Message": error.message.replace("\n", " ")}
            headers |= {"X-Error-Code": error.code} if error.code else {}
            headers |= error.headers
            return Response({"error": error.message, **error.body}, error.status, headers)

    def readable(self, request: Request, kind: str, repo_id: str) -> Repository:
        """The repository, if the user may know that it exists: a private one looks missing to everyone else."""
        repository = self.repositories.get((kind.removesuffix("s"), repo_id))
        names = request.user.namespaces if request.user else ()
        if repository is None or (repository.private and repository.namespace not in names):
            raise HubError(404 if request.user else 401, "Repository not found", "RepoNotFound")
        return repository

    def writable(self, request: Request, kind: str, repo_id: str) -> Repository:
        """The repository, if the user may change it."""
        repository = self.readable(request, kind, repo_id)
        self.require_namespace(request, repository.namespace)
        return repository

    def require_namespace(self, request: Request, namespace: str) -> User:
        """The user, if the token may write under `namespace`."""
        user = self.require_user(request)
        if not user.can_write or namespace not in user.namespaces:
            raise HubError(403, f"You don't have the rights to write under the namespace {namespace}")
        return user

    def require_user(self, request: Request) -> User:
        if request.user is None:
            raise HubError(401, "Invalid username or password.")
        return request.user

    def web_url(self, repository: Repository) -> str:
        """The repository's page."""
        prefix = "" if repository.repo_type == "model" else f"{repository.repo_type}s/"
        return f"{self.url}/{prefix}{repository.repo_id}"
