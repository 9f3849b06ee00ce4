"""What the Hub says about accounts, repositories, refs and collections, and how they are made and changed."""

import hashlib
import json
import re
from datetime import UTC, datetime
from urllib.parse import parse_qs

from .api import HubApi, Request, Response, route
from .cards import check_card, front_matter
from .repository import Blob, Commit, HubError, Repository, folder_oids


def describe_file(path: str, blob: Blob, changed_in: Commit | None = None) -> dict:
    """A file in a tree listing."""
    entry = {"type": "file", "path": path, "oid": blob.oid, "size": len(blob.content)}
    entry |= {"lfs": blob.lfs} if blob.lfs else {}
    if changed_in is not None:
        entry["lastCommit"] = {"id": changed_in.sha, "title": changed_in.title, "date": changed_in.date}
    return entry


def describe_repository(repository: Repository, revision: str = "main", blobs: bool = False) -> dict:
    """What `GET /api/models/{id}` says of a repository, from its README and config.json."""
    commit = repository.resolve(revision)
    readme, config = (commit.files.get(name, Blob(b"")).content for name in ("README.md", "config.json"))
    card = front_matter(readme.decode(errors="replace"))
    tags = [tag for tag in card.get("tags") or [] if isinstance(tag, str)]
    for name, prefix in (
        ("library_name", ""),
        ("pipeline_tag", ""),
        ("license", "license:"),
        ("datasets", "dataset:"),
    ):
        values = card.get(name) or []
        tags += [f"{prefix}{value}" for value in (values if isinstance(values, list) else [values])]
    if isinstance(card.get("base_model"), str):
        relation = card.get("base_model_relation")
        tags.append(f"base_model:{card['base_model']}")
        tags += [f"base_model:{relation}:{card['base_model']}"] if relation else []
    siblings = []
    for path, blob in commit.files.items():
        sibling = {"rfilename": path}
        if blobs:
            sibling |= {"blobId": blob.oid, "size": len(blob.content)}
            sibling |= {"lfs": {**blob.lfs, "sha256": blob.sha256}} if blob.lfs else {}
        siblings.append(sibling)
    info = {
        "id": repository.repo_id,
        "author": repository.namespace,
        "sha": commit.sha,
        "lastModified": commit.date,
        "createdAt": repository.history("main")[-1].date,
        "private": repository.private,
        "gated": False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": list(dict.fromkeys(tags)),
        "cardData": json.loads(json.dumps(card, default=str)),
        "siblings": siblings,
    }
    if repository.repo_type == "model":
        info |= {"modelId": repository.repo_id}
        info |= {name: card[name] for name in ("library_name", "pipeline_tag", "model-index") if name in card}
        try:
            config = json.loads(config)
            info["config"] = {name: config[name] for name in ("architectures", "model_type") if name in config}
        except (ValueError, TypeError):
            pass
    return info


@route("GET", "/api/whoami-v2")
def whoami(hub: HubApi, request: Request) -> Response:
    user = hub.require_user(request)
    role = "write" if user.can_write else "read"
    organizations = [{"type": "org", "name": name, "roleInOrg": role} for name in user.organizations]
    token = {"type": "access_token", "accessToken": {"displayName": "loopback", "role": role}}
    body = {"type": "user", "id": user.name, "name": user.name, "fullname": user.name, "isPro": False}
    return Response({**body, "orgs": organizations, "auth": token})


@route("POST", "/api/validate-yaml")
def validate_yaml(hub: HubApi, request: Request) -> Response:
    errors, warnings = check_card(str(request.json().get("content", "")))
    lists = {
        "errors": [{"message": message} for message in errors],
        "warnings": [{"message": message} for message in warnings],
    }
    return Response(lists, 400 if errors else 200)


@route("POST", "/api/repos/create")
def create_repository(hub: HubApi, request: Request) -> Response:
    payload, user = request.json(), hub.require_user(request)
    repo_id = f"{payload.get('organization') or user.name}/{payload.get('name')}"
    repo_type = payload.get("type") or "model"
    hub.require_namespace(request, repo_id.split("/")[0])
    if not re.fullmatch(r"[\w.-]+/[\w-][\w.-]{0,95}", repo_id) or "--" in repo_id or ".." in repo_id:
        raise HubError(400, f"Invalid repo name: {repo_id}")
    key = (repo_type, repo_id)
    if key in hub.repositories:
        url = hub.web_url(hub.repositories[key])
        raise HubError(409, f"You already created this {repo_type} repo", body={"url": url})
    hub.repositories[key] = Repository(repo_id, repo_type, payload.get("visibility") == "private")
    return Response({"url": hub.web_url(hub.repositories[key]), "name": repo_id, "id": repo_id})


