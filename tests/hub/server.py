"""The loopback Hub: two HTTP servers on 127.0.0.1 (the Hub, and its storage of large files), faults on demand, a log.

with HubServer() as hub:
    hub.fail_next(r"POST .*/commit/", 500)
    subprocess.run([sys.executable, "push.py"], env=hub.environment(), check=True)
    assert "model.safetensors" in hub.files("tester/model")
"""

import json
import os
import re
import socket
import sys
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qs, urlsplit

from . import endpoints, transfer  # noqa: F401 (imported because they register the routes)
from .api import HubApi, Request, Response, User
from .repository import Commit, Repository, make_blob

Fate = int | Literal["close", "lost", "cut"] | None
TOKEN = "hf_LoopbackTokenOfTheTester"


@dataclass
class Fault:
    """What happens to the next `times` requests whose "METHOD /path?query" contains a match of `pattern`."""

    pattern: re.Pattern
    fate: Fate
    times: int
    headers: dict[str, str]
    delay: float


@dataclass(frozen=True)
class LoggedRequest:
    """One request. `path` has its query, with signatures and tokens blotted out; `status` is 0 where none was sent."""

    method: str
    path: str
    status: int
    user: str | None
    storage: bool

    def __str__(self) -> str:
        return f"{self.method} {self.path} {self.status}"


class HubServer:
    """A Hub in this process, at `hub.url`, for as long as the `with` block lasts.

    There is one account to begin with, `tester`, whose token is `hub.token`. Nothing outlives the block.
    """

    def __init__(self):
        self.requests: list[LoggedRequest] = []
        self.token = TOKEN
        self._faults: list[Fault] = []
        self._lock = threading.RLock()
        self._closing = threading.Event()

    def __enter__(self) -> "HubServer":
        self._folder = tempfile.TemporaryDirectory(prefix="loopback-hub-")
        self._servers = [_LoopbackServer(self, storage=False), _LoopbackServer(self, storage=True)]
        self.url, self.storage_url = (f"http://127.0.0.1:{server.server_port}" for server in self._servers)
        self.api = HubApi(self.url, self.storage_url)
        self.add_user("tester", TOKEN)
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._closing.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()
            server.drop_connections()
        self._folder.cleanup()

    def environment(self, token: str | None = TOKEN, home: str | os.PathLike | None = None) -> dict[str, str]:
        """Environment of a process that has this Hub for its only Hub.

        Args:
            token (`str`, *optional*, defaults to the tester's): None for a process that is not logged in.
            home (`str`, *optional*): the process's `HF_HOME`; a new, empty folder if not given, as on a fresh machine.

        Returns:
            `dict[str, str]`: the whole environment, without proxies and other settings of Hugging Face libraries.
        """
        foreign = re.compile(r"^(HF_|HUGGING_?FACE_|TRANSFORMERS_|XDG_CACHE_HOME$|.*_proxy$)", re.IGNORECASE)
        environment = {name: value for name, value in os.environ.items() if not foreign.match(name)}
        environment |= {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home or tempfile.mkdtemp(prefix="home-", dir=self._folder.name)),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
        }
        return environment | ({"HF_TOKEN": token} if token is not None else {})

    def add_user(self, name: str, token: str, can_write: bool = True, organizations: tuple[str, ...] = ()) -> User:
        """Adds an account, or a further token of one."""
        with self._lock:
            self.api.users[token] = User(name, token, can_write, organizations)
            return self.api.users[token]

    def add_repository(
        self,
        repo_id: str,
        files: Mapping[str, bytes | str] | os.PathLike,
        repo_type: str = "model",
        private: bool = False,
    ) -> Commit:
        """Makes a repository as if it had been pushed, without a client.

        Args:
            files (`Mapping` or path): contents by path in the repository, or a folder to copy.
        """
        if not isinstance(files, Mapping):
            root = Path(files)
            files = {str(p.relative_to(root).as_posix()): p.read_bytes() for p in root.rglob("*") if p.is_file()}
        contents = {name: text.encode() if isinstance(text, str) else text for name, text in files.items()}
        blobs = {path: make_blob(path, content) for path, content in contents.items()}
        with self._lock:
            repository = Repository(repo_id, repo_type, private)
            self.api.repositories[repo_type, repo_id] = repository
            return repository.commit("main", repository.resolve("main").files | blobs, "Upload")[0]

    def repository(self, repo_id: str, repo_type: str = "model") -> Repository:
        """The repository's state. Raises `KeyError` where there is none."""
        with self._lock:
            return self.api.repositories[repo_type, repo_id]

    def files(self, repo_id: str, revision: str = "main", repo_type: str = "model") -> dict[str, bytes]:
        """Contents by path, as a download would give them (.gitattributes, which the Hub itself adds, included)."""
        with self._lock:
            commit = self.repository(repo_id, repo_type).resolve(revision)
            return {path: blob.content for path, blob in commit.files.items()}

    def commits(self, repo_id: str, revision: str = "main", repo_type: str = "model") -> list[Commit]:
        """Commits newest first; the last one is the Hub's own, made at creation."""
        with self._lock:
            return self.repository(repo_id, repo_type).history(revision)

    def fail_next(
        self, pattern: str, status: Fate, times: int = 1, headers: dict[str, str] | None = None, delay: float = 0
    ) -> None:
        """Arranges that the next matching requests go wrong.

        Args:
            pattern (`str`): regular expression searched in "METHOD /path?query", e.g. `r"POST .*/commit/main"`.
            status (`int`, `str` or `None`): the HTTP status to answer; `"close"` closes the connection unanswered and
                nothing is done; `"lost"` does what was asked and then closes without an answer; `"cut"` closes half-way
                through the answer's body; `None` answers as usual (after `delay`).
            times (`int`, *optional*, defaults to 1): how many requests it befalls.
            headers (`dict`, *optional*): headers of the failure, such as `{"Retry-After": "0"}` or `X-Error-Code`.
            delay (`float`, *optional*, defaults to 0): seconds before the answer.
        """
        with self._lock:
            self._faults.append(Fault(re.compile(pattern), status, times, headers or {}, delay))

    def clear_faults(self) -> list[str]:
        """Takes back what has not happened yet, and returns the patterns of it."""
        with self._lock:
            pending = [fault.pattern.pattern for fault in self._faults]
            self._faults.clear()
            return pending

    def answer(
        self, method: str, target: str, headers: Message, body: bytes, storage: bool
    ) -> tuple[Response | None, Fate]:
        """Answers one request, in the order of arrival, with the fault that befalls it.

        Returns:
            The response, None where the connection is to be closed without one; and the fault's fate.
        """
        fault = self._take_fault(f"{method} {target}")
        if fault is not None and fault.delay:
            self._closing.wait(fault.delay)
        fate = fault.fate if fault is not None else None
        url = urlsplit(target)
        token = headers.get("authorization", "").removeprefix("Bearer ")
        with self._lock:
            user = self.api.users.get(token)
            request = Request(method, url.path, parse_qs(url.query), headers, body, user)
            if fate == "close":
                response = None
            elif isinstance(fate, int):
                response = Response({"error": f"Made to fail with {fate}"}, fate, dict(fault.headers))
            elif url.path.startswith("/storage/") != storage:
                response = Response({"error": "Not here"}, 404)
            elif token and user is None and not storage:
                message = "Invalid credentials in Authorization header"
                response = Response({"error": message}, 401, {"X-Error-Message": message})
            else:
                response = self.api.handle(request)
                response = None if fate == "lost" else response
            self._log(request, target, response.status if response else 0, storage)
        return response, fate

    def _take_fault(self, line: str) -> Fault | None:
        with self._lock:
            for fault in self._faults:
                if fault.pattern.search(line):
                    fault.times -= 1
                    if fault.times == 0:
                        self._faults.remove(fault)
                    return fault
            return None

    def _log(self, request: Request, target: str, status: int, storage: bool) -> None:
        path = re.sub(r"(signature=)\w+", r"\1***", target)
        for token in self.api.users:
            path = path.replace(token, "***")
        user = request.user.name if request.user else None
        self.requests.append(LoggedRequest(request.method, path, status, user, storage))


