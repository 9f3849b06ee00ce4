"""How files reach the Hub and leave it: preupload, LFS, commit, resolve.

Large files are put to and fetched from the storage origin by signed addresses. As on the real Hub a request that carries
a token as well is refused there: a client that sends tokens to another origin fails a test instead of passing it.
"""

import base64
import binascii
import hashlib
import hmac
import json
import re
import secrets
from pathlib import PurePosixPath

from .api import HubApi, Request, Response, route
from .cards import check_card
from .repository import Blob, Commit, HubError, Repository, is_large

SIGNING_KEY = secrets.token_bytes(16)


def storage_address(hub: HubApi, oid: str, method: str) -> str:
    """A signed address of a large file: good for one method and one file."""
    return f"{hub.storage_url}/storage/{oid}?signature={sign(oid, method)}"


def sign(oid: str, method: str) -> str:
    return hmac.new(SIGNING_KEY, f"{method} {oid}".encode(), "sha256").hexdigest()


def check_signature(request: Request, oid: str, method: str) -> None:
    if "authorization" in request.headers:
        raise HubError(400, "Only one auth mechanism allowed")
    if not hmac.compare_digest(request.query.get("signature", [""])[0], sign(oid, method)):
        raise HubError(403, "SignatureDoesNotMatch")


@route("POST", "/api/{kind}/{repo_id}/preupload/{revision}")
def preupload(hub: HubApi, request: Request, kind: str, repo_id: str, revision: str) -> Response:
    repository = writable_or_open_to_proposals(hub, request, kind, repo_id)
    present = repository.resolve(revision).files
    files = []
    for file in request.json().get("files", []):
        path = file["path"]
        large = is_large(path, file["size"], base64.b64decode(file["sample"]))
        entry = {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
        files.append(entry | ({"oid": present[path].etag} if path in present else {}))
    return Response({"files": files})


@route("POST", "/{prefix}{repo_id}\\.git/info/lfs/objects/batch")
def lfs_batch(hub: HubApi, request: Request, repo_id: str, kind: str = "models") -> Response:
    hub.require_user(request)
    hub.readable(request, kind, repo_id)
    payload, objects = request.json(), []
    if payload.get("operation") != "upload" or payload.get("hash_algo", "sha256") != "sha256":
        raise HubError(422, "Only uploads with SHA-256 are known here")
    for wanted in payload.get("objects", []):
        entry = {"oid": wanted["oid"], "size": wanted["size"]}
        if wanted["oid"] not in hub.lfs_objects:
            verify = f"{hub.url}{request.path.removesuffix('batch')}verify"
            upload = {"href": storage_address(hub, wanted["oid"], "PUT")}
            entry["actions"] = {"upload": upload, "verify": {"href": verify}}
        objects.append(entry)
    return Response({"transfer": "basic", "objects": objects})


@route("POST", "/{prefix}{repo_id}\\.git/info/lfs/objects/verify")
def lfs_verify(hub: HubApi, request: Request, repo_id: str, kind: str = "models") -> Response:
    hub.require_user(request)
    hub.readable(request, kind, repo_id)
    wanted = request.json()
    if len(hub.lfs_objects.get(wanted.get("oid", ""), b"")) != wanted.get("size"):
        raise HubError(404, "The object was not uploaded, or has another size")
    return Response({})


@route("PUT", "/storage/(?P<oid>[0-9a-f]{64})")
def put_object(hub: HubApi, request: Request, oid: str) -> Response:
    check_signature(request, oid, "PUT")
    if hashlib.sha256(request.body).hexdigest() != oid:
        raise HubError(400, "The content does not have the SHA-256 that was announced")
    hub.lfs_objects[oid] = request.body
    return Response(headers={"ETag": f'"{oid}"'})


@route("GET", "/storage/(?P<oid>[0-9a-f]{64})")
def get_object(hub: HubApi, request: Request, oid: str) -> Response:
    check_signature(request, oid, "GET")
    if oid not in hub.lfs_objects:
        raise HubError(404, "NoSuchKey")
    return ranged(request, hub.lfs_objects[oid], {"ETag": f'"{oid}"'})


@route("POST", "/api/{kind}/{repo_id}/commit/{revision}")
def create_commit(hub: HubApi, request: Request, kind: str, repo_id: str, revision: str) -> Response:
    repository = writable_or_open_to_proposals(hub, request, kind, repo_id)
    try:
        lines = [json.loads(line) for line in request.body.split(b"\n") if line.strip()]
        operations = [(line["key"], line["value"]) for line in lines]
    except (ValueError, KeyError, TypeError) as error:
        raise HubError(400, f"Invalid NDJSON: {error}") from error
    if not operations or operations[0][0] != "header" or not operations[0][1].get("summary"):
        raise HubError(400, "The first line must be a header with a summary")
    header, head = operations[0][1], repository.resolve(revision)
    if not head.sha.startswith(header.get("parentCommit") or ""):
        raise HubError(412, "A commit has happened since. Please refresh and try again.")
    files = changed_files(hub, head, operations[1:])
    commit, number = repository.commit(
        revision,
        files,
        header["summary"],
        header.get("description", ""),
        hub.require_user(request).name,
        request.flag("create_pr"),
    )
    page = hub.web_url(repository)
    body = {"success": True, "commitOid": commit.sha, "commitUrl": f"{page}/commit/{commit.sha}", "hookOutput": ""}
    return Response(body | ({"pullRequestUrl": f"{page}/discussions/{number}"} if number else {}))


def changed_files(hub: HubApi, head: Commit, operations: list[tuple[str, dict]]) -> dict[str, Blob]:
    """The tree after all operations, or an error before any of them counts."""
    files = dict(head.files)
    for key, value in operations:
        path = checked_path(value.get("path", ""))
        if key == "file":
            try:
                content = base64.b64decode(value["content"], validate=True)
            except (KeyError, binascii.Error) as error:
                raise HubError(400, f"{path}: content must be base64") from error
            files[path] = Blob(content)
        elif key == "lfsFile":
            content = hub.lfs_objects.get(value.get("oid", ""))
            if content is None or len(content) != value.get("size", len(content)):
                raise HubError(400, f"{path}: the LFS object was not uploaded, or has another size")
            files[path] = Blob(content, value["oid"])
        elif key in ("deletedFile", "deletedFolder"):
            gone = [name for name in files if name == path or (key == "deletedFolder" and name.startswith(f"{path}/"))]
            if not gone:
                raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
            for name in gone:
                del files[name]
        else:
            raise HubError(400, f"Unknown operation {key!r}")
    for path in files:
        if any(str(folder) in files for folder in PurePosixPath(path).parents):
            raise HubError(400, f"{path}: a file lies where a folder is needed")
    readme = files.get("README.md")
    errors = check_card(readme.content.decode(errors="replace"))[0] if readme else []
    if errors:
        raise HubError(400, "Invalid metadata in README.md: " + "; ".join(errors))
    return files


def checked_path(path: str) -> str:
    """A path inside the repository, without a trailing slash; anything that could lead out of it is refused."""
    path = path.removesuffix("/")
    if (
        not path
        or any(part in ("", ".", "..", ".git") for part in path.split("/"))
        or re.search(r"[\x00-\x1f\\]", path)
    ):
        raise HubError(400, f"Invalid path in repo: {path!r}")
    return path


@route("GET", "/{prefix}{repo_id}/resolve/{revision}/{path}")
def resolve(hub: HubApi, request: Request, repo_id: str, revision: str, path: str, kind: str = "models") -> Response:
    commit = hub.readable(request, kind, repo_id).resolve(revision)
    headers = {"X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes"}
    if path not in commit.files:
        raise HubError(404, "Entry not found", "EntryNotFound", headers=headers)
    blob = commit.files[path]
    if blob.sha256 is None:
        return ranged(request, blob.content, headers | {"ETag": f'"{blob.etag}"'})
    headers |= {"X-Linked-Size": str(len(blob.content)), "X-Linked-ETag": f'"{blob.etag}"'}
    hub.lfs_objects.setdefault(blob.sha256, blob.content)
    return Response(b"", 302, headers | {"Location": storage_address(hub, blob.sha256, "GET")})


@route("GET", "/{prefix}{repo_id}/raw/{revision}/{path}")
def raw(hub: HubApi, request: Request, repo_id: str, revision: str, path: str, kind: str = "models") -> Response:
    commit = hub.readable(request, kind, repo_id).resolve(revision)
    if path not in commit.files:
        raise HubError(404, "Entry not found", "EntryNotFound")
    return Response(commit.files[path].pointer)


def ranged(request: Request, content: bytes, headers: dict[str, str]) -> Response:
    """The content, or the part of it that the request's `Range` asks for."""
    wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("range", ""))
    if wanted is None or wanted[0] == "bytes=-":
        return Response(content, 200, headers)
    size = len(content)
    first = int(wanted[1]) if wanted[1] else max(0, size - int(wanted[2]))
    last = min(int(wanted[2]), size - 1) if wanted[1] and wanted[2] else size - 1
    if first > last:
        raise HubError(416, "Range Not Satisfiable", headers={"Content-Range": f"bytes */{size}"})
    return Response(content[first : last + 1], 206, headers | {"Content-Range": f"bytes {first}-{last}/{size}"})


def writable_or_open_to_proposals(hub: HubApi, request: Request, kind: str, repo_id: str) -> Repository:
    """The repository if the user may write to it, or may read it and proposes a pull request."""
    if request.flag("create_pr"):
        hub.require_user(request)
        return hub.readable(request, kind, repo_id)
    return hub.writable(request, kind, repo_id)