@route("DELETE", "/api/repos/delete")
def delete_repository(hub: HubApi, request: Request) -> Response:
    payload, user = request.json(), hub.require_user(request)
    repo_id = f"{payload.get('organization') or user.name}/{payload.get('name')}"
    repository = hub.writable(request, (payload.get("type") or "model") + "s", repo_id)
    del hub.repositories[repository.repo_type, repository.repo_id]
    return Response({})


@route("PUT", "/api/{kind}/{repo_id}/settings")
def update_settings(hub: HubApi, request: Request, kind: str, repo_id: str) -> Response:
    repository = hub.writable(request, kind, repo_id)
    repository.private = request.json().get("visibility", "private" if repository.private else "public") == "private"
    return Response({"private": repository.private})


@route("GET", "/api/{kind}/{repo_id}/auth-check(?:/write)?")
def auth_check(hub: HubApi, request: Request, kind: str, repo_id: str) -> Response:
    (hub.writable if request.path.endswith("/write") else hub.readable)(request, kind, repo_id)
    return Response({})


@route("GET", "/api/{kind}")
def list_repositories(hub: HubApi, request: Request, kind: str) -> Response:
    found = []
    for repository in hub.repositories.values():
        try:
            hub.readable(request, kind, repository.repo_id)
        except HubError:
            continue
        info = describe_repository(repository)
        if not (request.flag("full") or "siblings" in request.query.get("expand", [])):
            del info["siblings"]
        wanted = (*request.query.get("filter", []), *request.query.get("pipeline_tag", []))
        matches = (
            repository.repo_type == kind.removesuffix("s")
            and request.query.get("search", [""])[0].lower() in repository.repo_id.lower()
            and request.query.get("author", [repository.namespace])[0] == repository.namespace
            and all(tag in info["tags"] for tag in wanted)
        )
        found += [info] if matches else []
    return Response(found[: int(request.query.get("limit", ["1000"])[0])])


@route("GET", "/api/{kind}/{repo_id}/refs")
def list_refs(hub: HubApi, request: Request, kind: str, repo_id: str) -> Response:
    repository = hub.readable(request, kind, repo_id)

    def listed(refs: dict[str, str], prefix: str) -> list[dict]:
        return [{"name": name, "ref": f"{prefix}{name}", "targetCommit": sha} for name, sha in refs.items()]

    refs = {"branches": listed(repository.branches, "refs/heads/"), "tags": listed(repository.tags, "refs/tags/")}
    return Response({**refs, "converts": [], "pullRequests": listed(repository.pull_requests, "")})


@route("POST", "/api/{kind}/{repo_id}/branch/{name}")
def create_branch(hub: HubApi, request: Request, kind: str, repo_id: str, name: str) -> Response:
    repository = hub.writable(request, kind, repo_id)
    if name.startswith("refs/"):
        raise HubError(400, f"Invalid reference for a branch: {name}")
    if name in repository.branches:
        raise HubError(409, f"Reference already exists: refs/heads/{name}")
    repository.branches[name] = repository.resolve(request.json().get("startingPoint", "main")).sha
    return Response({})


@route("POST", "/api/{kind}/{repo_id}/tag/{revision}")
def create_tag(hub: HubApi, request: Request, kind: str, repo_id: str, revision: str) -> Response:
    repository, tag = hub.writable(request, kind, repo_id), request.json().get("tag")
    if tag in repository.tags:
        raise HubError(409, f"Tag reference exists already: refs/tags/{tag}")
    repository.tags[tag] = repository.resolve(revision).sha
    return Response({})


@route("DELETE", "/api/{kind}/{repo_id}/(?P<ref>branch|tag)/{name}")
def delete_ref(hub: HubApi, request: Request, kind: str, repo_id: str, ref: str, name: str) -> Response:
    repository = hub.writable(request, kind, repo_id)
    refs = repository.branches if ref == "branch" else repository.tags
    if name not in refs:
        raise HubError(404, f"Invalid rev id: {name}", "RevisionNotFound")
    if ref == "branch" and name == "main":
        raise HubError(403, "The main branch cannot be deleted")
    del refs[name]
    return Response({})


@route("GET", "/api/{kind}/{repo_id}/commits/{revision}")
def list_commits(hub: HubApi, request: Request, kind: str, repo_id: str, revision: str) -> Response:
    commits = hub.readable(request, kind, repo_id).history(revision)
    return Response(
        [
            {"id": c.sha, "title": c.title, "message": c.message, "date": c.date, "authors": [{"user": c.author}]}
            for c in commits
        ]
    )


@route("GET", "/api/{kind}/{repo_id}")
@route("GET", "/api/{kind}/{repo_id}/revision/{revision}")
def repository_info(hub: HubApi, request: Request, kind: str, repo_id: str, revision: str = "main") -> Response:
    return Response(describe_repository(hub.readable(request, kind, repo_id), revision, request.flag("blobs")))