class _LoopbackServer(ThreadingHTTPServer):
    """One of the two origins. It knows its open connections, so that closing the Hub closes them."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, hub: HubServer, storage: bool):
        self.hub, self.storage = hub, storage
        self.connections: set[socket.socket] = set()
        super().__init__(("127.0.0.1", 0), _Handler)

    def process_request(self, request: socket.socket, client_address: tuple) -> None:
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: socket.socket) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)

    def drop_connections(self) -> None:
        for connection in list(self.connections):
            with suppress(OSError):  # where the client was faster
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: socket.socket, client_address: tuple) -> None:
        """A client that goes away in the middle of a request is no error of the Hub's; the rest is shown."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """Reads requests off one connection and writes the answers."""

    protocol_version = "HTTP/1.1"
    server_version = "LoopbackHub"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: _LoopbackServer

    def serve(self) -> None:
        body = self.read_body()
        response, fate = self.server.hub.answer(self.command, self.path, self.headers, body, self.server.storage)
        if response is None:
            self.close_connection = True
            return
        content, headers = response.body, dict(response.headers)
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
            headers["Content-Type"] = "application/json; charset=utf-8"
        headers.setdefault("Content-Type", "application/octet-stream")
        self.send_response(response.status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if fate == "cut" else content)
        self.close_connection |= fate == "cut"
        self.wfile.flush()

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = serve

    def read_body(self) -> bytes:
        """The request's body, by its length or in chunks."""
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = bytearray()
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass  # trailers
        return bytes(body)

    def log_message(self, *arguments: object) -> None:
        """Silent: `HubServer.requests` is the log."""