@route("GET", "/api/{kind}/{repo_id}/tree/{revision}(?:/{path})?")
def list_tree(hub: HubApi, request: Request, kind: str, repo_id: str, revision: str, path: str = "") -> Response:
    repository = hub.readable(request, kind, repo_id)
    commit = repository.resolve(revision)
    inside, folders = f"{path}/" if path else "", folder_oids(commit.files)
    if path and path not in folders:
        raise HubError(404, f"{path} does not exist on {revision}", "EntryNotFound")
    names = [name for name in (*folders, *commit.files) if name and name.startswith(inside)]
    if not request.flag("recursive"):
        names = [name for name in names if "/" not in name[len(inside) :]]
    return Response(describe_paths(repository, commit, names, request.flag("expand")))


@route("POST", "/api/{kind}/{repo_id}/paths-info/{revision}")
def paths_info(hub: HubApi, request: Request, kind: str, repo_id: str, revision: str) -> Response:
    repository, form = hub.readable(request, kind, repo_id), parse_qs(request.body.decode())
    expand = form.get("expand", ["false"])[0].lower() == "true"
    names = [name.strip("/") for name in form.get("paths", [])]
    return Response(describe_paths(repository, repository.resolve(revision), names, expand))


def describe_paths(repository: Repository, commit: Commit, names: list[str], expand: bool) -> list[dict]:
    """Tree entries of the files and folders among `names`; names that do not exist are left out."""
    folders, entries = folder_oids(commit.files), []
    for name in names:
        if name in commit.files:
            changed_in = repository.last_change(name, commit.sha) if expand else None
            entries.append(describe_file(name, commit.files[name], changed_in))
        elif name in folders:
            entries.append({"type": "directory", "path": name, "oid": folders[name], "size": 0})
    return entries


@route("GET", "/api/collections")
def list_collections(hub: HubApi, request: Request) -> Response:
    owner = request.query.get("owner", [None])[0]
    visible = [c for c in hub.collections.values() if may_see(request, c) and owner in (None, c["owner"]["name"])]
    return Response([{name: value for name, value in c.items() if name != "position"} for c in visible])


@route("POST", "/api/collections")
def create_collection(hub: HubApi, request: Request) -> Response:
    payload = request.json()
    title, namespace = str(payload["title"]), str(payload["namespace"])
    hub.require_namespace(request, namespace)
    words = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    slug = f"{namespace}/{words}-{hashlib.sha1(f'{namespace}/{title}'.encode()).hexdigest()[:24]}"
    if slug in hub.collections:
        raise HubError(409, "This collection already exists", body={"slug": slug})
    hub.collections[slug] = {
        "slug": slug,
        "title": title,
        "description": payload.get("description"),
        "owner": {"name": namespace, "type": "user"},
        "items": [],
        "lastUpdated": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z",
        "position": 0,
        "private": bool(payload.get("private")),
        "theme": "blue",
        "upvotes": 0,
    }
    return Response(hub.collections[slug])


@route("GET", "/api/collections/{slug}")
def get_collection(hub: HubApi, request: Request, slug: str) -> Response:
    return Response(find_collection(hub, request, slug))


@route("DELETE", "/api/collections/{slug}")
def delete_collection(hub: HubApi, request: Request, slug: str) -> Response:
    collection = find_collection(hub, request, slug)
    hub.require_namespace(request, collection["owner"]["name"])
    del hub.collections[slug]
    return Response({})


@route("POST", "/api/collections/{slug}/items")
def add_collection_item(hub: HubApi, request: Request, slug: str) -> Response:
    collection, payload = find_collection(hub, request, slug), request.json()
    hub.require_namespace(request, collection["owner"]["name"])
    item_id, item_type = payload["item"]["id"], payload["item"]["type"]
    if item_type in ("model", "dataset", "space"):
        hub.readable(request, f"{item_type}s", item_id)
    if any((item["id"], item["type"]) == (item_id, item_type) for item in collection["items"]):
        raise HubError(409, "This item is in the collection already")
    name = hashlib.sha1(f"{slug} {item_type} {item_id}".encode()).hexdigest()[:24]
    item = {"_id": name, "id": item_id, "type": item_type, "position": len(collection["items"])}
    item |= {"note": {"text": payload["note"]}} if payload.get("note") else {}
    collection["items"].append(item)
    return Response(collection)


def find_collection(hub: HubApi, request: Request, slug: str) -> dict:
    """The collection, if the user may see it."""
    collection = hub.collections.get(slug)
    if collection is None or not may_see(request, collection):
        raise HubError(404, "Collection not found")
    return collection


def may_see(request: Request, collection: dict) -> bool:
    names = request.user.namespaces if request.user else ()
    return not collection["private"] or collection["owner"]["name"] in names
